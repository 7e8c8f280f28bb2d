//! Log-prob and entropy of a chunk of logits on a CUDA device: what `src/ops/token_logprob.rs` does between its
//! products.

use candle_core::{DType, Tensor};

use super::{Grid, Launch, fault, uninit};
use crate::error::Result;

/// Per row, nats, f32 `[R]`. With `z = logits / temperature`.
pub struct Rows {
    /// `z[target] - log sum exp z`
    pub logprobs: Tensor,
    /// Entropy of `softmax(z)`.
    pub entropies: Tensor,
    /// `log sum exp z`, which the backward pass reads.
    pub log_sums: Tensor,
}

fn check(logits_rv: &Tensor, targets_r: &Tensor) -> Result<(usize, usize)> {
    let (r, v) = logits_rv.dims2()?;
    if targets_r.dims() != [r] || targets_r.dtype() != DType::U32 {
        return Err(fault(format!("token_logprob: targets {:?} for {r} rows", targets_r.shape())));
    }
    Ok((r, v))
}

/// `logits_rv: [R, V]`, f32 or bf16; `targets_r: [R]` u32. A target outside the vocabulary gives NaN.
///
/// # Errors
/// When shapes do not agree, or the device fails.
pub fn forward_rows(logits_rv: &Tensor, targets_r: &Tensor, temperature: f32) -> Result<Rows> {
    let (r, v) = check(logits_rv, targets_r)?;
    let device = logits_rv.device();
    let rows = || uninit(device, r, DType::F32);
    let result = Rows { logprobs: rows()?, entropies: rows()?, log_sums: rows()? };
    Launch::typed(device, "token_logprob", "token_logprob_forward", logits_rv.dtype())?
        .tensor(logits_rv)?
        .tensor(targets_r)?
        .tensor(&result.logprobs)?
        .tensor(&result.entropies)?
        .tensor(&result.log_sums)?
        .u32(v as u32)
        .f32(1.0 / temperature)
        .run(Grid::line(r as u32, super::rms_norm::row_threads(v, logits_rv.dtype()).min(512)))?;
    Ok(result)
}

/// A chunk's rows for the backward pass: targets u32, the others f32. `[R]` each.
#[derive(Clone, Copy)]
pub struct RowGradients<'a> {
    pub targets_r: &'a Tensor,
    pub log_sums_r: &'a Tensor,
    pub dlogprobs_r: &'a Tensor,
}

/// Writes `dL / dlogits = (onehot(target) - softmax) dlogprob / temperature` over the logits.
///
/// # Errors
/// When shapes do not agree, or the device fails.
pub fn backward_rows(logits_rv: &Tensor, rows: RowGradients, temperature: f32) -> Result<()> {
    let (r, v) = check(logits_rv, rows.targets_r)?;
    for each in [rows.log_sums_r, rows.dlogprobs_r] {
        if each.dims() != [r] || each.dtype() != DType::F32 {
            return Err(fault(format!("token_logprob: {:?} for {r} rows", each.shape())));
        }
    }
    let dtype = logits_rv.dtype();
    let columns = v.div_ceil(4 * 256 * (16 / dtype.size_in_bytes())).clamp(1, 65_535) as u32;
    Launch::typed(logits_rv.device(), "token_logprob", "token_logprob_backward", dtype)?
        .tensor(logits_rv)?
        .tensor(rows.targets_r)?
        .tensor(rows.log_sums_r)?
        .tensor(rows.dlogprobs_r)?
        .u32(v as u32)
        .f32(1.0 / temperature)
        .run(Grid { blocks: [r as u32, columns, 1], threads: 256, shared_bytes: 0 })
}
