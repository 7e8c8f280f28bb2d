//! Export to Hugging Face folders and GGUF: what comes back is what went in, and a fault is noticed.

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use rlvr::data::synthetic::{self, Spec, Split};
use rlvr::data::{self, Limits, Targets};
use rlvr::export::probe::{Answer, Probe};
use rlvr::export::{ExportReport, Format, Source, check, export};
use rlvr::formats::gguf::{self, Quantisation, import};
use rlvr::formats::hf::weights::{SaveOptions, load, save};
use rlvr::formats::hf::{Companions, config_json, folder, load_decoder};
use rlvr::formats::{Written, peft};
use rlvr::model::config::{Family, ModelConfig};
use rlvr::model::decoder::{Decoder, Placement};
use rlvr::task::Task;
use rlvr::text::{PromptEncoder, Tokenizer, byte_tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::golden::golden_dir;
use crate::support::runs::{stdout, text, train};
use crate::support::seed;

const TEXT: &str = "Déjà vu at 04:12:09, 1234567 bytes; it's <|im_start|>fine<|im_end|>\n\n  日本語";

/// A random model with a tokenizer of its own, two layers of 256, and the folder it lies in.
struct Model {
    dir: TempDir,
    config: ModelConfig,
    companions: Companions,
    probe: Probe,
}

impl Model {
    fn new(family: Family, rope_scaling: Value) -> Self {
        let dir = TempDir::new().unwrap();
        let tokenizer = byte_tokenizer::build([TEXT].into_iter(), &["Safe"], 280).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
        let json = json!({
            "model_type": family.model_type(), "hidden_size": 256, "intermediate_size": 512,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            // Three rows more than tokens.
            "vocab_size": tokenizer.get_vocab_size(true) + 3, "rms_norm_eps": 1e-6, "rope_theta": 500000.0,
            "rope_scaling": rope_scaling, "max_position_embeddings": 4096, "eos_token_id": 2, "pad_token_id": 0,
            "tie_word_embeddings": family == Family::Qwen3,
        });
        let config = config_json::from_json(&json, "config.json").unwrap();
        let decoder = Decoder::random_on(&Placement::CPU, config.clone(), seed::of_test(), 512).unwrap();
        // Large enough for attention to look at some places more than at others.
        let louder = |(name, tensor): (&str, &Tensor)| {
            let factor = if name.contains("q_proj.w") || name.contains("k_proj.w") { 3.0 } else { 1.0 };
            (name.to_string(), (tensor * factor).unwrap())
        };
        let tensors: Vec<_> = decoder.parameters().map(louder).collect();
        save(dir.path(), &config, &tensors, SaveOptions::new(DType::F32)).unwrap();
        let companions = Companions::of(dir.path());
        let probe = Probe::new(&companions, &config, None).unwrap();
        Self { dir, config, companions, probe }
    }

    fn plain(family: Family) -> Self {
        Self::new(family, Value::Null)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn source(&self) -> Source<'_> {
        let decoder = load_decoder(self.dir.path(), self.probe.positions(), &Placement::CPU).unwrap();
        Source { decoder, stored: DType::F32, companions: &self.companions, name: "tiny", probe: &self.probe }
    }

    fn export(&self, quantisation: Quantisation, name: &str) -> ExportReport {
        export(self.source(), Format::Gguf(quantisation), &self.path(name)).unwrap_or_else(|e| panic!("{e}"))
    }

    fn weights(&self) -> Vec<(String, Vec<f32>)> {
        weights(self.dir.path(), &self.config)
    }
}

fn weights(dir: &Path, config: &ModelConfig) -> Vec<(String, Vec<f32>)> {
    let tensors = load(dir, config, &Device::Cpu, DType::F32).unwrap();
    tensors.into_iter().map(|(name, t)| (name, t.flatten_all().unwrap().to_vec1().unwrap())).collect()
}

#[test]
fn every_family_comes_back_from_gguf_with_its_numbers_config_and_token_ids() {
    for family in Family::ALL {
        let model = Model::plain(family);
        let before = model.weights();
        // Half of the step between neighbours: 2^-11 of a value in f16, of the block's largest / 127 in Q8_0.
        for (quantisation, name) in
            [(Quantisation::F32, "f32"), (Quantisation::F16, "f16"), (Quantisation::Q8_0, "q8_0")]
        {
            let report = model.export(quantisation, name);
            let out = model.path(&format!("{name}-again"));
            import(&model.path(name), &out, DType::F32).unwrap();
            let config = config_json::load(&out).unwrap();
            assert_eq!(config, model.config, "{family:?} {name}");
            for ((weight, a), (_, b)) in before.iter().zip(weights(&out, &config)) {
                for (a, b) in a.chunks(32).zip(b.chunks(32)) {
                    let largest = a.iter().fold(0f32, |max, x| max.max(x.abs()));
                    for (a, b) in a.iter().zip(b) {
                        let bound = match name {
                            "f16" => a.abs() / 2048.0 + 2f32.powi(-25),
                            // The step itself is rounded to f16.
                            "q8_0" => largest / 254.0 * 1.001 + a.abs() / 2048.0 + 1e-7,
                            _ => 0.0,
                        };
                        assert!((a - b).abs() <= bound, "{family:?} {name} {weight}: {a} {b}");
                    }
                }
            }
            let ids = |dir: &Path| Tokenizer::from_dir(dir).unwrap().encode(TEXT).unwrap();
            assert_eq!(ids(&out), ids(model.dir.path()));
            let greedy = report.findings.logprobs.greedy_equal;
            assert!(name != "f32" || greedy == report.findings.logprobs.greedy);
        }
    }
}

#[test]
fn rotary_scalings_come_back_from_gguf() {
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64});
    let linear = json!({"rope_type": "linear", "factor": 2.5});
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024});
    for scaling in [llama3, linear, yarn] {
        let model = Model::new(Family::Llama, scaling);
        model.export(Quantisation::F32, "scaled.gguf");
        import(&model.path("scaled.gguf"), &model.path("again"), DType::F32).unwrap();
        assert_eq!(config_json::load(&model.path("again")).unwrap(), model.config);
    }
    let unsaid = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
        "attention_factor": 1.5});
    let model = Model::new(Family::Llama, unsaid);
    let error = export(model.source(), Format::Gguf(Quantisation::F32), &model.path("x")).unwrap_err();
    assert!(error.to_string().contains("rope_scaling.attention_factor"), "{error}");
}

