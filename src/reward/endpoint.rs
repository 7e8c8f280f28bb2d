//! A reward by POST: retries, bounds, and no redirects.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ureq::http::HeaderValue;
use ureq::{Agent, Body, http::Response};

use super::Fault;
use super::question::{Answer, Question, read, shortened};
use crate::error::{Error, Result};
use crate::net::tls;
use crate::task::HttpReward;

/// Bytes of an answer.
const MOST_BYTES: u64 = 1 << 16;
/// Between two tries, unless the server names a time.
const MOST_WAIT: Duration = Duration::from_secs(60);
/// A server that wants to be left alone for longer is given up.
const MOST_RETRY_AFTER: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(50);

const FIX: &str =
    "Have it answer 200 and {\"id\": ID, \"reward\": NUMBER} with the id that came (docs/rewards.md)";

pub(super) struct Endpoint {
    agent: Agent,
    url: String,
    headers: Vec<(String, HeaderValue)>,
    tries: u32,
    wait: Duration,
}

/// What a try came to.
enum Tried {
    Answer(Answer),
    /// It may pass; the server may have said when.
    Passing(String, Option<Duration>),
    Fault(Fault),
}

impl Endpoint {
    /// `place`: the reward's key.
    ///
    /// # Errors
    /// A header's variable is not set, or has what no header may have; SSL_CERT_FILE names no certificates.
    pub(super) fn new(spec: &HttpReward, place: &str) -> Result<Self> {
        let header = |(name, variable): (&String, &String)| {
            let at = format!("{place}.http.headers_from_env");
            let fix = format!("Set {variable} to the whole value of the header {name}");
            let value = std::env::var(variable).ok().filter(|value| !value.is_empty());
            let Some(value) = value else {
                return Err(Error::input(at, format!("the environment has no {variable}"), fix));
            };
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| Error::input(at, format!("{variable} has what no header may have"), fix))?;
            value.set_sensitive(true);
            Ok((name.clone(), value))
        };
        let agent = Agent::config_builder()
            .tls_config(tls()?)
            .user_agent(concat!("rlvr/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_global(Some(spec.timeout))
            .build();
        Ok(Self {
            agent: agent.new_agent(),
            url: spec.url.clone(),
            headers: spec.headers.iter().map(header).collect::<Result<_>>()?,
            tries: spec.tries,
            wait: spec.wait,
        })
    }

    pub(super) fn ask(
        &self,
        question: &Question,
        cancelled: &AtomicBool,
    ) -> std::result::Result<Answer, Fault> {
        let mut tries = 1;
        loop {
            let (what, after) = match self.once(question) {
                Tried::Answer(answer) => return Ok(answer),
                Tried::Fault(fault) => return Err(fault),
                Tried::Passing(what, after) => (what, after),
            };
            let fix = "See that it is up and reachable, or raise tries, wait_seconds or timeout_seconds";
            let doubled = self.wait.saturating_mul(1 << (tries - 1).min(16)).min(MOST_WAIT);
            let wait = after.unwrap_or(doubled);
            if tries >= self.tries || wait > MOST_RETRY_AFTER || cancelled.load(Ordering::Relaxed) {
                let when = after
                    .map_or(String::new(), |after| format!(", and to come back after {} s", after.as_secs()));
                let problem = format!("{} {what}{when}, {tries} of {} tries", self.url, self.tries);
                return Err(Fault { problem, fix: fix.into() });
            }
            pause(wait, cancelled);
            tries += 1;
        }
    }

    fn once(&self, question: &Question) -> Tried {
        let mut request = self.agent.post(&self.url).header("Content-Type", "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value.clone());
        }
        let response = match request.send(question.line.trim_end()) {
            Ok(response) => response,
            Err(error) => return self.broken(&error),
        };
        self.heard(response, question)
    }

    fn broken(&self, error: &ureq::Error) -> Tried {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::Tls(_) => {
                let problem = format!("{} cannot be asked: {error}", self.url);
                Tried::Fault(Fault { problem, fix: "Correct the address".into() })
            }
            ureq::Error::BodyExceedsLimit(_) => {
                let problem = format!("{} answered with more than {MOST_BYTES} bytes", self.url);
                Tried::Fault(Fault { problem, fix: FIX.into() })
            }
            ureq::Error::Timeout(_) => {
                Tried::Passing("did not answer in time (timeout_seconds)".into(), None)
            }
            other => Tried::Passing(format!("did not answer ({other})"), None),
        }
    }

    fn heard(&self, mut response: Response<Body>, question: &Question) -> Tried {
        let status = response.status();
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        if status.is_redirection() {
            let to = header("location").map_or(String::new(), |to| format!(" to {}", shortened(to)));
            let problem = format!("{} redirects{to} ({status}), and rows are sent nowhere else", self.url);
            return Tried::Fault(Fault { problem, fix: "Give the address that answers".into() });
        }
        if status.as_u16() == 429 || status.is_server_error() {
            let after =
                header("retry-after").and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
            return Tried::Passing(format!("answered {status}"), after);
        }
        if !status.is_success() {
            let problem = format!("{} answered {status}", self.url);
            return Tried::Fault(Fault { problem, fix: FIX.into() });
        }
        let text = match response.body_mut().with_config().limit(MOST_BYTES).read_to_string() {
            Ok(text) => text,
            Err(error) => return self.broken(&error),
        };
        let fault = |problem: String| {
            Tried::Fault(Fault { problem: format!("{}: {problem}", self.url), fix: FIX.into() })
        };
        match read(&text) {
            Ok((id, answer)) if id == question.id => Tried::Answer(answer),
            Ok((id, _)) => {
                fault(format!("it answered to `{}`, and was asked `{}`", shortened(&id), question.id))
            }
            Err((_, problem)) => fault(problem),
        }
    }
}

fn pause(time: Duration, cancelled: &AtomicBool) {
    let begun = Instant::now();
    while begun.elapsed() < time && !cancelled.load(Ordering::Relaxed) {
        std::thread::sleep(time.saturating_sub(begun.elapsed()).min(LOOK));
    }
}
