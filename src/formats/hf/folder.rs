//! A model as a folder in Hugging Face layout.

use std::path::Path;

use candle_core::{DType, Tensor};

use super::companions::Companions;
use super::config_json;
use super::weights::{self, SaveOptions, TensorFile, save_with};
use crate::error::{Error, Result};
use crate::formats::written::Written;
use crate::model::decoder::{Decoder, Placement};

/// The model of a folder, brought to `place`; `max_positions` bounds prompt plus completion.
///
/// # Errors
/// config.json names what is not supported, or the weights do not fit it.
pub fn load_decoder(dir: &Path, max_positions: usize, place: &Placement) -> Result<Decoder> {
    let config = config_json::load(dir)?;
    let tensors = weights::load(dir, &config, &place.device, place.dtype)?;
    Decoder::new(config, tensors, max_positions)?.named(format!("model {}", dir.display()), &place.missing)
}

/// Writes config.json, the weights (an adapter merged into them) and the files that travel with them into the folder
/// `dir`, which is made if absent.
///
/// # Errors
/// `options.dtype` is no type for weights, or a file cannot be read or written.
pub fn write(
    dir: &Path,
    decoder: &Decoder,
    companions: &Companions,
    options: SaveOptions,
) -> Result<Written> {
    let bytes = save_with(dir, &decoder.config, options, |name| decoder.merged_weight(name))?;
    companions.copy_to(dir, &decoder.config)?;
    let stored_as = match options.dtype {
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        _ => "F32",
    };
    let mut notes = Vec::new();
    if !companions.has_tokenizer() {
        notes.push(format!("{} has no tokenizer.json to copy.", companions.tokenizer_dir.display()));
    }
    let stored_as = decoder.parameters().map(|(name, _)| (name.to_string(), stored_as.to_string())).collect();
    Ok(Written { stored_as, bytes, notes })
}

/// Tensors of a folder, read when they are asked for.
pub struct FolderTensors(Vec<TensorFile>);

impl FolderTensors {
    /// # Errors
    /// A file cannot be read or is cut short.
    pub fn open(dir: &Path) -> Result<Self> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
            let path = entry.map_err(Error::io(dir, "list"))?.path();
            if path.extension().is_some_and(|ending| ending == "safetensors") {
                files.push(TensorFile::open(&path)?);
            }
        }
        Ok(Self(files))
    }

    /// The type of all tensors where they have one; f32, which holds them all, where they differ.
    pub fn common_dtype(&self) -> DType {
        let mut dtypes = self.0.iter().flat_map(TensorFile::dtypes);
        let first = dtypes.next().flatten();
        first.filter(|first| dtypes.all(|dtype| dtype == Some(*first))).unwrap_or(DType::F32)
    }

    /// In the type that it is stored in, on the CPU.
    ///
    /// # Errors
    /// No file has it.
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        self.0
            .iter()
            .find_map(|file| file.get(name))
            .unwrap_or_else(|| Err(Error::Compute(format!("no file has the tensor {name}").into())))
    }
}
