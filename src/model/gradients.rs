//! Gradients of every parameter that is trained; backward passes add to them.

use std::cell::OnceCell;

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::elementwise::sum_squares;
use crate::ops::linear;

/// In parameter order. A gradient takes memory from the first time something is added to it, so that a backward
/// pass frees the activations of a block about when it allocates the block's gradients.
pub struct Gradients {
    /// Parameters before the first that is trained; they have no gradient.
    frozen: usize,
    /// The trained weights, for shape and device.
    like: Vec<Tensor>,
    /// Of matrices; those of vectors are f32.
    dtype: DType,
    tensors: Vec<OnceCell<Tensor>>,
}

impl Gradients {
    pub(super) fn new(weights: &[Tensor], frozen: usize, dtype: DType) -> Self {
        let like = weights[frozen..].to_vec();
        Self { frozen, tensors: vec![OnceCell::new(); like.len()], like, dtype }
    }

    /// The gradient of parameter `index`, zero when nothing was added yet; `None` when it is frozen.
    pub fn at(&self, index: usize) -> Result<Option<&Tensor>> {
        index.checked_sub(self.frozen).map(|trained| self.of_trained(trained)).transpose()
    }

    fn of_trained(&self, trained: usize) -> Result<&Tensor> {
        if let Some(gradient) = self.tensors[trained].get() {
            return Ok(gradient);
        }
        let like = &self.like[trained];
        let dtype = if like.rank() == 1 { DType::F32 } else { self.dtype };
        let zeros = Tensor::zeros(like.shape(), dtype, like.device())?;
        Ok(self.tensors[trained].get_or_init(|| zeros))
    }

    /// Adds `dy^T x`, the gradient of a linear layer's weight; nothing to a frozen one. `dy_no: [N, O]`,
    /// `x_nh: [N, H]`
    pub fn add_product(&self, index: usize, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
        let Some(trained) = index.checked_sub(self.frozen) else { return Ok(()) };
        match self.tensors[trained].get() {
            Some(gradient) => linear::backward_weight(gradient, dy_no, x_nh),
            None => {
                let product = linear::weight_gradient_as(dy_no, x_nh, self.dtype)?;
                self.tensors[trained].get_or_init(|| product);
                Ok(())
            }
        }
    }

    /// Every gradient, in the order of `Decoder::trainable`.
    pub fn tensors(&self) -> impl Iterator<Item = Result<&Tensor>> {
        (0..self.tensors.len()).map(|trained| self.of_trained(trained))
    }

    /// All zero again, for the next optimiser step.
    pub fn clear(&mut self) {
        self.tensors.iter_mut().for_each(|gradient| drop(gradient.take()));
    }

    /// L2 norm over all of them.
    pub fn norm(&self) -> Result<f64> {
        let made: Vec<&Tensor> = self.tensors.iter().filter_map(OnceCell::get).collect();
        Ok(sum_squares(&made)?.sqrt())
    }
}
