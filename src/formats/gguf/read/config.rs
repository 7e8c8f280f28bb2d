//! The numbers of a model, from a GGUF file's metadata and its table of rotary divisors.

use super::container::Gguf;
use super::tokenizer::SpecialIds;
use crate::error::{Error, Result};
use crate::formats::gguf::names::ROPE_TABLE;
use crate::model::config::{Family, ModelConfig};
use crate::model::rope_scaling::{Llama3Scaling, RopeScaling, YarnScaling};

const AGAIN: &str = "Convert the model again";
const OTHER_MODEL: &str = "Import a model without it";

pub(super) fn family(file: &Gguf) -> Result<Family> {
    const KEY: &str = "general.architecture";
    let found = file.text(KEY)?.unwrap_or("none");
    Family::ALL.into_iter().find(|family| family.model_type() == found).ok_or_else(|| {
        let known = Family::ALL.map(Family::model_type).join(", ");
        file.wrong(KEY, format!("\"{found}\" is not supported"), &format!("Import one of {known}"))
    })
}

pub(super) fn config(file: &Gguf, family: Family, ids: &SpecialIds) -> Result<ModelConfig> {
    let key = |name: &str| format!("{}.{name}", family.model_type());
    let hidden_size = file.required_size(&key("embedding_length"))?;
    let heads = file.required_size(&key("attention.head_count"))?;
    let head_dim = match file.size(&key("attention.key_length"))? {
        Some(size) => size,
        None if heads > 0 && hidden_size % heads == 0 => hidden_size / heads,
        None => {
            let problem = format!("{heads} does not divide embedding_length = {hidden_size}");
            return Err(file.wrong(&key("attention.head_count"), problem, AGAIN));
        }
    };
    let fixed = [
        ("attention.value_length", head_dim),
        ("rope.dimension_count", head_dim),
        ("expert_count", 0),
        ("attention.sliding_window", 0),
    ];
    for (name, wanted) in fixed {
        if let Some(found) = file.size(&key(name))?.filter(|&found| found != wanted) {
            let problem = format!("{found} is not supported, only {wanted}");
            return Err(file.wrong(&key(name), problem, OTHER_MODEL));
        }
    }
    let Some(&[vocab_size, _]) = file.shape("token_embd.weight") else {
        return Err(file.wrong("token_embd.weight", "missing, or not a matrix", AGAIN));
    };
    let epsilon = key("attention.layer_norm_rms_epsilon");
    let mut config = ModelConfig {
        family,
        attention_bias: family == Family::Qwen2 || file.shape("blk.0.attn_q.bias").is_some(),
        hidden_size,
        intermediate_size: file.required_size(&key("feed_forward_length"))?,
        num_hidden_layers: file.required_size(&key("block_count"))?,
        num_attention_heads: heads,
        num_key_value_heads: file.size(&key("attention.head_count_kv"))?.unwrap_or(heads),
        head_dim,
        vocab_size,
        rms_norm_eps: file.number(&epsilon)?.ok_or_else(|| file.wrong(&epsilon, "missing", AGAIN))?,
        rope_theta: file.number(&key("rope.freq_base"))?.unwrap_or(10_000.0),
        rope_scaling: None,
        tie_word_embeddings: file.shape("output.weight").is_none(),
        max_position_embeddings: file.required_size(&key("context_length"))?,
        bos_token_id: ids.bos,
        eos_token_id: ids.eos.clone(),
        pad_token_id: ids.pad,
    };
    config.validate(&file.place())?;
    config.rope_scaling = match stated_scaling(file, &config)? {
        Some(stated) => Some(stated),
        None => llama3_scaling(file, &config)?.map(RopeScaling::Llama3),
    };
    Ok(config)
}

