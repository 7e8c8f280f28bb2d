//! Linear layers without bias: `y = x W^T`, `W` stored `[out, in]` as in HF checkpoints.

mod cpu;
pub mod cuda;

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::fault::fault;

/// `x_nh: [N, H]`, `w_oh: [O, H]` -> `[N, O]`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn forward(x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    let [y] = forward_all(x_nh, [w_oh])?;
    Ok(y)
}

/// [`forward`] for layers that read the same input.
pub fn forward_all<const N: usize>(x_nh: &Tensor, w_oh: [&Tensor; N]) -> Result<[Tensor; N]> {
    if x_nh.device().is_cuda() {
        cuda::forward_all(x_nh, w_oh)
    } else {
        cpu::forward_all_as(x_nh, w_oh, x_nh.dtype())
    }
}

/// [`forward`] with the result in f32, whatever the weights are: the sampler's log-probs are to be the trainer's.
pub fn logits(x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    if x_nh.device().is_cuda() {
        return cuda::forward_as(x_nh, w_oh, DType::F32);
    }
    let [y] = cpu::forward_all_as(x_nh, [w_oh], DType::F32)?;
    Ok(y)
}

/// `residual_no + x_nh W^T`, `[N, O]`: the residual sum costs no pass of its own.
pub fn forward_add(residual_no: &Tensor, x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    if x_nh.device().is_cuda() {
        cuda::forward_add(residual_no, x_nh, w_oh)
    } else {
        cpu::forward_add(residual_no, x_nh, w_oh)
    }
}

/// Sum over `(dy_no, w_oh)` pairs of `dy W`: the input gradient of layers that read the same input. `[N, H]`
pub fn backward_input(pairs: &[(&Tensor, &Tensor)]) -> Result<Tensor> {
    let Some((first_dy, _)) = pairs.first() else {
        return Err(fault("backward_input needs at least one layer"));
    };
    if first_dy.device().is_cuda() { cuda::backward_input(pairs) } else { cpu::backward_input(pairs) }
}

/// `dw_oh += dy^T x`, in place, accumulating over micro-batches without an extra pass.
pub fn backward_weight(dw_oh: &Tensor, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
    if dw_oh.device().is_cuda() {
        cuda::backward_weight(dw_oh, dy_no, x_nh)
    } else {
        cpu::backward_weight(dw_oh, dy_no, x_nh)
    }
}

/// `dy^T x`, `[O, H]`, in `dtype`: f32, or the type of the operands. The weight gradient of the first batch, written
/// without a pass of zeros.
pub fn weight_gradient_as(dy_no: &Tensor, x_nh: &Tensor, dtype: DType) -> Result<Tensor> {
    if dy_no.device().is_cuda() {
        cuda::weight_gradient_as(dy_no, x_nh, dtype)
    } else {
        cpu::weight_gradient_as(dy_no, x_nh, dtype)
    }
}
