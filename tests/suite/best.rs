//! `eval.keep_best` and `eval.patience`: which model a run ends with, whatever stopped it on the way.

use std::path::Path;

use serde_json::Value;

use crate::support::runs::{READ_HELD_OUT, copy, held_out, object, rlvr, rows, stdout, text, train};

/// A warm-up that answers, and then steps so large that they ruin it.
const RUINED: [&str; 6] = [
    "sft.epochs=6",
    "grpo.optim.learning_rate=0.05",
    "grpo.steps=6",
    "eval.every_steps=2",
    "checkpoint.keep_last=99",
    "checkpoint.every_steps=1",
];

fn evaluations(run: &Path) -> Vec<Value> {
    let all = rows(&run.join("metrics.jsonl"));
    all.into_iter().filter(|event| event["event"] == "evaluation").collect()
}

/// The first of the highest scores after some training.
fn best(evaluations: &[Value], metric: &str) -> Value {
    let value = |event: &Value| event[metric].as_f64().unwrap();
    let trained: Vec<&Value> = evaluations.iter().filter(|event| event["stage"] != "vanilla").collect();
    let most = trained.iter().map(|event| value(event)).fold(f64::MIN, f64::max);
    (*trained.iter().find(|event| value(event) == most).unwrap()).clone()
}

fn confusion(root: &Path, model: &Path, adapter: Option<&Path>) -> Value {
    let data = held_out(root);
    let mut args = vec!["eval", text(model), text(&data), "--json"];
    args.extend(READ_HELD_OUT);
    args.extend(adapter.into_iter().flat_map(|dir| ["--adapter", text(dir)]));
    serde_json::from_str::<Value>(&stdout(&args)).unwrap()["confusion"].clone()
}

#[test]
fn a_run_ends_with_its_best_model_and_keeps_the_last_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    for lora in [false, true] {
        let name = if lora { "lora" } else { "whole" };
        let rank = ["lora.rank=8", "lora.stages=fresh", "sft.optim.learning_rate=0.005"];
        let run = train(dir.path(), name, &[&RUINED[..], if lora { &rank } else { &[] }].concat());
        let evaluations = evaluations(&run);
        let want = best(&evaluations, "verdict/accuracy_strict");
        let last = evaluations.last().unwrap();
        assert_ne!(
            want["verdict/accuracy_strict"], last["verdict/accuracy_strict"],
            "{name}: the steps ruin the model"
        );
        let note = object(&run.join("model/best.json"));
        assert_eq!((&note["stage"], &note["step"]), (&want["stage"], &want["step"]));
        assert_eq!(note["value"], want["verdict/accuracy_strict"]);
        assert_eq!(note["interval_95"][0], want["verdict/accuracy_strict_low"]);
        assert_eq!(note["evaluations"], evaluations.len() - 1);
        // The run stands for its model.
        assert_eq!(confusion(dir.path(), &run, None), want["report"]["confusion"], "{name}");
        assert_eq!(
            confusion(dir.path(), &run.join("model-last"), None),
            last["report"]["confusion"],
            "{name}"
        );
        if lora {
            let base = run.join("base");
            assert_eq!(confusion(dir.path(), &base, Some(&run)), want["report"]["confusion"]);
            let adapter = run.join("adapter-last");
            assert_eq!(confusion(dir.path(), &base, Some(&adapter)), last["report"]["confusion"]);
        }
        assert!(!run.join("best").exists());
        let report = rlvr(&["report", text(&run)]);
        assert!(report.status.success());
        let page = std::fs::read_to_string(run.join("report.md")).unwrap();
        assert!(page.contains("which flatters its score there"), "{page}");
    }
}

