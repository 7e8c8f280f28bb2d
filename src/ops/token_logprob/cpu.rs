//! Log-probability of one token per row on the CPU.

use std::ops::Range;

use candle_core::Tensor;
use rayon::prelude::*;

use super::{CPU_CHUNK_BYTES, Inputs, NO_TOKEN, Slopes, TokenLogprobs, chunk_rows};
use crate::error::Result;
use crate::ops::cpu::gemm::{Mat, Threads, product};
use crate::ops::cpu::simd::{exp, exp_sums, max, vectorize};
use crate::ops::cpu::widened::{View, tensor, tensor_as};
use crate::ops::linear;
use crate::ops::sampling::{Sampling, apply_cut};

pub(super) fn forward(inputs: Inputs, cut: Option<&Sampling>) -> Result<TokenLogprobs> {
    let Inputs { hidden_rh, head_vh, targets, temperature, missing } = inputs;
    let ((r, h), (v, _)) = (hidden_rh.dims2()?, head_vh.dims2()?);
    let (hidden, head) = (View::new(hidden_rh)?, View::new(head_vh)?);
    let rows = chunk_rows(CPU_CHUNK_BYTES, v);
    let scale = 1.0 / temperature;
    let mut result = TokenLogprobs {
        logprobs: Vec::with_capacity(r),
        entropies: Vec::with_capacity(r),
        log_sums: Vec::new(),
    };
    for (hidden, targets) in hidden.chunks(rows * h).zip(targets.chunks(rows)) {
        let hidden = Mat::row_major(hidden, targets.len(), h);
        let mut logits = product(hidden, Mat::row_major(&head, v, h).t(), Threads::Pool);
        mask(&mut logits, v, missing);
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

fn mask(logits: &mut [f32], vocab: usize, missing: &[Range<usize>]) {
    if !missing.is_empty() {
        let rows = logits.chunks_exact_mut(vocab);
        rows.for_each(|row| missing.iter().for_each(|ids| row[ids.clone()].fill(NO_TOKEN)));
    }
}

fn apply(cut: Option<&Sampling>, logits: &mut [f32], vocab: usize, targets: &[u32]) {
    if let Some(cut) = cut {
        logits
            .par_chunks_exact_mut(vocab)
            .zip(targets)
            .for_each(|(row, target)| apply_cut(row, cut, *target));
    }
}

pub(super) fn backward(inputs: Inputs, slopes: Slopes, dhead_vh: Option<&Tensor>) -> Result<Tensor> {
    let Slopes { dlogprobs, dentropies, cut, .. } = slopes;
    let by_entropy = !dentropies.is_empty();
    let Inputs { hidden_rh, head_vh, targets, temperature, missing } = inputs;
    let ((r, h), (v, _)) = (hidden_rh.dims2()?, head_vh.dims2()?);
    let head = View::new(head_vh)?;
    let rows = chunk_rows(CPU_CHUNK_BYTES, v);
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
        mask(&mut logits, v, missing);
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
