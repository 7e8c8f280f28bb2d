//! Model folders and GGUF files, named by file and field.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::room::{INPUT, Room, no_faults};

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
    no_faults(cases.into_iter().map(|(spoil, says)| {
        let room = Room::new();
        spoil(&room.at("model"));
        room.fault("train config.toml", INPUT, says)
    }));
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
    no_faults(cases.into_iter().map(|(bytes, says)| {
        let room = Room::new();
        room.write("x.gguf", bytes);
        room.fault("import x.gguf out", INPUT, says)
    }));
}
