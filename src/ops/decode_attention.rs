//! Attention of one new token per sequence. Sequences of a group read their prompt's keys and values once,
//! together; each reads its own beside it; one softmax runs over both.

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::Heads;
use super::gemm::{Mat, MatMut, Threads, Write, gemm};
use super::simd::{dot, exp_scaled_in_place, max, vectorize};
use super::{View, tensor};
use crate::error::Result;

/// Rows of the query batch that share a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedPrefix {
    /// First row of the prompt in `prefix_k`, `prefix_v`.
    pub start: usize,
    pub len: usize,
    /// Query rows, contiguous; groups follow one another.
    pub rows: usize,
}

/// Keys and values a decode step reads, all `[.., key/value heads * dim]`.
#[derive(Clone, Copy)]
pub struct Cache<'a> {
    /// `[all prompts' tokens, width]`
    pub prefix_k: &'a Tensor,
    pub prefix_v: &'a Tensor,
    /// `[sequences, capacity, width]`
    pub own_k: &'a Tensor,
    pub own_v: &'a Tensor,
}

/// Which own-cache sequence each query row belongs to, and how many of its positions are filled.
#[derive(Clone, Copy)]
pub struct Own<'a> {
    /// `[R]`
    pub sequences: &'a [usize],
    pub len: usize,
}

/// `q: [R, query heads * dim]` -> same shape. Row `r` belongs to sequence `sequences[r]` of the own cache and
/// sees the first `own_len` positions there.
pub fn forward(
    heads: Heads,
    q: &Tensor,
    cache: Cache,
    prefixes: &[SharedPrefix],
    own: Own,
) -> Result<Tensor> {
    let (n, width) = q.dims2()?;
    let (_, capacity, kv_width) = cache.own_k.dims3()?;
    let q_view = View::new(q)?;
    let (pk, pv) = (View::new(cache.prefix_k)?, View::new(cache.prefix_v)?);
    let (ok, ov) = (View::new(cache.own_k)?, View::new(cache.own_v)?);
    let share = heads.sharing();
    let mut first_row = 0;
    let mut tasks = Vec::new();
    for prefix in prefixes {
        tasks.extend((0..heads.key_value).map(|kv| (*prefix, first_row, kv)));
        first_row += prefix.rows;
    }
    // Each task gives `[rows, sharing heads * dim]` of its key/value head.
    let parts: Vec<Vec<f32>> = tasks
        .par_iter()
        .with_max_len(1)
        .map(|&(prefix, first_row, kv)| {
            let dim = heads.dim;
            let span = share * dim;
            // The queries of all rows and of all heads that share this key/value head, as one matrix.
            let mut queries = Vec::with_capacity(prefix.rows * span);
            for r in first_row..first_row + prefix.rows {
                queries.extend_from_slice(&q_view[r * width + kv * span..r * width + (kv + 1) * span]);
            }
            let keys = prefix.len + own.len;
            let m = prefix.rows * share;
            let mut scores = vec![0f32; m * keys];
            let at = prefix.start * kv_width + kv * dim;
            let key_mat = Mat::strided(&pk[at..], prefix.len, dim, kv_width).t();
            let out = MatMut { data: &mut scores, row_stride: keys };
            gemm(Mat::row_major(&queries, m, dim), key_mat, out, Write::Overwrite, Threads::One);
            let own_at =
                |r: usize, i: usize| (own.sequences[first_row + r] * capacity + i) * kv_width + kv * dim;
            let mut result = vec![0f32; m * dim];
            vectorize(|| {
                for (j, row) in scores.chunks_exact_mut(keys).enumerate() {
                    let query = &queries[j * dim..(j + 1) * dim];
                    for i in 0..own.len {
                        let at = own_at(j / share, i);
                        row[prefix.len + i] = dot(query, &ok[at..at + dim]);
                    }
                    let shift = max(row) * heads.scale();
                    let inverse = 1.0 / exp_scaled_in_place(row, heads.scale(), shift);
                    row.iter_mut().for_each(|p| *p *= inverse);
                    let out = &mut result[j * dim..(j + 1) * dim];
                    for i in 0..own.len {
                        let (p, at) = (row[prefix.len + i], own_at(j / share, i));
                        out.iter_mut().zip(&ov[at..at + dim]).for_each(|(o, v)| *o += p * v);
                    }
                }
            });
            let p = Mat::strided(&scores, m, prefix.len, keys);
            let v = Mat::strided(&pv[at..], prefix.len, dim, kv_width);
            let out = MatMut { data: &mut result, row_stride: dim };
            gemm(p, v, out, Write::Accumulate, Threads::One);
            result
        })
        .collect();
    let mut out = vec![0f32; n * width];
    for (&(prefix, first_row, kv), part) in tasks.iter().zip(&parts) {
        let span = share * heads.dim;
        for r in 0..prefix.rows {
            let at = (first_row + r) * width + kv * span;
            out[at..at + span].copy_from_slice(&part[r * span..(r + 1) * span]);
        }
    }
    tensor(out, (n, width))
}
