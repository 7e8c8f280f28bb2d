//! Log-probability of one token per row from hidden states on a CUDA device. Logits are f32 whatever the weights
//! are, and exist for one chunk of rows at a time.

use candle_core::{DType, Device, Tensor};

use super::{CUDA_CHUNK_BYTES, Inputs, NO_TOKEN, TokenLogprobs, chunk_rows};
use crate::error::Result;
use crate::ops::cuda::gemm::{Mat, Write, gemm};
use crate::ops::cuda::{Grid, Launch, read, row_threads, uninit, upload};
use crate::ops::fault::fault;
use crate::ops::{elementwise, linear};

fn checked_sizes(inputs: &Inputs) -> Result<(usize, usize)> {
    let (r, (v, h)) = (inputs.targets.len(), inputs.head_vh.dims2()?);
    if inputs.hidden_rh.dims() != [r, h] || inputs.targets.iter().any(|t| *t as usize >= v) {
        let hidden = inputs.hidden_rh.shape();
        return Err(fault(format!(
            "token_logprob: {r} targets and hidden rows {hidden:?} for a head {v} x {h}"
        )));
    }
    Ok((r, v))
}

/// As [`super::forward`]: `hidden_rh` and `head_vh` both f32 or both bf16. Reads the result back: waits for the device.
///
/// # Errors
/// When shapes or types do not agree, a target is outside the vocabulary, or the device fails; so for `backward`.
pub fn forward(inputs: Inputs) -> Result<TokenLogprobs> {
    let (r, v) = checked_sizes(&inputs)?;
    if r == 0 {
        return Ok(TokenLogprobs::default());
    }
    let device = inputs.hidden_rh.device();
    let targets = upload(inputs.targets, device)?;
    let results = uninit(device, (3, r), DType::F32)?;
    let rows = chunk_rows(CUDA_CHUNK_BYTES, v);
    for start in (0..r).step_by(rows) {
        let n = rows.min(r - start);
        let logits = linear::logits(&inputs.hidden_rh.narrow(0, start, n)?, inputs.head_vh)?;
        elementwise::fill_columns(&logits, inputs.missing, NO_TOKEN)?;
        let rows = Rows::within(&results, start, n)?;
        forward_into(&logits, &targets.narrow(0, start, n)?, inputs.temperature, &rows)?;
    }
    let read = read::<f32>(&results)?;
    let mut rows = read.chunks(r).map(<[f32]>::to_vec);
    let mut next = || rows.next().unwrap_or_default();
    Ok(TokenLogprobs { logprobs: next(), entropies: next(), log_sums: next() })
}

/// As [`super::backward`]: returns `dL / dhidden` in the type of `hidden_rh`, and adds to `dhead_vh`, f32.
pub fn backward(
    inputs: Inputs,
    dlogprobs: &[f32],
    log_sums: &[f32],
    dhead_vh: Option<&Tensor>,
) -> Result<Tensor> {
    let (r, v) = checked_sizes(&inputs)?;
    if dlogprobs.len() != r || !(log_sums.is_empty() || log_sums.len() == r) {
        return Err(fault(format!("token_logprob: {} gradients for {r} rows", dlogprobs.len())));
    }
    let Inputs { hidden_rh, head_vh, targets, temperature, missing } = inputs;
    let (device, dtype) = (hidden_rh.device(), hidden_rh.dtype());
    let dhidden_rh = uninit(device, hidden_rh.shape(), dtype)?;
    if r == 0 {
        return Ok(dhidden_rh);
    }
    let targets = upload(targets, device)?;
    let dlogprobs = Tensor::from_slice(dlogprobs, r, device)?;
    let known = match log_sums {
        [] => None,
        known => Some(Tensor::from_slice(known, r, device)?),
    };
    let rows = chunk_rows(CUDA_CHUNK_BYTES, v);
    for start in (0..r).step_by(rows) {
        let n = rows.min(r - start);
        let hidden = hidden_rh.narrow(0, start, n)?;
        let logits = linear::logits(&hidden, head_vh)?;
        elementwise::fill_columns(&logits, missing, NO_TOKEN)?;
        let targets_r = &targets.narrow(0, start, n)?;
        let log_sums_r = match &known {
            Some(known) => known.narrow(0, start, n)?,
            None => forward_rows(&logits, targets_r, temperature)?.log_sums,
        };
        let (log_sums_r, dlogprobs_r) = (&log_sums_r, &dlogprobs.narrow(0, start, n)?);
        let rows = RowGradients { targets_r, log_sums_r, dlogprobs_r };
        let dlogits = if dtype == DType::F32 {
            backward_rows(&logits, rows, temperature)?;
            logits
        } else {
            let dlogits = uninit(device, (n, v), dtype)?;
            backward_launch(&logits, Some(&dlogits), rows, temperature)?;
            dlogits
        };
        gemm(Mat::of(&dlogits), Mat::of(head_vh), &dhidden_rh.narrow(0, start, n)?, Write::Overwrite)?;
        if let Some(dhead_vh) = dhead_vh {
            linear::backward_weight(dhead_vh, &dlogits, &hidden)?;
        }
    }
    Ok(dhidden_rh)
}

