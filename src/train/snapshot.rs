//! The tensors of a checkpoint: shared with the run, or copied to host memory so that the run may go on while they are written.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use candle_core::{DType, Tensor};

use super::lora::{self, Adapters};
use super::state;
use crate::error::{Error, Result};
use crate::formats::hf::weights::{self, SaveOptions};
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::ops::memory;
use crate::optim::adamw::AdamW;

pub struct Snapshot {
    trained: Trained,
    /// As [`AdamW::state`] names them; `None` between stages.
    optimizer: Option<HashMap<String, Tensor>>,
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
        optimizer: Option<&AdamW>,
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
        let state = |optimizer: &AdamW| -> Result<HashMap<String, Tensor>> {
            let (_, state) = optimizer.state(decoder);
            state.into_iter().map(|(name, moment)| Ok((name, tensor(&moment)?))).collect()
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
