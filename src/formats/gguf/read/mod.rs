//! GGUF import: a quantised file becomes a model directory in Hugging Face layout.

pub mod container;
pub mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Tensor};
use serde_json::{Map, json};

use crate::error::{Error, Result};
use crate::formats::hf::weights::{SaveOptions, save_with, write_json};
use crate::model::config::{Family, ModelConfig};
use crate::model::rope_scaling::{Llama3Scaling, RopeScaling, YarnScaling};
use container::Gguf;
use tokenizer::{SpecialIds, TokenizerFiles, tokenizer_files};

/// llama.cpp's table of rotary divisors, how llama3 scaling is stored in GGUF. f32 `[head_dim / 2]`
pub const ROPE_TABLE: &str = "rope_freqs.weight";
const AGAIN: &str = "Convert the model again";
const OTHER_MODEL: &str = "Import a model without it";

/// What [`import`] did.
#[derive(Clone, Debug, PartialEq)]
pub struct ImportReport {
    pub config: ModelConfig,
    pub tensors: usize,
    pub parameters: u64,
    /// Tensors by how the file stored them, such as `Q4_1`.
    pub stored_as: BTreeMap<String, usize>,
    /// Tokens of the tokenizer.
    pub vocab: usize,
    /// Tensor data written, in bytes.
    pub written_bytes: u64,
    /// What the file left open and how it was settled, a sentence each.
    pub notes: Vec<String>,
}

/// Dequantises `gguf` into `out_dir` as `dtype` (bf16, f16 or f32), tensor by tensor.
///
/// Writes config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json and
/// special_tokens_map.json. `out_dir` must be absent or empty. Everything but the tensor data is checked before
/// the first file is written.
pub fn import(gguf: &Path, out_dir: &Path, dtype: DType) -> Result<ImportReport> {
    refuse_filled(out_dir)?;
    let model = GgufModel::open(gguf)?;
    let (config, tokenizer) = (&model.config, &model.tokenizer);
    std::fs::create_dir_all(out_dir).map_err(Error::io(out_dir, "create the directory"))?;
    write_json(&out_dir.join("tokenizer.json"), &tokenizer.tokenizer)?;
    write_json(&out_dir.join("tokenizer_config.json"), &tokenizer.tokenizer_config)?;
    write_json(&out_dir.join("special_tokens_map.json"), &tokenizer.special_tokens_map)?;
    write_json(&out_dir.join("generation_config.json"), &generation_config(&tokenizer.ids).into())?;
    let written_bytes = save_with(out_dir, config, SaveOptions::new(dtype), |name| model.tensor(name))?;
    Ok(ImportReport {
        tensors: config.parameter_names().len(),
        parameters: config.parameter_count(),
        stored_as: model.stored_as,
        vocab: model.tokenizer.vocab,
        written_bytes,
        notes: model.tokenizer.notes,
        config: model.config,
    })
}

/// A GGUF file that has been checked: everything but the tensors' data is read.
pub struct GgufModel {
    pub config: ModelConfig,
    pub tokenizer: TokenizerFiles,
    /// Tensors by how the file stores them, such as `Q4_1`.
    pub stored_as: BTreeMap<String, usize>,
    file: Gguf,
}

impl GgufModel {
    /// # Errors
    /// The file is damaged, or holds what rlvr does not compute; the metadata key or tensor is named.
    pub fn open(gguf: &Path) -> Result<Self> {
        let file = Gguf::open(gguf)?;
        let family = family(&file)?;
        let tokenizer = tokenizer_files(&file, family.model_type())?;
        let config = config(&file, family, &tokenizer.ids)?;
        if tokenizer.vocab > config.vocab_size {
            let problem = format!("{} rows for {} tokens", config.vocab_size, tokenizer.vocab);
            return Err(file.wrong("token_embd.weight", problem, AGAIN));
        }
        let stored_as = check_tensors(&file, &config)?;
        Ok(Self { config, tokenizer, stored_as, file })
    }

    /// One parameter by its Hugging Face name, in f32 on the CPU, rows in Hugging Face's order.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let tensor = self.file.dequantise(&gguf_name(name))?;
        match rotated_heads(&self.config, name) {
            None => Ok(tensor),
            Some(heads) => rotate_half_rows(&tensor, heads).map_err(|e| Error::Compute(Box::new(e))),
        }
    }
}

/// Heads of a parameter whose rows GGUF keeps in another order; `None` for all others.
fn rotated_heads(config: &ModelConfig, name: &str) -> Option<usize> {
    if config.family != Family::Llama {
        return None;
    }
    match name.rsplit_once(".self_attn.")?.1 {
        "q_proj.weight" | "q_proj.bias" => Some(config.num_attention_heads),
        "k_proj.weight" | "k_proj.bias" => Some(config.num_key_value_heads),
        _ => None,
    }
}

