//! Gradients of every parameter that is trained; backward passes add to them.

use std::collections::HashMap;

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::elementwise::{add_assign, sum_squares};
use crate::ops::linear;

/// In parameter order. A gradient takes memory from the first time something is added to it, so that a backward
/// pass frees the activations of a block about when it allocates the block's gradients.
pub struct Gradients {
    /// Parameters before the first that is trained; they have no gradient.
    frozen: usize,
    /// The trained weights, for shape and device.
    like: Vec<Tensor>,
    /// The type of matrices' gradients; those of vectors are f32.
    dtype: DType,
    tensors: Vec<Option<Tensor>>,
    /// Of weights that lie together, by the first: their gradients in one tensor, of which `tensors` has views.
    joined: HashMap<usize, Tensor>,
}

impl Gradients {
    pub(super) fn new(weights: &[Tensor], frozen: usize, dtype: DType) -> Self {
        let like = weights[frozen..].to_vec();
        Self { frozen, tensors: vec![None; like.len()], like, dtype, joined: HashMap::new() }
    }

    /// The gradient of parameter `index` to add to, zero when nothing was added yet; `None` when it is frozen.
    pub fn at(&mut self, index: usize) -> Result<Option<&Tensor>> {
        let Some(trained) = index.checked_sub(self.frozen) else { return Ok(None) };
        if self.tensors[trained].is_none() {
            self.tensors[trained] = Some(self.zeros(trained)?);
        }
        Ok(self.tensors[trained].as_ref())
    }

    fn zeros(&self, trained: usize) -> Result<Tensor> {
        let like = &self.like[trained];
        let dtype = if like.rank() == 1 { DType::F32 } else { self.dtype };
        Ok(Tensor::zeros(like.shape(), dtype, like.device())?)
    }

    /// Adds `dy^T x`, the gradient of a linear layer's weight; nothing to a frozen one. `dy_no: [N, O]`,
    /// `x_nh: [N, H]`
    pub fn add_product(&mut self, index: usize, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
        let Some(trained) = index.checked_sub(self.frozen) else { return Ok(()) };
        match &self.tensors[trained] {
            Some(gradient) => linear::backward_weight(gradient, dy_no, x_nh),
            None => {
                self.tensors[trained] = Some(linear::weight_gradient_as(dy_no, x_nh, self.dtype)?);
                Ok(())
            }
        }
    }

    /// [`Self::add_product`] of layers whose weights lie together, by one product. `indices`: theirs, in order;
    /// `dy: [N, sum of O]`
    pub(super) fn add_joined_product(&mut self, indices: &[usize], dy: &Tensor, x_nh: &Tensor) -> Result<()> {
        let trained = indices.iter().map(|index| index.checked_sub(self.frozen)).collect::<Option<Vec<_>>>();
        let Some(trained) = trained.filter(|trained| !trained.is_empty()) else { return Ok(()) };
        if let Some(whole) = self.joined.get(&trained[0]) {
            return linear::backward_weight(whole, dy, x_nh);
        }
        let whole = linear::weight_gradient_as(dy, x_nh, self.dtype)?;
        let mut start = 0;
        for &member in &trained {
            let rows = self.like[member].dim(0)?;
            let part = whole.narrow(0, start, rows)?;
            // Something was added to it alone before.
            if let Some(before) = &self.tensors[member] {
                add_assign(&part, before)?;
            }
            self.tensors[member] = Some(part);
            start += rows;
        }
        self.joined.insert(trained[0], whole);
        Ok(())
    }

    /// Takes the gradients of these weights out, each by its number among the trained ones: nothing was added to them from then on.
    pub fn take(&mut self, trained: &[usize]) -> Result<Vec<Tensor>> {
        let taken = trained.iter().map(|&at| self.tensors[at].take().map_or_else(|| self.zeros(at), Ok));
        let taken = taken.collect();
        trained.iter().for_each(|at| drop(self.joined.remove(at)));
        taken
    }

    /// Every gradient, in the order of `Decoder::trainable`; zeros made for the moment where nothing was added.
    pub fn tensors(&self) -> impl Iterator<Item = Result<Tensor>> {
        let tensors = self.tensors.iter().enumerate();
        tensors.map(|(trained, gradient)| gradient.clone().map_or_else(|| self.zeros(trained), Ok))
    }

    /// All zero again, for the next optimiser step.
    pub fn clear(&mut self) {
        self.tensors.fill(None);
        self.joined.clear();
    }

    /// L2 norm over all of them.
    pub fn norm(&self) -> Result<f64> {
        let made: Vec<&Tensor> = self.tensors.iter().flatten().collect();
        Ok(sum_squares(&made)?.sqrt())
    }
}
