//! RMSNorm on a CUDA device. Rows f32 or bf16, all of one type.

use candle_core::{DType, Tensor};

use super::Input;
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, multiprocessors, row_threads, uninit};
use crate::ops::fault::fault;

/// What the forward pass gives, and the backward pass reads.
pub struct Normed {
    /// What was normed: `x`, or `x + residual`. `[N, H]`
    pub sum_nh: Tensor,
    /// `[N, H]`
    pub y_nh: Tensor,
    /// `1 / rms` of each row, f32. `[N]`
    pub inverse_rms_n: Tensor,
}

/// `x_nh: [N, H]`, `w_h: [H]`; with `residual_nh` the sum of both is normed and kept.
///
/// # Errors
/// When shapes or types do not agree, or the device fails; so for every function here.
pub fn forward_add(x_nh: &Tensor, residual_nh: Option<&Tensor>, w_h: &Tensor, eps: f32) -> Result<Normed> {
    let (n, h) = x_nh.dims2()?;
    let dtype = x_nh.dtype();
    let shapes_agree = residual_nh.is_none_or(|r| r.dims() == x_nh.dims() && r.dtype() == dtype);
    if w_h.dims() != [h] || w_h.dtype() != dtype || !shapes_agree {
        return Err(fault(format!("rms_norm: a weight {:?} for rows {:?}", w_h.shape(), x_nh.shape())));
    }
    let device = x_nh.device();
    let y_nh = uninit(device, (n, h), dtype)?;
    let inverse_rms_n = uninit(device, n, DType::F32)?;
    let launch = Launch::typed(device, "rms_norm", "rms_norm_forward", dtype)?.tensor(x_nh)?;
    let (launch, sum_nh) = match residual_nh {
        Some(residual) => {
            let sum = uninit(device, (n, h), dtype)?;
            (launch.tensor(residual)?.tensor(w_h)?.tensor(&sum)?, sum)
        }
        None => (launch.null().tensor(w_h)?.null(), x_nh.clone()),
    };
    let launch = launch.tensor(&y_nh)?.tensor(&inverse_rms_n)?.u32(h as u32).f32(eps);
    launch.run(Grid::line(n as u32, row_threads(h, dtype)))?;
    Ok(Normed { sum_nh, y_nh, inverse_rms_n })
}

/// `x_nh: [N, H]`, `w_h: [H]` -> `[N, H]`.
pub fn forward(x_nh: &Tensor, w_h: &Tensor, eps: f32) -> Result<Tensor> {
    Ok(forward_add(x_nh, None, w_h, eps)?.y_nh)
}

/// What the backward pass reads of the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// What was normed.
    pub x_nh: &'a Tensor,
    pub w_h: &'a Tensor,
    pub inverse_rms_n: &'a Tensor,
}

/// Adds to `dx_nh`, and to `dw_h` (f32) where there is one, in place; see [`super::backward`].
pub fn backward_saved(saved: Saved, dy_nh: &Tensor, dx_nh: &Tensor, dw_h: Option<&Tensor>) -> Result<()> {
    let Saved { x_nh, w_h, inverse_rms_n } = saved;
    let (n, h) = x_nh.dims2()?;
    let dtype = x_nh.dtype();
    let same = |t: &Tensor| t.dims() == [n, h] && t.dtype() == dtype;
    let vector = |t: &Tensor| t.dims() == [h] && t.dtype() == DType::F32;
    if !same(dy_nh) || !same(dx_nh) || !dw_h.is_none_or(vector) {
        return Err(fault("rms_norm: gradients must have the rows' shape and type, the weight's f32"));
    }
    let device = x_nh.device();
    let threads = row_threads(h, dtype);
    Launch::typed(device, "rms_norm", "rms_norm_backward_input", dtype)?
        .tensor(x_nh)?
        .tensor(w_h)?
        .tensor(inverse_rms_n)?
        .tensor(dy_nh)?
        .tensor(dx_nh)?
        .u32(h as u32)
        .run(Grid::line(n as u32, threads))?;
    let Some(dw_h) = dw_h else { return Ok(()) };
    // Blocks enough to fill the device twice; the chunks, and so the sums, depend on N and the device only.
    let threads = threads.min(128);
    let lanes = 16 / dtype.size_in_bytes();
    let columns = h.div_ceil(threads as usize * lanes);
    let chunks = (2048 * multiprocessors(device)? / (threads as usize * columns)).clamp(1, 1024);
    let rows_per_chunk = n.div_ceil(chunks).max(8);
    let chunks = n.div_ceil(rows_per_chunk);
    let partial = uninit(device, (chunks, h), DType::F32)?;
    Launch::typed(device, "rms_norm", "rms_norm_backward_weight", dtype)?
        .tensor(x_nh)?
        .tensor(inverse_rms_n)?
        .tensor(dy_nh)?
        .tensor(&partial)?
        .u32(n as u32)
        .u32(h as u32)
        .u32(rows_per_chunk as u32)
        .run(Grid { blocks: [columns as u32, chunks as u32, 1], threads, shared_bytes: 0 })?;
    Launch::new(device, "rms_norm", "rms_norm_add_partials")?
        .tensor(&partial)?
        .tensor(dw_h)?
        .u32(chunks as u32)
        .u32(h as u32)
        .run(Grid::cover(h, 64)?)
}

/// As [`super::backward`]. `1 / rms` is computed again: nothing of the forward pass is kept for it.
pub fn backward(norm: Input, dy_nh: &Tensor, dx_nh: &Tensor, dw_h: Option<&Tensor>) -> Result<()> {
    let again = forward_add(norm.x_nh, None, norm.w_h, norm.eps)?;
    let saved = Saved { x_nh: norm.x_nh, w_h: norm.w_h, inverse_rms_n: &again.inverse_rms_n };
    backward_saved(saved, dy_nh, dx_nh, dw_h)
}
