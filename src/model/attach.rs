//! An adapter beside a decoder's weights: put there, taken off, merged in.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use super::adapter::{Adapter, LowRank};
use super::decoder::Decoder;
use crate::error::{Error, Result};
use crate::ops::elementwise::{add_assign, scale};
use crate::ops::{linear, memory};

impl Decoder {
    /// Puts an adapter beside the weights, which are frozen from now on: gradients and optimiser know the
    /// adapter's tensors only. It takes the place of the one before.
    ///
    /// # Errors
    /// When its tensors are not those that its shape asks for beside this model; all that is wrong is named.
    pub fn attach(&mut self, adapter: Adapter) -> Result<()> {
        let Adapter { shape, tensors } = adapter;
        let wanted = shape.tensors(&self.config);
        let mut given: HashMap<String, Tensor> = tensors.into_iter().collect();
        let device = self.device().clone();
        let mut faults = Vec::new();
        let mut list = Vec::new();
        for (name, dims) in &wanted {
            match given.remove(name) {
                None => faults.push(format!("{name} is missing")),
                Some(tensor) if tensor.dims() != dims.as_slice() => {
                    faults.push(format!("{name} is {:?}, wanted {dims:?}", tensor.dims()));
                }
                Some(tensor) => {
                    list.push(tensor.to_dtype(DType::F32)?.contiguous()?.to_device(&device)?);
                }
            }
        }
        let mut extra: Vec<String> = given.into_keys().map(|name| format!("{name} is unexpected")).collect();
        extra.sort();
        faults.extend(extra);
        if wanted.is_empty() {
            faults.push(format!("the model has no layer called {}", shape.targets.join(", ")));
        }
        if !faults.is_empty() {
            const LISTED: usize = 4;
            let more = faults.len().saturating_sub(LISTED);
            let more = if more > 0 { format!("; and {more} more") } else { String::new() };
            let problem = format!("{}{more}", faults[..faults.len().min(LISTED)].join("; "));
            let fix = "Use the adapter with the model it was trained beside";
            return Err(Error::input("adapter", problem, fix));
        }
        self.detach();
        let first = self.weights.len();
        let beside = shape.beside(&self.config);
        let position: HashMap<&str, usize> =
            beside.iter().enumerate().map(|(i, at)| (at.name.as_str(), first + 2 * i)).collect();
        for projection in self.blocks.iter_mut().flat_map(|block| block.projections_mut()) {
            let a = position.get(self.names[projection.weight].as_str());
            projection.adapter = a.map(|&a| LowRank { a, b: a + 1, scale: shape.scale(), nth: a - first });
        }
        self.names.extend(wanted.into_iter().map(|(name, _)| name));
        self.weights.extend(list);
        self.adapter = Some(shape);
        self.adapter_changed()
    }

    /// Takes the adapter off, and with it the freeze of the weights.
    pub fn detach(&mut self) -> Option<Adapter> {
        let adapter = self.adapter();
        let base = self.base_count();
        self.names.truncate(base);
        self.weights.truncate(base);
        self.operands.clear();
        self.blocks.iter_mut().flat_map(|block| block.projections_mut()).for_each(|p| p.adapter = None);
        self.adapter = None;
        adapter
    }

    /// The adapter, sharing its tensors' memory.
    pub fn adapter(&self) -> Option<Adapter> {
        let shape = self.adapter.clone()?;
        let tensors = self.trainable().map(|(name, tensor)| (name.to_string(), tensor.clone())).collect();
        Some(Adapter { shape, tensors })
    }

    /// The same weights, in the same memory, without the adapter: what it is trained away from.
    pub fn without_adapter(&self) -> Self {
        let mut same = self.clone();
        same.detach();
        same
    }

    /// A weight with the adapter's part added to it, of the weight's type: `W + scale B A`, rounded once. The
    /// weight itself where it has no adapter.
    pub fn merged_weight(&self, name: &str) -> Result<Tensor> {
        let index = self.names[..self.base_count()].iter().position(|n| n == name);
        let index = index.ok_or_else(|| Error::Compute(format!("no weight {name}").into()))?;
        let weight = &self.weights[index];
        let mut layers = self.blocks.iter().flat_map(|block| block.projections());
        let Some(low_rank) = layers.find(|p| p.weight == index).and_then(|p| p.adapter) else {
            return Ok(weight.clone());
        };
        let (a, b) = (&self.weights[low_rank.a], &self.weights[low_rank.b]);
        let sum = linear::backward_input(b, a)?;
        scale(&sum, low_rank.scale)?;
        add_assign(&sum, &memory::cast(weight, DType::F32)?)?;
        memory::cast(&sum, weight.dtype())
    }

    /// Merges the adapter into the weights, one at a time, and takes it off.
    pub fn merge(&mut self) -> Result<()> {
        for index in 0..self.base_count() {
            self.weights[index] = self.merged_weight(&self.names[index])?;
        }
        self.detach();
        self.join_weights()
    }
}
