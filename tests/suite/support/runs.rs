//! The real binary, a demo small enough for a test, and what its runs leave behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// A demo small enough for a test; two threads, so that sums are cut the same way everywhere.
const SMALL: [&str; 11] = [
    "device=cpu",
    "threads=2",
    "data.synthetic.sft_rows=200",
    "data.synthetic.grpo_rows=100",
    "data.synthetic.valid_rows=20",
    "sft.rows_per_step=8",
    "sft.epochs=0.2",
    "grpo.steps=6",
    "grpo.prompts_per_step=4",
    "eval.every_steps=3",
    "checkpoint.every_steps=2",
];

/// The real binary, run to its end.
pub fn rlvr(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rlvr")).args(args).output().unwrap()
}

/// A finished run of the small demo in `root`, by the real binary.
pub fn train(root: &Path, name: &str, overrides: &[&str]) -> PathBuf {
    let output = train_command(root, name, overrides).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    root.join(name)
}

/// The small demo in `root`, not started yet.
pub fn train_command(root: &Path, name: &str, overrides: &[&str]) -> Command {
    let (root_key, name_key) = (format!("run.root={}", root.display()), format!("run.name={name}"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
    command.args(["train", "demo"]);
    for set in SMALL.iter().chain(overrides).chain([&root_key.as_str(), &name_key.as_str()]) {
        command.args(["--set", set]);
    }
    command
}

/// What the binary prints when it ends well.
pub fn stdout(args: &[&str]) -> String {
    let output = rlvr(args);
    assert!(output.status.success(), "{args:?}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// 20 held-out rows of the small demo, ten of them risky.
pub fn held_out(root: &Path) -> PathBuf {
    let data = root.join("data");
    stdout(&["data", "synth", "--out", text(&data), "--seed", "1", "--valid-rows", "20"]);
    data.join("valid.jsonl")
}

/// What `rlvr eval` and `rlvr predict` must be told to read [`held_out`] rows.
pub const READ_HELD_OUT: [&str; 8] =
    ["--task", "demo", "--max-completion-tokens", "12", "--max-prompt-tokens", "200", "--device", "cpu"];

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A folder with all that is in it.
pub fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// The rows of a JSONL file.
pub fn rows(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The object in a JSON file.
pub fn object(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The data of a TensorBoard file's records: length, checksum, data, checksum.
pub fn records(path: &Path) -> Vec<Vec<u8>> {
    let content = std::fs::read(path).unwrap();
    let (mut at, mut all) = (0, Vec::new());
    while at < content.len() {
        let length = usize::try_from(u64::from_le_bytes(content[at..at + 8].try_into().unwrap())).unwrap();
        all.push(content[at + 12..at + 12 + length].to_vec());
        at += 16 + length;
    }
    assert_eq!(at, content.len());
    all
}

/// A task of rows with `text` and `label`, answered with the label.
pub fn label_task(negative: &str, positive: &[&str]) -> String {
    let any = positive.join("|");
    format!(
        r#"
name = "logs"
[input]
template = "{{text}}"
[gold]
path = "label"
[labels]
negative = "{negative}"
positive = {positive:?}
[sft.target_template]
negative = "{negative}"
positive = "{{label}}"
[[verdict]]
regex = '^({any})$'
label = "$1"
[[verdict]]
regex = '^{negative}$'
label = "@negative"
[[verdict]]
default = "@malformed"
[reward]
exact_positive = 1.0
exact_negative = 1.0
wrong_label = 0.0
false_positive = 0.0
false_negative = 0.0
malformed = 0.0
"#
    )
}
