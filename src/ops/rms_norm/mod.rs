//! RMSNorm, Zhang and Sennrich, arXiv:1910.07467: `y = x / sqrt(mean(x^2) + eps) * w`, row by row.

mod cpu;
pub mod cuda;

use candle_core::Tensor;

use crate::error::Result;
use crate::trail;

/// `x_nh: [N, H]`, `w_h: [H]` -> `[N, H]`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn forward(x_nh: &Tensor, w_h: &Tensor, eps: f32) -> Result<Tensor> {
    trail::begin("rms_norm");
    if x_nh.device().is_cuda() { cuda::forward(x_nh, w_h, eps) } else { cpu::forward(x_nh, w_h, eps) }
}

/// What the forward pass read.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    pub x_nh: &'a Tensor,
    pub w_h: &'a Tensor,
    pub eps: f32,
}

/// With `g = dy * w` and `r = 1/rms`: `dx = r g - x r^3 mean(g x)`, `dw += sum over rows of dy x r`.
///
/// Adds `dx` to `dx_nh` (the gradient that reaches `x` through the residual) and `dw` to `dw_h`, both in place; a
/// frozen weight has no `dw_h`.
pub fn backward<'a>(
    norm: Input,
    dy_nh: &Tensor,
    dx_nh: &Tensor,
    dw_h: impl Into<Option<&'a Tensor>>,
) -> Result<()> {
    trail::begin("rms_norm backward");
    let dw_h = dw_h.into();
    if dx_nh.device().is_cuda() {
        cuda::backward(norm, dy_nh, dx_nh, dw_h)
    } else {
        cpu::backward(norm, dy_nh, dx_nh, dw_h)
    }
}
