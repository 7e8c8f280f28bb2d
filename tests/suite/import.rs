//! GGUF import, on tiny files made here and, where it can be fetched, on SmolLM2-135M-Instruct.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use rlvr::formats::gguf::import;
use rlvr::formats::hf::config_json;
use rlvr::formats::hf::weights::load;
use rlvr::model::rope_scaling::RopeScaling;
use serde_json::json;
use tempfile::TempDir;
use tokenizers::Tokenizer;

use crate::support::golden::golden_dir;
use crate::support::parity_fixture::smollm2_dir;

/// One layer, hidden 64, two query heads and one key head of 32, inner 96.
struct Source {
    metadata: BTreeMap<String, Value>,
    /// In GGUF's names and row order.
    tensors: BTreeMap<String, QTensor>,
}

impl Source {
    fn tiny() -> Self {
        let (tokens, types, merges) = vocabulary();
        let vocab = tokens.len();
        let text = |s: &str| Value::String(s.into());
        let texts = |list: Vec<String>| Value::Array(list.into_iter().map(Value::String).collect());
        let metadata = [
            ("general.architecture", text("llama")),
            ("llama.block_count", Value::U32(1)),
            ("llama.context_length", Value::U32(512)),
            ("llama.embedding_length", Value::U32(64)),
            ("llama.feed_forward_length", Value::U32(96)),
            ("llama.attention.head_count", Value::U32(2)),
            ("llama.attention.head_count_kv", Value::U32(1)),
            ("llama.attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
            ("llama.rope.freq_base", Value::F32(500_000.0)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("smollm")),
            ("tokenizer.ggml.tokens", texts(tokens)),
            ("tokenizer.ggml.token_type", Value::Array(types.into_iter().map(Value::I32).collect())),
            ("tokenizer.ggml.merges", texts(merges)),
            ("tokenizer.ggml.bos_token_id", Value::U32(0)),
            ("tokenizer.ggml.eos_token_id", Value::U32(1)),
            ("tokenizer.ggml.eot_token_id", Value::U32(2)),
            ("tokenizer.chat_template", text("{{ messages }}")),
        ];
        let tensors = [
            ("token_embd.weight", vec![vocab, 64], GgmlDType::Q8_0),
            ("blk.0.attn_norm.weight", vec![64], GgmlDType::F32),
            ("blk.0.attn_q.weight", vec![64, 64], GgmlDType::F32),
            ("blk.0.attn_k.weight", vec![32, 64], GgmlDType::F16),
            ("blk.0.attn_v.weight", vec![32, 64], GgmlDType::Q4_1),
            ("blk.0.attn_output.weight", vec![64, 64], GgmlDType::Q5_0),
            ("blk.0.ffn_norm.weight", vec![64], GgmlDType::F32),
            ("blk.0.ffn_gate.weight", vec![96, 64], GgmlDType::Q4_0),
            ("blk.0.ffn_up.weight", vec![96, 64], GgmlDType::BF16),
            ("blk.0.ffn_down.weight", vec![64, 96], GgmlDType::Q5_1),
            ("output_norm.weight", vec![64], GgmlDType::F32),
        ];
        let mut source = Self {
            metadata: metadata.into_iter().map(|(k, v)| (k.into(), v)).collect(),
            tensors: BTreeMap::new(),
        };
        for (name, shape, kind) in tensors {
            source.store(name, whole_numbers(name, &shape), kind);
        }
        source
    }

    /// The same numbers as another family stores them: no reordered rows there.
    fn of_family(self, family: &str) -> Self {
        let renamed = |key: &String| key.replace("llama.", &format!("{family}."));
        let metadata = self.metadata.iter().map(|(key, value)| (renamed(key), value.clone())).collect();
        let mut source = Self { metadata, ..self }
            .set("general.architecture", Value::String(family.into()))
            .set("tokenizer.ggml.pre", Value::String("qwen2".into()));
        let extra: &[(&str, usize)] = match family {
            "qwen2" => &[("attn_q.bias", 64), ("attn_k.bias", 32), ("attn_v.bias", 32)],
            _ => &[("attn_q_norm.weight", 32), ("attn_k_norm.weight", 32)],
        };
        for (name, len) in extra {
            let values: Vec<f32> = (0..*len).map(|i| i as f32 + name.len() as f32).collect();
            let tensor = Tensor::new(&values[..], &Device::Cpu).unwrap();
            source.store(&format!("blk.0.{name}"), tensor, GgmlDType::F32);
        }
        source
    }

    fn store(&mut self, name: &str, tensor: Tensor, kind: GgmlDType) {
        self.tensors.insert(name.into(), QTensor::quantize(&tensor, kind).unwrap());
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.metadata.insert(key.into(), value);
        self
    }

    fn without(mut self, key: &str) -> Self {
        self.metadata.remove(key);
        self.tensors.remove(key);
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let metadata = self.metadata.iter().map(|(k, v)| (k.as_str(), v)).collect::<Vec<_>>();
        let tensors = self.tensors.iter().map(|(k, t)| (k.as_str(), t)).collect::<Vec<_>>();
        let mut out = std::io::Cursor::new(Vec::new());
        gguf_file::write(&mut out, &metadata, &tensors).unwrap();
        out.into_inner()
    }

    fn import_into(&self, dir: &TempDir) -> PathBuf {
        let (gguf, out) = (dir.path().join("tiny.gguf"), dir.path().join("out"));
        std::fs::write(&gguf, self.bytes()).unwrap();
        import(&gguf, &out, DType::F32).unwrap();
        out
    }
}

/// Numbers each storage type keeps exactly: integers that span its whole range in every block of 32, so that the
/// step between two levels is 1.
fn whole_numbers(name: &str, shape: &[usize]) -> Tensor {
    let count = shape.iter().product::<usize>();
    let value = |i: usize| match name {
        "token_embd.weight" => (i % 32 * 127 / 31) as f32,
        "blk.0.attn_q.weight" | "blk.0.attn_k.weight" => stored_row(i / 64) as f32 + (i % 64) as f32 / 64.0,
        "blk.0.attn_v.weight" => (i % 16) as f32,
        "blk.0.attn_output.weight" => (i % 32) as f32 - 16.0,
        "blk.0.ffn_gate.weight" => (i % 16) as f32 - 8.0,
        "blk.0.ffn_down.weight" => (i % 32) as f32,
        _ => (i % 7) as f32,
    };
    let values = (0..count).map(value).collect::<Vec<_>>();
    Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
}

/// Which Hugging Face row GGUF keeps at `row`, for heads of 32: 0, 16, 1, 17, ... within each head.
fn stored_row(row: usize) -> usize {
    let (head, within) = (row / 32, row % 32);
    head * 32 + within / 2 + 16 * (within % 2)
}

/// Three control tokens, the byte alphabet, and a few merged tokens. Types: 3 control, 1 normal.
fn vocabulary() -> (Vec<String>, Vec<i32>, Vec<String>) {
    let mut tokens = ["<bos>", "<eos>", "<eot>"].map(String::from).to_vec();
    let printable = |b: u32| matches!(b, 33..=126 | 161..=172 | 174..=255);
    tokens.extend((0..256).filter(|&b| printable(b)).filter_map(char::from_u32).map(String::from));
    let shifted = (256..).filter_map(char::from_u32).take((0..256).filter(|&b| !printable(b)).count());
    tokens.extend(shifted.map(String::from));
    let mut types = vec![3; 3];
    types.resize(tokens.len(), 1);
    tokens.extend(["12", "123", "Ġa", "log"].map(String::from));
    types.extend([1; 4]);
    (tokens, types, ["1 2", "12 3", "Ġ a"].map(String::from).to_vec())
}

fn ids(dir: &Path, text: &str) -> Vec<String> {
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    tokenizer.encode(text, false).unwrap().get_tokens().to_vec()
}

fn json_file(path: PathBuf) -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_storage_type_comes_out_as_the_numbers_that_went_in() {
    let dir = TempDir::new().unwrap();
    let out = Source::tiny().import_into(&dir);
    let config = config_json::load(&out).unwrap();
    let weights = load(&out, &config, &Device::Cpu, DType::F32).unwrap();
    let name = |part: &str| format!("model.layers.0.{part}.weight");
    for (gguf, hf) in [
        ("token_embd.weight", "model.embed_tokens.weight".to_string()),
        ("blk.0.attn_v.weight", name("self_attn.v_proj")),
        ("blk.0.attn_output.weight", name("self_attn.o_proj")),
        ("blk.0.ffn_gate.weight", name("mlp.gate_proj")),
        ("blk.0.ffn_up.weight", name("mlp.up_proj")),
        ("blk.0.ffn_down.weight", name("mlp.down_proj")),
        ("blk.0.attn_norm.weight", name("input_layernorm")),
        ("blk.0.ffn_norm.weight", name("post_attention_layernorm")),
        ("output_norm.weight", "model.norm.weight".to_string()),
    ] {
        let wanted = whole_numbers(gguf, weights[&hf].dims());
        let difference =
            (&weights[&hf] - wanted).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap();
        assert_eq!(difference.to_scalar::<f32>().unwrap(), 0.0, "{gguf}");
    }
    // Rotated rows are back in order: row r starts with r.
    for (hf, rows) in [(name("self_attn.q_proj"), 64), (name("self_attn.k_proj"), 32)] {
        let first = weights[&hf].narrow(1, 0, 1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(first, (0..rows).map(|r| r as f32).collect::<Vec<_>>(), "{hf}");
    }
}

#[test]
fn qwen_files_keep_their_rows_and_bring_biases_head_norms_and_tokenizer() {
    for family in ["qwen2", "qwen3"] {
        let scaling = |name: &str| format!("{family}.rope.scaling.{name}");
        let source = Source::tiny()
            .of_family(family)
            .set(&scaling("type"), Value::String("yarn".into()))
            .set(&scaling("factor"), Value::F32(4.0))
            .set(&scaling("original_context_length"), Value::U32(128));
        let dir = TempDir::new().unwrap();
        let out = source.import_into(&dir);
        let config = config_json::load(&out).unwrap();
        assert_eq!((config.family.model_type(), config.attention_bias), (family, family == "qwen2"));
        let Some(RopeScaling::Yarn(yarn)) = &config.rope_scaling else { panic!("{config:?}") };
        assert_eq!((yarn.factor, yarn.original_max_position_embeddings), (4.0, 128));
        let weights = load(&out, &config, &Device::Cpu, DType::F32).unwrap();
        let values = |part: &str| {
            let tensor = &weights[&format!("model.layers.0.self_attn.{part}")];
            tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        for (part, rows) in [("q_proj", 64), ("k_proj", 32)] {
            let first: Vec<f32> = values(&format!("{part}.weight")).into_iter().step_by(64).collect();
            assert_eq!(first, (0..rows).map(|r| stored_row(r) as f32).collect::<Vec<_>>(), "{part}");
        }
        let counted = |len: usize, first: usize| (first..first + len).map(|i| i as f32).collect::<Vec<_>>();
        let extra = match family {
            "qwen2" => [("q_proj.bias", 64, 11), ("k_proj.bias", 32, 11), ("v_proj.bias", 32, 11)].to_vec(),
            _ => [("q_norm.weight", 32, 18), ("k_norm.weight", 32, 18)].to_vec(),
        };
        for (part, len, first) in extra {
            assert_eq!(values(part), counted(len, first), "{part}");
        }
        // Every digit for itself, and letters composed first: e and an accent are the two bytes of one letter.
        assert_eq!(ids(&out, "123 a"), ["1", "2", "3", "\u{120}a"]);
        assert_eq!(ids(&out, "e\u{301}"), ["\u{c3}", "\u{a9}"]);
        let bare = source.without("blk.0.attn_k.bias").without("blk.0.attn_k_norm.weight");
        refused(&bare.bytes(), "missing");
    }
}

#[test]
fn metadata_become_the_config_files() {
    let dir = TempDir::new().unwrap();
    let source = Source::tiny();
    let out = source.import_into(&dir);
    let config = config_json::load(&out).unwrap();
    assert!(config.tie_word_embeddings && config.rope_scaling.is_none());
    assert_eq!((config.head_dim, config.num_key_value_heads, config.max_position_embeddings), (32, 1, 512));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-5, 500_000.0));
    assert_eq!((config.bos_token_id, &config.eos_token_id[..]), (Some(0), &[1, 2][..]));
    assert_eq!(
        json_file(out.join("generation_config.json")),
        json!({"bos_token_id": 0, "eos_token_id": [1, 2]})
    );
    let tokenizer = json_file(out.join("tokenizer_config.json"));
    assert_eq!(
        (&tokenizer["chat_template"], &tokenizer["eos_token"]),
        (&json!("{{ messages }}"), &json!("<eos>"))
    );

    let mut untied = Source::tiny();
    let head = whole_numbers("token_embd.weight", &[config.vocab_size, 64]);
    untied.store("output.weight", head, GgmlDType::F32);
    let dir = TempDir::new().unwrap();
    let out = untied.import_into(&dir);
    let config = config_json::load(&out).unwrap();
    assert!(!config.tie_word_embeddings);
    assert!(load(&out, &config, &Device::Cpu, DType::BF16).unwrap().contains_key("lm_head.weight"));
}

#[test]
fn each_pre_tokenizer_cuts_as_its_model_does() {
    let cut = |pre: &str, text: &str| {
        let dir = TempDir::new().unwrap();
        let source = Source::tiny().set("tokenizer.ggml.pre", Value::String(pre.into()));
        ids(&source.import_into(&dir), text)
    };
    // smollm: every digit alone. gpt-2: a run of digits together. Llama 3: three at most.
    assert_eq!(cut("smollm", "a 1234"), ["a", "Ġ", "1", "2", "3", "4"]);
    // "11234" whole merges 12, then 123; cut into "112" and "34", 12 never meets the 3.
    assert_eq!(cut("gpt-2", "a11234 a"), ["a", "1", "123", "4", "Ġa"]);
    assert_eq!(cut("llama-bpe", "a11234 a"), ["a", "1", "12", "3", "4", "Ġa"]);
    // No merges lead to "log": only Llama 3 takes a token of the vocabulary whole.
    assert_eq!(cut("gpt-2", "log"), ["l", "o", "g"]);
    assert_eq!(cut("llama-bpe", "log"), ["log"]);
    assert_eq!(cut("llama-bpe", "<eos>123123"), ["<eos>", "123", "123"]);
}

#[test]
fn llama3_prompts_start_with_bos_when_special_tokens_are_asked_for() {
    let dir = TempDir::new().unwrap();
    let source = Source::tiny().set("tokenizer.ggml.pre", Value::String("llama-bpe".into()));
    let tokenizer = Tokenizer::from_file(source.import_into(&dir).join("tokenizer.json")).unwrap();
    assert_eq!(tokenizer.encode("log", true).unwrap().get_tokens(), ["<bos>", "log"]);
    assert_eq!(tokenizer.encode("log", false).unwrap().get_tokens(), ["log"]);
    let encoding = tokenizer.encode("é 12", true).unwrap();
    assert_eq!(tokenizer.decode(encoding.get_ids(), true).unwrap(), "é 12");
}

#[test]
fn the_rotary_table_of_llama_3_1_becomes_its_scaling() {
    // theta 500000, 32 channels: 500000^(-2i/32). 8192 tokens hold more than four turns up to i = 7 (4.19 turns),
    // 1.84 at i = 8 and 0.81 at i = 9: divisors 1, then 1 / (k + (1 - k) / 8) with k = (1.8438 - 1) / 3, then 8.
    let turns = 8192.0 / (2.0 * std::f64::consts::PI) * 500_000f64.powf(-0.5);
    let kept = (turns - 1.0) / 3.0;
    let mut table = [1f32; 16];
    table[8] = (1.0 / (kept + (1.0 - kept) / 8.0)) as f32;
    table[9..].fill(8.0);
    let mut source = Source::tiny();
    source.store("rope_freqs.weight", Tensor::new(&table, &Device::Cpu).unwrap(), GgmlDType::F32);
    let dir = TempDir::new().unwrap();
    let config = config_json::load(&source.import_into(&dir)).unwrap();
    let Some(RopeScaling::Llama3(scaling)) = config.rope_scaling else { panic!("{config:?}") };
    assert_eq!((scaling.factor, scaling.original_max_position_embeddings), (8.0, 8192));

    table[8] = 3.0;
    source.store("rope_freqs.weight", Tensor::new(&table, &Device::Cpu).unwrap(), GgmlDType::F32);
    refused(&source.bytes(), "rope_freqs.weight: not a llama3 scaling");
}

/// The file fails with one line that holds `wanted`, and nothing is written.
fn refused(bytes: &[u8], wanted: &str) {
    let dir = TempDir::new().unwrap();
    let (gguf, out) = (dir.path().join("bad.gguf"), dir.path().join("out"));
    std::fs::File::create(&gguf).unwrap().write_all(bytes).unwrap();
    let error = import(&gguf, &out, DType::BF16).unwrap_err().to_string();
    assert!(error.contains(wanted) && error.contains("bad.gguf"), "wanted {wanted}, got {error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(!out.join("config.json").exists() && !out.join("model.safetensors").exists(), "{wanted}");
}

#[test]
fn a_damaged_file_is_refused() {
    let whole = Source::tiny().bytes();
    refused(b"", "not a GGUF file");
    refused(b"PK\x03\x04 a zip archive", "not a GGUF file");
    for length in [6, 20, 30, 100, 3000] {
        refused(&whole[..length], "the file ends inside its header");
    }
    refused(&whole[..whole.len() - 64], "remaining");
    let mut version = whole.clone();
    version[4] = 9;
    refused(&version, "GGUF version 9");
    let mut counts = whole.clone();
    counts[16..24].fill(0xff);
    refused(&counts, "the file");
}

#[test]
fn a_flipped_byte_is_an_error_or_a_model_never_a_panic() {
    let whole = Source::tiny().bytes();
    let header = whole.windows(18).position(|w| w == b"output_norm.weight").unwrap() + 60;
    for at in (4..header).step_by(29) {
        let dir = TempDir::new().unwrap();
        let gguf = dir.path().join("flipped.gguf");
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        std::fs::write(&gguf, &bytes).unwrap();
        match import(&gguf, &dir.path().join("out"), DType::BF16) {
            Ok(report) => assert_eq!(report.tensors, 11, "byte {at}"),
            Err(error) => assert_eq!(error.to_string().lines().count(), 1, "byte {at}: {error}"),
        }
    }
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let text = |s: &str| Value::String(s.into());
    let cases = [
        (Source::tiny().set("general.architecture", text("gemma3")), "general.architecture: \"gemma3\""),
        (Source::tiny().set("tokenizer.ggml.model", text("llama")), "tokenizer.ggml.model: \"llama\""),
        (Source::tiny().set("tokenizer.ggml.pre", text("tekken")), "tokenizer.ggml.pre: \"tekken\""),
        (Source::tiny().set("llama.rope.scaling.type", text("longrope")), "scaling.type: \"longrope\""),
        (Source::tiny().set("llama.rope.scaling.type", text("yarn")), "llama.rope.scaling.factor: missing"),
        (Source::tiny().set("llama.expert_count", Value::U32(8)), "llama.expert_count: 8"),
        (Source::tiny().set("llama.rope.dimension_count", Value::U32(16)), "llama.rope.dimension_count: 16"),
        (
            Source::tiny().set("llama.attention.head_count", Value::Array(vec![Value::U32(2)])),
            "head_count: not one",
        ),
        (Source::tiny().set("llama.attention.head_count_kv", Value::U32(0)), "num_key_value_heads: 0"),
        (Source::tiny().set("llama.feed_forward_length", Value::U32(128)), "ffn_gate.weight: shape [96, 64]"),
        (Source::tiny().set("llama.block_count", Value::U32(2)), "blk.1.attn_norm.weight: missing"),
        (Source::tiny().set("general.alignment", Value::U32(0)), "general.alignment: 0"),
        (Source::tiny().set("tokenizer.ggml.eos_token_id", Value::U32(9999)), "eos_token_id: 9999 is past"),
        (Source::tiny().set("tokenizer.ggml.merges", Value::Array(vec![text("a b")])), "merges: \"a b\""),
        (
            Source::tiny().set("tokenizer.ggml.tokens", Value::Array(vec![text("a"), text("a")])),
            "tokens: \"a\"",
        ),
        (Source::tiny().without("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens: missing"),
        (Source::tiny().without("llama.context_length"), "llama.context_length: missing"),
        (Source::tiny().without("token_embd.weight"), "token_embd.weight: missing"),
        (Source::tiny().without("output_norm.weight"), "output_norm.weight: missing"),
    ];
    for (source, wanted) in cases {
        refused(&source.bytes(), wanted);
    }
    let mut biased = Source::tiny();
    biased.store("blk.0.ffn_up.bias", Tensor::zeros(96, DType::F32, &Device::Cpu).unwrap(), GgmlDType::F32);
    refused(&biased.bytes(), "blk.0.ffn_up.bias: not a tensor");

    // A tensor's type is the u32 after its name, its number of dimensions and the dimensions.
    let mut bytes = Source::tiny().bytes();
    let name = b"output_norm.weight";
    let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4 + 8;
    bytes[at..at + 4].copy_from_slice(&23u32.to_le_bytes());
    refused(&bytes, "output_norm.weight: stored as IQ4_XS");
    bytes[at..at + 4].copy_from_slice(&77u32.to_le_bytes());
    refused(&bytes, "output_norm.weight: stored as number 77");
}

#[test]
fn a_filled_output_directory_is_left_alone() {
    let dir = TempDir::new().unwrap();
    let gguf = dir.path().join("tiny.gguf");
    std::fs::write(&gguf, Source::tiny().bytes()).unwrap();
    let error = import(&gguf, dir.path(), DType::BF16).unwrap_err().to_string();
    assert!(error.contains("the output directory is not empty"), "{error}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    // What a killed import left is not in the way, and is no model that another command could take.
    let (out, partial) = (dir.path().join("model"), dir.path().join("model.partial"));
    std::fs::create_dir(&partial).unwrap();
    std::fs::write(partial.join("config.json"), "{").unwrap();
    import(&gguf, &out, DType::BF16).unwrap();
    assert!(out.join("model.safetensors").is_file() && !partial.exists());
    let error =
        import(&dir.path().join("none.gguf"), &dir.path().join("o"), DType::BF16).unwrap_err().to_string();
    assert!(error.contains("none.gguf: cannot open"), "{error}");
}

#[test]
fn golden_smollm2_imports_with_its_token_ids() {
    let Some(dir) = smollm2_dir() else { return };
    let config = config_json::load(dir).unwrap();
    assert_eq!(config.parameter_count(), 134_515_008);
    let tokenizer = Tokenizer::from_file(dir.join("tokenizer.json")).unwrap();
    let encode = |text: &str| tokenizer.encode(text, false).unwrap().get_ids().to_vec();
    let golden = json_file(golden_dir().join("smollm2-135m.json"));
    let cases = golden["tokenize"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        assert_eq!(json!(encode(case["text"].as_str().unwrap())), case["ids"], "{}", case["text"]);
    }
    // The rendered text is cut inside the golden file; the ids before the cut are whole.
    let chat = &golden["cases"][0];
    let first = chat["first_ids"].as_array().unwrap();
    assert_eq!(json!(encode(chat["rendered_head"].as_str().unwrap())[..first.len()]), json!(first));
    // Dequantised and rounded to bf16: every value finite, none lost to zero wholesale.
    let weights = load(dir, &config, &Device::Cpu, DType::F32).unwrap();
    for (name, tensor) in &weights {
        let squares = tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(squares.is_finite() && squares > 0.0, "{name}: {squares}");
    }
}
