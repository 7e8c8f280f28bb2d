//! A model as one GGUF file.

mod container;
mod metadata;
mod tokenizer;

use std::collections::HashMap;
use std::path::Path;

use candle_core::quantized::GgmlDType;
use candle_core::{Device, Tensor};

use super::mixture::Quantisation;
use super::names::{ROPE_TABLE, gguf_name, gguf_rows};
use super::tensor_type::type_name;
use crate::error::{Error, Result};
use crate::formats::hf::Companions;
use crate::formats::written::Written;
use crate::model::decoder::Decoder;
use container::PlannedTensor;
use metadata::{metadata, rope_divisors};
use tokenizer::tokenizer_metadata;

/// Writes `path`, one tensor at a time: the decoder's own weights, without an adapter. `name` is for people.
///
/// # Errors
/// The tokenizer is none that GGUF can hold, or the disk does not take the file.
pub fn write(
    path: &Path,
    decoder: &Decoder,
    companions: &Companions,
    name: &str,
    quantisation: Quantisation,
) -> Result<Written> {
    let config = &decoder.config;
    let tokenizer = tokenizer_metadata(companions, config)?;
    let mut entries = metadata(config, name, quantisation)?;
    entries.extend(tokenizer.entries);

    let weights: HashMap<&str, &Tensor> = decoder.parameters().collect();
    let parameters = config.parameter_names();
    let mut planned = Vec::with_capacity(parameters.len() + 1);
    let table = rope_divisors(config);
    if let Some(table) = &table {
        let (name, shape) = (ROPE_TABLE.to_string(), vec![table.len()]);
        planned.push(PlannedTensor { name, shape, dtype: GgmlDType::F32 });
    }
    planned.extend(parameters.iter().map(|(name, shape)| PlannedTensor {
        name: gguf_name(name),
        shape: shape.clone(),
        dtype: quantisation.tensor_type(config, name, shape),
    }));
    let bytes = container::write(path, &entries, &planned, |at| {
        let at = match &table {
            Some(table) if at == 0 => {
                return Ok(Tensor::new(&table[..], &Device::Cpu)?);
            }
            Some(_) => at - 1,
            None => at,
        };
        let name = &parameters[at].0;
        let tensor = weights.get(name.as_str());
        let tensor = tensor.ok_or_else(|| Error::Compute(format!("no weight {name}").into()))?;
        gguf_rows(config, name, tensor)
    })?;
    let types = planned[planned.len() - parameters.len()..].iter().map(|tensor| type_name(tensor.dtype));
    let stored_as = parameters.iter().zip(types).map(|((name, _), kind)| (name.clone(), kind.into()));
    Ok(Written { stored_as: stored_as.collect(), bytes, notes: tokenizer.notes })
}
