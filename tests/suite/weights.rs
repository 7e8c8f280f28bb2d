//! Weights in Hugging Face layout: what is saved loads again to the bit, and a bad file is named.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use rlvr::formats::hf::config_json;
use rlvr::formats::hf::weights::{SaveOptions, load, save};
use rlvr::model::config::{Family, ModelConfig};
use serde_json::json;
use tempfile::TempDir;

use crate::support::golden::golden_dir;

fn tiny(tied: bool) -> ModelConfig {
    let json = json!({
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 10, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tied,
    });
    config_json::from_json(&json, "tiny").unwrap()
}

/// Every parameter of `config`, counting up from a value of its own.
fn counting(config: &ModelConfig) -> Vec<(String, Tensor)> {
    let parameters = config.parameter_names().into_iter().enumerate();
    let tensors = parameters.map(|(number, (name, shape))| {
        let values =
            (0..shape.iter().product::<usize>()).map(|i| (1000 * number + i) as f32).collect::<Vec<_>>();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    tensors.collect()
}

fn store(path: &Path, tensors: &[(String, Tensor)]) {
    let tensors = tensors.iter().cloned().collect::<HashMap<_, _>>();
    candle_core::safetensors::save(&tensors, path).unwrap();
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    let flat = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    flat.into_iter().map(f32::to_bits).collect()
}

fn load_f32(
    dir: &Path,
    config: &ModelConfig,
) -> rlvr::error::Result<std::collections::BTreeMap<String, Tensor>> {
    load(dir, config, &Device::Cpu, DType::F32)
}

#[test]
fn f32_weights_survive_a_round_trip_bit_for_bit() {
    let config = tiny(false);
    let mut tensors = counting(&config);
    let odd =
        [0.1, -0.0, f32::MIN_POSITIVE / 8.0, f32::MAX, f32::MIN, -f32::MIN_POSITIVE, f32::EPSILON, 1e-30];
    let norm = tensors.iter_mut().find(|(name, _)| name == "model.norm.weight").unwrap();
    norm.1 = Tensor::new(&odd, &Device::Cpu).unwrap();
    let dir = TempDir::new().unwrap();
    save(dir.path(), &config, &tensors, SaveOptions::new(DType::F32)).unwrap();
    let loaded = load_f32(dir.path(), &config_json::load(dir.path()).unwrap()).unwrap();
    assert_eq!(loaded.len(), tensors.len());
    for (name, tensor) in &tensors {
        assert_eq!(loaded[name].dims(), tensor.dims(), "{name}");
        assert_eq!(bits(&loaded[name]), bits(tensor), "{name}");
    }
    let mut files =
        std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect::<Vec<_>>();
    files.sort();
    assert_eq!(files, ["config.json", "model.safetensors"]);
}

#[test]
fn bf16_weights_round_to_the_nearest_even() {
    // bf16 steps by 2^-7 above 1. 1 + 2^-8 and 1 + 3 * 2^-8 lie halfway: down to 1, up to 1 + 2^-6.
    let step = 0.0078125f32;
    let given = [1.0 + step / 2.0, 1.0 + 1.5 * step, 1.0, 1.0 + step, -1.0 - step / 2.0, 0.0, 3.0, -2.5];
    let wanted = [1.0, 1.0 + 2.0 * step, 1.0, 1.0 + step, -1.0, 0.0, 3.0, -2.5];
    let config = tiny(true);
    let mut tensors = counting(&config);
    tensors.last_mut().unwrap().1 = Tensor::new(&given, &Device::Cpu).unwrap();
    let dir = TempDir::new().unwrap();
    save(dir.path(), &config, &tensors, SaveOptions::new(DType::BF16)).unwrap();
    let norm = &load_f32(dir.path(), &config).unwrap()["model.norm.weight"];
    assert_eq!(norm.to_vec1::<f32>().unwrap(), wanted);
    let norm = &load(dir.path(), &config, &Device::Cpu, DType::BF16).unwrap()["model.norm.weight"];
    assert_eq!(norm.to_vec1::<bf16>().unwrap(), wanted.map(bf16::from_f32));
}

#[test]
fn shards_hold_what_the_index_says_and_give_way_to_a_single_file() {
    let config = tiny(false);
    let tensors = counting(&config);
    let dir = TempDir::new().unwrap();
    // 4 bytes a value: the embedding (80 values) fills a 320-byte shard alone, as does the head.
    let options = SaveOptions { dtype: DType::F32, max_shard_bytes: 320 };
    save(dir.path(), &config, &tensors, options).unwrap();
    let index = std::fs::read_to_string(dir.path().join("model.safetensors.index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], 4 * config.parameter_count());
    let map = index["weight_map"].as_object().unwrap();
    assert_eq!(map.len(), tensors.len());
    let shards = map.values().map(|f| f.as_str().unwrap()).collect::<std::collections::BTreeSet<_>>();
    assert!(shards.len() > 2 && !dir.path().join("model.safetensors").exists());
    assert!(map.iter().filter(|(_, f)| *f == &map["lm_head.weight"]).count() == 1);
    let loaded = load_f32(dir.path(), &config).unwrap();
    assert!(tensors.iter().all(|(name, tensor)| bits(&loaded[name]) == bits(tensor)));

    save(dir.path(), &config, &tensors, SaveOptions::new(DType::F32)).unwrap();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "config.json and model.safetensors");
    assert_eq!(load_f32(dir.path(), &config).unwrap().len(), tensors.len());
}

#[test]
fn f16_and_mixed_files_load_and_known_extras_are_skipped() {
    let config = tiny(true);
    let mut tensors = counting(&config);
    tensors[0].1 =
        Tensor::full(1365f32 / 4096.0, (10, 8), &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
    tensors.push(("lm_head.weight".into(), tensors[0].1.clone()));
    let buffer = Tensor::new(&[1i64], &Device::Cpu).unwrap();
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".into(), buffer));
    let dir = TempDir::new().unwrap();
    store(&dir.path().join("model.safetensors"), &tensors);
    let loaded = load_f32(dir.path(), &config).unwrap();
    assert_eq!(loaded.len(), config.parameter_names().len());
    // 1365 / 4096, exact in f16.
    let embedding = loaded["model.embed_tokens.weight"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(embedding.iter().all(|&x| x == 1365.0 / 4096.0));
}

#[test]
fn every_wrong_tensor_is_named() {
    let config = tiny(false);
    let mut tensors = counting(&config);
    tensors.retain(|(name, _)| name != "model.layers.1.self_attn.v_proj.weight");
    for (name, tensor) in &mut tensors {
        match name.as_str() {
            "model.layers.0.mlp.up_proj.weight" => *tensor = tensor.t().unwrap().contiguous().unwrap(),
            "model.norm.weight" => *tensor = tensor.to_dtype(DType::F64).unwrap(),
            _ => {}
        }
    }
    tensors
        .push(("model.layers.0.self_attn.q_proj.bias".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap()));
    let dir = TempDir::new().unwrap();
    store(&dir.path().join("model.safetensors"), &tensors);
    let error = load_f32(dir.path(), &config).unwrap_err().to_string();
    for fact in [
        "missing tensors: model.layers.1.self_attn.v_proj.weight",
        "unexpected tensors: model.layers.0.self_attn.q_proj.bias",
        "wrong shape: model.layers.0.mlp.up_proj.weight is [8, 12], wanted [12, 8]",
        "unsupported type: model.norm.weight is F64",
    ] {
        assert!(error.contains(fact), "{error}");
    }
    assert_eq!(error.lines().count(), 1);
    // Saving checks the same, before a file is written.
    let out = dir.path().join("out");
    let error = save(&out, &config, &tensors, SaveOptions::new(DType::F32)).unwrap_err().to_string();
    assert!(error.contains("v_proj") && !out.exists(), "{error}");
}

#[test]
fn a_tensor_in_two_shards_is_named_with_both() {
    let config = tiny(true);
    let tensors = counting(&config);
    let dir = TempDir::new().unwrap();
    store(&dir.path().join("a.safetensors"), &tensors);
    store(&dir.path().join("b.safetensors"), &tensors[..1]);
    let index = json!({"weight_map": {"x": "a.safetensors", "y": "b.safetensors"}});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let error = load_f32(dir.path(), &config).unwrap_err().to_string();
    let twice = error.contains("stored twice: model.embed_tokens.weight");
    assert!(twice && error.contains("a.safetensors and") && error.contains("b.safetensors"), "{error}");
}

#[test]
fn a_damaged_file_is_one_line_with_its_path() {
    let config = tiny(true);
    let dir = TempDir::new().unwrap();
    let (single, index) =
        (dir.path().join("model.safetensors"), dir.path().join("model.safetensors.index.json"));
    let fails = |wanted: &str| {
        let error = load_f32(dir.path(), &config).unwrap_err().to_string();
        assert!(error.contains(wanted) && error.lines().count() == 1, "wanted {wanted}, got {error}");
    };
    fails("no model.safetensors");

    store(&single, &counting(&config));
    let whole = std::fs::read(&single).unwrap();
    for length in [0, 7, 40, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&single, &whole[..length]).unwrap();
        fails("model.safetensors: not a whole safetensors file");
    }
    let mut garbage = whole.clone();
    garbage[8..40].fill(b'x');
    std::fs::write(&single, &garbage).unwrap();
    fails("not a whole safetensors file");
    std::fs::remove_file(&single).unwrap();

    std::fs::write(&index, "{").unwrap();
    fails("index.json: not valid JSON");
    std::fs::write(&index, "{}").unwrap();
    fails("no weight_map");
    std::fs::write(&index, r#"{"weight_map": {"a": "../a.safetensors"}}"#).unwrap();
    fails("not a name in this directory");
    std::fs::write(&index, r#"{"weight_map": {"a": "model-00001-of-00001.safetensors"}}"#).unwrap();
    fails("model-00001-of-00001.safetensors: named by model.safetensors.index.json but absent");
}

#[test]
fn all_that_is_wrong_with_the_shards_is_in_one_error() {
    let config = tiny(true);
    let mut tensors = counting(&config);
    let names = ["a", "b", "c", "d"].map(|name| format!("{name}.safetensors"));
    let wrong = Tensor::zeros((3, 3), DType::F32, &Device::Cpu).unwrap();
    tensors[0].1 = wrong;
    tensors.push(("stranger".into(), Tensor::new(&[1f32], &Device::Cpu).unwrap()));
    let dir = TempDir::new().unwrap();
    let third = tensors.len() / 3;
    store(&dir.path().join(&names[0]), &[&tensors[..third], &tensors[third * 2..]].concat());
    store(&dir.path().join(&names[1]), &tensors[third..2 * third]);
    let whole = std::fs::read(dir.path().join(&names[1])).unwrap();
    std::fs::write(dir.path().join(&names[1]), &whole[..whole.len() - 1]).unwrap();
    store(&dir.path().join(&names[2]), &tensors[2 * third..2 * third + 1]);
    let map: serde_json::Map<_, _> = names.iter().map(|n| (n.clone(), n.clone().into())).collect();
    let index = json!({"weight_map": map});
    std::fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    let error = load_f32(dir.path(), &config).unwrap_err().to_string();
    for fact in [
        "b.safetensors: not a whole safetensors file",
        "d.safetensors: named by model.safetensors.index.json but absent",
        "unexpected tensors: stranger",
        &format!("stored twice: {} (in ", tensors[2 * third].0),
        "wrong shape: model.embed_tokens.weight is [3, 3], wanted [10, 8]",
        "fetch the files again",
    ] {
        assert!(error.contains(fact), "{fact}: {error}");
    }
    assert!(!error.contains("missing tensors"), "{error}");
}

/// Larger than the window that is mapped at once, so that pieces meet; every type as every type.
#[test]
fn every_type_loads_as_every_type_across_windows() {
    let mut config = tiny(true);
    config.vocab_size = 2_200_001;
    let elements = config.vocab_size * 8;
    let values: Vec<f32> =
        (0..elements as u32).map(|i| (i.wrapping_mul(2654435761) >> 8) as f32 / 7.0).collect();
    let embedding = Tensor::from_vec(values, (config.vocab_size, 8), &Device::Cpu).unwrap();
    let name = "model.embed_tokens.weight";
    let mut tensors = counting(&tiny(true));
    for stored in [DType::F32, DType::BF16] {
        let kept = embedding.to_dtype(stored).unwrap();
        tensors[0].1 = kept.clone();
        let dir = TempDir::new().unwrap();
        store(&dir.path().join("model.safetensors"), &tensors);
        for wanted in [DType::F32, DType::BF16] {
            let loaded = load(dir.path(), &config, &Device::Cpu, wanted).unwrap();
            assert_eq!(loaded[name].dtype(), wanted);
            let expected = kept.to_dtype(wanted).unwrap().to_dtype(DType::F32).unwrap();
            assert!(
                bits(&loaded[name].to_dtype(DType::F32).unwrap()) == bits(&expected),
                "{stored:?} {wanted:?}"
            );
        }
    }
}

#[test]
fn a_directory_that_cannot_be_made_is_an_error() {
    let config = tiny(true);
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error =
        save(&file.join("model"), &config, &counting(&config), SaveOptions::new(DType::F32)).unwrap_err();
    assert!(error.to_string().contains("cannot create the directory"), "{error}");
}

#[test]
fn golden_llama_tiny_loads_with_its_scaled_frequencies() {
    let golden = golden_dir();
    let dir = golden.join("llama-tiny");
    let config = config_json::load(&dir).unwrap();
    // theta 500000, 8 channels: 1, 500000^-1/4, ^-1/2, ^-3/4. 32 tokens hold 5.1 turns of the first, which is kept;
    // the others turn less than once and are divided by 8.
    let wanted = [1.0, 0.03760603093086394 / 8.0, 0.001414213562373095 / 8.0, 5.318295896944988e-5 / 8.0];
    for (got, wanted) in config.rope_inverse_frequencies().into_iter().zip(wanted) {
        assert!((got / wanted - 1.0).abs() < 1e-12, "{got} {wanted}");
    }
    let weights = load_f32(&dir, &config).unwrap();
    assert_eq!(weights.len(), 3 + 3 * 9);
    let elements = weights.values().map(Tensor::elem_count).sum::<usize>();
    assert_eq!(elements as u64, config.parameter_count());
    assert_eq!(config.eos_token_id, [2, 0]);
}

#[test]
fn golden_qwen3_tiny_loads_with_its_head_norms() {
    let golden = golden_dir();
    let dir = golden.join("qwen3-tiny");
    let config = config_json::load(&dir).unwrap();
    assert_eq!(config.family, Family::Qwen3);
    let weights = load_f32(&dir, &config).unwrap();
    let norms = weights.iter().filter(|(name, _)| name.contains("q_norm") || name.contains("k_norm"));
    let norms: Vec<&Tensor> = norms.map(|(_, tensor)| tensor).collect();
    assert_eq!(norms.len(), 2 * config.num_hidden_layers);
    assert!(norms.iter().all(|norm| norm.dims() == [config.head_dim]));
    let elements = weights.values().map(Tensor::elem_count).sum::<usize>();
    assert_eq!(elements as u64, config.parameter_count());
    // The same file called another family is refused by what it then lacks or has too much.
    let error = load_f32(&dir, &ModelConfig { family: Family::Llama, ..config }).unwrap_err().to_string();
    assert!(error.contains("unexpected tensors: model.layers.0.self_attn.k_norm.weight"), "{error}");
}