#[test]
fn candles_own_reader_finds_the_same_tensors() {
    let model = Model::plain(Family::Llama);
    let report = model.export(Quantisation::Q4KM, "mixed.gguf");
    let kinds: Vec<_> = report.findings.weights.keys().map(String::as_str).collect();
    // Rows of 128 in the output projection fall back to Q5_0.
    assert_eq!(kinds, ["F32", "Q4_K", "Q5_0", "Q6_K"]);
    let mut file = std::fs::File::open(model.path("mixed.gguf")).unwrap();
    let content = gguf_file::Content::read(&mut file).unwrap();
    assert_eq!(content.tensor_data_offset % 32, 0);
    let key = |key: &str| content.metadata[key].clone();
    assert_eq!(key("general.architecture").to_string().unwrap(), "llama");
    assert_eq!(key("llama.attention.key_length").to_u32().unwrap(), 32);
    let written = gguf::GgufModel::open(&model.path("mixed.gguf")).unwrap();
    for name in ["model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.norm.weight"] {
        let theirs = content.tensor(&mut file, &gguf::gguf_name(name), &Device::Cpu).unwrap();
        let theirs = theirs.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>();
        let ours = written.tensor(name).unwrap().flatten_all().unwrap().to_vec1::<f32>();
        assert_eq!(theirs.unwrap(), ours.unwrap(), "{name}");
    }
}

#[test]
fn a_folder_is_sharded_complete_and_equal() {
    let model = Model::plain(Family::Qwen2);
    let options = SaveOptions { dtype: DType::F32, max_shard_bytes: 1_000_000 };
    let report = export(model.source(), Format::Folder(options), &model.path("out")).unwrap();
    assert_eq!(report.findings.logprobs.max_difference, 0.0);
    let out = model.path("out");
    let index: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("model.safetensors.index.json")).unwrap())
            .unwrap();
    assert_eq!(index["weight_map"].as_object().unwrap().len(), model.config.parameter_names().len());
    assert_eq!(config_json::load(&out).unwrap(), model.config);
    assert_eq!(weights(&out, &model.config), model.weights());
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(std::fs::read(out.join(name)).unwrap(), std::fs::read(model.path(name)).unwrap());
    }
}

