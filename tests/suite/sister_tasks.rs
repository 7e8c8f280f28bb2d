//! The tasks of other papers, on small rows of our own in their formats: through the binary from data check to
//! evaluation, and their scores against numbers by hand.

use std::path::Path;
use std::process::Command;

use rlvr::data::predictions::Predictions;
use rlvr::eval::{Summary, judge_recorded};
use rlvr::formats::hf::config_json;
use rlvr::model::decoder::Decoder;
use rlvr::task::{EvalReport, Task};
use rlvr::text::byte_tokenizer;
use rlvr::train::state::save_weights;
use serde_json::{Value, json};

const TASKS: [&str; 4] = ["mcip", "llama-guard", "safemcp", "mcp-safetybench"];

fn fixture(task: &str) -> String {
    format!("{}/tests/fixtures/{task}.jsonl", env!("CARGO_MANIFEST_DIR"))
}

/// A model of one layer, for prompts of at most `positions` bytes.
fn model(dir: &Path, positions: usize) {
    let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
    byte_tokenizer::save_pretrained(&tokenizer, dir).unwrap();
    let config = json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 259,
        "tie_word_embeddings": true, "eos_token_id": 2, "max_position_embeddings": positions,
    });
    let config = config_json::from_json(&config, "config.json").unwrap();
    save_weights(dir, &Decoder::random(config, 1, positions).unwrap()).unwrap();
}

fn rlvr(room: &Path, words: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rlvr")).args(words).current_dir(room).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_task_goes_from_data_check_to_evaluation() {
    let room = tempfile::tempdir().unwrap();
    model(&room.path().join("model"), 2600);
    for task in TASKS {
        let rows = fixture(task);
        let check = ["data", "check", &rows, "--task", task, "--model", "model", "--sft"];
        let report = rlvr(room.path(), &check);
        assert!(report.contains("duplicates"), "{report}");
        let config = format!(
            "task = \"{task}\"\ndevice = \"cpu\"\nthreads = 1\n[run]\nname = \"{task}\"\n[model]\npath = \"model\"\n\
             max_positions = 2600\n[data]\ntrain = '{rows}'\nvalid = '{rows}'\nmax_prompt_tokens = 2560\n\
             max_valid_rows = 4\n[sft]\nsteps = 2\nrows_per_step = 2\n[grpo]\nsteps = 2\nprompts_per_step = 2\n\
             group_size = 2\nmax_completion_tokens = 4\n[eval]\nmax_completion_tokens = 4\n"
        );
        std::fs::write(room.path().join("config.toml"), config).unwrap();
        rlvr(room.path(), &["train", "config.toml"]);
        let metrics =
            std::fs::read_to_string(room.path().join("runs").join(task).join("metrics.jsonl")).unwrap();
        assert!(metrics.contains("verdict/macro_f1") && metrics.contains("\"reward\""), "{task}");
        let trained = format!("runs/{task}/model");
        let words =
            ["eval", &trained, &rows, "--task", task, "--max-rows", "3", "--max-completion-tokens", "4"];
        let more = ["--temperature", "1", "--threads", "1", "--device", "cpu", "--json"];
        let report: Value = serde_json::from_str(&rlvr(room.path(), &[&words[..], &more].concat())).unwrap();
        assert_eq!((&report["task"], &report["count"]), (&json!(task), &json!(3)));
    }
}