/// A parameter's rows as GGUF keeps them: [`GgufModel::tensor`] undone.
pub fn gguf_rows(config: &ModelConfig, name: &str, tensor: &Tensor) -> Result<Tensor> {
    let Some(heads) = rotated_heads(config, name) else { return Ok(tensor.clone()) };
    interleaved_rows(tensor, heads).map_err(|e| Error::Compute(Box::new(e)))
}

fn refuse_filled(dir: &Path) -> Result<()> {
    let filled = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(dir, "list")(e)),
    };
    if filled {
        return Err(Error::input(
            dir.display(),
            "the output directory is not empty",
            "Name a new or an empty one",
        ));
    }
    Ok(())
}

fn family(file: &Gguf) -> Result<Family> {
    const KEY: &str = "general.architecture";
    let found = file.text(KEY)?.unwrap_or("none");
    Family::ALL.into_iter().find(|family| family.model_type() == found).ok_or_else(|| {
        let known = Family::ALL.map(Family::model_type).join(", ");
        file.wrong(KEY, format!("\"{found}\" is not supported"), &format!("Import one of {known}"))
    })
}

fn config(file: &Gguf, family: Family, ids: &SpecialIds) -> Result<ModelConfig> {
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

/// Names, shapes and storage types, all before anything is written. Returns how many tensors have which type.
fn check_tensors(file: &Gguf, config: &ModelConfig) -> Result<BTreeMap<String, usize>> {
    let mut stored_as = BTreeMap::new();
    let mut wanted = BTreeSet::from([ROPE_TABLE.to_string()]);
    for (name, shape) in config.parameter_names() {
        let name = gguf_name(&name);
        let (Some(found), Some((kind, readable))) = (file.shape(&name), file.kind(&name)) else {
            return Err(file.wrong(&name, "missing", AGAIN));
        };
        if found != shape {
            return Err(file.wrong(
                &name,
                format!("shape {found:?}, but the metadata want {shape:?}"),
                AGAIN,
            ));
        }
        if !readable {
            let fix =
                "Import a file with F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 or Q2_K to Q6_K tensors";
            return Err(file.wrong(&name, format!("stored as {kind}, which is not supported"), fix));
        }
        *stored_as.entry(kind).or_default() += 1;
        wanted.insert(name);
    }
    match file.tensor_names().find(|name| !wanted.contains(*name)) {
        Some(extra) => {
            Err(file.wrong(extra, "not a tensor of the architecture as rlvr knows it", OTHER_MODEL))
        }
        None => Ok(stored_as),
    }
}

/// GGUF's name of a Hugging Face parameter.
pub fn gguf_name(name: &str) -> String {
    let parts = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let Some((layer, part)) = parts else {
        return match name {
            "model.embed_tokens.weight" => "token_embd.weight",
            "model.norm.weight" => "output_norm.weight",
            _ => "output.weight",
        }
        .into();
    };
    let (part, kind) = part.rsplit_once('.').unwrap_or((part, ""));
    let part = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" => "ffn_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        _ => "ffn_down",
    };
    format!("blk.{layer}.{part}.{kind}")
}

/// Undoes GGUF's row order of `attn_q` and `attn_k`: within each head it stores the two channels of a rotated
/// pair side by side (0, d/2, 1, d/2 + 1, ...), where Hugging Face keeps the halves apart (0, 1, ..., d - 1).
fn rotate_half_rows(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let pairs = tensor.dim(0)? / heads / 2;
    let columns = tensor.elem_count() / tensor.dim(0)?;
    tensor.reshape((heads, pairs, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

/// [`rotate_half_rows`] undone.
fn interleaved_rows(tensor: &Tensor, heads: usize) -> candle_core::Result<Tensor> {
    let pairs = tensor.dim(0)? / heads / 2;
    let columns = tensor.elem_count() / tensor.dim(0)?;
    tensor.reshape((heads, 2, pairs, columns))?.transpose(1, 2)?.contiguous()?.reshape(tensor.shape())
}

fn generation_config(ids: &SpecialIds) -> Map<String, serde_json::Value> {
    let mut config = Map::new();
    if let Some(bos) = ids.bos {
        config.insert("bos_token_id".into(), bos.into());
    }
    match ids.eos[..] {
        [] => {}
        [eos] => drop(config.insert("eos_token_id".into(), eos.into())),
        _ => drop(config.insert("eos_token_id".into(), json!(ids.eos))),
    }
    if let Some(pad) = ids.pad {
        config.insert("pad_token_id".into(), pad.into());
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn pairs_stored_side_by_side_go_back_to_halves() {
        // Two heads of four channels: GGUF order 0 2 1 3 within each.
        let stored =
            Tensor::new(&[[0f32], [2.], [1.], [3.], [10.], [12.], [11.], [13.]], &Device::Cpu).unwrap();
        let rows = rotate_half_rows(&stored, 2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(rows, [0., 1., 2., 3., 10., 11., 12., 13.]);
        let again = interleaved_rows(&rotate_half_rows(&stored, 2).unwrap(), 2).unwrap();
        assert_eq!(again.to_vec2::<f32>().unwrap(), stored.to_vec2::<f32>().unwrap());
    }
}
