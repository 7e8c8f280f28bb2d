//! The ways by which bytes from outside come in, one a format: the bytes take the place of one good file and are read as
//! commands read it. The fuzz targets in `fuzz/` and the suite's mutations share them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::{DType, Device};
use rlvr::config::Config;
use rlvr::data::check::Check;
use rlvr::data::predictions::Predictions;
use rlvr::data::{Limits, Source, Targets};
use rlvr::error::Result;
use rlvr::formats::gguf::GgufModel;
use rlvr::formats::hf::{config_json, weights};
use rlvr::formats::peft;
use rlvr::model::config::ModelConfig;
use rlvr::model::decoder::Decoder;
use rlvr::run::Checkpoint;
use rlvr::task::Task;
use rlvr::text::{EncoderFiles, PromptEncoder, Tokenizer, byte_tokenizer};
use rlvr::train::state::save_weights;
use rlvr::types::FinishReason;
use serde_json::json;
use tempfile::TempDir;

type Entry = fn(&Files, &[u8]) -> Result<()>;

/// Names of the targets and of the folders in `fuzz/corpus/`.
pub const FORMATS: [(&str, Entry); 11] = [
    ("chat_template", chat_template),
    ("config", config),
    ("task", task),
    ("row", row),
    ("model_config", model_config),
    ("tokenizer", tokenizer),
    ("safetensors", safetensors),
    ("gguf", gguf),
    ("adapter", adapter),
    ("manifest", manifest),
    ("recorded", recorded),
];

/// A folder of good files, and what is read beside the bytes.
pub struct Files {
    dir: TempDir,
    encoder: Arc<PromptEncoder>,
    tasks: Vec<Task>,
}

impl Files {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("text");
        let built = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
        byte_tokenizer::save_pretrained(&built, &text).unwrap();
        let encoder = Arc::new(PromptEncoder::load(&EncoderFiles::of(&text)).unwrap());
        save_weights(&dir.path().join("model"), &tiny_model()).unwrap();
        std::fs::create_dir(dir.path().join("checkpoint")).unwrap();
        let mcp = "name = \"mcp\"\n[input]\nmcp = \"log\"\n[gold]\npath = \"label\"\n[labels]\nnegative = \"fine\"\n\
            positive = [\"bad\"]\n[[verdict]]\nregex = '^(fine|bad)$'\nlabel = \"$1\"\n[[verdict]]\ndefault = \"@malformed\"\n\
            [reward]\nexact_positive = 1.0\nexact_negative = 1.0\nwrong_label = 0.0\nfalse_positive = 0.0\n\
            false_negative = 0.0\nmalformed = 0.0\n";
        let path = dir.path().join("mcp.toml");
        std::fs::write(&path, mcp).unwrap();
        let tasks = ["riskcue", "llama-guard", path.to_str().unwrap()].map(|name| Task::load(name).unwrap());
        Self { dir, encoder, tasks: tasks.into() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.at(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

fn tiny_config() -> ModelConfig {
    let json = json!({
        "model_type": "llama", "hidden_size": 4, "intermediate_size": 6, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 16,
        "tie_word_embeddings": true, "eos_token_id": 2,
    });
    config_json::from_json(&json, "config.json").unwrap()
}

fn tiny_model() -> Decoder {
    Decoder::random(tiny_config(), 1, 64).unwrap()
}

fn chat_template(files: &Files, bytes: &[u8]) -> Result<()> {
    let path = files.write("t.jinja", bytes);
    let model = files.at("text");
    let encoder =
        PromptEncoder::load(&EncoderFiles { chat_template: Some(&path), ..EncoderFiles::of(&model) })?;
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {"a": [1, "b"]}}});
    let row = json!({"prompt": [
        {"role": "system", "content": "s"}, {"role": "user", "content": "a<|im_end|>"},
        {"role": "assistant", "content": null, "tool_calls": [call]}, {"role": "tool", "content": "log"},
    ]});
    let talk = files.tasks[0].conversation(&row, Path::new("rows"), 1)?;
    encoder.encode_target(&talk, "ok").map(drop)
}

fn config(files: &Files, bytes: &[u8]) -> Result<()> {
    let path = files.write("c.toml", bytes);
    let config = Config::load(path.to_str().unwrap_or_default(), &["grpo.steps=3".into()])?;
    config.to_toml().map(drop)
}

