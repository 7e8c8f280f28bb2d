//! `rlvr ablate` through the real binary: arms share runs, a second call makes nothing anew, a stopped run goes on.

use std::path::Path;
use std::process::Output;

use crate::support::runs::rlvr;

const ABLATION: &str = r#"
config = "demo"
seeds = [4, 5]
arms = ["vanilla", "sft", "grpo", "sft+grpo"]
set = [
    "device=cpu", "threads=2", "data.synthetic.sft_rows=200", "data.synthetic.grpo_rows=100",
    "data.synthetic.valid_rows=20", "sft.rows_per_step=8", "sft.epochs=0.2", "grpo.steps=2",
    "grpo.prompts_per_step=4", "eval.every_steps=0", "checkpoint.every_steps=1", "checkpoint.keep_last=9",
]
"#;

fn ablate(folder: &Path, more: &[&str]) -> Output {
    let (file, root) = (folder.join("a.toml"), folder.join("root"));
    let args = ["ablate", file.to_str().unwrap(), "--root", root.to_str().unwrap()];
    rlvr(&[&args, more].concat())
}

#[test]
fn arms_share_runs_and_a_stopped_ablation_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::write(folder.path().join("a.toml"), ABLATION).unwrap();
    let planned = String::from_utf8(ablate(folder.path(), &["--dry-run"]).stdout).unwrap();
    assert_eq!(planned.matches("to do").count(), 4, "{planned}");

    let first = ablate(folder.path(), &[]);
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let read = || -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(root.join("ablation.json")).unwrap()).unwrap()
    };
    let mut results = read();
    // The table's numbers are those of the runs.
    let run = std::fs::read_to_string(root.join("runs/sft-grpo-seed5/metrics.jsonl")).unwrap();
    let events: Vec<serde_json::Value> = run.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let strict = "verdict/accuracy_strict";
    for (arm, stage) in [(0, "vanilla"), (1, "sft"), (3, "grpo")] {
        let event = events.iter().rfind(|e| e["event"] == "evaluation" && e["stage"] == stage).unwrap();
        assert_eq!(results["arms"][arm]["seeds"][1]["metrics"][strict], event[strict], "{stage}");
    }
    assert_eq!(results["arms"][3]["over_queries"]["pairs"], 40, "each seed has 20 logs of its own");

    // One run loses its end: it alone is made again, from its checkpoint, with the same result.
    let stopped = root.join("runs/sft-grpo-seed5");
    std::fs::remove_dir_all(stopped.join("model")).unwrap();
    std::fs::remove_dir_all(stopped.join("checkpoints/step-7")).unwrap();
    let second = ablate(folder.path(), &[]);
    assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
    assert_eq!(String::from_utf8_lossy(&second.stdout).matches("done already").count(), 3);
    let mut again = read();
    for arm in [&mut results, &mut again].into_iter().flat_map(|r| r["arms"].as_array_mut().unwrap()) {
        arm["hours"].take();
        arm["seeds"].as_array_mut().unwrap().iter_mut().for_each(|s| drop(s["training_seconds"].take()));
    }
    assert_eq!(results["arms"], again["arms"]);

    let changed = ablate(folder.path(), &["--set", "grpo.steps=3"]);
    let text = String::from_utf8_lossy(&changed.stderr).into_owned();
    assert!(!changed.status.success() && text.contains("`steps = 2` there, `steps = 3` now"), "{text}");
}

#[test]
fn arms_that_differ_in_grpo_alone_go_on_from_one_warm_up() {
    let folder = tempfile::tempdir().unwrap();
    let arms = r#"arms = ["sft", "sft+grpo", "sft+enumerate"]"#;
    let text = ABLATION
        .replace(r#"arms = ["vanilla", "sft", "grpo", "sft+grpo"]"#, arms)
        .replace("seeds = [4, 5]", "seeds = [4]");
    std::fs::write(folder.path().join("a.toml"), text).unwrap();
    let output = ablate(folder.path(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said.matches("after the SFT of").count(), 2, "{said}");

    // As if it had been alone, bit for bit.
    let root = folder.path().join("root/runs");
    for arm in ["sft-grpo", "sft-enumerate"] {
        let config = root.join(format!("{arm}-seed4/config.resolved.toml"));
        let (name, alone) = (format!("run.name={arm}"), folder.path().join("alone"));
        let set = format!("run.root={}", alone.display());
        let output = rlvr(&["train", config.to_str().unwrap(), "--set", &name, "--set", &set]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let weights = |run: &Path| std::fs::read(run.join("model/model.safetensors")).unwrap();
        assert!(weights(&alone.join(arm)) == weights(&root.join(format!("{arm}-seed4"))), "{arm}");
        let steps = |run: &Path| std::fs::read_to_string(run.join("metrics.jsonl")).unwrap().lines().count();
        assert_eq!(steps(&alone.join(arm)), steps(&root.join(format!("{arm}-seed4"))), "{arm}");
    }
}
