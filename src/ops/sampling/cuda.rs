//! Sampling on a CUDA device: one launch for all rows, one copy to the host.

use candle_core::{DType, Tensor};

use super::{Sampled, Sampling, inverse_temperature, reach};
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, read, uninit};
use crate::ops::fault::fault;

/// As [`super::sample`]; `logits_rv` f32 or bf16.
///
/// # Errors
/// When the vocabulary has 2^23 tokens or more, or the device fails.
pub fn sample(logits_rv: &Tensor, sampling: &Sampling, uniforms: &[f32]) -> Result<Vec<Sampled>> {
    let (rows, vocab) = logits_rv.dims2()?;
    if vocab >= 1 << 23 || rows == 0 || !uniforms.len().is_multiple_of(rows) {
        return Err(fault(format!("sampling: {} uniforms for logits of {rows} x {vocab}", uniforms.len())));
    }
    let device = logits_rv.device();
    let draws = uniforms.len();
    let uniforms = Tensor::from_slice(uniforms, draws, device)?;
    let result = uninit(device, (draws, 2), DType::U32)?;
    Launch::typed(device, "sampling", "sampling", logits_rv.dtype())?
        .tensor(logits_rv)?
        .tensor(&uniforms)?
        .tensor(&result)?
        .u32(vocab as u32)
        .u32((draws / rows) as u32)
        .f32(inverse_temperature(sampling))
        .u32(u32::from(sampling.temperature == 0.0))
        .u32(u32::try_from(sampling.top_k).unwrap_or(0))
        .f32(sampling.top_p)
        .f32(reach(sampling))
        .run(Grid::line(draws as u32, 512))?;
    let pairs = read::<u32>(&result)?;
    Ok(pairs
        .chunks_exact(2)
        .map(|pair| Sampled { token: pair[0], logprob: f32::from_bits(pair[1]) })
        .collect())
}
