//! Attention of one new token per sequence. Sequences of a group read their prompt's keys and values once,
//! together; each reads its own beside it; one softmax runs over both.

use std::sync::OnceLock;

use candle_core::Tensor;
use rayon::prelude::*;

use super::attention::Heads;
use super::cpu::few_rows::{LANES, Lanes, Rows, add_weighted_rows, columns, dot_rows};
use super::cuda::decode_attention::DecodeLayout;
use super::indices::once;
use super::simd::{dot, exp, vectorize};
use super::{View, cuda, tensor, tensor_as};
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

/// Which prompt and which sequence of the own cache each query row reads, and the copy of it that a device reads:
/// made once for all layers and steps, until rows leave the batch.
#[derive(Clone, Debug)]
pub struct Readers {
    prefixes: Vec<SharedPrefix>,
    /// `[R]`
    sequences: Vec<usize>,
    there: OnceLock<DecodeLayout>,
}

impl Readers {
    /// `sequences`: the own-cache sequence of each row; the prefixes' rows are as many.
    pub fn new(prefixes: Vec<SharedPrefix>, sequences: Vec<usize>) -> Self {
        Self { prefixes, sequences, there: OnceLock::new() }
    }

    pub fn sequences(&self) -> &[usize] {
        &self.sequences
    }

    pub fn prefixes(&self) -> &[SharedPrefix] {
        &self.prefixes
    }

    fn there(&self, heads: Heads, q: &Tensor) -> Result<&DecodeLayout> {
        let make = || DecodeLayout::new(heads, q.dtype(), &self.prefixes, &self.sequences, q.device());
        once(&self.there, make)
    }
}

#[derive(Clone, Copy)]
struct Own<'a> {
    sequences: &'a [usize],
    len: usize,
}

/// `q: [R, query heads * dim]` -> the same shape, and the log-sum-exp of the scaled scores `[R, query heads]`.
/// Row `r` sees its prompt and the first `own_len` positions of its sequence in the own cache.
pub fn forward(
    heads: Heads,
    q: &Tensor,
    cache: Cache,
    readers: &Readers,
    own_len: usize,
) -> Result<(Tensor, Tensor)> {
    if cuda::on(q) {
        return cuda::decode_attention::forward(readers.there(heads, q)?, q, cache, own_len);
    }
    let own = Own { sequences: &readers.sequences, len: own_len };
    let (n, width) = q.dims2()?;
    let (_, capacity, _) = cache.own_k.dims3()?;
    let dtype = q.dtype();
    let views = [q, cache.prefix_k, cache.prefix_v, cache.own_k, cache.own_v].map(View::new);
    let [q, prefix_k, prefix_v, own_k, own_v] = views;
    let (q, prefix_k, prefix_v, own_k, own_v) = (q?, prefix_k?, prefix_v?, own_k?, own_v?);
    let slices =
        Slices { heads, own, capacity, q: &q, prefix: [&prefix_k, &prefix_v], completion: [&own_k, &own_v] };
    let mut first_row = 0;
    let mut tasks = Vec::new();
    for prefix in &readers.prefixes {
        for kv in 0..heads.key_value {
            // Query heads that share a key/value head are rows of one matrix.
            let count = prefix.rows * heads.sharing();
            tasks.extend((0..count).step_by(LANES).map(|first| Task {
                prefix: *prefix,
                first_row,
                kv,
                queries: (first, LANES.min(count - first)),
            }));
        }
        first_row += prefix.rows;
    }
    let parts: Vec<Part> = tasks.par_iter().with_max_len(1).map(|task| slices.attend(task)).collect();
    let (mut out, mut lse) = (vec![0f32; n * width], vec![0f32; n * heads.query]);
    for (task, part) in tasks.iter().zip(&parts) {
        for lane in 0..task.queries.1 {
            let (row, head) = task.query(heads, lane);
            let out = &mut out[row * width + head * heads.dim..][..heads.dim];
            out.iter_mut().zip(&part.out).for_each(|(out, lanes)| *out = lanes[lane]);
            lse[row * heads.query + head] = part.lse[lane];
        }
    }
    Ok((tensor_as(out, (n, width), dtype)?, tensor(lse, (n, heads.query))?))
}

