//! Linear layers on a CUDA device.
//!
//! Activations and weights are both bf16 or both f32. Results are of the activations' type, rounded once from an
//! f32 sum; weight gradients may be f32 beside bf16 operands.

use candle_core::{DType, Tensor};

use crate::error::Result;
use crate::ops::cuda::gemm::{Epilogue, Mat, Write, gemm, gemm_with};
use crate::ops::cuda::uninit;

/// `x_nh: [N, H]`, `w_oh: [O, H]` -> `[N, O]`.
///
/// # Errors
/// When shapes or types do not agree, or the device fails; so for every function here.
pub fn forward(x_nh: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    forward_as(x_nh, w_oh, x_nh.dtype())
}

/// [`forward`] with the result in `dtype`: that of `x_nh`, or f32 for logits of bf16 operands.
pub fn forward_as(x_nh: &Tensor, w_oh: &Tensor, dtype: DType) -> Result<Tensor> {
    let y_no = uninit(x_nh.device(), (x_nh.dim(0)?, w_oh.dim(0)?), dtype)?;
    gemm(Mat::of(x_nh), Mat::of(w_oh).t(), &y_no, Write::Overwrite)?;
    Ok(y_no)
}

/// [`super::forward_biased`].
pub fn forward_biased(x_nh: &Tensor, w_oh: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let y_no = uninit(x_nh.device(), (x_nh.dim(0)?, w_oh.dim(0)?), x_nh.dtype())?;
    gemm_with(Mat::of(x_nh), Mat::of(w_oh).t(), Epilogue { bias, ..Epilogue::default() }, &y_no)?;
    Ok(y_no)
}

/// `residual_no + x_nh W^T + bias`, `[N, O]`, in the residual's type.
pub fn forward_add(
    residual_no: &Tensor,
    x_nh: &Tensor,
    w_oh: &Tensor,
    bias_o: Option<&Tensor>,
) -> Result<Tensor> {
    let y_no = uninit(residual_no.device(), residual_no.shape(), residual_no.dtype())?;
    let epilogue = Epilogue { matrix: Some(residual_no), bias: bias_o, ..Epilogue::default() };
    gemm_with(Mat::of(x_nh), Mat::of(w_oh).t(), epilogue, &y_no)?;
    Ok(y_no)
}

/// [`super::forward_scaled`].
pub fn forward_scaled(x_nh: &Tensor, w_oh: &Tensor, scale: f32) -> Result<Tensor> {
    let y_no = uninit(x_nh.device(), (x_nh.dim(0)?, w_oh.dim(0)?), x_nh.dtype())?;
    gemm_with(Mat::of(x_nh), Mat::of(w_oh).t(), Epilogue { scale, ..Epilogue::default() }, &y_no)?;
    Ok(y_no)
}

/// [`super::backward_input_scaled`].
pub fn backward_input_scaled(dy_no: &Tensor, w_oh: &Tensor, scale: f32) -> Result<Tensor> {
    let dx_nh = uninit(dy_no.device(), (dy_no.dim(0)?, w_oh.dim(1)?), dy_no.dtype())?;
    gemm_with(Mat::of(dy_no), Mat::of(w_oh), Epilogue { scale, ..Epilogue::default() }, &dx_nh)?;
    Ok(dx_nh)
}

/// [`super::add_forward`].
pub fn add_forward(y_no: &Tensor, x_nh: &Tensor, w_oh: &Tensor) -> Result<()> {
    gemm(Mat::of(x_nh), Mat::of(w_oh).t(), y_no, Write::Accumulate)
}

/// [`super::add_backward_input`].
pub fn add_backward_input(dx_nh: &Tensor, dy_no: &Tensor, w_oh: &Tensor) -> Result<()> {
    gemm(Mat::of(dy_no), Mat::of(w_oh), dx_nh, Write::Accumulate)
}

/// `dy W`, `[N, H]`, in the type of `dy`.
pub fn backward_input(dy_no: &Tensor, w_oh: &Tensor) -> Result<Tensor> {
    backward_input_scaled(dy_no, w_oh, 1.0)
}

/// `dw_oh += dy^T x`, in place. `dw_oh` is f32, or of the operands' type.
pub fn backward_weight(dw_oh: &Tensor, dy_no: &Tensor, x_nh: &Tensor) -> Result<()> {
    backward_weight_into(dw_oh, dy_no, x_nh, Write::Accumulate)
}

/// [`backward_weight`], or `dw_oh = dy^T x` over memory that nothing has written.
pub fn backward_weight_into(dw_oh: &Tensor, dy_no: &Tensor, x_nh: &Tensor, write: Write) -> Result<()> {
    gemm(Mat::of(dy_no).t(), Mat::of(x_nh), dw_oh, write)
}

/// `dy^T x`, `[O, H]`, in `dtype`: f32, or that of the operands.
pub fn weight_gradient_as(dy_no: &Tensor, x_nh: &Tensor, dtype: DType) -> Result<Tensor> {
    let dw_oh = uninit(dy_no.device(), (dy_no.dim(1)?, x_nh.dim(1)?), dtype)?;
    backward_weight_into(&dw_oh, dy_no, x_nh, Write::Overwrite)?;
    Ok(dw_oh)
}
