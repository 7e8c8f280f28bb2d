//! Training that breaks the model: what it leaves, what it says, and how a run goes on.

use std::path::Path;

use crate::support::runs::{copy, rlvr, rows, text, train};

/// SFT alone, a checkpoint a step.
const SFT: [&str; 6] = [
    "stages=[\"sft\"]",
    "checkpoint.every_steps=1",
    "eval.every_steps=0",
    "sft.optim.schedule={type=\"constant\"}",
    "sft.optim.warmup_ratio=0.0",
    "data.synthetic.valid_rows=4",
];

fn checkpoints(run: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(run.join("checkpoints")).unwrap();
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn set_rate(run: &Path, from: &str, to: &str) {
    let path = run.join("config.resolved.toml");
    let config = std::fs::read_to_string(&path).unwrap();
    let (head, sft) = config.split_at(config.find("[sft.optim]").unwrap());
    let line = |rate: &str| format!("learning_rate = {rate}\n");
    assert!(sft.contains(&line(from)), "{sft}");
    std::fs::write(&path, format!("{head}{}", sft.replacen(&line(from), &line(to), 1))).unwrap();
}

fn resumed(run: &Path) -> (Option<i32>, String) {
    let output = rlvr(&["train", "--resume", text(run)]);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// A run of five steps, cut back to its first three.
fn cut(root: &Path, name: &str) -> std::path::PathBuf {
    let whole = root.join("whole");
    if !whole.exists() {
        train(
            root,
            "whole",
            &[&SFT[..], &["sft.optim.learning_rate=0.001", "checkpoint.keep_last=99"]].concat(),
        );
    }
    let run = root.join(name);
    copy(&whole, &run);
    std::fs::remove_dir_all(run.join("model")).unwrap();
    for step in [1, 4, 5] {
        std::fs::remove_dir_all(run.join(format!("checkpoints/step-{step}"))).unwrap();
    }
    assert_eq!(checkpoints(&run), ["step-2", "step-3"]);
    run
}

#[test]
fn broken_weights_replace_no_checkpoint_and_a_lower_rate_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    // Beyond f32 at once; within it, so that the next step finds out.
    for rate in ["1e36", "1e12"] {
        let run = cut(dir.path(), rate);
        set_rate(&run, "0.001", rate);
        let (code, says) = resumed(&run);
        assert!(code == Some(1) && says.contains("error: step "), "{rate}: {code:?} {says}");
        let left = checkpoints(&run);
        assert!(
            left.contains(&"step-3".to_string()) && !left.contains(&"step-4".into()),
            "{rate}: {left:?} {says}"
        );
        let condemned = says.contains("is broken, and is now") && left.contains(&"diverged-step-4".into());
        assert!(rate == "1e36" || condemned, "{left:?} {says}");

        set_rate(&run, rate, "0.001");
        let (code, says) = resumed(&run);
        assert_eq!(code, Some(0), "{rate}: {says}");
        assert_eq!(checkpoints(&run), ["step-2", "step-3", "step-4", "step-5"], "keep_last = 99");
        let model = |run: &Path| std::fs::read(run.join("model/model.safetensors")).unwrap();
        assert!(model(&run) == model(&dir.path().join("whole")), "{rate}: other weights");
    }
}

#[test]
fn a_run_that_is_to_stop_ends_to_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    for rate in ["1e36", "100.0"] {
        let run = cut(dir.path(), rate);
        set_rate(&run, "0.001", rate);
        let path = run.join("config.resolved.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, config.replace("stop_on_divergence = false", "stop_on_divergence = true"))
            .unwrap();
        let (code, says) = resumed(&run);
        assert_eq!(code, Some(75), "{rate}: {says}");
        assert!(says.contains("run.stop_on_divergence is set. Lower the learning rate"), "{says}");
        assert!(checkpoints(&run).contains(&"step-3".to_string()));
    }
}

#[test]
fn a_loss_far_above_its_start_is_warned_of_once() {
    let dir = tempfile::tempdir().unwrap();
    let run = train(dir.path(), "run", &[&SFT[..], &["sft.optim.learning_rate=100.0"]].concat());
    let warnings: Vec<String> = rows(&run.join("metrics.jsonl"))
        .iter()
        .filter(|event| event["event"] == "warning")
        .map(|event| event["text"].as_str().unwrap().to_string())
        .collect();
    let diverges = warnings.iter().filter(|text| text.contains("training diverges")).count();
    assert_eq!(diverges, 1, "{warnings:?}");
    // One older than the newest stays, although keep_last is 1.
    assert_eq!(checkpoints(&run), ["step-4", "step-5"]);
}
