//! Attention of one new token per sequence on the CPU: up to 16 queries that read the same keys lie in the lanes.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Cache, Readers, SharedPrefix};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::cpu::few_rows::{LANES, Lanes, Rows, add_weighted_rows, columns, dot_rows};
use crate::ops::cpu::simd::{dot, exp, vectorize};
use crate::ops::cpu::widened::{View, tensor, tensor_as};

#[derive(Clone, Copy)]
struct Own<'a> {
    sequences: &'a [usize],
    len: usize,
}

pub(super) fn forward(
    heads: Heads,
    q: &Tensor,
    cache: Cache,
    readers: &Readers,
    own_len: usize,
) -> Result<(Tensor, Tensor)> {
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
