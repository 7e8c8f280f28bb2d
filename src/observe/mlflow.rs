//! A run's numbers for an MLflow server, by its REST interface (mlflow.org, version 2.0 of the routes).
//!
//! They wait in memory and a thread of its own sends them: training never waits for the server, but for [`PATIENCE`] at its end. A
//! server that is away is asked again; what it refuses is left out. Metrics are named as in TensorBoard's file.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde_json::{Value, json};
use ureq::Agent;

use super::tensorboard::tagged;
use super::{Event, Sink};
use crate::disk;
use crate::error::{Error, Result};
use crate::net::tls;
use crate::stop;

/// What the server takes at once: numbers, and keys of a config.
const METRICS_AT_ONCE: usize = 1000;
const PARAMS_AT_ONCE: usize = 100;
/// Longest value of a key that every version of the server takes, in bytes.
const PARAM_BYTES: usize = 500;
/// Numbers that wait for a server that is away; the oldest are dropped then.
const MOST_WAITING: usize = 200_000;
/// How long the end of a run waits for what was not sent.
const PATIENCE: Duration = Duration::from_secs(5);
/// Failures in a row after which a server that is away is warned of.
const SAID_AFTER: u32 = 3;
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Says in the run's folder which run of the server it is.
pub const NOTE: &str = "mlflow.json";

