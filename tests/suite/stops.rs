//! Runs that are stopped or killed anywhere, and go on: bit for bit what an unbroken run is, and no step lost to a stop.
//!
//! `RLVR_SIGNAL_AT=SIGNAL:VISIT` (src/main.rs) sends the binary a signal at a visit of `rlvr::stop`: a layer of a pass, a decode step,
//! a step of a checkpoint's write. `RLVR_STOPS=50` tries that many of each kind instead of a few.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::runs::rows;
use crate::support::seed;

const TERM: u32 = 15;
const KILL: u32 = 9;

/// A run of the small demo whose stops are looked for.
struct Small {
    sets: Vec<String>,
}

impl Small {
    fn new(root: &Path, more: &[&str]) -> Self {
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
    fn train(&self, name: &str, signal: Option<(u32, u64)>) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        command.args(["train", "demo", "--resume", "auto", "--set", &format!("run.name={name}")]);
        for set in &self.sets {
            command.args(["--set", set]);
        }
        if let Some((signal, visit)) = signal {
            command.env("RLVR_SIGNAL_AT", format!("{signal}:{visit}"));
        }
        command.output().unwrap()
    }

    /// Visits of a whole run, which it makes.
    fn visits(&self, name: &str) -> u64 {
        let output = self.train(name, Some((0, 0)));
        let said = said(&output);
        assert!(output.status.success(), "{said}");
        let line = said.lines().find_map(|line| line.strip_prefix("visits: ")).unwrap();
        line.parse().unwrap()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a run leaves that is no matter of time.
fn left(run: &Path) -> (Vec<Value>, Vec<(PathBuf, Vec<u8>)>) {
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

/// The steps that are in the metrics of a run.
fn steps(run: &Path) -> usize {
    let Ok(text) = std::fs::read_to_string(run.join("metrics.jsonl")) else { return 0 };
    text.lines().filter(|line| line.starts_with(r#"{"event":"step""#)).count()
}

/// Breaks runs `times` times at visits that the seed draws, in one run after another, until each is done.
fn broken_runs_are_as_unbroken(small: &Small, root: &Path, signal: u32, times: u64) {
    let visits = small.visits("whole");
    let want = left(&root.join("whole"));
    let mut draw = seed::of_test();
    let mut broken = 0;
    while broken < times {
        let run = root.join("broken");
        let _ = std::fs::remove_dir_all(&run);
        loop {
            draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let at = 1 + (draw >> 33) % visits;
            let before = steps(&run);
            let output = small.train("broken", Some((signal, at)));
            let said = said(&output);
            if output.status.success() {
                break;
            }
            broken += 1;
            match signal {
                TERM => {
                    assert_eq!(output.status.code(), Some(75), "at visit {at}: {said}");
                    let line = said.lines().rfind(|line| line.starts_with("stopped: ")).unwrap();
                    assert!(line.contains("rlvr train --resume ") && !line.contains("lost"), "{line}");
                    assert!(steps(&run) >= before, "a stop lost a step: {said}");
                    let kept = std::fs::read_dir(run.join("checkpoints")).unwrap().count();
                    assert!(kept > 0 || steps(&run) == 0, "at visit {at} of {} steps: {said}", steps(&run));
                }
                _ => assert_eq!(output.status.code(), None, "at visit {at}: {said}"),
            }
            // Rather many short runs than one that hardly ever ends.
            if broken >= times {
                let output = small.train("broken", None);
                assert!(output.status.success(), "{}", self::said(&output));
                break;
            }
        }
        let got = left(&run);
        assert_eq!(got.0, want.0, "metrics after {broken} breaks");
        let names =
            |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        assert_eq!(names(&got.1), names(&want.1), "after {broken} breaks");
        for ((path, got), (_, want)) in got.1.iter().zip(&want.1) {
            assert!(got == want, "{} after {broken} breaks", path.display());
        }
        let again = small.train("broken", None);
        assert!(
            again.status.success() && self::said(&again).contains("done already: "),
            "{}",
            self::said(&again)
        );
        assert!(left(&run) == got, "a run that is done is left alone");
    }
    println!("{broken} times signal {signal}, of {visits} visits: no step and no bit lost");
}

fn times() -> u64 {
    std::env::var("RLVR_STOPS").map_or(5, |text| text.parse().unwrap())
}

#[test]
fn a_run_stopped_anywhere_is_bit_for_bit_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(
        dir.path(),
        &["checkpoint.every_minutes=0", "grpo.updates_per_rollout=2", "grpo.order=difficulty"],
    );
    broken_runs_are_as_unbroken(&small, dir.path(), TERM, times());
}

#[test]
fn a_run_killed_anywhere_is_bit_for_bit_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["checkpoint.every_steps=1", "grpo.reference_sync_steps=2"]);
    broken_runs_are_as_unbroken(&small, dir.path(), KILL, times());
}

#[test]
fn a_run_with_adapters_stopped_anywhere_is_bit_for_bit_an_unbroken_one() {
    let dir = tempfile::tempdir().unwrap();
    let stages = "stages=[\"sft\", \"enumerate\"]";
    let more =
        [stages, "enumerate.steps=3", "enumerate.prompts_per_step=2", "lora.rank=2", "lora.stages=fresh"];
    let small = Small::new(dir.path(), &more);
    broken_runs_are_as_unbroken(&small, dir.path(), TERM, times().div_ceil(2));
}
