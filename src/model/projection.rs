//! A linear layer of a block: a weight, in some families a bias, and an adapter while one is trained.

use candle_core::Tensor;

use super::adapter::LowRank;
use super::gradients::Gradients;
use super::joined::Joined;
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
    /// The adapter's, in the type that products take.
    pub operands: &'a [Tensor],
}

impl Projections<'_> {
    /// Layers whose weights lie together, by one product: outputs side by side. `x_nh: [N, in]` -> `[N, sum of out]`
    pub(super) fn forward_joined<const N: usize>(
        self,
        x_nh: &Tensor,
        joined: &Joined,
        at: [Projection; N],
    ) -> Result<Tensor> {
        let y = linear::forward_biased(x_nh, &joined.weight, joined.bias.as_ref())?;
        for (layer, columns) in at.iter().zip(self.columns(&y, at)?) {
            if let Some(adapter) = layer.adapter {
                adapter.add_output(self.operands, x_nh, &columns)?;
            }
        }
        Ok(y)
    }

    /// Each layer's columns of `y: [N, sum of out]`, views.
    fn columns<const N: usize>(self, y: &Tensor, at: [Projection; N]) -> Result<Vec<Tensor>> {
        let mut start = 0;
        let columns = at.iter().map(|layer| {
            let width = self.weights[layer.weight].dim(0)?;
            start += width;
            Ok(y.narrow(1, start - width, width)?)
        });
        columns.collect()
    }

    /// `residual_no + layer(x_nh)`, `[N, out]`
    pub fn forward_add(self, residual_no: &Tensor, x_nh: &Tensor, at: Projection) -> Result<Tensor> {
        let bias = at.bias.map(|bias| &self.weights[bias]);
        let y = linear::forward_add(residual_no, x_nh, &self.weights[at.weight], bias)?;
        if let Some(adapter) = at.adapter {
            adapter.add_output(self.operands, x_nh, &y)?;
        }
        Ok(y)
    }

    /// The layer's input gradient from its output gradient. `[N, in]`
    pub fn backward_input(self, dy_no: &Tensor, at: Projection) -> Result<Tensor> {
        let dx = linear::backward_input(dy_no, &self.weights[at.weight])?;
        if let Some(adapter) = at.adapter {
            adapter.add_input_gradient(self.operands, dy_no, &dx)?;
        }
        Ok(dx)
    }

    /// [`Self::backward_input`] and [`Self::add_gradients`] of layers whose weights lie together, from their output
    /// gradients side by side. `dy: [N, sum of out]`, `x_nh: [N, in]` -> `[N, in]`
    pub(super) fn backward_joined<const N: usize>(
        self,
        joined: &Joined,
        at: [Projection; N],
        dy: &Tensor,
        x_nh: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        gradients.add_joined_product(&at.map(|layer| layer.weight), dy, x_nh)?;
        let dx = linear::backward_input(dy, &joined.weight)?;
        for (layer, dy) in at.into_iter().zip(self.columns(dy, at)?) {
            self.add_small_gradients(layer, &dy, x_nh, gradients)?;
            if let Some(adapter) = layer.adapter {
                adapter.add_input_gradient(self.operands, &dy, &dx)?;
            }
        }
        Ok(dx)
    }

    /// Adds the layer's own gradients. `dy_no: [N, O]`, `x_nh: [N, in]`
    pub fn add_gradients(
        self,
        at: Projection,
        dy_no: &Tensor,
        x_nh: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        gradients.add_product(at.weight, dy_no, x_nh)?;
        self.add_small_gradients(at, dy_no, x_nh, gradients)
    }

    /// Those of all but the weight.
    fn add_small_gradients(
        self,
        at: Projection,
        dy_no: &Tensor,
        x_nh: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        if let Some(bias) = at.bias
            && let Some(gradient) = gradients.at(bias)?
        {
            linear::backward_weight(&column(gradient)?, dy_no, &ones(dy_no)?)?;
        }
        if let Some(adapter) = at.adapter {
            adapter.add_gradients(self.operands, dy_no, x_nh, gradients)?;
        }
        Ok(())
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
