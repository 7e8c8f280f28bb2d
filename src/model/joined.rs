//! Weights of layers that read the same input, one below the other, so that one product computes them all.

use candle_core::Tensor;

use crate::error::Result;
use crate::ops::memory;

/// Layers one below the other. The model's own tensors are views of these.
#[derive(Clone)]
pub(super) struct Joined {
    /// `[sum of outputs, in]`
    pub weight: Tensor,
    /// `[sum of outputs]`, where they have biases.
    pub bias: Option<Tensor>,
}

impl Joined {
    /// Moves the weights (and biases: all of the layers have one, or none) at these places together; `weights` become
    /// views.
    pub fn new(weights: &mut [Tensor], at: &[usize], biases: Option<&[usize]>) -> Result<Self> {
        let weight = join(weights, at)?;
        let bias = biases.map(|biases| join(weights, biases)).transpose()?;
        Ok(Self { weight, bias })
    }
}

fn join(weights: &mut [Tensor], at: &[usize]) -> Result<Tensor> {
    let parts: Vec<&Tensor> = at.iter().map(|index| &weights[*index]).collect();
    let whole = memory::concatenate(&parts)?;
    let mut start = 0;
    for index in at {
        let rows = weights[*index].dim(0)?;
        weights[*index] = whole.narrow(0, start, rows)?;
        start += rows;
    }
    Ok(whole)
}
