//! The hub's routes: what a repository holds, what is known of a file, its bytes.

use std::time::Duration;

use serde_json::Value;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, Uri};
use ureq::{Agent, Body};

use super::faults::Fault;
use super::name::{RepoKind, is_commit};
use super::settings::Hub;
use super::{RepoName, SINGLE};
use crate::error::{Error, Result};
use crate::net::tls;

const MOST_REDIRECTS: usize = 5;
/// Tries of a request for a few bytes: without a network, nobody wants to wait for more.
const FIRST_TRIES: u32 = 3;

pub(super) struct Client<'a> {
    pub(super) hub: &'a Hub,
    pub(super) name: &'a RepoName,
    agent: Agent,
}

/// A repository at a revision.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

/// What the hub says of a file before its bytes.
pub(super) struct FileInfo {
    /// Where its bytes are asked for.
    pub(super) url: String,
    /// Name of its blob; the SHA-256 of the bytes when it is 64 digits long.
    pub(super) etag: String,
    pub(super) size: u64,
}

#[derive(Clone, Copy)]
enum Method {
    Head,
    Get,
}

impl<'a> Client<'a> {
    /// # Errors
    /// When SSL_CERT_FILE names no file with certificates.
    pub(super) fn new(hub: &'a Hub, name: &'a RepoName) -> Result<Self> {
        let config = Agent::config_builder()
            .tls_config(tls()?)
            .user_agent(concat!("rlvr/", env!("CARGO_PKG_VERSION")))
            .http_status_as_error(false)
            // The token is for the hub alone: a file's bytes come from another host by a signed address.
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(30)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            .build();
        Ok(Self { hub, name, agent: config.new_agent() })
    }

    /// Asks for the revision's commit and files, trying again while the hub cannot be reached.
    pub(super) fn listing(&self) -> std::result::Result<Listing, Fault> {
        let revision = self.name.revision().replace('/', "%2F");
        let kind = if self.name.kind() == RepoKind::Dataset { "datasets" } else { "models" };
        let url = format!("{}/api/{kind}/{}/revision/{revision}", self.hub.endpoint, self.name.id());
        let text = self.again(|| {
            // A renamed repository answers with a redirect on the hub itself, which wants the token again.
            let (mut response, _) = self.on_the_hub(Method::Get, &url)?;
            response.body_mut().read_to_string().map_err(|e| self.passing(format!("broke off ({e})")))
        })?;
        let json: Value = serde_json::from_str(&text).unwrap_or_default();
        let commit = json["sha"].as_str().filter(|commit| is_commit(commit));
        let (Some(commit), Some(files)) = (commit, json["siblings"].as_array()) else {
            let fix = "Check that HF_ENDPOINT is the address of a hub";
            return Err(Error::input(url, "the answer names no commit and files", fix).into());
        };
        let files = files.iter().filter_map(|file| file["rfilename"].as_str().map(Into::into)).collect();
        Ok(Listing { commit: commit.into(), files })
    }

    /// Size and ETag of a file.
    pub(super) fn file_info(&self, commit: &str, file: &str) -> Result<FileInfo> {
        let url = self.page(&format!("/resolve/{commit}/{}", escaped(file)));
        self.again(|| self.file_info_once(&url, file)).map_err(Into::into)
    }

    fn file_info_once(&self, url: &str, file: &str) -> std::result::Result<FileInfo, Fault> {
        let (response, url) = self.on_the_hub(Method::Head, url)?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag"));
        let etag = etag.map(|etag| etag.trim_start_matches("W/").trim_matches('"'));
        let etag = etag.filter(|etag| {
            !etag.is_empty() && etag.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
        });
        let size = header("x-linked-size").or_else(|| header("content-length"));
        let size = size.and_then(|size| size.parse().ok());
        match (etag, size) {
            (Some(etag), Some(size)) => Ok(FileInfo { url, etag: etag.into(), size }),
            _ => {
                let fix = "Check that HF_ENDPOINT is the address of a hub";
                Err(Error::input(file, format!("{url} states no ETag and size"), fix).into())
            }
        }
    }

