//! Log-probability of one token per row straight from hidden states: the LM head runs in chunks of rows and
//! the logits of a chunk are the only ones that exist.

mod cpu;
pub mod cuda;

use std::ops::Range;

use candle_core::Tensor;

use crate::error::{Error, Result};
use crate::ops::fault::fault;
use crate::ops::sampling::Sampling;
use crate::trail;

/// Bytes of logits alive at once on the CPU.
pub const CPU_CHUNK_BYTES: usize = 64 << 20;
/// Bytes of logits alive at once on a CUDA device, in f32; their gradient in bf16 takes half as much beside them. 1,308
/// rows of a vocabulary of 128,256: the targets of a pack of four groups, so that the head and its gradient pass
/// through memory once.
pub const CUDA_CHUNK_BYTES: usize = 640 << 20;

/// Rows whose logits are alive at once.
fn chunk_rows(bytes: usize, vocab: usize) -> usize {
    (bytes / (4 * vocab.max(1))).max(1)
}

/// Per target row, nats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// `log softmax(logits / temperature)[target]`, `[R]`
    pub logprobs: Vec<f32>,
    /// Entropy of `softmax(logits / temperature)`, `[R]`
    pub entropies: Vec<f32>,
    /// `log sum exp(logits / temperature)`, `[R]`, for the backward pass on a CUDA device; empty on the CPU, which has no
    /// use for them.
    pub log_sums: Vec<f32>,
}

/// Normed hidden rows, the head and what to predict.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[R, H]`
    pub hidden_rh: &'a Tensor,
    /// `[V, H]`
    pub head_vh: &'a Tensor,
    /// `[R]`, each below V.
    pub targets: &'a [u32],
    pub temperature: f32,
    /// Columns without probability: rows of the head that are no token's.
    pub missing: &'a [Range<usize>],
}

/// The logit of a row of the head that is no token's. Finite, so that its share of every sum is 0 and not NaN.
pub const NO_TOKEN: f32 = -1e30;

/// Derivatives of a loss by what [`forward`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Slopes<'a> {
    /// `[R]`
    pub dlogprobs: &'a [f32],
    /// `[R]`, or empty: the loss does not depend on the entropies.
    pub dentropies: &'a [f32],
    /// What [`forward_within`] was given.
    pub cut: Option<&'a Sampling>,
    /// What [`forward`] gave at the same temperature, `[R]`, or empty: worked out again where they are needed.
    pub log_sums: &'a [f32],
}

impl<'a> From<&'a [f32]> for Slopes<'a> {
    fn from(dlogprobs: &'a [f32]) -> Self {
        Self { dlogprobs, dentropies: &[], cut: None, log_sums: &[] }
    }
}

impl<'a> From<&'a Vec<f32>> for Slopes<'a> {
    fn from(dlogprobs: &'a Vec<f32>) -> Self {
        dlogprobs.as_slice().into()
    }
}

/// Log-probability of each target and entropy of its row's distribution, at `inputs.temperature`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn forward(inputs: Inputs) -> Result<TokenLogprobs> {
    forward_within(inputs, None)
}

/// [`forward`] under what a sampler's cuts leave of each row's distribution, the target always part of it.
///
/// # Errors
/// A cut on a CUDA device.
pub fn forward_within(inputs: Inputs, cut: Option<&Sampling>) -> Result<TokenLogprobs> {
    trail::begin("token_logprob");
    if inputs.hidden_rh.device().is_cuda() {
        no_cut(cut)?;
        cuda::forward(inputs)
    } else {
        cpu::forward(inputs, cut)
    }
}

fn no_cut(cut: Option<&Sampling>) -> Result<()> {
    let fix = "Remove it, or set device = \"cpu\"";
    match cut {
        None => Ok(()),
        Some(_) => Err(Error::input("sampling.replay_truncation", "is not there yet on a CUDA device", fix)),
    }
}

/// Given `dlogprobs = dL / dlogprob` and perhaps `dentropies = dL / dentropy`: returns `dL / dhidden` `[R, H]` and
/// adds `dL / dhead` to `dhead_vh`, which a frozen head has not.
///
/// `dlogits = ((onehot(target) - p) dlogprob - p (log p + entropy) dentropy) / temperature`, written over the chunk's
/// logits.
///
/// # Errors
/// Slopes or log-sums of another number than the targets; derivatives by entropies on a CUDA device, which has none.
pub fn backward<'s, 'h>(
    inputs: Inputs,
    slopes: impl Into<Slopes<'s>>,
    dhead_vh: impl Into<Option<&'h Tensor>>,
) -> Result<Tensor> {
    trail::begin("token_logprob backward");
    let (slopes, dhead_vh) = (slopes.into(), dhead_vh.into());
    let Slopes { dlogprobs, dentropies, cut, log_sums } = slopes;
    let by_entropy = !dentropies.is_empty();
    let r = inputs.targets.len();
    let one_each = |values: &[f32]| values.is_empty() || values.len() == r;
    if dlogprobs.len() != r || !one_each(dentropies) || !one_each(log_sums) {
        return Err(fault("log-prob slopes: not one a target"));
    }
    if inputs.hidden_rh.device().is_cuda() {
        if by_entropy {
            let fix = "Set grpo.entropy_coef = 0, or device = \"cpu\"";
            return Err(Error::input("grpo.entropy_coef", "is not there yet on a CUDA device", fix));
        }
        no_cut(cut)?;
        cuda::backward(inputs, dlogprobs, log_sums, dhead_vh)
    } else {
        cpu::backward(inputs, slopes, dhead_vh)
    }
}
