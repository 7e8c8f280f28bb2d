//! Bad input through the real binary: one line on stderr that names the place, what is wrong there and the fix;
//! exit code 2 where the input is at fault, 1 where the operating system says no. Never a panic.

use std::path::{Path, PathBuf};
use std::process::Command;

use rlvr::formats::hf::config_json;
use rlvr::model::decoder::Decoder;
use rlvr::run::RunDirectory;
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
const GRPO: &str = r#"stages=["grpo"] grpo.steps=1 grpo.max_completion_tokens=4 grpo.prompts_per_step=1"#;

const DEMO: &str = "train demo --set threads=1 --set device=cpu";

const INPUT: i32 = 2;
const SYSTEM: i32 = 1;

/// A folder with a model of one layer, two rows and a config that trains on them.
struct Room(TempDir);

impl Room {
    fn new() -> Self {
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

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.at(name), content).unwrap();
    }

    /// Exit code, none after a signal; and stderr.
    fn rlvr(&self, words: &str) -> (Option<i32>, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rlvr"));
        let output = command.args(words.split(' ')).current_dir(self.0.path()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// What is wrong with the answer to `rlvr WORDS`, if anything.
    fn fault(&self, words: &str, code: i32, says: &[&str]) -> Option<String> {
        let (found, stderr) = self.rlvr(words);
        let (last, before) =
            stderr.trim_end_matches('\n').rsplit_once('\n').map_or((&*stderr, ""), |(b, l)| (l, b));
        let silent = says.iter().find(|part| !last.contains(**part));
        let rule = if found != Some(code) {
            format!("exit code {found:?}, not {code}")
        } else if !last.starts_with("error: ") || before.lines().any(|line| !line.starts_with("warning: ")) {
            "not one line that starts with `error: `".into()
        } else if let Some(part) = silent {
            format!("`{part}` is not said")
        } else {
            return None;
        };
        Some(format!("rlvr {words}\n  {rule}:\n{stderr}"))
    }
}

fn row(content: &str, label: &str) -> String {
    json!({"prompt": [{"role": "user", "content": content}], "security_type": [label], "chosen": "ok"})
        .to_string()
}

/// `a=1 b=2` as flags.
fn flags(settings: &str) -> String {
    settings.split_whitespace().map(|setting| format!(" --set {setting}")).collect()
}

#[track_caller]
fn none(faults: impl Iterator<Item = Option<String>>) {
    let faults: Vec<_> = faults.flatten().collect();
    assert!(faults.is_empty(), "{} cases:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn the_input_that_the_cases_spoil_is_good() {
    for settings in ["", GRPO] {
        let (code, stderr) = Room::new().rlvr(&format!("train config.toml{}", flags(settings)));
        assert_eq!(code, Some(0), "{stderr}");
    }
}

#[test]
fn bad_rows_are_named_by_file_and_line() {
    let spoilt = |key: &str, value: Value| {
        let mut row: Value = serde_json::from_str(&row("a", "Safe")).unwrap();
        row[key] = value;
        row.to_string().into_bytes()
    };
    let good = row("a", "Safe");
    let second = |line: &[u8]| [good.as_bytes(), b"\n\n", line, b"\n"].concat();
    let cases: [(Vec<u8>, &[&str]); 15] = [
        (second(b"{\"prompt\": "), &["bad.jsonl:3: malformed JSON at column", "one JSON object a line"]),
        (second(b"[1]"), &["bad.jsonl:3: the row is a list", "one JSON object a line"]),
        (second(&b"[".repeat(100_000)), &["bad.jsonl:3: malformed JSON", "recursion limit"]),
        (second(&spoilt("security_type", Value::Null)), &["bad.jsonl:3: ", "security_type[-1]", "gold.path"]),
        (
            second(row("b", "Nope").as_bytes()),
            &["bad.jsonl:3: ", "`Nope`", "Use one of: Safe, ", "[gold.map]"],
        ),
        (second(&spoilt("prompt", json!([]))), &["bad.jsonl:3: `prompt` is empty", "Give a list of"]),
        (second(&spoilt("prompt", json!("a"))), &["bad.jsonl:3: ", "`prompt`", "Give a list of"]),
        (second(&spoilt("prompt", json!([{"content": "a"}]))), &["bad.jsonl:3: `prompt[0]` has no role"]),
        (
            second(&spoilt("chosen", Value::Null)),
            &["bad.jsonl:3: ", "no target", "Add the answer to imitate"],
        ),
        (second(&spoilt("chosen", json!(""))), &["bad.jsonl:3: `chosen` is empty", "Give the answer"]),
        (second(&spoilt("chosen", json!("a<|im_end|>"))), &["bad.jsonl:3: ", "`<|im_end|>`", "Remove it"]),
        (second(b"\"\xff\""), &["bad.jsonl:3: byte 2 of the line is not UTF-8", "Save the file as UTF-8"]),
        (b"\0".repeat(99), &["bad.jsonl:1: malformed JSON at column 1"]),
        (Vec::new(), &["bad.jsonl: has no rows", "one JSON object a line"]),
        (b"\n \n".to_vec(), &["bad.jsonl: has no rows"]),
    ];
    none(cases.into_iter().map(|(rows, says)| {
        let room = Room::new();
        room.write("bad.jsonl", rows);
        room.fault("train config.toml --set data.train=bad.jsonl", INPUT, says)
    }));
}

#[test]
fn settings_that_cannot_work_are_named_by_key() {
    let cases: [(&str, &[&str]); 39] = [
        ("sft.optim.learning_rte=1", &["learning_rte", "learning_rate", "rlvr train demo --dry-run"]),
        ("nope=1", &["--set nope=1", "unknown field", "`seed`"]),
        ("sft.steps=abc", &["--set sft.steps=abc: ", "expected a whole number", "--dry-run"]),
        ("sft.steps=-1", &["--set sft.steps=-1: ", "expected a whole number"]),
        ("stages=[\"ppo\"]", &["stages[0]", "`ppo`", "`sft` or `grpo`"]),
        ("stages=[]", &["stages = []", "a list such as"]),
        ("stages=[\"sft\",\"sft\"]", &["stages = sft, sft", "without repeats"]),
        // Without the feature the build says so; with it, the machine has no driver, or this run would train.
        #[cfg(not(feature = "cuda"))]
        ("device=cuda", &["device cuda", "built without CUDA", "--features cuda"]),
        #[cfg(feature = "cuda")]
        ("device=gpu", &["device", "unknown variant"]),
        ("device=cpu sft.optim.bf16_weights=masters", &["sft.optim.bf16_weights = masters", "f32"]),
        ("device=cpu sft.optim.gradients=bf16", &["sft.optim.gradients = bf16", "f32"]),
        ("threads=100000", &["threads = 100000", "at most 1024"]),
        ("model.max_positions=63", &["model.max_positions = 63", "at least 64", "completion budget"]),
        (
            "data.max_prompt_tokens=5",
            &["good.jsonl: all 2 rows are dropped", "max_prompt_tokens = 5", "Raise"],
        ),
        (
            "data.max_target_tokens=1",
            &["good.jsonl: all 2 rows are dropped", "max_target_tokens = 1", "Raise"],
        ),
        ("sft.rows_per_step=9223372036854775807", &["sft.rows_per_step = 9223", "at most 1048576"]),
        ("sft.steps=0 sft.epochs=0", &["sft.epochs = 0", "above 0"]),
        ("sft.optim.betas=[0.9,1.0]", &["sft.optim.betas = 1", "below 1"]),
        ("sft.optim.betas=[0.9]", &["--set sft.optim.betas=[0.9]: ", "length 2"]),
        ("sft.optim.learning_rate=nan", &["sft.optim.learning_rate = NaN", "above 0"]),
        (
            "sft.optim.warmup_ratio=0.1 sft.optim.warmup_steps=1",
            &["sft.optim.warmup_ratio", "one of them to 0"],
        ),
        ("eval.sampling.top_p=1.5", &["eval.sampling.top_p = 1.5", "at most 1"]),
        // The default of `eval` is greedy, and stays so when a neighbouring key is set.
        ("eval.sampling.top_k=3", &["eval.sampling.temperature = 0", "above 0 when top_k"]),
        ("eval.max_completion_tokens=0", &["eval.max_completion_tokens = 0", "1 or more"]),
        ("checkpoint.keep_last=0", &["checkpoint.keep_last = 0", "1 or more"]),
        ("run.name=a/b", &["run.name = \"a/b\"", "a plain directory name"]),
        ("model.path=", &["model.path = \"\"", "a path"]),
        ("model.path=absent", &["model.path = absent: no such folder", "Name a model folder"]),
        ("model.tokenizer=absent", &["absent: no such folder", "tokenizer.json"]),
        ("task=absent", &["task `absent`", "Use one of: riskcue"]),
        ("data.train=model", &["model: is a folder", "Name a file"]),
        ("no-equals-sign", &["--set no-equals-sign: has no `=`", "--set section.key=value"]),
        ("grpo.group_size=1", &["grpo.group_size = 1", "2 or more"]),
        ("grpo.sampling.temperature=0", &["grpo.sampling.temperature = 0", "above 0"]),
        ("grpo.sampling.top_p=0", &["grpo.sampling.top_p = 0", "above 0"]),
        ("grpo.steps=0", &["grpo.steps = 0", "1 or more"]),
        ("grpo.max_completion_tokens=0", &["grpo.max_completion_tokens = 0", "1 or more"]),
        (
            "grpo.loss.epsilon_high=0.3",
            &["grpo.loss.epsilon_high: has no effect", "grpo.updates_per_rollout"],
        ),
        ("grpo.balance=label_sign", &["grpo.balance = label_sign", "no positive rows"]),
        ("grpo.max_logprob_difference=nan", &["grpo.max_logprob_difference = NaN", "0 or more"]),
    ];
    none(cases.into_iter().map(|(settings, says)| {
        let stage = if settings.starts_with("grpo") { GRPO } else { "" };
        Room::new().fault(&format!("train config.toml{}{}", flags(stage), flags(settings)), INPUT, says)
    }));
}

#[test]
fn a_model_from_the_seed_has_a_shape_that_works() {
    let cases: [(&str, &[&str]); 5] = [
        ("model.random.hidden_size=97", &["model.random.hidden_size = 97", "twice attention_heads"]),
        ("model.random.vocab_size=10", &["model.random.vocab_size = 10", "or more"]),
        ("model.random.rope_theta=nan", &["model.random.rope_theta = NaN", "above 0"]),
        ("model.random.layers=1000000000000", &["model.random: ", "Make it smaller"]),
        ("model.path=model", &["model.path and [model.random] are both set", "Keep one"]),
    ];
    none(
        cases
            .into_iter()
            .map(|(setting, says)| Room::new().fault(&format!("{DEMO}{}", flags(setting)), INPUT, says)),
    );
}

#[test]
fn broken_config_files_are_named_by_line_or_key() {
    let cases: [(&[u8], &[&str]); 8] = [
        (b"seed = 1\n[sft\nsteps = 1", &["bad.toml:2: ", "Correct the TOML on that line"]),
        (b"seed = 1\n\nseed = = 2", &["bad.toml:3: ", "Correct the TOML"]),
        (b"seed = 1\nseed = 2", &["bad.toml:2: duplicate key"]),
        (b"# \xff", &["bad.toml: is not UTF-8", "Save"]),
        (b"preset = \"nope\"", &["preset = \"nope\"", "one of demo, "]),
        (b"preset = \"demo\"\n[sft]\nsteps = \"x\"", &["bad.toml: sft.steps: ", "a whole number"]),
        (b"[grpo.optim.schedule]\ntype = \"warp\"", &["bad.toml: grpo.optim.schedule", "`warp`", "`cosine`"]),
        (b"seed = 1", &["neither model.path nor [model.random] is set", "--set model.path=DIR"]),
    ];
    none(cases.into_iter().map(|(text, says)| {
        let room = Room::new();
        room.write("bad.toml", text);
        room.fault("train bad.toml", INPUT, says)
    }));
}

#[test]
fn broken_task_files_are_named_by_line_or_key() {
    let task = include_str!("../../tasks/riskcue-short.toml");
    let cases: [(String, &[&str]); 5] = [
        ("name = \"a\"\n[input\n".into(), &["bad.toml:2: ", "Correct it"]),
        (String::new(), &["bad.toml: missing field `name`", "Correct it"]),
        (format!("{task}\nbogus = 1.0\n"), &["bad.toml:", "`bogus`", "`exact_positive`"]),
        (
            task.replacen("\nregex = '", "\nregex = '(", 1),
            &["bad.toml: verdict[0].regex", "Correct the pattern"],
        ),
        (
            task.replacen("exact_positive = 1.0", "exact_positive = nan", 1),
            &["reward.exact_positive", "finite"],
        ),
    ];
    none(cases.into_iter().map(|(text, says)| {
        let room = Room::new();
        room.write("bad.toml", text);
        room.fault("train config.toml --set task=bad.toml", INPUT, says)
    }));
}

#[test]
fn broken_model_folders_are_named_by_file_and_field() {
    fn field(model: &Path, key: &str, value: Value) {
        let path = model.join("config.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json[key] = value;
        std::fs::write(path, json.to_string()).unwrap();
    }
    fn remove(model: &Path, name: &str) {
        std::fs::remove_file(model.join(name)).unwrap();
    }
    fn put(model: &Path, name: &str, text: &str) {
        std::fs::write(model.join(name), text).unwrap();
    }
    fn cut(model: &Path) {
        let path = model.join("model.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(path, &bytes[..bytes.len() - 9]).unwrap();
    }
    type Spoil = fn(&Path);
    let cases: [(Spoil, &[&str]); 17] = [
        (|m| remove(m, "config.json"), &["model/config.json: is missing", "Give a model folder"]),
        (|m| put(m, "config.json", "{"), &["model/config.json: not valid JSON", "Fetch"]),
        (
            |m| field(m, "model_type", json!("gemma3")),
            &["config.json: model_type: \"gemma3\"", "Use a model"],
        ),
        (|m| field(m, "mlp_bias", json!(true)), &["config.json: mlp_bias", "Use a model without"]),
        (
            |m| field(m, "num_hidden_layers", json!(1u64 << 40)),
            &["config.json: num_hidden_layers", "Correct it"],
        ),
        (
            |m| field(m, "num_hidden_layers", json!(2)),
            &["model: missing tensors: model.layers.1.", "Give weights"],
        ),
        (
            |m| field(m, "intermediate_size", json!(16)),
            &["gate_proj.weight is [12, 8], wanted [16, 8]", "Give"],
        ),
        (|m| field(m, "tie_word_embeddings", json!(false)), &["missing tensors: lm_head.weight"]),
        (cut, &["broken files: model.safetensors: not a whole safetensors file", "fetch the files again"]),
        (
            |m| put(m, "model.safetensors", ""),
            &["broken files: model.safetensors: not a whole", "fetch the files again"],
        ),
        (|m| remove(m, "model.safetensors"), &["model: no model.safetensors", "rlvr import"]),
        (|m| remove(m, "tokenizer.json"), &["model/tokenizer.json: is missing", "Copy the tokenizer.json"]),
        (|m| put(m, "tokenizer.json", "{}"), &["model/tokenizer.json: is not a tokenizer file", "Copy"]),
        (
            |m| remove(m, "tokenizer_config.json"),
            &["tokenizer_config.json: is missing", "model.chat_template"],
        ),
        (
            |m| put(m, "chat_template.jinja", "{% for m in messages %}\n{{ m.content }"),
            &["model/chat_template.jinja, line 2: does not parse", "Correct the template"],
        ),
        (
            |m| put(m, "chat_template.jinja", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"),
            &["model/chat_template.jinja, line 1: ", "recursion limit", "model.chat_template"],
        ),
        (
            |m| put(m, "generation_config.json", r#"{"eos_token_id": "x"}"#),
            &["generation_config.json: eos_token_id", "Write numbers"],
        ),
    ];
    none(cases.into_iter().map(|(spoil, says)| {
        let room = Room::new();
        spoil(&room.at("model"));
        room.fault("train config.toml", INPUT, says)
    }));
}

#[test]
fn a_run_that_cannot_go_on_says_why() {
    const RUN: &str = "train config.toml --set run.name=a";
    const RESUME: &str = "train --resume runs/a";
    type Spoil = fn(&Path);
    let checkpoint = |file: &str| format!("runs/a/checkpoints/step-1/{file}");
    let [manifest, state, weights] = ["manifest.json", "state.json", "model.safetensors"].map(checkpoint);
    let cases: [(&str, Spoil, &[&str]); 7] = [
        (RUN, |_| (), &["runs/a: is not empty", "another run.name", "--resume"]),
        ("train --resume runs", |_| (), &["runs: is not a run", "Name the directory"]),
        ("train --resume good.jsonl", |_| (), &["good.jsonl: is not a run", "Name the directory"]),
        (
            RESUME,
            |run| std::fs::remove_dir_all(run.join("checkpoints")).unwrap(),
            &["runs/a: has no checkpoint", "Start it again"],
        ),
        (
            RESUME,
            |run| std::fs::write(run.join("checkpoints/step-1/manifest.json"), "{").unwrap(),
            &[&manifest, "is damaged", "Remove this checkpoint"],
        ),
        (
            RESUME,
            |run| std::fs::write(run.join("checkpoints/step-1/state.json"), "{}").unwrap(),
            &[&state, "is truncated: 2 of", "Remove this checkpoint"],
        ),
        (
            RESUME,
            |run| {
                let path = run.join("checkpoints/step-1/model.safetensors");
                let mut bytes = std::fs::read(&path).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(path, bytes).unwrap();
            },
            &[&weights, "SHA-256", "Remove this checkpoint"],
        ),
    ];
    none(cases.into_iter().map(|(words, spoil, says)| {
        let room = Room::new();
        assert_eq!(room.rlvr(RUN).0, Some(0));
        spoil(&room.at("runs/a"));
        room.fault(words, INPUT, says)
    }));
    let room = Room::new();
    assert_eq!(room.rlvr(RUN).0, Some(0));
    let _held = RunDirectory::open_for_resume(&room.at("runs/a")).unwrap();
    let process = format!("process {} is working in this run", std::process::id());
    none([room.fault(RESUME, INPUT, &["runs/a: ", &process, "Wait for it"])].into_iter());
}

#[test]
fn a_run_that_did_not_start_leaves_its_name_free() {
    let room = Room::new();
    let words = "train config.toml --set run.name=a";
    none(
        [room.fault(&format!("{words} --set data.valid=model"), INPUT, &["model: is a folder"])].into_iter(),
    );
    assert!(!room.at("runs/a").exists());
    let (code, stderr) = room.rlvr(words);
    assert_eq!(code, Some(0), "{stderr}");
}

#[test]
fn gguf_files_that_are_none_or_cut_short_are_refused() {
    let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
    let header = |tensors: u64, keys: u64| {
        [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes()].concat()
    };
    let gemma = [header(0, 1), text("general.architecture"), vec![8, 0, 0, 0], text("gemma3")].concat();
    let cases: [(Vec<u8>, &[&str]); 6] = [
        (b"NOPE and more".to_vec(), &["x.gguf: not a GGUF file", "Give a .gguf file"]),
        (Vec::new(), &["x.gguf: not a GGUF file", "Give a .gguf file"]),
        (header(3, 5), &["x.gguf: the file ends inside its header", "fetch the file again"]),
        ([header(1 << 60, 1 << 60), vec![0; 99]].concat(), &["x.gguf: the file ends inside", "fetch"]),
        (b"GGUF\x63\0\0\0".repeat(9), &["x.gguf: GGUF version 99 is not supported", "Convert"]),
        (gemma, &["x.gguf: general.architecture: \"gemma3\"", "Import one of llama, qwen2, qwen3"]),
    ];
    none(cases.into_iter().map(|(bytes, says)| {
        let room = Room::new();
        room.write("x.gguf", bytes);
        room.fault("import x.gguf out", INPUT, says)
    }));
}

#[test]
fn paths_and_files_on_the_command_line_are_checked() {
    let cases: [(&str, i32, &[&str]); 18] = [
        (
            "eval --predictions good.jsonl",
            INPUT,
            &["good.jsonl:1: the row has no answer", "Give the answer as"],
        ),
        (
            "eval model good.jsonl --use-threshold",
            INPUT,
            &["threshold.json: is not there", "--fit-threshold"],
        ),
        ("report model", INPUT, &["model: is not a run", "Name the directory"]),
        ("data audit bad.jsonl", INPUT, &["bad.jsonl:2: malformed JSON", "one JSON object a line"]),
        ("train absent", INPUT, &["config `absent`", "Use one of: demo, "]),
        ("train model", INPUT, &["model: is a folder, not a config", "Name a TOML file"]),
        ("train absent.toml", INPUT, &["absent.toml: cannot read the config", "Check the path"]),
        ("train config.toml --set data.train=absent", INPUT, &["absent: cannot read", "Check the path"]),
        ("train config.toml --set task=absent.toml", INPUT, &["absent.toml: cannot read", "Check the path"]),
        (
            "train config.toml --set task=model",
            INPUT,
            &["model: is a folder, not a task file", "Name a TOML"],
        ),
        ("train config.toml --set run.root=good.jsonl", SYSTEM, &["good.jsonl: cannot create", "Check"]),
        ("import absent.gguf out", INPUT, &["absent.gguf: cannot open", "Check the path"]),
        ("import good.jsonl model", INPUT, &["model: the output directory is not empty", "Name a new"]),
        ("data check bad.jsonl", INPUT, &["bad.jsonl: 2 problems in 3 rows", "Correct the lines"]),
        ("data check bad.jsonl --task nope", INPUT, &["task `nope`", "Use one of: riskcue"]),
        ("data check good.jsonl --model absent", INPUT, &["absent: no such folder", "tokenizer.json"]),
        ("data check absent", INPUT, &["absent: cannot read", "Check the path"]),
        (
            "data preview good.jsonl --model model --row 9",
            INPUT,
            &["good.jsonl:9: there is no such line", "from 1"],
        ),
    ];
    let room = Room::new();
    room.write("bad.jsonl", [&row("a", "Safe"), "bad", "{}"].join("\n"));
    none(cases.into_iter().map(|(words, code, says)| room.fault(words, code, says)));
}