#[test]
fn a_probe_leaves_a_short_model_room_to_go_on() {
    let golden = golden_dir();
    let folder = golden.join("llama-tiny");
    let config = ModelConfig { max_position_embeddings: 40, ..config_json::load(&folder).unwrap() };
    let probe = Probe::new(&Companions::of(&folder), &config, None).unwrap();
    assert_eq!(probe.positions(), 40);
}

#[test]
fn golden_folders_export_exactly() {
    let golden = golden_dir();
    for name in ["llama-tiny", "qwen3-tiny"] {
        let (from, to) = (golden.join(name), TempDir::new().unwrap());
        let (config, companions) = (config_json::load(&from).unwrap(), Companions::of(&from));
        let probe = Probe::new(&companions, &config, None).unwrap();
        let decoder = load_decoder(&from, probe.positions(), &Placement::CPU).unwrap();
        let source = Source { decoder, stored: DType::F32, companions: &companions, name, probe: &probe };
        let out = to.path().join("out");
        let report = export(source, Format::Folder(SaveOptions::new(DType::F32)), &out).unwrap();
        assert_eq!(report.findings.logprobs.max_difference, 0.0, "{name}");
        assert_eq!(config_json::load(&out).unwrap(), config);
        assert_eq!(weights(&out, &config), weights(&from, &config));
    }
}

#[test]
fn golden_adapters_export_alone_and_merged() {
    let golden = golden_dir();
    let (base, lora, to) =
        (golden.join("llama-tiny"), golden.join("llama-tiny-lora"), TempDir::new().unwrap());
    let (config, companions) = (config_json::load(&base).unwrap(), Companions::of(&base));
    let probe = Probe::new(&companions, &config, None).unwrap();
    let source = || {
        let mut decoder = load_decoder(&base, probe.positions(), &Placement::CPU).unwrap();
        peft::attach(&lora, &mut decoder).unwrap();
        Source { decoder, stored: DType::F32, companions: &companions, name: "org/base", probe: &probe }
    };
    let out = to.path().join("adapter");
    let alone = export(source(), Format::Adapter, &out).unwrap().findings;
    assert_eq!(alone.logprobs.max_difference, 0.0);
    let (want, got) = (peft::load(&lora).unwrap(), peft::load(&out).unwrap());
    assert_eq!(got.shape, want.shape);
    assert_eq!(got.tensors.len(), want.tensors.len());
    let json: Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(json["base_model_name_or_path"], "org/base");

    let mut merged = source();
    merged.decoder.merge().unwrap();
    let options = SaveOptions::new(DType::F32);
    let merged = export(merged, Format::Folder(options), &to.path().join("merged")).unwrap().findings;
    let plain = load_decoder(&base, probe.positions(), &Placement::CPU).unwrap();
    let plain = probe.ask(&plain, None).unwrap();
    let apart = |other: &[Answer]| {
        let pairs = other[0].logprobs.iter().zip(&merged.read_back[0].logprobs);
        pairs.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max)
    };
    // Merging rounds other sums; without the adapter the model says something else.
    assert!(apart(&alone.memory) < 1e-4 && apart(&plain) > 1e-2, "{}", apart(&plain));
    // Nothing to write without an adapter.
    let mut none = source();
    none.decoder.detach();
    assert!(export(none, Format::Adapter, &to.path().join("none")).unwrap_err().is_input());
}

/// Two rows of a head exchanged, as by a wrong permutation.
#[test]
fn the_check_finds_rows_in_the_wrong_place() {
    let model = Model::plain(Family::Llama);
    let name = "model.layers.1.self_attn.q_proj.weight";
    let swapped = |(n, tensor): (&str, &Tensor)| {
        let order: Vec<u32> = (0..tensor.dims()[0] as u32).map(|row| row ^ 1).collect();
        let order = Tensor::new(order, &Device::Cpu).unwrap();
        let tensor = if n == name { tensor.index_select(&order, 0).unwrap() } else { tensor.clone() };
        (n.to_string(), tensor)
    };
    let wrong: Vec<_> = model.source().decoder.parameters().map(swapped).collect();
    let decoder = Decoder::new(model.config.clone(), wrong, 512).unwrap();
    let wrong = Source { decoder, ..model.source() };
    for quantisation in [Quantisation::F32, Quantisation::Q4KM] {
        let path = model.path("swapped.gguf.partial");
        let written = write_gguf(&path, &wrong, quantisation);
        let error =
            check::read_back(model.source(), Format::Gguf(quantisation), &written, &path).unwrap_err();
        assert!(error.to_string().contains(name) && !error.is_input(), "{error}");
    }
    let path = model.path("swapped");
    let options = SaveOptions::new(DType::BF16);
    let written = folder::write(&path, &wrong.decoder, &model.companions, options).unwrap();
    let error = check::read_back(model.source(), Format::Folder(options), &written, &path).unwrap_err();
    assert!(error.to_string().contains(name), "{error}");
}

