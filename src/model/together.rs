//! Weights of layers that read the same input, one below the other, so that one product computes them all: q, k and v;
//! gate and up. On a CUDA device, where fewer and larger products fill it better; the CPU's product shares its packed
//! input between layers anyway.

use candle_core::Tensor;

use super::block::BlockParameters;
use super::projection::Projection;
use crate::error::Result;

/// The weights of one block that lie together. The model's own tensors are views of them.
pub(super) struct Together {
    pub qkv: Joined,
    pub gate_up: Joined,
}

/// Layers one below the other.
pub(super) struct Joined {
    /// `[sum of outputs, in]`
    pub weight: Tensor,
    /// `[sum of outputs]`, where they have biases.
    pub bias: Option<Tensor>,
}

impl Together {
    /// Moves the block's weights together; `weights` become views. `None` on the CPU.
    pub fn new(weights: &mut [Tensor], at: &BlockParameters) -> Result<Option<Self>> {
        if !weights[at.q.weight].device().is_cuda() {
            return Ok(None);
        }
        let qkv = Joined::new(weights, &[at.q, at.k, at.v])?;
        Ok(Some(Self { qkv, gate_up: Joined::new(weights, &[at.gate, at.up])? }))
    }
}

impl Joined {
    fn new(weights: &mut [Tensor], layers: &[Projection]) -> Result<Self> {
        let weight = join(weights, &layers.iter().map(|layer| layer.weight).collect::<Vec<_>>())?;
        // All of them have one, or none.
        let biases: Option<Vec<usize>> = layers.iter().map(|layer| layer.bias).collect();
        let bias = biases.map(|biases| join(weights, &biases)).transpose()?;
        Ok(Self { weight, bias })
    }
}

/// The tensors of `at` one below the other; each becomes a view.
fn join(weights: &mut [Tensor], at: &[usize]) -> Result<Tensor> {
    let parts: Vec<&Tensor> = at.iter().map(|index| &weights[*index]).collect();
    let whole = crate::ops::memory::concatenate(&parts)?;
    let mut start = 0;
    for index in at {
        let rows = weights[*index].dim(0)?;
        weights[*index] = whole.narrow(0, start, rows)?;
        start += rows;
    }
    Ok(whole)
}