#[test]
fn a_stop_at_any_step_leaves_the_same_choice() {
    let dir = tempfile::tempdir().unwrap();
    let whole = train(dir.path(), "whole", &RUINED);
    let read = |run: &Path, file: &str| std::fs::read(run.join(file)).unwrap();
    let files = ["model/model.safetensors", "model/best.json", "model-last/model.safetensors"];
    let steps = std::fs::read_dir(whole.join("checkpoints")).unwrap().count();
    assert!(steps > 6, "{steps}");
    let step = |path: &Path| -> usize {
        path.file_name().unwrap().to_str().unwrap().strip_prefix("step-").unwrap().parse().unwrap()
    };
    let mut known: Vec<usize> =
        std::fs::read_dir(whole.join("checkpoints")).unwrap().map(|e| step(&e.unwrap().path())).collect();
    known.sort();
    // Around the warm-up's end and the evaluations within GRPO.
    for stop in known[known.len() - 8..].iter().copied() {
        let stopped = dir.path().join(format!("stopped-{stop}"));
        copy(&whole, &stopped);
        for gone in ["model", "model-last"] {
            std::fs::remove_dir_all(stopped.join(gone)).unwrap();
        }
        for entry in std::fs::read_dir(stopped.join("checkpoints")).unwrap() {
            let path = entry.unwrap().path();
            if step(&path) > stop {
                std::fs::remove_dir_all(path).unwrap();
            }
        }
        // A better one of a course that is left, and half of another.
        std::fs::create_dir_all(stopped.join("best/model")).unwrap();
        std::fs::create_dir_all(stopped.join("best.partial")).unwrap();
        stdout(&["train", "--resume", text(&stopped)]);
        for file in files {
            assert!(read(&stopped, file) == read(&whole, file), "{file} from {stop}");
        }
        assert!(!stopped.join("best").exists() && !stopped.join("best.partial").exists());
    }
}

#[test]
fn a_stage_without_a_better_evaluation_ends_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let root = format!("run.root={}", dir.path().display());
    let sets: Vec<&str> = RUINED
        .iter()
        .chain(&["grpo.steps=40", "eval.patience=2", "run.name=a", "device=cpu"])
        .copied()
        .collect();
    let small =
        ["data.synthetic.sft_rows=200", "data.synthetic.grpo_rows=100", "data.synthetic.valid_rows=20"];
    let more = ["grpo.prompts_per_step=4", "sft.rows_per_step=8", "checkpoint.every_steps=0", root.as_str()];
    let args = sets.iter().chain(&small).chain(&more).flat_map(|set| ["--set", set]);
    let output = rlvr(&["train", "demo"].into_iter().chain(args).collect::<Vec<_>>());
    let (said, table) = (String::from_utf8_lossy(&output.stderr), String::from_utf8_lossy(&output.stdout));
    assert!(output.status.success(), "{said}");
    let all = evaluations(&dir.path().join("a"));
    let last = all.last().unwrap()["step"].as_u64().unwrap();
    assert!(
        last < 40
            && said.contains(&format!("grpo ends at step {last} of 40: 2 evaluations without a better"))
    );
    // The stage's last evaluation is made once, and is its row.
    assert!(all.iter().filter(|event| event["step"] == last && event["stage"] == "grpo").count() == 1);
    assert!(
        table.contains("\nSFT+GRPO ") && table.contains("\nbest, ") && table.contains("chosen on"),
        "{table}"
    );
}

#[test]
fn scores_that_choose_nothing_are_refused() {
    for (sets, want) in [
        (
            &["eval.keep_best=verdict/base_rate"][..],
            "eval.keep_best = verdict/base_rate: must be \"last\" or one of",
        ),
        (&["eval.keep_best=verdict/recall/Nothing"], "with one of the labels"),
        (&["eval.keep_best=verdict/macro_f1_parsed"], "drops no answers"),
        (&["eval.patience=2", "eval.keep_best=last"], "eval.patience: has no effect"),
        (&["eval.patience=2", "eval.every_steps=0"], "eval.every_steps is 0"),
        (&["eval.patience=0"], "eval.patience = 0"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let root = format!("run.root={}", dir.path().display());
        let args = sets.iter().copied().chain([root.as_str()]).flat_map(|set| ["--set", set]);
        let output = rlvr(&["train", "demo"].into_iter().chain(args).collect::<Vec<_>>());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(want), "{sets:?}: {said}");
    }
}
