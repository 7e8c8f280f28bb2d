//! Log-probability of one token per row straight from hidden states: the LM head runs in chunks of rows and
//! the logits of a chunk are the only ones that exist.

use candle_core::Tensor;
use rayon::prelude::*;

use super::gemm::{Mat, Threads, product};
use super::simd::{exp, exp_sums, max, vectorize};
use super::{View, cuda, linear, tensor, tensor_as};
use crate::error::Result;

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

fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_BYTES / (4 * vocab.max(1))).max(1)
}

pub fn forward(inputs: Inputs) -> Result<TokenLogprobs> {
    if cuda::on(inputs.hidden_rh) {
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
        let logits = product(hidden, Mat::row_major(&head, v, h).t(), Threads::Pool);
        let chunk: Vec<(f32, f32)> = logits
            .par_chunks_exact(v)
            .zip(targets)
            .map(|(row, &target)| {
                vectorize(
                    #[inline(always)]
                    || {
                        let shift = max(row) * scale;
                        let (sum, weighted) = exp_sums(row, scale, shift);
                        let log_sum = sum.ln();
                        // H = log Z - E[z], both relative to the shift.
                        (row[target as usize] * scale - shift - log_sum, log_sum - weighted / sum)
                    },
                )
            })
            .collect();
        for (logprob, entropy) in chunk {
            result.logprobs.push(logprob);
            result.entropies.push(entropy);
        }
    }
    Ok(result)
}

/// Given `dlogprobs = dL / dlogprob` `[R]`: returns `dL / dhidden` `[R, H]` and adds `dL / dhead` to `dhead_vh`,
/// which a frozen head has not.
///
/// `dlogits = (onehot(target) - softmax) * dlogprob / temperature`, written over the chunk's logits.
pub fn backward<'a>(
    inputs: Inputs,
    dlogprobs: &[f32],
    dhead_vh: impl Into<Option<&'a Tensor>>,
) -> Result<Tensor> {
    let dhead_vh = dhead_vh.into();
    if cuda::on(inputs.hidden_rh) {
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
        let hidden = hidden_rh.narrow(0, i * rows, n)?;
        let mut logits = {
            let hidden = View::new(&hidden)?;
            product(Mat::row_major(&hidden, n, h), Mat::row_major(&head, v, h).t(), Threads::Pool)
        };
        logits.par_chunks_exact_mut(v).zip(targets).zip(dlogprobs).for_each(|((row, &target), &d)| {
            vectorize(
                #[inline(always)]
                || {
                    let shift = max(row) * scale;
                    let (sum, _) = exp_sums(row, scale, shift);
                    let factor = d * scale / sum;
                    for x in row.iter_mut() {
                        *x = -exp(*x * scale - shift) * factor;
                    }
                    row[target as usize] += d * scale;
                },
            );
        });
        dhidden.extend(product(Mat::row_major(&logits, n, v), Mat::row_major(&head, v, h), Threads::Pool));
        if let Some(dhead_vh) = dhead_vh {
            linear::backward_weight(dhead_vh, &tensor(logits, (n, v))?, &hidden)?;
        }
    }
    tensor_as(dhidden, (r, h), hidden_rh.dtype())
}
