//! A model's numbers as the metadata of a GGUF file.

use candle_core::quantized::gguf_file::Value;

use crate::error::{Error, Result};
use crate::formats::gguf::mixture::Quantisation;
use crate::model::config::ModelConfig;
use crate::model::rope_scaling::{RopeScaling, YarnScaling};

/// Version of the block formats, ggml's `GGML_QNT_VERSION`.
const QUANTISATION_VERSION: u32 = 2;

const OTHER_FORMAT: &str = "Export to --format hf";

/// Keys of `general.` and of the architecture, in llama.cpp's order. `name` is for people.
///
/// # Errors
/// A rotary scaling that GGUF has no keys for.
pub fn metadata(
    config: &ModelConfig,
    name: &str,
    quantisation: Quantisation,
) -> Result<Vec<(String, Value)>> {
    let arch = config.family.model_type();
    let text = |text: &str| Value::String(text.into());
    let size = |size: usize| Value::U32(size as u32); // `validate` keeps sizes below 2^32
    let mut entries = vec![
        ("general.architecture".to_string(), text(arch)),
        ("general.type".into(), text("model")),
        ("general.name".into(), text(name)),
        ("general.file_type".into(), Value::U32(quantisation.file_type())),
        ("general.quantization_version".into(), Value::U32(QUANTISATION_VERSION)),
    ];
    let mut put = |key: &str, value: Value| entries.push((format!("{arch}.{key}"), value));
    put("block_count", size(config.num_hidden_layers));
    put("context_length", size(config.max_position_embeddings));
    put("embedding_length", size(config.hidden_size));
    put("feed_forward_length", size(config.intermediate_size));
    put("vocab_size", size(config.vocab_size));
    put("attention.head_count", size(config.num_attention_heads));
    put("attention.head_count_kv", size(config.num_key_value_heads));
    put("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
    if config.head_dim * config.num_attention_heads != config.hidden_size {
        put("attention.key_length", size(config.head_dim));
        put("attention.value_length", size(config.head_dim));
    }
    put("rope.dimension_count", size(config.head_dim));
    put("rope.freq_base", Value::F32(config.rope_theta as f32));
    match &config.rope_scaling {
        // A table among the tensors: `rope_divisors`.
        None | Some(RopeScaling::Llama3(_)) => {}
        Some(RopeScaling::Linear { factor }) => {
            put("rope.scaling.type", text("linear"));
            put("rope.scaling.factor", Value::F32(*factor as f32));
        }
        Some(RopeScaling::Yarn(yarn)) => {
            refuse_unsaid(yarn)?;
            put("rope.scaling.type", text("yarn"));
            put("rope.scaling.factor", Value::F32(yarn.factor as f32));
            put("rope.scaling.original_context_length", size(yarn.original_max_position_embeddings));
            let optional = [
                ("yarn_beta_fast", yarn.beta_fast),
                ("yarn_beta_slow", yarn.beta_slow),
                ("attn_factor", yarn.attn_factor),
            ];
            for (name, number) in optional {
                if let Some(number) = number {
                    put(&format!("rope.scaling.{name}"), Value::F32(number as f32));
                }
            }
        }
    }
    Ok(entries)
}

fn refuse_unsaid(yarn: &YarnScaling) -> Result<()> {
    let fields = [
        ("attention_factor", yarn.attention_factor.is_some()),
        ("mscale", yarn.mscale.is_some()),
        ("mscale_all_dim", yarn.mscale_all_dim.is_some()),
        ("truncate", yarn.truncate == Some(false)),
    ];
    match fields.into_iter().find(|(_, given)| *given) {
        Some((field, _)) => {
            Err(Error::input(format!("rope_scaling.{field}"), "GGUF has no key for it", OTHER_FORMAT))
        }
        None => Ok(()),
    }
}

/// By how much each rotary frequency is divided, where the scaling is stored as a table: `rope_freqs.weight`,
/// f32 `[head_dim / 2]`.
pub fn rope_divisors(config: &ModelConfig) -> Option<Vec<f32>> {
    let Some(RopeScaling::Llama3(_)) = &config.rope_scaling else { return None };
    let plain = ModelConfig { rope_scaling: None, ..config.clone() }.rope_inverse_frequencies();
    let scaled = config.rope_inverse_frequencies();
    Some(plain.iter().zip(scaled).map(|(plain, scaled)| (plain / scaled) as f32).collect())
}
