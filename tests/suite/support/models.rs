//! Small random models: a plain one, and one of every family.

use candle_core::{Device, Tensor};
use rlvr::config::ActivationMemory;
use rlvr::config::optim::OptimConfig;
use rlvr::formats::hf::config_json;
use rlvr::model::config::ModelConfig;
use rlvr::model::decoder::Decoder;
use rlvr::rng::{Purpose, Stream};
use rlvr::train::learner::Learner;
use serde_json::{Value, json};

use super::tensors::floats;

/// Two Llama blocks of 48, tied, a vocabulary of 61.
pub fn small_decoder(seed: u64) -> Decoder {
    let json = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 61, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": true, "max_position_embeddings": 512,
    });
    Decoder::random(config_json::from_json(&json, "test").unwrap(), seed, 512).unwrap()
}

/// What trains all weights of `decoder` with the default optimiser.
pub fn learner(decoder: Decoder) -> Learner {
    Learner::new(decoder, &OptimConfig::default(), ActivationMemory::Recompute, 0).unwrap()
}

/// `n` random token ids, the same for a given `id`.
pub fn tokens(id: u32, n: usize) -> Vec<u32> {
    let stream = Stream::new(9, Purpose::Bench, [id, 0, 0]);
    (0..n as u32).map(|i| stream.block(i)[0] % 61).collect()
}

/// A small model with one field or more changed; heads of 16, which `hidden_size / heads` is not.
pub fn family_config(model_type: &str, changes: Value) -> ModelConfig {
    let mut json = json!({
        "model_type": model_type, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 61, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
        "max_position_embeddings": 512,
    });
    for (name, value) in changes.as_object().unwrap() {
        json[name] = value.clone();
    }
    config_json::from_json(&json, "test").unwrap()
}

/// Every family, and between them every difference: bias on three or four projections, QK-norm, tied and untied
/// head, plain, linear and yarn angles.
pub fn family_configs() -> Vec<ModelConfig> {
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
    vec![
        family_config(
            "llama",
            json!({"attention_bias": true, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        ),
        family_config("qwen2", json!({"tie_word_embeddings": false})),
        family_config("qwen3", json!({"rope_scaling": yarn})),
        family_config("qwen3", json!({"tie_word_embeddings": false, "attention_bias": true})),
    ]
}

/// Random weights, those of norms and biases too: at 1 and 0 they would hide a mistake.
pub fn family_decoder(config: ModelConfig, seed: u64) -> Decoder {
    let fresh = Decoder::random(config.clone(), seed, 512).unwrap();
    let tensors = fresh.parameters().enumerate().map(|(i, (name, tensor))| {
        if tensor.rank() > 1 {
            return (name.to_string(), tensor.clone());
        }
        let stream = Stream::new(seed, Purpose::Bench, [i as u32, 0, 0]);
        let moved = floats(tensor).into_iter().enumerate().map(|(j, x)| x + 0.4 * stream.normal(j as u32));
        (name.to_string(), Tensor::from_iter(moved.collect::<Vec<_>>(), &Device::Cpu).unwrap())
    });
    Decoder::new(config, tensors.collect::<Vec<_>>(), 512).unwrap()
}

pub fn family_decoders(seed: u64) -> Vec<Decoder> {
    family_configs().into_iter().map(|config| family_decoder(config, seed)).collect()
}
