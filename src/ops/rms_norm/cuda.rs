//! RMSNorm on a CUDA device. Rows f32 or bf16, all of one type.

use candle_core::{DType, Tensor};

use super::Input;
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, multiprocessors, row_threads, uninit};
use crate::ops::fault::fault;

/// What the forward pass gives.
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

/// Elements of a row that the backward kernels take: 512 threads hold 32 each.
const WIDEST: usize = 16_384;

/// Threads of a block of the backward pass, and whether each of them holds more than one 16 bytes of a row.
fn backward_block(width: usize, dtype: DType) -> Result<(u32, bool)> {
    let lanes = 16 / dtype.size_in_bytes();
    match width {
        0 => Err(fault("rms_norm: rows without elements")),
        _ if width <= 1024 * lanes => Ok((row_threads(width, dtype), false)),
        _ if width <= WIDEST => Ok((512, true)),
        _ => Err(fault(format!("rms_norm: {width} elements a row are more than the backward kernels take"))),
    }
}

/// As [`super::backward`], for an f32 `dw_h`. `1 / rms` is worked out again from the row that is read anyway, and the
/// row's share of the weight's gradient with it.
pub fn backward(norm: Input, dy_nh: &Tensor, dx_nh: &Tensor, dw_h: Option<&Tensor>) -> Result<()> {
    let Input { x_nh, w_h, eps } = norm;
    let (n, h) = x_nh.dims2()?;
    let dtype = x_nh.dtype();
    let same = |t: &Tensor| t.dims() == [n, h] && t.dtype() == dtype;
    let vector = |t: &Tensor| t.dims() == [h] && t.dtype() == DType::F32;
    if !same(dy_nh) || !same(dx_nh) || !dw_h.is_none_or(vector) {
        return Err(fault("rms_norm: gradients must have the rows' shape and type, the weight's f32"));
    }
    if w_h.dims() != [h] || w_h.dtype() != dtype {
        return Err(fault(format!("rms_norm: a weight {:?} for rows {:?}", w_h.shape(), x_nh.shape())));
    }
    if n == 0 {
        return Ok(());
    }
    let device = x_nh.device();
    let (threads, wide) = backward_block(h, dtype)?;
    // What the device holds at once (a thread takes 64 registers), each with a row of `partial`. The cut, and so the
    // sums, depend on N, H and the device only.
    let blocks = multiprocessors(device)? * (1024 / threads as usize).min(16);
    let rows_per_block = n.div_ceil(blocks);
    let blocks = n.div_ceil(rows_per_block);
    let kernel = if wide { "rms_norm_backward_wide" } else { "rms_norm_backward" };
    let launch = Launch::typed(device, "rms_norm", kernel, dtype)?
        .tensor(x_nh)?
        .tensor(w_h)?
        .tensor(dy_nh)?
        .tensor(dx_nh)?;
    let partial = dw_h.map(|_| uninit(device, (blocks, h), DType::F32)).transpose()?;
    let launch = match &partial {
        Some(partial) => launch.tensor(partial)?,
        None => launch.null(),
    };
    launch
        .u32(n as u32)
        .u32(h as u32)
        .u32(rows_per_block as u32)
        .f32(eps)
        .run(Grid::line(blocks as u32, threads))?;
    let (Some(dw_h), Some(partial)) = (dw_h, &partial) else { return Ok(()) };
    Launch::new(device, "rms_norm", "rms_norm_add_partials")?
        .tensor(partial)?
        .tensor(dw_h)?
        .u32(blocks as u32)
        .u32(h as u32)
        .run(Grid::line(h.div_ceil(32) as u32, 1024))
}
