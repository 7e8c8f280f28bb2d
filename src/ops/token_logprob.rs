//! Log-probability of one token per row straight from hidden states: the LM head runs in chunks of rows and
//! the logits of a chunk are the only ones that exist.

use candle_core::Tensor;
use rayon::prelude::*;

use super::gemm::{Mat, Threads, product};
use super::sampling::apply_cut;
use super::simd::{exp, exp_sums, max, vectorize};
use super::{View, cuda, linear, tensor, tensor_as};
use crate::config::sampling::SamplingConfig;
use crate::error::{Error, Result};

/// Bytes of logits alive at once.
const CHUNK_BYTES: usize = 64 << 20;

/// Per target row, nats.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenLogprobs {
    /// `log softmax(logits / temperature)[target]`, `[R]`
    pub logprobs: Vec<f32>,
    /// Entropy of `softmax(logits / temperature)`, `[R]`
    pub entropies: Vec<f32>,
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
}

/// Derivatives of a loss by what [`forward`] returns.
#[derive(Clone, Copy, Debug)]
pub struct Slopes<'a> {
    /// `[R]`
    pub dlogprobs: &'a [f32],
    /// `[R]`, or empty: the loss does not depend on the entropies.
    pub dentropies: &'a [f32],
    /// What [`forward_within`] was given.
    pub cut: Option<&'a SamplingConfig>,
}

impl<'a> From<&'a [f32]> for Slopes<'a> {
    fn from(dlogprobs: &'a [f32]) -> Self {
        Self { dlogprobs, dentropies: &[], cut: None }
    }
}

impl<'a> From<&'a Vec<f32>> for Slopes<'a> {
    fn from(dlogprobs: &'a Vec<f32>) -> Self {
        dlogprobs.as_slice().into()
    }
}

fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_BYTES / (4 * vocab.max(1))).max(1)
}

pub fn forward(inputs: Inputs) -> Result<TokenLogprobs> {
    forward_within(inputs, None)
}

/// [`forward`] under what a sampler's cuts leave of each row's distribution, the target always part of it.
///
/// # Errors
/// A cut on a CUDA device.
pub fn forward_within(inputs: Inputs, cut: Option<&SamplingConfig>) -> Result<TokenLogprobs> {
    if cuda::on(inputs.hidden_rh) {
        no_cut(cut)?;
        return cuda::token_logprob::forward(inputs);
    }
    let Inputs { hidden_rh, head_vh, targets, temperature } = inputs;
    let ((r, h), (v, _)) = (hidden_rh.dims2()?, head_vh.dims2()?);
    let (hidden, head) = (View::new(hidden_rh)?, View::new(head_vh)?);
    let rows = chunk_rows(v);
    let scale = 1.0 / temperature;
    let mut result = TokenLogprobs { logprobs: Vec::with_capacity(r), entropies: Vec::with_capacity(r) };
    for (hidden, targets) in hidden.chunks(rows * h).zip(targets.chunks(rows)) {
        let hidden = Mat::row_major(hidden, targets.len(), h);
        let mut logits = product(hidden, Mat::row_major(&head, v, h).t(), Threads::Pool);
        apply(cut, &mut logits, v, targets);
        let chunk: Vec<(f32, f32)> = logits
            .par_chunks_exact(v)
            .zip(targets)
            .map(|(row, &target)| {
                vectorize!({
                    let shift = max(row) * scale;
                    let (sum, weighted) = exp_sums(row, scale, shift);
                    let log_sum = sum.ln();
                    // H = log Z - E[z], both relative to the shift.
                    (row[target as usize] * scale - shift - log_sum, log_sum - weighted / sum)
                })
            })
            .collect();
        for (logprob, entropy) in chunk {
            result.logprobs.push(logprob);
            result.entropies.push(entropy);
        }
    }
    Ok(result)
}

fn apply(cut: Option<&SamplingConfig>, logits: &mut [f32], vocab: usize, targets: &[u32]) {
    if let Some(cut) = cut {
        logits
            .par_chunks_exact_mut(vocab)
            .zip(targets)
            .for_each(|(row, target)| apply_cut(row, cut, *target));
    }
}

fn no_cut(cut: Option<&SamplingConfig>) -> Result<()> {
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
/// Slopes of another number than the targets; derivatives by entropies on a CUDA device, which has none.
pub fn backward<'s, 'h>(
    inputs: Inputs,
    slopes: impl Into<Slopes<'s>>,
    dhead_vh: impl Into<Option<&'h Tensor>>,
) -> Result<Tensor> {
    let dhead_vh = dhead_vh.into();
    let Slopes { dlogprobs, dentropies, cut } = slopes.into();
    let by_entropy = !dentropies.is_empty();
    let r = inputs.targets.len();
    if dlogprobs.len() != r || (by_entropy && dentropies.len() != r) {
        return Err(Error::Compute("log-prob slopes: not one a target".into()));
    }
    if cuda::on(inputs.hidden_rh) {
        if by_entropy {
            let fix = "Set grpo.entropy_coef = 0, or device = \"cpu\"";
            return Err(Error::input("grpo.entropy_coef", "is not there yet on a CUDA device", fix));
        }
        no_cut(cut)?;
        return cuda::token_logprob::backward(inputs, dlogprobs, dhead_vh);
    }
    let Inputs { hidden_rh, head_vh, targets, temperature } = inputs;
    let ((r, h), (v, _)) = (hidden_rh.dims2()?, head_vh.dims2()?);
    let head = View::new(head_vh)?;
    let rows = chunk_rows(v);
    let scale = 1.0 / temperature;
    let mut dhidden = Vec::with_capacity(r * h);
    for (i, (targets, dlogprobs)) in targets.chunks(rows).zip(dlogprobs.chunks(rows)).enumerate() {
        let n = targets.len();
        let dentropies = if by_entropy { &dentropies[i * rows..i * rows + n] } else { &[] };
        let hidden = hidden_rh.narrow(0, i * rows, n)?;
        let mut logits = {
            let hidden = View::new(&hidden)?;
            product(Mat::row_major(&hidden, n, h), Mat::row_major(&head, v, h).t(), Threads::Pool)
        };
        apply(cut, &mut logits, v, targets);
        let slope_of = |i: usize| dentropies.get(i).copied().unwrap_or(0.0);
        logits.par_chunks_exact_mut(v).zip(targets).zip(dlogprobs).enumerate().for_each(
            |(i, ((row, &target), &d))| {
                let by_entropy = slope_of(i);
                vectorize!({
                    let shift = max(row) * scale;
                    let (sum, weighted) = exp_sums(row, scale, shift);
                    let (factor, by_entropy) = (d * scale / sum, by_entropy * scale / sum);
                    if by_entropy == 0.0 {
                        for x in row.iter_mut() {
                            *x = -exp(*x * scale - shift) * factor;
                        }
                    } else {
                        // log p + entropy is the distance of z from its mean.
                        let mean = weighted / sum;
                        for x in row.iter_mut() {
                            let z = *x * scale - shift;
                            *x = -exp(z) * (factor + by_entropy * (z - mean));
                        }
                    }
                    row[target as usize] += d * scale;
                });
            },
        );
        dhidden.extend(product(Mat::row_major(&logits, n, v), Mat::row_major(&head, v, h), Threads::Pool));
        if let Some(dhead_vh) = dhead_vh {
            linear::backward_weight(dhead_vh, &tensor(logits, (n, v))?, &hidden)?;
        }
    }
    tensor_as(dhidden, (r, h), hidden_rh.dtype())
}
