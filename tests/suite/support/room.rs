//! A folder with good input, for tests that spoil it and read what the real binary says.

use std::path::PathBuf;
use std::process::{Command, Output};

use rlvr::formats::hf::config_json;
use rlvr::model::decoder::Decoder;
use rlvr::text::byte_tokenizer;
use rlvr::train::state::save_weights;
use serde_json::{Value, json};
use tempfile::TempDir;

const CONFIG: &str = r#"
task = "riskcue"
stages = ["sft"]
device = "cpu"
threads = 1
[model]
path = "model"
max_positions = 128
[data]
train = "good.jsonl"
valid = "good.jsonl"
max_prompt_tokens = 60
max_target_tokens = 60
[sft]
steps = 1
rows_per_step = 2
[eval]
max_completion_tokens = 4
"#;

/// Sections of a GRPO stage that would run.
pub const GRPO: &str = r#"stages=["grpo"] grpo.steps=1 grpo.max_completion_tokens=4 grpo.prompts_per_step=1"#;

/// Exit codes: the input is at fault, or the operating system says no.
pub const INPUT: i32 = 2;
pub const SYSTEM: i32 = 1;

/// Lines of stderr that anybody reads.
const MOST_LINES: usize = 8;

/// A folder with a model of one layer, two rows and a config that trains on them.
pub struct Room(TempDir);

impl Room {
    pub fn new() -> Self {
        let room = Self(tempfile::tempdir().unwrap());
        let model = room.at("model");
        let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, &model).unwrap();
        let config = json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 259,
            "tie_word_embeddings": true, "eos_token_id": 2,
        });
        let config = config_json::from_json(&config, "config.json").unwrap();
        save_weights(&model, &Decoder::random(config, 1, 128).unwrap()).unwrap();
        room.write("good.jsonl", [row("a", "Safe"), row("b", "Safe")].join("\n"));
        room.write("config.toml", CONFIG);
        room
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.at(name), content).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut json = serde_json::from_slice(&std::fs::read(self.at(name)).unwrap()).unwrap();
        change(&mut json);
        self.write(name, json.to_string());
    }

    fn run(&self, words: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        command.args(words.split(' ')).current_dir(self.0.path());
        command.env_remove("RUST_BACKTRACE").output().unwrap()
    }

    /// Exit code, none after a signal; and stderr.
    pub fn rlvr(&self, words: &str) -> (Option<i32>, String) {
        let output = self.run(words);
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// What `rlvr WORDS` takes of processors, in the system's and its own code, as a shell counts it.
    pub fn processor_seconds(&self, words: &str) -> f64 {
        let mut shell = Command::new("sh");
        shell.args(["-c", "\"$0\" \"$@\" >&2; times", env!("CARGO_BIN_EXE_rlvr")]).args(words.split(' '));
        let output = shell.current_dir(self.0.path()).output().unwrap();
        let times = String::from_utf8(output.stdout).unwrap();
        let of_child = times.lines().nth(1).unwrap_or_else(|| panic!("{times}"));
        let seconds = of_child.split_whitespace().map(|time| {
            let (minutes, seconds) = time.trim_end_matches('s').split_once('m').unwrap();
            60.0 * minutes.parse::<f64>().unwrap() + seconds.parse::<f64>().unwrap()
        });
        seconds.sum()
    }

    /// What is wrong with the answer to `rlvr WORDS`, on both streams, if anything.
    pub fn answer_fault(&self, words: &str, code: i32, says: &[&str]) -> Option<String> {
        let output = self.run(words);
        let [out, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        let silent = says.iter().find(|part| !out.contains(**part) && !errors.contains(**part));
        let rule = if output.status.code() != Some(code) {
            format!("exit code {:?}, not {code}", output.status.code())
        } else if errors.lines().count() > MOST_LINES || errors.contains("panicked") {
            format!("more than {MOST_LINES} lines, or a panic")
        } else if let Some(part) = silent {
            format!("`{part}` is not said")
        } else {
            return None;
        };
        Some(format!("rlvr {words}\n  {rule}:\n{out}{errors}"))
    }

    /// What is wrong with the answer to `rlvr WORDS`, if anything.
    pub fn fault(&self, words: &str, code: i32, says: &[&str]) -> Option<String> {
        let (found, stderr) = self.rlvr(words);
        let (last, before) =
            stderr.trim_end_matches('\n').rsplit_once('\n').map_or((&*stderr, ""), |(b, l)| (l, b));
        let silent = says.iter().find(|part| !last.contains(**part));
        let rule = if found != Some(code) {
            format!("exit code {found:?}, not {code}")
        } else if !last.starts_with("error: ") || before.lines().any(|line| !said_before(line)) {
            "not one line that starts with `error: `".into()
        } else if stderr.lines().count() > MOST_LINES {
            format!("more than {MOST_LINES} lines")
        } else if let Some(part) = silent {
            format!("`{part}` is not said")
        } else {
            return None;
        };
        Some(format!("rlvr {words}\n  {rule}:\n{stderr}"))
    }
}

/// What it is about, what is done to the good input, a command, its exit code, and what it says.
pub type Case = (&'static str, fn(&Room), &'static str, i32, &'static [&'static str]);

/// # Panics
/// With every case that ends otherwise.
#[track_caller]
pub fn try_cases(cases: &[Case]) {
    no_faults(cases.iter().map(|(what, spoil, words, code, says)| {
        let room = Room::new();
        spoil(&room);
        room.answer_fault(words, *code, says).map(|fault| format!("{what}: {fault}"))
    }));
}

/// Warnings, and what is kept of the data.
fn said_before(line: &str) -> bool {
    line.starts_with("warning: ") || line.starts_with("data.")
}

/// A row of RiskCue\'s form.
pub fn row(content: &str, label: &str) -> String {
    json!({"prompt": [{"role": "user", "content": content}], "security_type": [label], "chosen": "ok"})
        .to_string()
}

/// `a=1 b=2` as flags.
pub fn flags(settings: &str) -> String {
    settings.split_whitespace().map(|setting| format!(" --set {setting}")).collect()
}

/// # Panics
/// With every fault there is.
#[track_caller]
pub fn no_faults(faults: impl Iterator<Item = Option<String>>) {
    let faults: Vec<_> = faults.flatten().collect();
    assert!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
}
