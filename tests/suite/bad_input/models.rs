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
    fn number(model: &Path, at: usize, value: f32) {
        let path = model.join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4 * at..end - 4 * at + 4].copy_from_slice(&value.to_le_bytes());
        std::fs::write(path, bytes).unwrap();
    }
    /// The tensors under other names, and one more.
    fn renamed(model: &Path, name: impl Fn(&str) -> String, more: Option<(&str, f64)>) {
        let path = model.join("model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
        let mut named: std::collections::HashMap<_, _> =
            tensors.iter().map(|(old, tensor)| (name(old), tensor.clone())).collect();
        if let Some((extra, factor)) = more {
            named.insert(extra.into(), (&tensors["model.embed_tokens.weight"] * factor).unwrap());
        }
        candle_core::safetensors::save(&named, path).unwrap();
    }
    type Spoil = fn(&Path);
    let cases: [(Spoil, &[&str]); 28] = [
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
        (
            |m| field(m, "tie_word_embeddings", json!(false)),
            &["lm_head.weight is missing, and tie_word_embeddings"],
        ),
        (
            |m| number(m, 7, f32::NAN),
            &["model.safetensors: model.", "is NaN or infinite", "an earlier checkpoint"],
        ),
        (
            |m| number(m, 1, f32::NEG_INFINITY),
            &["model.safetensors: model.norm.weight: element 7 is NaN or infinite"],
        ),
        (
            |m| renamed(m, |name| name.to_string(), Some(("lm_head.weight", -1.0))),
            &["tie_word_embeddings is true", "lm_head.weight is not model.embed_tokens.weight"],
        ),
        (|m| renamed(m, |name| format!("_orig_mod.{name}"), None), &["all tensors begin with `_orig_mod.`"]),
        (|m| renamed(m, |name| format!("module.{name}"), None), &["all tensors begin with `module.`"]),
        (|m| renamed(m, |name| name.replacen("model.", "", 1), None), &["all tensors lack `model.`"]),
        (|m| field(m, "quantization", json!({"bits": 4})), &["config.json: quantization: quantised weights"]),
        (
            |m| {
                field(m, "rope_scaling", json!({"rope_type": "linear", "factor": 4.0}));
                field(m, "rope_parameters", json!({"rope_type": "default", "rope_theta": 10000.0}));
            },
            &["config.json: rope_parameters: says something else than rope_scaling"],
        ),
        (
            |m| field(m, "rope_parameters", json!({"rope_type": "default", "rope_theta": 5e5})),
            &["config.json: rope_parameters: rope_theta: 500000, but 10000 beside rope_parameters"],
        ),
        (|m| std::fs::write(m.join("config.json"), b"{\xff}").unwrap(), &["config.json: is not UTF-8"]),
        (
            |m| {
                put(
                    m,
                    "tokenizer.json",
                    &format!(r#"{{"version": "1.0", "decoder": {}{}}}"#, "[".repeat(9999), "]".repeat(9999)),
                )
            },
            &["model/tokenizer.json: is not a tokenizer file", "Copy"],
        ),
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
