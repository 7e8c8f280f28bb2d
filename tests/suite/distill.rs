//! Distillation beside SFT: a recorded judge's probabilities of the labels.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rlvr::algo::distill::distilled;
use rlvr::config::distill::DistillConfig;
use rlvr::data::jsonl::{EncodedAnswer, EncodedRow};
use rlvr::eval::enumerate::Enumerator;
use rlvr::task::{LabelId, Task};
use rlvr::train::distill;
use rlvr::types::Prompt;
use serde_json::{Value, json};

use crate::support::golden::golden_dir;
use crate::support::models::{learner, small_decoder, tokens};
use crate::support::runs::{READ_HELD_OUT, label_task, rlvr, rows, stdout, text};
use crate::support::tensors::floats;

#[test]
fn golden_distillation_equals_torch() {
    let golden = std::fs::read_to_string(golden_dir().join("distill.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&golden).unwrap();
    assert_eq!(cases.len(), 20);
    for case in cases {
        let numbers = |name: &str| -> Vec<f64> { serde_json::from_value(case[name].clone()).unwrap() };
        let judge: Vec<f64> = numbers("judge").iter().map(|p| p.ln()).collect();
        let got = distilled(&numbers("logps"), &judge, case["temperature"].as_f64().unwrap());
        let close =
            |got: f64, want: f64| assert!((got - want).abs() <= 1e-12 * want.abs().max(1.0), "{case}: {got}");
        close(got.kl, case["kl"].as_f64().unwrap());
        close(got.loss, case["loss"].as_f64().unwrap());
        got.dloss_dlogp.iter().zip(numbers("gradient")).for_each(|(got, want)| close(*got, want));
    }
}

/// A row whose five labels have answers of one token or two.
fn row(prompt: u32, judge: [f64; 5]) -> EncodedRow {
    let answer = |i: u16| {
        let ids = [40 + u32::from(i), 50];
        EncodedAnswer { label: LabelId(i), token_ids: ids[..1 + usize::from(i % 2)].to_vec() }
    };
    EncodedRow {
        line: 1,
        source: None,
        attack_succeeded: None,
        evidence: None,
        prompt: Prompt { token_ids: tokens(prompt, 24) },
        gold: LabelId(0),
        target: None,
        answers: (0..5).map(answer).collect(),
        control_texts: Vec::new(),
        told: None,
        judge: Some(Arc::from(judge.map(f64::ln))),
    }
}

fn five_labels() -> Task {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    let answers = "\n[answers]\nnegative = \"no\"\npositive = \"{label}\"\n";
    std::fs::write(&path, label_task("no", &["a", "b", "c", "d"]) + answers).unwrap();
    Task::load(text(&path)).unwrap()
}

#[test]
fn the_trained_distribution_is_the_judges_and_packs_add_up() {
    let judges = [[0.6, 0.3, 0.1, 0.0, 0.0], [0.05, 0.05, 0.1, 0.3, 0.5], [0.2; 5]];
    let asked: Vec<EncodedRow> = judges.iter().enumerate().map(|(i, judge)| row(i as u32, *judge)).collect();
    let silent = EncodedRow { judge: None, answers: Vec::new(), ..asked[0].clone() };
    let rows: Vec<&EncodedRow> = asked.iter().chain([&silent]).collect();
    let config = DistillConfig { weight: 0.5, temperature: 2.0, ..DistillConfig::default() };

    // The gradient does not depend on how the rows are cut into packs, and a row without a judge has no part in it.
    let gradient = |max_tokens_per_pack: usize| -> Vec<f32> {
        let mut learner = learner(small_decoder(12));
        distill::learn(&mut learner, &rows, &config, max_tokens_per_pack).unwrap();
        learner.gradients().tensors().flat_map(|g| floats(&g.unwrap())).collect()
    };
    let (whole, single) = (gradient(1000), gradient(1));
    let largest = whole.iter().map(|g| g.abs()).fold(0.0, f32::max);
    assert!(largest > 1e-3);
    assert!(whole.iter().zip(&single).all(|(a, b)| (a - b).abs() <= 1e-5 * largest));

    // Along its negative the loss falls by its square: what is computed is the gradient of what is told.
    let told = |learner: &mut _| -> [f64; 3] {
        let metrics = distill::learn(learner, &rows, &config, 1000).unwrap();
        assert_eq!(metrics.get("distill/rows"), Some(3.0));
        ["distill/loss", "distill/kl", "distill/agreement"].map(|name| metrics.get(name).unwrap())
    };
    let mut learner = learner(small_decoder(12));
    let [loss, kl, _] = told(&mut learner);
    assert!((loss - 0.5 * 4.0 * kl).abs() < 1e-9, "{loss} {kl}");
    for _ in 0..150 {
        learner.step(3e-3).unwrap();
        told(&mut learner);
    }
    let [_, after, agreement] = told(&mut learner);
    assert!(kl > 0.05 && after < 1e-3, "{kl} became {after}");
    assert!(agreement >= 2.0 / 3.0, "of five equal ones any may be the likeliest: {agreement}");

    // By another way: exact probabilities of the labels.
    let task = five_labels();
    let enumerator =
        Enumerator { decoder: learner.decoder(), task: &task, temperature: 1.0, max_tokens_per_pack: 1000 };
    let asked: Vec<&EncodedRow> = asked.iter().collect();
    for (labels, judge) in enumerator.label_probabilities(&asked).unwrap().iter().zip(judges) {
        let far = labels.iter().zip(judge).map(|(label, q)| (label.p - q).abs()).fold(0.0, f64::max);
        assert!(far < 0.05, "{labels:?} is not {judge:?}");
    }
}

/// The demo's rows with a judge's word in every one but each `without`-th: two labels that answers seldom have, 0.7 and 0.3.
fn judged(root: &Path, without: usize) -> PathBuf {
    let data = root.join("data");
    stdout(&["data", "synth", "--out", text(&data), "--seed", "1", "--rows", "160", "--valid-rows", "20"]);
    let labels = Task::load("demo").unwrap().labels().to_vec();
    let mut out = String::new();
    for (i, mut row) in rows(&data.join("train.jsonl")).into_iter().enumerate() {
        if i % without != 0 {
            row["judge"] = json!({"p": {labels[9].as_str(): 0.7, labels[4].as_str(): 0.3}});
        }
        out += &format!("{row}\n");
    }
    let path = root.join("judged.jsonl");
    std::fs::write(&path, out).unwrap();
    path
}

fn args(root: &Path, more: &[&str]) -> Vec<String> {
    let sets = [
        format!("data.train={}", root.join("judged.jsonl").display()),
        format!("data.valid={}", root.join("data/valid.jsonl").display()),
        format!("run.root={}", root.display()),
    ];
    let small = ["device=cpu", "threads=2", "stages=[\"sft\"]", "sft.rows_per_step=16"].map(String::from);
    let sets = small.into_iter().chain(sets).chain(more.iter().map(|set| set.to_string()));
    ["train", "demo"]
        .map(String::from)
        .into_iter()
        .chain(sets.flat_map(|set| ["--set".into(), set]))
        .collect()
}

fn run(root: &Path, more: &[&str]) -> std::process::Output {
    let args = args(root, more);
    rlvr(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Mean distance of a model's label probabilities from the judge's, over the first rows of the file.
fn distance(root: &Path, name: &str) -> f64 {
    let (model, out) = (root.join(name).join("model"), root.join(format!("{name}.jsonl")));
    let first = root.join("first.jsonl");
    let train = std::fs::read_to_string(root.join("judged.jsonl")).unwrap();
    std::fs::write(&first, train.lines().take(30).map(|line| format!("{line}\n")).collect::<String>())
        .unwrap();
    let mut args = vec!["predict", text(&model), text(&first), "--probabilities", "-o", text(&out)];
    args.extend(READ_HELD_OUT);
    stdout(&args);
    let judges = rows(&first).into_iter().zip(rows(&out)).filter(|(row, _)| row["judge"].is_object());
    let far = judges.map(|(row, predicted)| {
        let p = predicted["probabilities"].as_object().unwrap();
        let judge = |label: &str| row["judge"]["p"][label].as_f64().unwrap_or(0.0);
        p.iter().map(|(label, p)| (p.as_f64().unwrap() - judge(label)).abs()).sum::<f64>() / 2.0
    });
    let far: Vec<f64> = far.collect();
    far.iter().sum::<f64>() / far.len() as f64
}

#[test]
fn a_run_learns_what_a_judge_said_and_says_how_near_it_is() {
    let dir = tempfile::tempdir().unwrap();
    judged(dir.path(), 10);
    let distill = ["sft.epochs=4", "sft.distill.column=judge.p", "sft.distill.weight=4.0"];
    let output = run(dir.path(), &[&distill[..], &["run.name=with"]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let want = "sft.distill: 144 of 160 rows of data.train have a judge's `judge.p`; 16 are learned from by their answer alone";
    assert!(said.contains(want), "{said}");
    let steps: Vec<Value> =
        rows(&dir.path().join("with/metrics.jsonl")).into_iter().filter(|e| e["event"] == "step").collect();
    let kl = |step: &Value| step["distill/kl"].as_f64().unwrap();
    assert!(
        kl(steps.last().unwrap()) < 0.5 * kl(&steps[0]),
        "{} to {}",
        kl(&steps[0]),
        kl(steps.last().unwrap())
    );
    assert!(steps.iter().all(|s| s["loss"].as_f64().unwrap() >= s["distill/loss"].as_f64().unwrap()));
    assert!(
        steps.iter().map(|s| s["distill/rows"].as_f64().unwrap()).sum::<f64>()
            > 0.8 * 16.0 * steps.len() as f64
    );

    // The answers alone teach other probabilities. The column is not read without the section.
    assert!(run(dir.path(), &["sft.epochs=4", "run.name=without"]).status.success());
    let (with, without) = (distance(dir.path(), "with"), distance(dir.path(), "without"));
    println!("total variation to the judge: {with:.3} with, {without:.3} without");
    assert!(with < 0.6 * without, "{with} against {without}");
}

#[test]
fn what_cannot_be_distilled_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = judged(dir.path(), 10);
    let refused = |more: &[&str], want: &str| {
        let output = run(dir.path(), &[more, &["run.name=no"]].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{more:?}\n{error}");
        assert!(error.contains(want), "{more:?}\n{error}");
        assert!(!dir.path().join("no").exists());
    };
    refused(
        &["sft.distill.column=judgement"],
        "sft.distill.column = judgement: no row of data.train has that key",
    );
    refused(&["sft.distill.weight=0"], "sft.distill.weight = 0: must be above 0");
    refused(&["sft.distill.temperature=nan"], "sft.distill.temperature = NaN: must be above 0");
    refused(&["sft.distill.column=judge."], "sft.distill.column = \"judge.\": must be a key");
    refused(&["sft.distill.colunm=judge"], "Did you mean sft.distill.column?");
    refused(
        &["sft.distill.column=judge.p", "sft.distill.values=logprobs"],
        "judged.jsonl:2: `judge.p` has 0.",
    );
    refused(&["sft.distill.column=security_type"], "judged.jsonl:1: `security_type` is no object");
    // Synthetic logs have no judge, and a task whose benign answer is free text no closed set.
    let set = ["train", "demo", "--set", "sft.distill.weight=1", "--set", "device=cpu", "--set"];
    let root = format!("run.root={}", dir.path().display());
    let output = rlvr(&[&set[..], &[&root, "--set", "run.name=no"]].concat());
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("no row of synthetic logs for SFT has that key"), "{error}");
    refused(
        &["task=riskcue", "sft.distill.column=judge.p"],
        "[sft.distill]: the answers of task `riskcue` are no closed set",
    );

    // A check finds every bad row, and knows the column.
    let config = dir.path().join("c.toml");
    let body = format!(
        "preset = \"demo\"\n[data]\ntrain = \"{0}\"\nvalid = \"{0}\"\n[sft.distill]\ncolumn = \"judge.p\"\n",
        path.display()
    );
    std::fs::write(&config, body).unwrap();
    let check = ["data", "check", text(&path), "--sft", "--config", text(&config)];
    assert!(!stdout(&check).contains("`judge`"));
    let broken = std::fs::read_to_string(&path).unwrap().replacen("0.7", "0.9", 2);
    std::fs::write(&path, broken).unwrap();
    let output = rlvr(&check);
    let found = String::from_utf8_lossy(&output.stdout);
    assert!(
        found.contains("judged.jsonl:2: `judge.p` has probabilities that sum to 1.2000, not to 1"),
        "{found}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 problems in 160 rows"));
}