/// Per row, nats, f32 `[R]`. With `z = logits / temperature`.
pub struct Rows {
    /// `z[target] - log sum exp z`
    pub logprobs: Tensor,
    /// Entropy of `softmax(z)`.
    pub entropies: Tensor,
    /// `log sum exp z`, which the backward pass reads.
    pub log_sums: Tensor,
}

impl Rows {
    fn new(rows: usize, device: &Device) -> Result<Self> {
        Self::within(&uninit(device, (3, rows), DType::F32)?, 0, rows)
    }

    /// Rows `start..start + n` of `results: [3, R]`.
    fn within(results: &Tensor, start: usize, n: usize) -> Result<Self> {
        let part = |i| -> Result<Tensor> { Ok(results.get(i)?.narrow(0, start, n)?) };
        Ok(Self { logprobs: part(0)?, entropies: part(1)?, log_sums: part(2)? })
    }
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
    let result = Rows::new(logits_rv.dim(0)?, logits_rv.device())?;
    forward_into(logits_rv, targets_r, temperature, &result)?;
    Ok(result)
}

fn forward_into(logits_rv: &Tensor, targets_r: &Tensor, temperature: f32, to: &Rows) -> Result<()> {
    let (r, v) = check(logits_rv, targets_r)?;
    Launch::typed(logits_rv.device(), "token_logprob", "token_logprob_forward", logits_rv.dtype())?
        .tensor(logits_rv)?
        .tensor(targets_r)?
        .tensor(&to.logprobs)?
        .tensor(&to.entropies)?
        .tensor(&to.log_sums)?
        .u32(v as u32)
        .f32(1.0 / temperature)
        .run(Grid::line(r as u32, row_threads(v, logits_rv.dtype()).min(512)))
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
    backward_launch(logits_rv, None, rows, temperature)
}

/// Into `dlogits_rv`, bf16, beside f32 logits, or over the logits.
fn backward_launch(
    logits_rv: &Tensor,
    dlogits_rv: Option<&Tensor>,
    rows: RowGradients,
    temperature: f32,
) -> Result<()> {
    let (r, v) = check(logits_rv, rows.targets_r)?;
    for each in [rows.log_sums_r, rows.dlogprobs_r] {
        if each.dims() != [r] || each.dtype() != DType::F32 {
            return Err(fault(format!("token_logprob: {:?} for {r} rows", each.shape())));
        }
    }
    let device = logits_rv.device();
    let launch = match dlogits_rv {
        None => Launch::typed(device, "token_logprob", "token_logprob_backward", logits_rv.dtype())?
            .tensor(logits_rv)?,
        Some(dlogits_rv) => Launch::new(device, "token_logprob", "token_logprob_backward_f32_to_bf16")?
            .tensor(logits_rv)?
            .tensor(dlogits_rv)?,
    };
    let columns = v.div_ceil(4 * 256 * 8).clamp(1, 65_535) as u32;
    launch
        .tensor(rows.targets_r)?
        .tensor(rows.log_sums_r)?
        .tensor(rows.dlogprobs_r)?
        .u32(v as u32)
        .f32(1.0 / temperature)
        .run(Grid { blocks: [r as u32, columns, 1], threads: 256, shared_bytes: 0 })
}