/// Up to 16 queries that read the same keys and values.
struct Task {
    prefix: SharedPrefix,
    /// First query row of the group.
    first_row: usize,
    kv: usize,
    /// First and number among the group's rows times sharing heads.
    queries: (usize, usize),
}

impl Task {
    /// Row and query head of a lane.
    fn query(&self, heads: Heads, lane: usize) -> (usize, usize) {
        let query = self.queries.0 + lane;
        (self.first_row + query / heads.sharing(), self.kv * heads.sharing() + query % heads.sharing())
    }
}

struct Part {
    /// `[dim]`
    out: Vec<Lanes>,
    lse: Lanes,
}

struct Slices<'a> {
    heads: Heads,
    own: Own<'a>,
    capacity: usize,
    q: &'a [f32],
    /// Keys and values.
    prefix: [&'a [f32]; 2],
    completion: [&'a [f32]; 2],
}

impl Slices<'_> {
    /// Own keys (0) or values (1) of a lane at position `i`.
    fn own_row(&self, which: usize, task: &Task, lane: usize, i: usize) -> &[f32] {
        let (row, _) = task.query(self.heads, lane);
        let slot = self.own.sequences[row] * self.capacity + i;
        let at = slot * self.heads.key_value_width() + task.kv * self.heads.dim;
        &self.completion[which][at..at + self.heads.dim]
    }

    fn attend(&self, task: &Task) -> Part {
        let heads = self.heads;
        let (dim, kv_width) = (heads.dim, heads.key_value_width());
        let lanes = task.queries.1;
        let query = |lane: usize| {
            let (row, head) = task.query(heads, lane);
            let at = row * heads.query_width() + head * dim;
            &self.q[at..at + dim]
        };
        let prefix_rows = |which: usize| Rows {
            data: &self.prefix[which][task.prefix.start * kv_width + task.kv * dim..],
            count: task.prefix.len,
            stride: kv_width,
        };
        let queries = columns((0..lanes).map(query), dim);
        let mut scores = vec![[f32::NEG_INFINITY; LANES]; task.prefix.len + self.own.len];
        dot_rows(prefix_rows(0), &queries, &mut scores[..task.prefix.len]);
        vectorize!({
            for i in 0..self.own.len {
                let scores = &mut scores[task.prefix.len + i];
                for (lane, score) in scores.iter_mut().enumerate().take(lanes) {
                    *score = dot(query(lane), self.own_row(0, task, lane, i));
                }
            }
        });
        let (sums, shift) = vectorize!(softmax_weights(&mut scores, heads.scale()));
        let mut out = vec![[0f32; LANES]; dim];
        add_weighted_rows(prefix_rows(1), &scores, &mut out);
        let mut lse = [0f32; LANES];
        vectorize!({
            let mut own = vec![0f32; dim];
            for lane in 0..lanes {
                own.fill(0.0);
                for i in 0..self.own.len {
                    let p = scores[task.prefix.len + i][lane];
                    own.iter_mut().zip(self.own_row(1, task, lane, i)).for_each(|(sum, v)| *sum += p * v);
                }
                out.iter_mut().zip(&own).for_each(|(out, own)| out[lane] += own);
            }
            for out in &mut out {
                (0..LANES).for_each(|j| out[j] /= sums[j]);
            }
            (0..LANES).for_each(|j| lse[j] = shift[j] + sums[j].ln());
        });
        Part { out, lse }
    }
}

/// `scores <- exp(scale * scores - shift)` with `shift` each lane's largest; returns each lane's sum and shift.
#[inline(always)]
fn softmax_weights(scores: &mut [Lanes], scale: f32) -> (Lanes, Lanes) {
    let mut shift = [f32::NEG_INFINITY; LANES];
    for row in &*scores {
        (0..LANES).for_each(|j| shift[j] = shift[j].max(row[j]));
    }
    (0..LANES).for_each(|j| shift[j] *= scale);
    let mut sums = [0f32; LANES];
    for row in scores {
        for j in 0..LANES {
            row[j] = exp(row[j] * scale - shift[j]);
            sums[j] += row[j];
        }
    }
    (sums, shift)
}