    /// The bytes of a file from `start` on; whether the server heeded `start`.
    pub(super) fn bytes(
        &self,
        info: &FileInfo,
        start: u64,
    ) -> std::result::Result<(Response<Body>, bool), Fault> {
        let mut request = self.agent.get(&info.url);
        if let Some(token) = &self.hub.token {
            request = request.header("Authorization", format!("Bearer {}", token.value));
        }
        if start > 0 {
            request = request.header("Range", format!("bytes={start}-"));
        }
        let response = self.checked(request.call(), &info.url)?;
        if response.status().as_u16() != 206 {
            return Ok((response, false));
        }
        let range = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let from = range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next());
        match from {
            Some(from) if from == start.to_string() => Ok((response, true)),
            _ => Err(self.passing(format!("answered bytes {start} on with the range {range:?}"))),
        }
    }

    /// Follows redirects that stay on the hub, with the token; another host's address is not followed.
    fn on_the_hub(&self, method: Method, url: &str) -> std::result::Result<(Response<Body>, String), Fault> {
        let mut url = url.to_string();
        for _ in 0..MOST_REDIRECTS {
            let request = match method {
                Method::Head => self.agent.head(&url),
                Method::Get => self.agent.get(&url),
            };
            let mut request = request.config().max_redirects(0).max_redirects_will_error(false).build();
            if let Some(token) = &self.hub.token {
                request = request.header("Authorization", format!("Bearer {}", token.value));
            }
            let response = self.checked(request.call(), &url)?;
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            match location
                .filter(|_| response.status().is_redirection())
                .and_then(|to| on_same_host(&url, to))
            {
                Some(next) => url = next,
                None => return Ok((response, url)),
            }
        }
        Err(self.passing(format!("redirects {url} in a circle")))
    }

    /// Tries again, with longer and longer waits, while the fault may pass.
    pub(super) fn again<T>(
        &self,
        mut attempt: impl FnMut() -> std::result::Result<T, Fault>,
    ) -> std::result::Result<T, Fault> {
        let mut tries = 1;
        loop {
            match attempt() {
                Err(fault) if fault.is_passing() && tries < self.hub.tries.min(FIRST_TRIES) => {
                    self.pause(tries)
                }
                other => return other,
            }
            tries += 1;
        }
    }

    /// Waits after the `tries`-th failure in a row.
    pub(super) fn pause(&self, tries: u32) {
        std::thread::sleep(self.hub.wait * 2u32.pow((tries - 1).min(5)));
    }

    /// `what` is a clause without the hub as its subject.
    pub(super) fn passing(&self, what: String) -> Fault {
        Fault::Passing { what: format!("the hub {what}"), endpoint: self.hub.endpoint.clone() }
    }

    fn checked(
        &self,
        answer: std::result::Result<Response<Body>, ureq::Error>,
        url: &str,
    ) -> std::result::Result<Response<Body>, Fault> {
        let response = answer.map_err(|error| self.passing(format!("cannot be reached ({error})")))?;
        let status = response.status();
        if status.is_success() || status.is_redirection() {
            return Ok(response);
        }
        let code = response.headers().get("x-error-code").and_then(|value| value.to_str().ok());
        let (problem, fix) = match (status.as_u16(), code.unwrap_or_default()) {
            (429 | 500..=599, _) => return Err(self.passing(format!("answered {status}"))),
            (_, "GatedRepo") => self.gated(),
            (_, "RevisionNotFound") => (
                format!("has no revision {:?}", self.name.revision()),
                format!("Take a branch, tag or commit listed at {}", self.page("/commits/main")),
            ),
            (_, "EntryNotFound") => {
                (format!("{url} is not there"), "Fetch again: the repository has changed".into())
            }
            (_, "DisabledRepo") => {
                ("has been disabled by the hub".into(), "Choose another repository".into())
            }
            (401, "") if self.hub.token.is_some() => {
                let origin = self.hub.token.as_ref().map_or("", |token| &token.origin);
                let fix = format!("Make a new one at {}/settings/tokens and set HF_TOKEN", self.hub.endpoint);
                (format!("the hub does not accept the token of {origin}"), fix)
            }
            (401 | 403 | 404, _) => self.not_found(),
            (status, code) => {
                let fix = "Check HF_ENDPOINT".to_string();
                (format!("{url} answered {status} {code}"), fix)
            }
        };
        Err(Error::input(self.name, problem, fix).into())
    }

    fn gated(&self) -> (String, String) {
        let page = self.page("");
        match &self.hub.token {
            None => (
                "is gated: the hub wants to know who asks".into(),
                format!(
                    "Accept its licence at {page}, then set HF_TOKEN to a token of {}/settings/tokens",
                    self.hub.endpoint
                ),
            ),
            Some(token) => (
                format!("is gated, and the account of the token in {} has no access", token.origin),
                format!(
                    "Accept its licence at {page} with that account (a fine-grained token also needs the right to \
                         read gated repositories)"
                ),
            ),
        }
    }

    fn not_found(&self) -> (String, String) {
        let no_repository = match self.name.kind() {
            RepoKind::Model => "there is no such folder here and no such repository",
            RepoKind::Dataset => "there is no such data set",
        };
        let problem = format!("{no_repository} on {}", self.hub.endpoint);
        let fix = match &self.hub.token {
            None => "Check the spelling; if it is private, set HF_TOKEN".into(),
            Some(token) => {
                format!("Check the spelling; if it is private, the token in {} has no access", token.origin)
            }
        };
        (problem, fix)
    }

    pub(super) fn no_safetensors(&self, files: &[String]) -> Error {
        let other = |ending: &str| files.iter().any(|file| file.ends_with(ending));
        let fix = if other(".gguf") {
            "Download one of its .gguf files and convert it with `rlvr import`"
        } else if other(".bin") || other(".pth") {
            "It has PyTorch pickles only: save it from transformers with safe_serialization, or choose another"
        } else {
            "Choose a repository with safetensors weights"
        };
        Error::input(self.name, format!("has no {SINGLE}, whole or in shards"), fix)
    }

    fn page(&self, rest: &str) -> String {
        let section = if self.name.kind() == RepoKind::Dataset { "datasets/" } else { "" };
        format!("{}/{section}{}{rest}", self.hub.endpoint, self.name.id())
    }
}

/// A file's name as an address has it.
fn escaped(file: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    file.bytes().map(byte).collect()
}

/// The address that a redirect from `url` leads to, if scheme, host and port stay the same.
fn on_same_host(url: &str, location: &str) -> Option<String> {
    let from: Uri = url.parse().ok()?;
    let to: Uri = location.parse().ok()?;
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let stays = match to.authority() {
        None => location.starts_with('/'),
        Some(other) => other == authority && to.scheme_str() == Some(scheme),
    };
    stays.then(|| format!("{scheme}://{authority}{}", to.path_and_query().map_or("/", |path| path.as_str())))
}
