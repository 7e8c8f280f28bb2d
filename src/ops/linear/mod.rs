//! Linear layers: `y = x W^T`, `W` stored `[out, in]` as in HF checkpoints.

mod cpu;
pub mod cuda;

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::{elementwise, memory};
use crate::trail;

/// `x_nh: [N, H]`, `w_oh: [O, H]` -> `[N, O]`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn forward(x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    forward_biased(x_nh, w_oh, None)
}

/// `x W^T + bias`, `bias_o: [O]`.
pub fn forward_biased(x_nh: &Tensor, w_oh: &Tensor, bias_o: Option<&Tensor>) -> Result<Tensor> {
    trail::begin("linear");
    if x_nh.device().is_cuda() {
        return cuda::forward_biased(x_nh, w_oh, bias_o);
    }
    let y = cpu::forward_as(x_nh, w_oh, x_nh.dtype())?;
    bias_o.map_or(Ok(y.clone()), |bias| cpu::add_bias(&y, bias))
}

/// `scale x W^T`
pub fn forward_scaled(x_nh: &Tensor, w_oh: &Tensor, factor: f32) -> Result<Tensor> {
    trail::begin("linear");
    if x_nh.device().is_cuda() {
        return cuda::forward_scaled(x_nh, w_oh, factor);
    }
    let y = forward(x_nh, w_oh)?;
    elementwise::scale(&y, factor)?;
    Ok(y)
}

/// `scale dy W`
pub fn backward_input_scaled(dy_no: &Tensor, w_oh: &Tensor, factor: f32) -> Result<Tensor> {
    trail::begin("linear backward");
    if dy_no.device().is_cuda() {
        return cuda::backward_input_scaled(dy_no, w_oh, factor);
    }
    let dx = backward_input(dy_no, w_oh)?;
    elementwise::scale(&dx, factor)?;
    Ok(dx)
}

/// `y_no += x W^T`, in place; `y_no` may be columns of a wider matrix.
pub fn add_forward(y_no: &Tensor, x_nh: &Tensor, w_oh: &Tensor) -> Result<()> {
    trail::begin("linear");
    if y_no.device().is_cuda() {
        return cuda::add_forward(y_no, x_nh, w_oh);
    }
    elementwise::add_assign(y_no, &memory::cast(&forward(x_nh, w_oh)?, y_no.dtype())?)
}

/// `dx_nh += dy W`, in place.
pub fn add_backward_input(dx_nh: &Tensor, dy_no: &Tensor, w_oh: &Tensor) -> Result<()> {
    trail::begin("linear backward");
    if dx_nh.device().is_cuda() {
        return cuda::add_backward_input(dx_nh, dy_no, w_oh);
    }
    elementwise::add_assign(dx_nh, &memory::cast(&backward_input(dy_no, w_oh)?, dx_nh.dtype())?)
}

/// [`forward`] with the result in f32, whatever the weights are: the sampler's log-probs are to be the trainer's.
pub fn logits(x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    trail::begin("linear logits");
    if x_nh.device().is_cuda() {
        return cuda::forward_as(x_nh, w_oh, DType::F32);
    }
    cpu::forward_as(x_nh, w_oh, DType::F32)
}

/// `residual_no + x_nh W^T + bias`, `[N, O]`: the residual sum costs no pass of its own.
pub fn forward_add(
    residual_no: &Tensor,
    x_nh: &Tensor,
    w_oh: &Tensor,
    bias_o: Option<&Tensor>,
) -> Result<Tensor> {
    trail::begin("linear");
    if x_nh.device().is_cuda() {
        return cuda::forward_add(residual_no, x_nh, w_oh, bias_o);
    }
    let y = cpu::forward_add(residual_no, x_nh, w_oh)?;
    bias_o.map_or(Ok(y.clone()), |bias| cpu::add_bias(&y, bias))
}

/// `dy W`, `[N, H]`: the input's gradient.
pub fn backward_input(dy_no: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    trail::begin("linear backward");
    if dy_no.device().is_cuda() {
        cuda::backward_input(dy_no, w_oh)
    } else {
        cpu::backward_input(dy_no, w_oh)
    }
}

/// `dw_oh += dy^T x`, in place, accumulating over micro-batches without an extra pass.
pub fn backward_weight(dw_oh: &Tensor, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
    trail::begin("linear backward");
    if dw_oh.device().is_cuda() {
        cuda::backward_weight(dw_oh, dy_no, x_nh)
    } else {
        cpu::backward_weight(dw_oh, dy_no, x_nh)
    }
}

/// `dy^T x`, `[O, H]`, in `dtype`: f32, or the type of the operands. The weight gradient of the first batch, written
/// without a pass of zeros.
pub fn weight_gradient_as(dy_no: &Tensor, x_nh: &Tensor, dtype: DType) -> Result<Tensor> {
    trail::begin("linear backward");
    if dy_no.device().is_cuda() {
        cuda::weight_gradient_as(dy_no, x_nh, dtype)
    } else {
        cpu::weight_gradient_as(dy_no, x_nh, dtype)
    }
}