/// The rotary scaling that the metadata name.
fn stated_scaling(file: &Gguf, config: &ModelConfig) -> Result<Option<RopeScaling>> {
    let key = |name: &str| format!("{}.rope.scaling.{name}", config.family.model_type());
    let positive = |name: &str| -> Result<Option<f64>> {
        let number = file.number(&key(name))?;
        match number {
            Some(x) if !(x > 0.0 && x.is_finite()) => Err(file.wrong(&key(name), "not above 0", AGAIN)),
            number => Ok(number),
        }
    };
    let factor = || positive("factor")?.ok_or_else(|| file.wrong(&key("factor"), "missing", AGAIN));
    match file.text(&key("type"))? {
        None | Some("none") => Ok(None),
        Some("linear") => Ok(Some(RopeScaling::Linear { factor: factor()? })),
        Some("yarn") if config.rope_theta > 1.0 => Ok(Some(RopeScaling::Yarn(YarnScaling {
            factor: factor()?,
            original_max_position_embeddings: file.required_size(&key("original_context_length"))?.max(1),
            beta_fast: positive("yarn_beta_fast")?,
            beta_slow: positive("yarn_beta_slow")?,
            truncate: None,
            attention_factor: None,
            mscale: None,
            mscale_all_dim: None,
            attn_factor: positive("attn_factor")?,
        }))),
        Some(kind) => {
            let problem = format!("\"{kind}\" is not supported");
            Err(file.wrong(&key("type"), problem, OTHER_MODEL))
        }
    }
}

/// The llama3 scaling behind [`ROPE_TABLE`]. GGUF keeps the table alone. The factor is its largest entry; with the
/// `low_freq_factor` 1 and `high_freq_factor` 4 of every published Llama, the other entries give the context length
/// before the scaling. A table that this does not reproduce is refused, not approximated.
fn llama3_scaling(file: &Gguf, config: &ModelConfig) -> Result<Option<Llama3Scaling>> {
    match file.shape(ROPE_TABLE) {
        None => return Ok(None),
        Some(&[entries]) if entries == config.head_dim / 2 => {}
        Some(shape) => {
            return Err(file.wrong(ROPE_TABLE, format!("shape {shape:?} is not half a head"), AGAIN));
        }
    }
    let divisors = file.dequantise(ROPE_TABLE)?.flatten_all().and_then(|table| table.to_vec1::<f32>());
    let divisors = divisors.map_err(|e| Error::Compute(Box::new(e)))?;
    let divisors = divisors.into_iter().map(f64::from).collect::<Vec<_>>();
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    if factor == 1.0 {
        return Ok(None);
    }
    let plain = config.rope_inverse_frequencies();
    let scaling = Llama3Scaling {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: original_context(&plain, &divisors, factor),
    };
    let fits = plain
        .iter()
        .zip(&divisors)
        .all(|(&frequency, &divisor)| (frequency / scaling.apply(frequency) / divisor - 1.0).abs() < 1e-4);
    if fits {
        return Ok(Some(scaling));
    }
    Err(file.wrong(ROPE_TABLE, "not a llama3 scaling with factors 1 and 4", OTHER_MODEL))
}

/// Turns of a frequency within the original context are `1 + 3 kept`, and `1 / divisor = kept + (1 - kept) / factor`
/// between one turn and four. Where no entry lies between, any length that leaves none there gives the same table.
fn original_context(plain: &[f64], divisors: &[f64], factor: f64) -> usize {
    let tokens = |turns: f64, frequency: f64| turns * 2.0 * std::f64::consts::PI / frequency;
    let (mut at_least, mut at_most) = (1.0f64, u32::MAX as f64);
    for (&frequency, &divisor) in plain.iter().zip(divisors) {
        if divisor <= 1.0 {
            at_least = at_least.max(tokens(4.0, frequency));
        } else if divisor >= factor {
            at_most = at_most.min(tokens(1.0, frequency));
        } else {
            let kept = (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor);
            return tokens(1.0 + 3.0 * kept, frequency).round() as usize;
        }
    }
    // A power of two if one fits.
    let between = (at_least * at_most).sqrt();
    let power = (1u64 << (between.log2().round() as u32).min(31)) as f64;
    if at_least < power && power < at_most { power as usize } else { between as usize }
}
