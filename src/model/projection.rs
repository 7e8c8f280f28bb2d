//! A linear layer of a block: a weight, in some families a bias, and an adapter while one is trained.

use candle_core::Tensor;

use super::adapter::LowRank;
use super::gradients::Gradients;
use crate::error::Result;
use crate::ops::{linear, memory};

/// Where a linear layer's tensors stand among the model's parameters.
#[derive(Clone, Copy, Debug)]
pub struct Projection {
    /// `[out, in]`
    pub weight: usize,
    /// `[out]`
    pub bias: Option<usize>,
    pub adapter: Option<LowRank>,
}

/// The model's parameters, read through [`Projection`]s.
#[derive(Clone, Copy)]
pub struct Projections<'a> {
    pub weights: &'a [Tensor],
}

impl Projections<'_> {
    /// `x_nh: [N, in]` -> `[N, out]` for each of the layers, which read the same input.
    pub fn forward_all<const N: usize>(self, x_nh: &Tensor, at: [Projection; N]) -> Result<[Tensor; N]> {
        let mut all = linear::forward_all(x_nh, at.map(|p| &self.weights[p.weight]))?;
        for (y, p) in all.iter_mut().zip(at) {
            if let Some(bias) = p.bias {
                *y = self.add_bias(y, bias)?;
            }
            if let Some(adapter) = p.adapter {
                adapter.add_output(self.weights, x_nh, y)?;
            }
        }
        Ok(all)
    }

    /// `residual_no + layer(x_nh)`, `[N, out]`
    pub fn forward_add(self, residual_no: &Tensor, x_nh: &Tensor, at: Projection) -> Result<Tensor> {
        let y = linear::forward_add(residual_no, x_nh, &self.weights[at.weight])?;
        let y = at.bias.map_or(Ok(y.clone()), |bias| self.add_bias(&y, bias))?;
        if let Some(adapter) = at.adapter {
            adapter.add_output(self.weights, x_nh, &y)?;
        }
        Ok(y)
    }

    /// Sum of the input gradients of layers that read the same input, from each one's output gradient. `[N, in]`
    pub fn backward_input<const N: usize>(self, layers: [(&Tensor, Projection); N]) -> Result<Tensor> {
        let dx = linear::backward_input(&layers.map(|(dy, p)| (dy, &self.weights[p.weight])))?;
        for (dy, p) in layers {
            if let Some(adapter) = p.adapter {
                adapter.add_input_gradient(self.weights, dy, &dx)?;
            }
        }
        Ok(dx)
    }

    /// Adds the layer's own gradients. `dy_no: [N, out]`, `x_nh: [N, in]`
    pub fn add_gradients(
        self,
        at: Projection,
        dy_no: &Tensor,
        x_nh: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        gradients.add_product(at.weight, dy_no, x_nh)?;
        if let Some(bias) = at.bias
            && let Some(gradient) = gradients.at(bias)?
        {
            linear::backward_weight(&column(gradient)?, dy_no, &ones(dy_no)?)?;
        }
        if let Some(adapter) = at.adapter {
            adapter.add_gradients(self.weights, dy_no, x_nh, gradients)?;
        }
        Ok(())
    }

    /// A bias is a layer with one input, which is always 1.
    fn add_bias(self, y_no: &Tensor, bias: usize) -> Result<Tensor> {
        linear::forward_add(y_no, &ones(y_no)?, &column(&self.weights[bias])?)
    }
}

/// `[O]` -> `[O, 1]`, the same memory.
fn column(vector: &Tensor) -> Result<Tensor> {
    Ok(vector.reshape((vector.elem_count(), 1))?)
}

/// `[N, 1]` of ones beside `rows: [N, _]`.
fn ones(rows: &Tensor) -> Result<Tensor> {
    memory::filled(rows.device(), (rows.dim(0)?, 1), rows.dtype(), 1.0)
}
