//! A run of the demo that is over in a moment, to be stopped, killed and gone on with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use super::runs::rows;

pub struct Small {
    sets: Vec<String>,
}

impl Small {
    pub fn new(root: &Path, more: &[&str]) -> Self {
        let small = [
            "device=cpu",
            "threads=2",
            "data.synthetic.sft_rows=64",
            "data.synthetic.grpo_rows=64",
            "data.synthetic.valid_rows=8",
            "sft.rows_per_step=4",
            "sft.steps=4",
            "grpo.steps=3",
            "grpo.prompts_per_step=2",
            "grpo.group_size=4",
            "eval.every_steps=2",
            "model.random.hidden_size=32",
            "model.random.intermediate_size=48",
            "model.random.attention_heads=2",
            "model.random.key_value_heads=1",
        ];
        let root = format!("run.root={}", root.display());
        let sets = small.iter().chain(more).copied().chain([root.as_str()]).map(String::from).collect();
        Self { sets }
    }

    /// `rlvr train demo --resume auto`, with a signal at a visit.
    pub fn train(&self, name: &str, signal: Option<(u32, u64)>) -> Output {
        self.command(name, signal).output().unwrap()
    }

    pub fn command(&self, name: &str, signal: Option<(u32, u64)>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        command.args(["train", "demo", "--resume", "auto", "--set", &format!("run.name={name}")]);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        if let Some((signal, visit)) = signal {
            command.env("RLVR_SIGNAL_AT", format!("{signal}:{visit}"));
        }
        command
    }

    /// Visits of a whole run, which it makes.
    pub fn visits(&self, name: &str) -> u64 {
        let output = self.train(name, Some((0, 0)));
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        let line = said.lines().find_map(|line| line.strip_prefix("visits: ")).unwrap();
        line.parse().unwrap()
    }
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a run leaves that is no matter of time.
pub fn left(run: &Path) -> (Vec<Value>, Vec<(PathBuf, Vec<u8>)>) {
    let mut metrics = rows(&run.join("metrics.jsonl"));
    for event in &mut metrics {
        event.as_object_mut().unwrap().retain(|key, _| {
            !(key.starts_with("time/")
                || key.starts_with("memory/")
                || matches!(key.as_str(), "step_time" | "tokens_per_second"))
        });
    }
    let mut files = Vec::new();
    for folder in ["model", "model-last", "adapter", "samples"] {
        let Ok(entries) = std::fs::read_dir(run.join(folder)) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            // The config of an adapter names a folder of its own run.
            if !path.ends_with("adapter_config.json") {
                files.push((path.strip_prefix(run).unwrap().into(), std::fs::read(&path).unwrap()));
            }
        }
    }
    files.sort();
    (metrics, files)
}

/// A generator for places and faults that a seed draws.
pub struct Draw(pub u64);

impl Draw {
    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end.max(1)
    }
}

/// The steps that are in the metrics of a run.
pub fn steps(run: &Path) -> usize {
    let Ok(text) = std::fs::read_to_string(run.join("metrics.jsonl")) else { return 0 };
    text.lines().filter(|line| line.starts_with(r#"{"event":"step""#)).count()
}
