//! A LoRA adapter as PEFT's folder, without the model it belongs to.

use std::path::Path;

use super::Written;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::peft;

/// Writes adapter_config.json and adapter_model.safetensors, f32, into the folder `dir`, which is made if absent.
/// `base` is the model as PEFT looks it up.
///
/// # Errors
/// `decoder` has no adapter, or a file cannot be written.
pub fn write(dir: &Path, decoder: &Decoder, base: &str) -> Result<Written> {
    let adapter = decoder.adapter().ok_or_else(|| {
        Error::input("--format peft", "there is no adapter to write", "Name its folder with --adapter")
    })?;
    peft::save(dir, &adapter, base)?;
    let bytes = adapter.tensors.iter().map(|(_, tensor)| 4 * tensor.elem_count() as u64).sum();
    let stored_as = adapter.tensors.into_iter().map(|(name, _)| (name, "F32".to_string())).collect();
    Ok(Written { stored_as, bytes, notes: Vec::new() })
}