fn write_gguf(path: &Path, source: &Source, quantisation: Quantisation) -> Written {
    gguf::write(path, &source.decoder, source.companions, source.name, quantisation).unwrap()
}

/// Weights alone would pass.
#[test]
fn the_check_finds_a_wrong_number_in_the_metadata() {
    let model = Model::plain(Family::Llama);
    for quantisation in [Quantisation::F32, Quantisation::Q8_0] {
        let path = model.path("tampered.gguf.partial");
        let written = write_gguf(&path, &model.source(), quantisation);
        let read_back = || check::read_back(model.source(), Format::Gguf(quantisation), &written, &path);
        read_back().unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let key = b"llama.rope.freq_base";
        let at = bytes.windows(key.len()).position(|w| w == key).unwrap() + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&2f32.to_le_bytes());
        std::fs::write(&path, bytes).unwrap();
        let error = read_back().unwrap_err().to_string();
        assert!(error.contains("its numbers: rope_theta was 500000 and is 2"), "{error}");
    }
}

/// As training leaves them: sure of itself, so that a rounded weight moves unlikely tokens by more than a nat.
#[test]
fn what_rounding_does_to_a_confident_model_is_reported_and_never_refused() {
    let model = Model::plain(Family::Llama);
    let sure = |(name, tensor): (&str, &Tensor)| {
        let factor = if name == "lm_head.weight" { 40.0 } else { 1.0 };
        (name.to_string(), (tensor * factor).unwrap())
    };
    let tensors: Vec<_> = model.source().decoder.parameters().map(sure).collect();
    let (task, encoder) =
        (Task::load("demo").unwrap(), PromptEncoder::load(&model.companions.encoder_files()).unwrap());
    let limits =
        Limits { max_prompt_tokens: 2000, max_target_tokens: 99, max_rows: 0, targets: Targets::Ignored };
    let logs = synthetic::rows(&Spec::new(seed::of_test(), Split::Test, 64));
    let source = data::Source { task: &task, encoder: &encoder, limits, distill: None };
    let rows = source.encode(Path::new("logs"), &logs).unwrap().rows;
    let golds = rows.iter().filter(|row| row.gold.is_negative()).count();
    assert_eq!(golds, 32);
    let probe = Probe::of_rows(task, encoder, &rows, 4, 6, "logs");
    let lines: Vec<_> = probe.prompts.iter().map(|prompt| prompt.line.unwrap()).collect();
    assert!(lines.len() == 4 && lines.is_sorted(), "{lines:?}");
    let mut warned = 0;
    for (format, name) in [
        (Format::Folder(SaveOptions::new(DType::BF16)), "bf16"),
        (Format::Folder(SaveOptions::new(DType::F16)), "f16"),
        (Format::Gguf(Quantisation::Bf16), "bf16.gguf"),
        (Format::Gguf(Quantisation::F16), "f16.gguf"),
        (Format::Gguf(Quantisation::Q8_0), "q8_0.gguf"),
        (Format::Gguf(Quantisation::Q4KM), "q4_k_m.gguf"),
    ] {
        for probe in [&model.probe, &probe] {
            let positions = probe.positions();
            let decoder = Decoder::new(model.config.clone(), tensors.clone(), positions).unwrap();
            let source = Source { decoder, probe, ..model.source() };
            let target = model.path(&format!("{name}-{positions}"));
            let found = export(source, format, &target).unwrap_or_else(|e| panic!("{name}: {e}")).findings;
            assert!(target.exists() && found.weights.values().all(|check| check.of_allowed <= 1.0));
            warned += found.warnings.len();
            let judged = found.verdicts.map(|verdicts| (verdicts.rows, verdicts.right_in_memory));
            assert_eq!(judged, probe.is_judged().then_some((4, 0)), "a random model answers nothing");
        }
    }
    assert!(warned > 0);
}