/// The sink behind `run.mlflow`.
pub struct MlFlow {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// Steps of the stages before the present one.
    before: u64,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Value>,
    dropped: usize,
    /// Why something was not taken, until it was said.
    fault: Option<String>,
    /// How the run ended, and until when the thread goes on.
    end: Option<(&'static str, Instant)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who asks the server.
struct Client {
    agent: Agent,
    address: String,
    authorization: Option<String>,
}

enum Fault {
    /// The server may take it later.
    Passing(String),
    Refused(String),
}

/// What the thread makes of itself on the server.
struct Run {
    experiment: String,
    name: String,
    params: BTreeMap<String, String>,
    note: PathBuf,
}

impl MlFlow {
    /// `address`: such as `http://127.0.0.1:5000`. `folder`: the run's, which has the run's id on the server, so that a resumed run goes on
    /// there. `params`: keys and values as TOML writes them; of a value, no more than the server takes.
    ///
    /// # Errors
    /// SSL_CERT_FILE names no file with certificates. A server that is away is no error.
    pub fn new(
        address: &str,
        experiment: &str,
        name: &str,
        folder: &Path,
        params: BTreeMap<String, String>,
    ) -> Result<Self> {
        let agent = Agent::config_builder()
            .tls_config(tls()?)
            .user_agent(concat!("rlvr/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_connect(Some(Duration::from_secs(3)))
            .timeout_global(Some(PATIENCE))
            .build();
        let client = Client {
            agent: agent.new_agent(),
            address: address.trim_end_matches('/').into(),
            authorization: authorization(),
        };
        let run = Run { experiment: experiment.into(), name: name.into(), params, note: folder.join(NOTE) };
        let shared = Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() });
        let of_thread = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("mlflow".into()).spawn(move || send(&client, &run, &of_thread));
        let thread = thread.map_err(Error::io(folder, "start a thread for run.mlflow"))?;
        Ok(Self { shared, thread: Some(thread), before: 0 })
    }

    fn end(&mut self, status: &'static str) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.state().end = Some((status, Instant::now() + PATIENCE));
        self.shared.changed.notify_all();
        // A thread that panicked has sent what it has sent.
        let _ = thread.join();
    }
}

impl Sink for MlFlow {
    fn name(&self) -> &str {
        "MLflow"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        let (prefix, step, metrics) = match event {
            Event::StageStarted { before, .. } => {
                self.before = *before;
                return Ok(());
            }
            Event::Step { stage, step, metrics } => (stage.as_str(), *step, metrics),
            Event::Evaluation { step, metrics, .. } => ("eval", *step, metrics),
            Event::Finished { .. } => {
                self.end("FINISHED");
                let state = self.shared.state();
                let lost = state.waiting.len() + state.dropped;
                return match lost {
                    0 => Ok(()),
                    lost => Err(refused(&format!("{lost} numbers were not taken"))),
                };
            }
            _ => return Ok(()),
        };
        let now = milliseconds();
        let step = self.before + step;
        let mut state = self.shared.state();
        state.waiting.extend(
            tagged(prefix, metrics).map(
                |(key, value)| json!({"key": named(&key), "value": number(value), "step": step, "timestamp": now}),
            ),
        );
        while state.waiting.len() > MOST_WAITING {
            state.waiting.pop_front();
            state.dropped += 1;
        }
        self.shared.changed.notify_all();
        match state.fault.take() {
            Some(fault) => Err(refused(&fault)),
            None => Ok(()),
        }
    }
}

impl Drop for MlFlow {
    fn drop(&mut self) {
        self.end(if stop::is_asked() { "KILLED" } else { "FAILED" });
    }
}

fn refused(problem: &str) -> Error {
    Error::input("run.mlflow", problem, "metrics.jsonl has every number")
}

/// The thread: makes the run on the server, and sends until it has ended.
fn send(client: &Client, run: &Run, shared: &Shared) {
    let mut id = None;
    let mut failures = 0u32;
    loop {
        let (batch, end) = next_batch(shared, id.is_some(), failures);
        let out_of_time = end.is_some_and(|(_, until)| Instant::now() >= until);
        if out_of_time || (batch.is_empty() && id.is_some() && end.is_some()) {
            put_back(&mut shared.state(), batch);
            if let (Some(id), Some((status, _))) = (&id, end) {
                let update = json!({"run_id": id, "status": status, "end_time": milliseconds()});
                // The run's numbers are there, or it was said that they are not.
                let _ = client.post("runs/update", &update);
            }
            return;
        }
        let sent = match &id {
            None => run.begin(client).map(|begun| id = Some(begun)),
            Some(id) => client.post("runs/log-batch", &json!({"run_id": id, "metrics": batch})).map(drop),
        };
        let mut state = shared.state();
        match sent {
            Ok(()) => failures = 0,
            Err(Fault::Passing(problem)) => {
                failures += 1;
                if failures == SAID_AFTER {
                    state.fault = Some(problem);
                }
                put_back(&mut state, batch);
            }
            Err(Fault::Refused(problem)) => {
                state.fault = Some(problem);
                state.dropped += batch.len();
                if id.is_none() {
                    // Nothing can be sent without a run there.
                    return;
                }
            }
        }
    }
}

/// What is to be sent next, once there is something, the pause after so many failures is over, or the run has ended.
fn next_batch(shared: &Shared, begun: bool, failures: u32) -> (Vec<Value>, Option<(&'static str, Instant)>) {
    let pause = match failures {
        0 => Duration::ZERO,
        failures => LONGEST_PAUSE.min(Duration::from_secs(1 << failures.min(6).saturating_sub(1))),
    };
    let from = Instant::now() + pause;
    let mut state = shared.state();
    loop {
        let wait = from.saturating_duration_since(Instant::now());
        // At the end, once a moment: it is soon over.
        let wait = if state.end.is_some() { wait.min(Duration::from_millis(200)) } else { wait };
        if wait.is_zero() && (!begun || !state.waiting.is_empty() || state.end.is_some()) {
            break;
        }
        let woken = match wait.is_zero() {
            true => shared.changed.wait(state).map_err(PoisonError::into_inner),
            false => {
                shared.changed.wait_timeout(state, wait).map(|(state, _)| state).map_err(|e| e.into_inner().0)
            }
        };
        state = woken.unwrap_or_else(|state| state);
        if state.end.is_some() && !wait.is_zero() {
            break;
        }
    }
    let count = if begun { state.waiting.len().min(METRICS_AT_ONCE) } else { 0 };
    (state.waiting.drain(..count).collect(), state.end)
}

/// What was not sent comes first again.
fn put_back(state: &mut State, batch: Vec<Value>) {
    batch.into_iter().rev().for_each(|value| state.waiting.push_front(value));
}

impl Run {
    /// The id of the run on the server: that of the note, or a new one with the config.
    fn begin(&self, client: &Client) -> std::result::Result<String, Fault> {
        let noted =
            std::fs::read(&self.note).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let earlier = noted.filter(|note| note["address"] == client.address.as_str());
        if let Some(id) = earlier.as_ref().and_then(|note| note["run_id"].as_str()) {
            match client.post("runs/update", &json!({"run_id": id, "status": "RUNNING"})) {
                Ok(_) => return Ok(id.into()),
                Err(Fault::Passing(problem)) => return Err(Fault::Passing(problem)),
                // It was removed there.
                Err(Fault::Refused(_)) => {}
            }
        }
        let experiment = self.experiment(client)?;
        let made = client.post(
            "runs/create",
            &json!({
                "experiment_id": experiment, "run_name": self.name, "start_time": milliseconds(),
                "tags": [{"key": "mlflow.source.name", "value": "rlvr"}, {"key": "mlflow.source.type", "value": "LOCAL"}],
            }),
        )?;
        let id = text(&made["run"]["info"]["run_id"], "runs/create")?;
        let params =
            self.params.iter().map(|(key, value)| json!({"key": key, "value": cut(value.trim_matches('"'))}));
        for part in params.collect::<Vec<_>>().chunks(PARAMS_AT_ONCE) {
            client.post("runs/log-batch", &json!({"run_id": id, "params": part}))?;
        }
        let note = json!({"address": client.address, "experiment_id": experiment, "run_id": id});
        // Without it a resumed run begins another one there.
        let _ = disk::create_aside(&self.note).and_then(|(aside, _)| {
            std::fs::write(&aside, note.to_string())?;
            std::fs::rename(aside, &self.note)
        });
        Ok(id)
    }

    fn experiment(&self, client: &Client) -> std::result::Result<String, Fault> {
        match client.get("experiments/get-by-name", "experiment_name", &self.experiment) {
            Ok(found) => text(&found["experiment"]["experiment_id"], "experiments/get-by-name"),
            Err(Fault::Refused(problem)) if problem.contains("RESOURCE_DOES_NOT_EXIST") => {
                let made = client.post("experiments/create", &json!({"name": self.experiment}))?;
                text(&made["experiment_id"], "experiments/create")
            }
            Err(fault) => Err(fault),
        }
    }
}

impl Client {
    fn route(&self, route: &str) -> String {
        format!("{}/api/2.0/mlflow/{route}", self.address)
    }

    fn post(&self, route: &str, body: &Value) -> std::result::Result<Value, Fault> {
        let mut request = self.agent.post(self.route(route)).header("Content-Type", "application/json");
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        self.ask(route, request.send(body.to_string()))
    }

    fn get(&self, route: &str, key: &str, value: &str) -> std::result::Result<Value, Fault> {
        let mut request = self.agent.get(self.route(route)).query(key, value);
        if let Some(authorization) = &self.authorization {
            request = request.header("Authorization", authorization);
        }
        self.ask(route, request.call())
    }

    fn ask(
        &self,
        route: &str,
        answer: std::result::Result<ureq::http::Response<ureq::Body>, ureq::Error>,
    ) -> std::result::Result<Value, Fault> {
        let at = &self.address;
        let mut answer = answer.map_err(|e| Fault::Passing(format!("{at} cannot be reached ({e})")))?;
        let status = answer.status().as_u16();
        let body = answer.body_mut().read_to_string();
        let body = body.map_err(|e| Fault::Passing(format!("{at} broke off ({e})")))?;
        let json: Option<Value> = serde_json::from_str(&body).ok();
        match (status, json) {
            (200, Some(json)) => Ok(json),
            (200, None) => {
                Err(Fault::Refused(format!("{at} answers {route} with no JSON: it is no MLflow server")))
            }
            (429 | 500.., _) => Err(Fault::Passing(format!("{at} answers {route} with {status}"))),
            (status, json) => {
                let said = json.map_or(String::new(), |json| {
                    let part = |key: &str| {
                        json[key].as_str().unwrap_or_default().chars().take(200).collect::<String>()
                    };
                    format!(" {} {}", part("error_code"), part("message"))
                });
                Err(Fault::Refused(format!("{at} answers {route} with {status}{said}")))
            }
        }
    }
}

fn text(value: &Value, route: &str) -> std::result::Result<String, Fault> {
    let unknown = || Fault::Refused(format!("the answer to {route} is of an unknown form"));
    value.as_str().map(Into::into).ok_or_else(unknown)
}

/// The header by the environment variables of MLflow's own clients.
fn authorization() -> Option<String> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    match (set("MLFLOW_TRACKING_USERNAME"), set("MLFLOW_TRACKING_TOKEN")) {
        (Some(user), _) => {
            let both = format!("{user}:{}", set("MLFLOW_TRACKING_PASSWORD").unwrap_or_default());
            Some(format!("Basic {}", BASE64_STANDARD.encode(both)))
        }
        (None, Some(token)) => Some(format!("Bearer {token}")),
        (None, None) => None,
    }
}

/// As MLflow reads it: JSON has no word for what is not finite.
fn number(value: f64) -> Value {
    match value {
        f64::INFINITY => json!("Infinity"),
        f64::NEG_INFINITY => json!("-Infinity"),
        value if value.is_nan() => json!("NaN"),
        value => json!(value),
    }
}

/// A name with what the server takes in one; it would refuse a whole batch for another character.
fn named(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() || "_-. /:".contains(c) { c } else { '_' }).collect()
}

/// What the server takes of a value.
fn cut(value: &str) -> &str {
    let mut end = value.len().min(PARAM_BYTES);
    while !value.is_char_boundary(end) {
        end -= 1;
    }
    &value[..end]
}

/// Since 1970.
fn milliseconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_in_a_name_keeps_what_the_server_takes() {
        assert_eq!(named("eval/verdict/f1/Père (new)"), "eval/verdict/f1/P_re _new_");
    }

    #[test]
    fn a_long_value_is_cut_between_characters() {
        let long = "é".repeat(300);
        assert_eq!(cut(&long).len(), 500);
        assert_eq!(cut(&format!("a{long}")).len(), 499);
    }
}
