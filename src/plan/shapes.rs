//! Shapes of published models, by name. The weights are never needed to measure a time.

use serde_json::json;

use crate::error::{Error, Result};
use crate::formats::hf::config_json;
use crate::model::config::{Family, ModelConfig};

struct Preset {
    name: &'static str,
    family: Family,
    hidden: usize,
    inner: usize,
    layers: usize,
    heads: usize,
    key_value_heads: usize,
    head_dim: usize,
    vocab: usize,
    rope_theta: f64,
    tied: bool,
}

const SMOLLM2: Preset = Preset {
    name: "smollm2-135m",
    family: Family::Llama,
    hidden: 576,
    inner: 1536,
    layers: 30,
    heads: 9,
    key_value_heads: 3,
    head_dim: 64,
    vocab: 49152,
    rope_theta: 1e5,
    tied: true,
};

const LLAMA_8B: Preset = Preset {
    name: "llama-3.1-8b",
    family: Family::Llama,
    hidden: 4096,
    inner: 14336,
    layers: 32,
    heads: 32,
    key_value_heads: 8,
    head_dim: 128,
    vocab: 128256,
    rope_theta: 5e5,
    tied: false,
};

const QWEN3_4B: Preset = Preset {
    name: "qwen3-4b",
    family: Family::Qwen3,
    hidden: 2560,
    inner: 9728,
    layers: 36,
    heads: 32,
    key_value_heads: 8,
    head_dim: 128,
    vocab: 151936,
    rope_theta: 1e6,
    tied: true,
};

/// Numbers of the models' published config.json files.
const PRESETS: [Preset; 8] = [
    SMOLLM2,
    Preset {
        name: "smollm2-360m",
        hidden: 960,
        inner: 2560,
        layers: 32,
        heads: 15,
        key_value_heads: 5,
        ..SMOLLM2
    },
    Preset {
        name: "llama-3.2-1b",
        hidden: 2048,
        inner: 8192,
        layers: 16,
        head_dim: 64,
        tied: true,
        ..LLAMA_8B
    },
    Preset { name: "llama-3.2-3b", hidden: 3072, inner: 8192, layers: 28, heads: 24, tied: true, ..LLAMA_8B },
    LLAMA_8B,
    QWEN3_4B,
    Preset { name: "qwen3-14b", hidden: 5120, inner: 17408, layers: 40, heads: 40, tied: false, ..QWEN3_4B },
    // No published model's: to try a command in no time.
    Preset {
        name: "tiny",
        hidden: 64,
        inner: 128,
        layers: 2,
        heads: 4,
        key_value_heads: 2,
        head_dim: 16,
        vocab: 512,
        rope_theta: 1e4,
        ..SMOLLM2
    },
];

/// The shape of the model that a name means: [`find`]'s, also where it is the instruction-tuned model's.
pub fn of_model(name: &str) -> Option<ModelConfig> {
    find(name.strip_suffix("-instruct").unwrap_or(name)).ok()
}

/// The shape called `name`.
///
/// # Errors
/// None has this name.
pub fn find(name: &str) -> Result<ModelConfig> {
    let Some(p) = PRESETS.iter().find(|p| p.name == name) else {
        let want = PRESETS.map(|p| p.name).join(", ");
        return Err(Error::config("--preset", name, want, "a shape has to be known by name"));
    };
    let json = json!({
        "model_type": p.family.model_type(), "architectures": [p.family.architecture()], "hidden_act": "silu",
        "hidden_size": p.hidden, "intermediate_size": p.inner, "num_hidden_layers": p.layers,
        "num_attention_heads": p.heads, "num_key_value_heads": p.key_value_heads, "head_dim": p.head_dim,
        "vocab_size": p.vocab, "rms_norm_eps": 1e-5, "rope_theta": p.rope_theta,
        "tie_word_embeddings": p.tied, "max_position_embeddings": 8192,
    });
    config_json::from_json(&json, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_have_the_parameter_counts_of_their_models() {
        // Billions, from the model cards.
        for (name, billions) in [
            ("smollm2-135m", 0.1345),
            ("smollm2-360m", 0.3618),
            ("llama-3.2-1b", 1.2358),
            ("llama-3.2-3b", 3.2127),
            ("llama-3.1-8b", 8.0303),
            ("qwen3-4b", 4.0225),
            ("qwen3-14b", 14.7683),
        ] {
            let config = find(name).unwrap();
            let count: usize =
                config.parameter_names().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
            assert!((count as f64 / 1e9 - billions).abs() < 1e-4, "{name}: {count}");
            assert_eq!(config.family.has_qk_norm(), name.starts_with("qwen3"));
        }
        let known = |name: &str| of_model(name).map(|shape| shape.parameter_count());
        assert_eq!(known("llama-3.1-8b-instruct"), Some(8_030_261_248));
        assert_eq!((known("smollm2-135m"), known("gpt-2-instruct")), (Some(134_515_008), None));
        assert!(find("gpt-2").unwrap_err().to_string().contains("llama-3.1-8b"));
    }
}
