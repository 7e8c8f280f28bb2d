//! GGUF import: a quantised file becomes a model directory in Hugging Face layout.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;

use super::read::GgufModel;
use crate::disk::{named_when_done, refuse_filled};
use crate::error::{Error, Result};
use crate::formats::file::write_json;
use crate::formats::hf::generation_config;
use crate::formats::hf::weights::{SaveOptions, save_with};
use crate::model::config::ModelConfig;

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
/// special_tokens_map.json. `out_dir` must be absent or empty, and has its name when it is whole.
pub fn import(gguf: &Path, out_dir: &Path, dtype: DType) -> Result<ImportReport> {
    refuse_filled(out_dir)?;
    let model = GgufModel::open(gguf)?;
    let (config, tokenizer) = (&model.config, &model.tokenizer);
    let written_bytes = named_when_done(out_dir, |dir| {
        std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the directory"))?;
        write_json(&dir.join("tokenizer.json"), &tokenizer.tokenizer)?;
        write_json(&dir.join("tokenizer_config.json"), &tokenizer.tokenizer_config)?;
        write_json(&dir.join("special_tokens_map.json"), &tokenizer.special_tokens_map)?;
        write_json(&dir.join("generation_config.json"), &generation_config(config))?;
        save_with(dir, config, SaveOptions::new(dtype), |name| model.tensor(name))
    })?;
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
