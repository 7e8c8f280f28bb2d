//! A hub on this machine, a client of it, and the real binary with both.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use hf_hub::Cache;
use rlvr::hub::{Hub, Progress};
use tempfile::TempDir;

use super::hub_server::Server;

/// Hears nothing but the notes.
#[derive(Default)]
pub struct Notes(pub Vec<String>);

impl Progress for Notes {
    fn file(&mut self, _: &str, _: u64, _: u64) {}
    fn at(&mut self, _: u64) {}
    fn done(&mut self) {}
    fn note(&mut self, text: &str) {
        self.0.push(text.into());
    }
}

/// A hub with one repository, and a cache of our own.
pub struct HubPlace {
    pub server: Server,
    pub home: TempDir,
}

impl HubPlace {
    /// A repository of a model.
    pub fn of_model(id: &'static str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { server: Server::start(id, files), home: tempfile::tempdir().unwrap() }
    }

    pub fn of_data(id: &'static str, files: BTreeMap<String, Vec<u8>>) -> Self {
        Self { server: Server::of_data(id, files), home: tempfile::tempdir().unwrap() }
    }

    pub fn hub(&self) -> Hub {
        Hub {
            endpoint: self.server.endpoint(),
            cache: Cache::new(self.home.path().join("hub")),
            token: None,
            offline: false,
            tries: 3,
            wait: Duration::ZERO,
        }
    }

    /// Exit code, stdout and stderr of the program with its cache and hub here.
    pub fn rlvr(&self, words: &[&str], more: &[(&str, &str)]) -> (Option<i32>, String, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        for name in ["HF_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "SSL_CERT_FILE"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", self.server.endpoint());
        command.envs(more.iter().copied()).args(words).current_dir(self.home.path());
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }
}
