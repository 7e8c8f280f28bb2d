//! The tensors of a checkpoint: shared with the run, or copied to host memory so that the run may go on while they are written.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};

use super::lora::{self, Adapters};
use super::state;
use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::formats::hf::weights::{self, SaveOptions};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::ops::memory;
use crate::optim::adamw::{AdamW, ROUNDING_SEED};

pub struct Snapshot {
    trained: Trained,
    /// As [`AdamW::state`] names them; `None` between stages.
    optimizer: Option<HashMap<String, Tensor>>,
}

/// Where the optimiser's state is.
#[derive(Clone, Copy)]
pub enum OptimizerState<'a> {
    Here(&'a AdamW),
    /// As [`AdamW::state`] names it, from all ranks.
    Gathered(&'a HashMap<String, Tensor>),
}

/// The optimiser's state on rank 0, put together of all ranks' shares; `None` on the others.
pub fn gathered(
    ranks: &Ranks,
    optimizer: &AdamW,
    decoder: &Decoder,
) -> Result<Option<HashMap<String, Tensor>>> {
    let Some(engine) = ranks.engine() else { return Ok(None) };
    let dims: HashMap<&str, &[usize]> =
        decoder.trainable().map(|(name, weight)| (name, weight.dims())).collect();
    let mut whole = HashMap::new();
    for (name, part) in optimizer.state(decoder).1 {
        // One for all.
        if name == ROUNDING_SEED {
            whole.insert(name, part);
            continue;
        }
        let found = engine.gather(&[part])?.and_then(|all| all.into_iter().next());
        let Some(flat) = found.filter(|_| ranks.is_first()) else { continue };
        let of_weight = name.split_once('.').and_then(|(_, weight)| dims.get(weight));
        let shaped = match of_weight.filter(|dims| dims.iter().product::<usize>() == flat.elem_count()) {
            Some(dims) if flat.dtype() == DType::F32 => flat.reshape(*dims)?,
            _ => flat,
        };
        whole.insert(name, shaped);
    }
    Ok(ranks.is_first().then_some(whole))
}

enum Trained {
    Weights { config: Box<ModelConfig>, dtype: DType, tensors: BTreeMap<String, Tensor> },
    Adapters { merged: Vec<Adapter>, last: Adapter },
}

impl Snapshot {
    /// `apart`: in host memory of its own, for the run goes on with what it has.
    pub fn of(
        decoder: &Decoder,
        adapters: Option<&Adapters>,
        optimizer: Option<OptimizerState>,
        apart: bool,
    ) -> Result<Self> {
        let tensor = |tensor: &Tensor| if apart { memory::host_copy(tensor) } else { Ok(tensor.clone()) };
        let trained = match adapters {
            None => {
                let named = decoder.parameters().map(|(name, weight)| Ok((name.into(), tensor(weight)?)));
                let (config, tensors) = (Box::new(decoder.config.clone()), named.collect::<Result<_>>()?);
                Trained::Weights { config, dtype: decoder.dtype(), tensors }
            }
            Some(adapters) => {
                let adapter =
                    |adapter: &Adapter| if apart { adapter.host_copy() } else { Ok(adapter.clone()) };
                let (merged, last) = adapters.all(decoder)?;
                let merged = merged.iter().map(adapter).collect::<Result<_>>()?;
                Trained::Adapters { merged, last: adapter(&last)? }
            }
        };
        let state = |optimizer: OptimizerState| -> Result<HashMap<String, Tensor>> {
            match optimizer {
                OptimizerState::Here(optimizer) => {
                    let (_, state) = optimizer.state(decoder);
                    state.into_iter().map(|(name, moment)| Ok((name, tensor(&moment)?))).collect()
                }
                // In memory of its own already.
                OptimizerState::Gathered(state) => Ok(state.clone()),
            }
        };
        Ok(Self { trained, optimizer: optimizer.map(state).transpose()? })
    }

    /// The files of a checkpoint that hold tensors, into `dir`.
    pub fn write(&self, dir: &Path) -> Result<()> {
        match &self.trained {
            Trained::Weights { config, dtype, tensors } => {
                weights::save_with(dir, config, SaveOptions::new(*dtype), |name| {
                    let tensor = tensors.get(name).cloned();
                    tensor.ok_or_else(|| Error::Compute(format!("there is no weight {name}").into()))
                })?;
            }
            Trained::Adapters { merged, last } => lora::write(dir, merged, last)?,
        }
        self.optimizer.as_ref().map_or(Ok(()), |optimizer| state::write_optimizer(dir, optimizer))
    }
}