fn task(files: &Files, bytes: &[u8]) -> Result<()> {
    let path = files.write("t.toml", bytes);
    let task = Task::load(path.to_str().unwrap_or_default())?;
    for answer in [
        "",
        "unsafe\nS1",
        "Unsafe MCP Server:{\"ServerName\":\"a\", \"ToolName\":\"b\", \"Reason\":\"Safe\"}",
    ] {
        task.judge(answer, FinishReason::Stop);
        task.judge(answer, FinishReason::Length);
    }
    let row = json!({"prompt": [{"role": "user", "content": "a"}], "messages": [], "text": "x", "label": 3,
        "security_type": ["Safe"], "chosen": "ok", "categories": ["S1"]});
    task.unread_keys(&row);
    // Whether this row suits it is not what is asked.
    drop(task.sample(&row, Path::new("rows"), 1));
    Ok(())
}

fn row(files: &Files, bytes: &[u8]) -> Result<()> {
    let path = files.write("rows.jsonl", bytes);
    let limits =
        Limits { max_prompt_tokens: 3000, max_target_tokens: 500, max_rows: 0, targets: Targets::Required };
    let mut last = Ok(());
    for task in &files.tasks {
        Check { task, encoder: Some(&files.encoder), limits, max_problems: 3, distill: None }.run(&path)?;
        last = Source { task, encoder: &files.encoder, limits, distill: None }.load(&path).map(drop);
    }
    last
}

fn model_config(files: &Files, bytes: &[u8]) -> Result<()> {
    files.write("model/config.json", bytes);
    let config = config_json::load(&files.at("model"))?;
    weights::check(&files.at("model"), &config)
}

fn tokenizer(files: &Files, bytes: &[u8]) -> Result<()> {
    let path = files.write("tokenizer.json", bytes);
    let tokenizer = Tokenizer::from_file(&path)?;
    let ids = tokenizer.encode("the log <|im_end|> é\u{fdd0} \0")?;
    tokenizer.missing_ids();
    tokenizer.decode(&ids)?;
    tokenizer.decode_whole(&[0, 1, 77, u32::MAX])?;
    tokenizer.within(300, Path::new("model")).map(drop)
}

fn safetensors(files: &Files, bytes: &[u8]) -> Result<()> {
    files.write("model/model.safetensors", bytes);
    weights::load(&files.at("model"), &tiny_config(), &Device::Cpu, DType::F32).map(drop)
}

fn gguf(files: &Files, bytes: &[u8]) -> Result<()> {
    let model = GgufModel::open(&files.write("m.gguf", bytes))?;
    model.config.parameter_names().iter().try_for_each(|(name, _)| model.tensor(name).map(drop))
}

/// A config where the bytes begin as JSON does, weights otherwise; the other of the two is as it was.
fn adapter(files: &Files, bytes: &[u8]) -> Result<()> {
    let adapter = files.at("adapter");
    let mut decoder = tiny_model();
    let shape = rlvr::model::adapter::Shape {
        rank: 2,
        alpha: 4.0,
        rslora: false,
        targets: rlvr::config::lora::PROJECTIONS[..2].to_vec(),
    };
    let good = rlvr::model::adapter::Adapter::fresh(shape, &decoder.config, &Device::Cpu, 1, 0)?;
    peft::save(&adapter, &good, "base")?;
    let name = if bytes.starts_with(b"{") { peft::CONFIG } else { peft::WEIGHTS };
    std::fs::write(adapter.join(name), bytes).unwrap();
    peft::attach(&adapter, &mut decoder)
}

fn manifest(files: &Files, bytes: &[u8]) -> Result<()> {
    files.write("checkpoint/config.toml", b"seed = 1\n");
    files.write("checkpoint/manifest.json", bytes);
    Checkpoint::verify(&files.at("checkpoint")).map(drop)
}

fn recorded(files: &Files, bytes: &[u8]) -> Result<()> {
    let path = files.write("answers.jsonl", bytes);
    let mut last = Ok(());
    for task in &files.tasks {
        last = Predictions::load(task, &path, Some("group")).map(drop);
    }
    last
}
