//! Gradients of every parameter; backward passes add to them.

use std::cell::OnceCell;

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::{linear, sum_squares};

/// In parameter order. A gradient takes memory from the first time something is added to it, so that a backward
/// pass frees the activations of a block about when it allocates the block's gradients.
pub struct Gradients {
    /// The weights, for shape and device.
    like: Vec<Tensor>,
    /// Of matrices; those of norms are f32.
    dtype: DType,
    tensors: Vec<OnceCell<Tensor>>,
}

impl Gradients {
    pub(super) fn new(weights: &[Tensor], dtype: DType) -> Self {
        Self { like: weights.to_vec(), dtype, tensors: vec![OnceCell::new(); weights.len()] }
    }

    /// The gradient of parameter `index`, zero when nothing was added yet.
    pub fn at(&self, index: usize) -> Result<&Tensor> {
        if let Some(gradient) = self.tensors[index].get() {
            return Ok(gradient);
        }
        let like = &self.like[index];
        let dtype = if like.rank() == 1 { DType::F32 } else { self.dtype };
        let zeros = Tensor::zeros(like.shape(), dtype, like.device())?;
        Ok(self.tensors[index].get_or_init(|| zeros))
    }

    /// Adds `dy^T x`, the gradient of a linear layer's weight. `dy_no: [N, O]`, `x_nh: [N, H]`
    pub fn add_product(&self, index: usize, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
        match self.tensors[index].get() {
            Some(gradient) => linear::backward_weight(gradient, dy_no, x_nh),
            None => {
                let product = linear::weight_gradient_as(dy_no, x_nh, self.dtype)?;
                self.tensors[index].get_or_init(|| product);
                Ok(())
            }
        }
    }

    /// Every gradient, in parameter order.
    pub fn tensors(&self) -> impl Iterator<Item = Result<&Tensor>> {
        (0..self.tensors.len()).map(|index| self.at(index))
    }

    /// All zero again, for the next optimiser step.
    pub fn clear(&mut self) {
        self.tensors.iter_mut().for_each(|gradient| drop(gradient.take()));
    }

    /// L2 norm over all parameters.
    pub fn norm(&self) -> Result<f64> {
        let made: Vec<&Tensor> = self.tensors.iter().filter_map(OnceCell::get).collect();
        Ok(sum_squares(&made)?.sqrt())
    }
}