#[test]
fn a_run_is_exported_with_the_verdicts_of_its_own_rows() {
    let dir = TempDir::new().unwrap();
    let run =
        train(dir.path(), "run", &["lora.rank=4", "eval.every_steps=0", "sft.optim.learning_rate=0.02"]);
    let out = |name: &str| dir.path().join(name);
    let report = |args: &[&str]| -> Value {
        let json = stdout(&[&["export"], args, &["--json", "--probe-rows", "8"]].concat());
        serde_json::from_str(&json).unwrap()
    };
    // The run stands for its merged model, and for its adapter.
    let (bf16, merged, alone) = (out("bf16"), out("merged.gguf"), out("alone"));
    let base = run.join("base");
    let all = [
        report(&[text(&run), text(&bf16), "--format", "hf", "--dtype", "bf16"]),
        report(&[text(&base), text(&merged), "--format", "gguf", "--quant", "q8_0", "--adapter", text(&run)]),
        report(&[text(&base), text(&alone), "--format", "peft", "--adapter", text(&run)]),
    ];
    for found in &all {
        assert_eq!(found["verdicts"]["rows"], 8, "{found}");
        let made_from = found["probe"]["made_from"].as_str().unwrap();
        assert_eq!(made_from, "8 of 20 rows of the run's synthetic validation logs, task `demo`");
    }
    assert_eq!(all[2]["logprobs"]["max_difference"], 0.0);
    assert_eq!(all[0]["memory"][3]["verdict"], all[2]["memory"][3]["verdict"]);
    // Away from its run a model is asked a plain text.
    let text_only = report_of(&[text(&bf16), text(&out("again")), "--format", "hf"]);
    assert!(text_only.contains("probe     the built-in text") && !text_only.contains("verdicts"));
}

fn report_of(args: &[&str]) -> String {
    stdout(&[&["export"], args].concat())
}

#[test]
fn a_failed_export_leaves_nothing() {
    let model = Model::plain(Family::Llama);
    // f16 ends at 65504.
    let huge = |(n, tensor): (&str, &Tensor)| {
        let factor = if n.ends_with("1.mlp.up_proj.weight") { 1e7 } else { 1.0 };
        (n.to_string(), (tensor * factor).unwrap())
    };
    let tensors: Vec<_> = model.source().decoder.parameters().map(huge).collect();
    let source = |model: &Model| Decoder::new(model.config.clone(), tensors.clone(), 512).unwrap();
    let f16_folder = Format::Folder(SaveOptions::new(DType::F16));
    for (format, name) in [(Format::Gguf(Quantisation::F16), "f16.gguf"), (f16_folder, "f16")] {
        let source = Source { decoder: source(&model), ..model.source() };
        let error = export(source, format, &model.path(name)).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{name}: what was read back"))
                && (error.contains("up_proj") || error.contains("ffn_up")),
            "{error}"
        );
        assert!(!model.path(name).exists() && !model.path(&format!("{name}.partial")).exists());
    }
    // What stands there is left alone.
    std::fs::write(model.path("mine.gguf"), "mine").unwrap();
    let error =
        export(model.source(), Format::Gguf(Quantisation::F16), &model.path("mine.gguf")).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("exists already"), "{error}");
    assert_eq!(std::fs::read_to_string(model.path("mine.gguf")).unwrap(), "mine");
}

#[test]
fn tokenizers_that_gguf_cannot_hold_are_refused_by_name() {
    let model = Model::plain(Family::Llama);
    let path = model.path("tokenizer.json");
    let whole: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let cases = [
        (
            "/pre_tokenizer",
            json!({"type": "Whitespace"}),
            "pre_tokenizer: cuts text by [{\"type\":\"Whitespace\"}]",
        ),
        ("/normalizer", json!({"type": "NFC"}), "normalizer: {\"type\":\"NFC\"}"),
        ("/model/ignore_merges", json!(true), "ignore_merges = true with the cuts of \"smollm\""),
        ("/model/type", json!("Unigram"), "model: \"Unigram\" is not byte-level BPE"),
        ("/decoder/type", json!("Metaspace"), "decoder: \"Metaspace\""),
    ];
    let probe = model.probe.clone();
    for (at, value, wanted) in cases {
        let mut json = whole.clone();
        *json.pointer_mut(at).unwrap() = value;
        std::fs::write(&path, json.to_string()).unwrap();
        let source = Source { probe: &probe, ..model.source() };
        let error = export(source, Format::Gguf(Quantisation::F16), &model.path("x.gguf")).unwrap_err();
        assert!(error.is_input() && error.to_string().contains(wanted), "wanted {wanted}, got {error}");
    }
}