/// Scores of recorded answers, one a row.
fn scored(task: &str, rows: &[Value], group_by: Option<&str>) -> Summary {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("answers.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&path, lines.join("\n")).unwrap();
    let task = Task::load(task).unwrap();
    Summary::new(&task, &judge_recorded(&task, &Predictions::load(&task, &path, group_by).unwrap().rows))
}

fn report(task: &str, rows: &[Value]) -> EvalReport {
    scored(task, rows, None).report
}

#[track_caller]
fn close(got: Option<f64>, want: f64) {
    assert!(got.is_some_and(|got| (got - want).abs() < 1e-9), "{got:?} is not {want}");
}

#[test]
fn mcip_drops_what_names_no_class() {
    let row = |label: &str, answer: &str| json!({"label": label, "completion": answer});
    let report = report(
        "mcip",
        &[
            row("true", "Choice: A. Appropriate"),
            row("true", "I think it is K. Replay Injection"),
            row("data_injection", "Choice: I. Data Injection"),
            row("replay_function", "Answer: B\nFinal answer: K"),
            row("replay_function", "Choice: J"),
            row("identity_injection", "who knows"),
        ],
    );
    // Kept: A right, A read as K, I right, K right, K read as J; dropped: one J.
    let parsed = report.parsed.clone().unwrap();
    assert_eq!(parsed.dropped, 1);
    close(parsed.exact_label_accuracy, 3.0 / 5.0);
    // F1 of A 2/3, I 1, J 0 of one prediction, K 2/4 of two and two.
    close(parsed.macro_f1, (2.0 / 3.0 + 1.0 + 0.0 + 0.5) / 4.0);
    // Binary: TP 3, FP 1, TN 1: F1 6/7 and 2/3.
    close(report.paper.accuracy, 4.0 / 5.0);
    close(parsed.binary_macro_f1, (6.0 / 7.0 + 2.0 / 3.0) / 2.0);
    // The strict rule counts all six.
    close(report.exact_label_accuracy, 3.0 / 6.0);
    close(report.strict.accuracy, 4.0 / 6.0);
}

#[test]
fn llama_guard_is_exact_on_the_whole_set() {
    let row = |labels: Value, answer: &str| json!({"categories": labels, "completion": answer});
    let report = report(
        "llama-guard",
        &[
            row(json!([]), "safe"),
            row(json!(["S2", "S14"]), "unsafe\nS14, S2"),
            row(json!(["S2", "S14"]), "\nunsafe\nS2,S13\n"),
            row(json!(["S2"]), "unsafe\nS2,S10"),
            row(json!("S1"), "unsafe\nS1"),
            row(json!([]), "unsafe\nS99"),
            row(json!(["S7"]), "unsafe"),
        ],
    );
    close(report.exact_label_accuracy, 3.0 / 7.0);
    // Flagged in form: 4 of 5 risky; benign: one answered, one malformed.
    close(report.strict.recall, 4.0 / 5.0);
    close(report.strict.accuracy, 5.0 / 7.0);
    // Who reads the first word only flags all six.
    close(report.paper.recall, 1.0);
    close(report.paper.false_positive_rate, 0.5);
    let of = |label: &str| report.per_label.iter().find(|scores| scores.label == label).unwrap();
    assert_eq!((of("S2").support, of("S2").predicted), (3, 3));
    close(of("S2").f1, 1.0);
    assert_eq!((of("S14").support, of("S14").predicted), (2, 1));
    close(of("S14").recall, 0.5);
    assert_eq!((of("S10").support, of("S10").predicted), (0, 1));
}

#[test]
fn safemcp_has_attack_success_before_and_behind_the_guard_by_group() {
    let row = |surface: &str, attack: &str, succeeded: Value, answer: &str| json!({"surface": surface, "attack": attack, "attack_succeeded": succeeded, "completion": answer});
    let summary = scored(
        "safemcp",
        &[
            row("a", "direct", json!(true), "unsafe\nM1"),
            row("a", "pap", json!(true), "unsafe\nM2"),
            row("a", "pap", json!(true), "safe"),
            row("a", "direct", json!(false), "safe"),
            row("b", "renellm", json!(true), "unsafe, I fear"),
            row("b", "none", Value::Null, "safe"),
            row("b", "none", Value::Null, "unsafe\nM1"),
        ],
        Some("surface"),
    );
    let attacks = summary.report.attacks.unwrap();
    assert_eq!(attacks.count, 5);
    // Flagged: two; succeeded and not flagged: `safe` and the malformed one.
    close(Some(attacks.success), 4.0 / 5.0);
    close(Some(attacks.residual_success), 2.0 / 5.0);
    close(summary.report.strict.recall, 2.0 / 5.0);
    close(summary.report.strict.false_positive_rate, 1.0 / 2.0);
    let group = |i: usize| summary.groups[i].report.attacks.unwrap();
    assert_eq!((group(0).count, group(1).count), (4, 1));
    close(Some(group(0).residual_success), 1.0 / 4.0);
    close(Some(group(1).residual_success), 1.0);
}

#[test]
fn mcp_safetybench_has_twenty_kinds_under_either_spelling() {
    let task = Task::load("mcp-safetybench").unwrap();
    assert_eq!(task.labels().len(), 21);
    let row = |attack: &str, answer: &str| json!({"attack": attack, "completion": answer});
    let report = report(
        "mcp-safetybench",
        &[
            row("Tool Poisoning-Tool Redirection", "Attack: Tool Redirection"),
            row("Tool Redirection", "Attack: Tool Poisoning-Tool Redirection."),
            row("Rug Pull Attack", "Attack: Replay Injection"),
            row("None", "No attack."),
            row("None", "Attack: bad weather"),
        ],
    );
    close(report.exact_label_accuracy, 3.0 / 5.0);
    close(report.malformed_rate, 1.0 / 5.0);
}

/// One answer in four of a random model begins with a letter or digit; asked eleven times, nineteen in twenty do.
#[test]
fn retries_leave_few_answers_that_cannot_be_parsed() {
    let room = tempfile::tempdir().unwrap();
    model(&room.path().join("model"), 64);
    let rows: Vec<String> =
        (0..40).map(|i| json!({"q": format!("{i}"), "label": "no"}).to_string()).collect();
    std::fs::write(room.path().join("rows.jsonl"), rows.join("\n")).unwrap();
    let malformed = |retries: u32, temperature: &str| {
        let task = format!(
            "name = \"t\"\nretries = {retries}\n[input]\ntemplate = \"{{q}}\"\n[gold]\npath = \"label\"\n[labels]\n\
             negative = \"no\"\npositive = [\"yes\"]\n[[verdict]]\nregex = '^[a-zA-Z0-9]'\nlabel = \"@negative\"\n\
             [[verdict]]\ndefault = \"@malformed\"\n"
        );
        std::fs::write(room.path().join("t.toml"), task).unwrap();
        let words = ["eval", "model", "rows.jsonl", "--task", "t.toml", "--max-completion-tokens", "1"];
        let more =
            ["--max-prompt-tokens", "60", "--temperature", temperature, "--threads", "1", "--device", "cpu"];
        let out = rlvr(room.path(), &[&words[..], &more, &["--json"]].concat());
        serde_json::from_str::<Value>(&out).unwrap()["malformed_rate"].as_f64().unwrap()
    };
    let (never, ten) = (malformed(0, "1"), malformed(10, "1"));
    assert!(never > 0.5 && ten < 0.25, "{never} {ten}");
    assert_eq!(malformed(10, "0"), malformed(0, "0"));
}
