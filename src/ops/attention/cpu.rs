//! Packed attention on the CPU: blocks of query rows against all keys they see.
//!
//! The query heads that share a key/value head are rows of one matrix, so that keys and values are packed for a
//! product once and not once a head, and their gradients come out summed over the heads.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{AttentionLayout, Block, Gradients, Heads, Inputs, Upstream};
use crate::error::Result;
use crate::ops::cpu::gemm::{Mat, MatMut, Threads, Write, gemm};
use crate::ops::cpu::simd::{dot, exp, exp_scaled_in_place, max, vectorize};
use crate::ops::cpu::widened::{View, tensor, tensor_as};

/// Trees longer than this many tokens are cut for the backward pass.
const LONG_TREE: usize = 384;
/// Into so many parts: fixed, because the parts' sums are added in order.
const PARTS: usize = 4;

pub(super) fn forward(inputs: Inputs) -> Result<(Tensor, Tensor)> {
    let Inputs { layout, heads, q, k, v } = inputs;
    let n = layout.tokens();
    let dtype = q.dtype();
    let (q, k, v) = (View::new(q)?, View::new(k)?, View::new(v)?);
    let (out, lse) = forward_slices(layout, Slices { heads, q: &q, k: &k, v: &v });
    Ok((tensor_as(out, (n, heads.query_width()), dtype)?, tensor(lse, (n, heads.query))?))
}

pub(super) fn backward(inputs: Inputs, upstream: Upstream) -> Result<Gradients> {
    let Inputs { layout, heads, q, k, v } = inputs;
    let n = layout.tokens();
    let dtype = q.dtype();
    let (q, k, v) = (View::new(q)?, View::new(k)?, View::new(v)?);
    let (out, lse, dout) = (View::new(upstream.out)?, View::new(upstream.lse)?, View::new(upstream.dout)?);
    let saved = Saved { out: &out, lse: &lse, dout: &dout };
    let [dq, dk, dv] = backward_slices(layout, Slices { heads, q: &q, k: &k, v: &v }, saved);
    Ok(Gradients {
        dq: tensor_as(dq, (n, heads.query_width()), dtype)?,
        dk: tensor_as(dk, (n, heads.key_value_width()), dtype)?,
        dv: tensor_as(dv, (n, heads.key_value_width()), dtype)?,
    })
}

/// Inputs of one layer, row-major.
#[derive(Clone, Copy)]
struct Slices<'a> {
    heads: Heads,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Slices<'_> {
    /// Rows of key/value head `kv` in k or v.
    fn key_rows<'b>(&self, x: &'b [f32], start: usize, rows: usize, kv: usize) -> Mat<'b> {
        let width = self.heads.key_value_width();
        Mat::strided(&x[start * width + kv * self.heads.dim..], rows, self.heads.dim, width)
    }

    /// The block's rows of q, or of anything shaped like it, for all heads that read `kv`: row `t * sharing + j`
    /// is token t's head j.
    fn stack(&self, x: &[f32], block: &Block, kv: usize, out: &mut Vec<f32>) {
        let (width, span) = (self.heads.query_width(), self.heads.sharing() * self.heads.dim);
        out.clear();
        for row in block.start..block.start + block.rows {
            out.extend_from_slice(&x[row * width + kv * span..][..span]);
        }
    }

    /// `out[stacked rows, keys] = a_rows b_keys^T` for the block's prefix and own keys.
    fn outer(&self, block: &Block, a: &[f32], b: &[f32], kv: usize, out: &mut [f32]) {
        let width = stride_of(block);
        let a = Mat::row_major(a, block.rows * self.heads.sharing(), self.heads.dim);
        for (start, len, column) in parts_of(block) {
            let keys = self.key_rows(b, start, len, kv).t();
            gemm(
                a,
                keys,
                MatMut { data: &mut out[column..], row_stride: width },
                Write::Overwrite,
                Threads::One,
            );
        }
    }

    /// `out[stacked rows, dim] = p[stacked rows, keys] b_keys`.
    fn inner(&self, block: &Block, p: &[f32], b: &[f32], kv: usize, out: &mut Vec<f32>) {
        let dim = self.heads.dim;
        let rows = block.rows * self.heads.sharing();
        out.resize(rows * dim, 0.0);
        let mut write = Write::Overwrite;
        for (start, len, column) in parts_of(block) {
            let p = Mat::strided(&p[column..], rows, len, stride_of(block));
            let out = MatMut { data: &mut *out, row_stride: dim };
            gemm(p, self.key_rows(b, start, len, kv), out, write, Threads::One);
            write = Write::Accumulate;
        }
    }
}

/// First row, number and first score column of the keys a block sees: the prefix's, then its own.
fn parts_of(block: &Block) -> impl Iterator<Item = (usize, usize, usize)> {
    [(block.prefix_start, block.prefix_len, 0), (block.own_start, block.own_len, block.prefix_len)]
        .into_iter()
        .filter(|(_, len, _)| *len > 0)
}

/// Elements between two rows of a block's scores: an odd number of cache lines, so that neighbouring rows fall
/// into different sets of the cache.
fn stride_of(block: &Block) -> usize {
    (block.keys().div_ceil(16) | 1) * 16
}

/// A thread's buffers.
#[derive(Default)]
struct Scratch {
    q: Vec<f32>,
    dout: Vec<f32>,
    p: Vec<f32>,
    ds: Vec<f32>,
    out: Vec<f32>,
}

/// Output and log-sum-exp.
fn forward_slices(layout: &AttentionLayout, slices: Slices) -> (Vec<f32>, Vec<f32>) {
    let heads = slices.heads;
    let width = heads.query_width();
    let mut out = vec![0f32; layout.tokens() * width];
    let mut lse = vec![0f32; layout.tokens() * heads.query];
    let mut tasks = Vec::new();
    let (mut out_rest, mut lse_rest) = (&mut out[..], &mut lse[..]);
    for block in layout.blocks().flatten() {
        let (o, rest) = out_rest.split_at_mut(block.rows * width);
        out_rest = rest;
        let (l, rest) = lse_rest.split_at_mut(block.rows * heads.query);
        lse_rest = rest;
        tasks.push((block, o, l));
    }
    // Largest first, so that no thread ends up alone with a long one.
    tasks.sort_by_key(|(block, ..)| std::cmp::Reverse(block.rows * block.keys()));
    tasks.into_par_iter().with_max_len(1).for_each_init(Scratch::default, |scratch, (block, o, l)| {
        let (share, dim) = (heads.sharing(), heads.dim);
        for kv in 0..heads.key_value {
            slices.stack(slices.q, block, kv, &mut scratch.q);
            scratch.p.resize(block.rows * share * stride_of(block), 0.0);
            slices.outer(block, &scratch.q, slices.k, kv, &mut scratch.p);
            let sums = vectorize!(softmax_weights(block, heads, kv, &mut scratch.p, l));
            slices.inner(block, &scratch.p, slices.v, kv, &mut scratch.out);
            vectorize!({
                for (i, (from, sum)) in scratch.out.chunks_exact(dim).zip(&sums).enumerate() {
                    let at = i / share * width + (kv * share + i % share) * dim;
                    let inverse = 1.0 / sum;
                    o[at..at + dim].iter_mut().zip(from).for_each(|(o, x)| *o = x * inverse);
                }
            });
        }
    });
    (out, lse)
}

/// Scores become weights `exp(score - largest)`; what a row may not see becomes 0. Returns each row's sum.
#[inline(always)]
fn softmax_weights(block: &Block, heads: Heads, kv: usize, scores: &mut [f32], lse: &mut [f32]) -> Vec<f32> {
    let (share, scale) = (heads.sharing(), heads.scale());
    let mut sums = Vec::with_capacity(block.rows * share);
    for (i, row) in scores.chunks_exact_mut(stride_of(block)).enumerate() {
        let (seen, unseen) = row[..block.keys()].split_at_mut(block.prefix_len + block.visible(i / share));
        let shift = max(seen) * scale;
        let sum = exp_scaled_in_place(seen, scale, shift);
        unseen.fill(0.0);
        lse[i / share * heads.query + kv * share + i % share] = shift + sum.ln();
        sums.push(sum);
    }
    sums
}

/// What the backward pass reads besides the inputs.
#[derive(Clone, Copy)]
struct Saved<'a> {
    out: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
}

/// One key/value head's share of a part of a tree.
struct Partial {
    kv: usize,
    /// `[tree length, dim]`
    dk: Vec<f32>,
    dv: Vec<f32>,
    /// First row within the tree, and `[rows, sharing * dim]`.
    dq: Vec<(usize, Vec<f32>)>,
}

/// `dq`, `dk`, `dv`.
fn backward_slices(layout: &AttentionLayout, slices: Slices, saved: Saved) -> [Vec<f32>; 3] {
    let heads = slices.heads;
    let (q_width, kv_width) = (heads.query_width(), heads.key_value_width());
    let n = layout.tokens();
    let mut gradients = [vec![0f32; n * q_width], vec![0f32; n * kv_width], vec![0f32; n * kv_width]];
    let [dq, dk, dv] = &mut gradients;
    let mut tasks = Vec::new();
    let (mut dq_rest, mut dk_rest, mut dv_rest) = (&mut dq[..], &mut dk[..], &mut dv[..]);
    for blocks in layout.blocks() {
        let len = blocks.iter().map(|block| block.rows).sum::<usize>();
        let (dq, rest) = dq_rest.split_at_mut(len * q_width);
        dq_rest = rest;
        let (dk, rest) = dk_rest.split_at_mut(len * kv_width);
        dk_rest = rest;
        let (dv, rest) = dv_rest.split_at_mut(len * kv_width);
        dv_rest = rest;
        tasks.push((blocks, len, dq, dk, dv));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(blocks, len, dq, dk, dv)| {
        let parts = if len > LONG_TREE { PARTS } else { 1 };
        let jobs: Vec<_> = (0..heads.key_value).flat_map(|kv| (0..parts).map(move |p| (kv, p))).collect();
        let partials: Vec<Partial> = jobs
            .into_par_iter()
            .with_max_len(1)
            .map(|(kv, part)| part_backward(slices, saved, (blocks, len), kv, (part, parts)))
            .collect();
        let span = heads.sharing() * heads.dim;
        for partial in &partials {
            for (first, rows) in &partial.dq {
                for (i, row) in rows.chunks_exact(span).enumerate() {
                    dq[(first + i) * q_width + partial.kv * span..][..span].copy_from_slice(row);
                }
            }
        }
        let rows = dk.par_chunks_mut(kv_width).zip(dv.par_chunks_mut(kv_width)).enumerate().with_min_len(64);
        rows.for_each(|(i, (dk, dv))| {
            for part in &partials {
                let (row, at) = (i * heads.dim..(i + 1) * heads.dim, part.kv * heads.dim);
                for (to, from) in [(&mut *dk, &part.dk), (&mut *dv, &part.dv)] {
                    to[at..at + heads.dim].iter_mut().zip(&from[row.clone()]).for_each(|(t, f)| *t += f);
                }
            }
        });
    });
    gradients
}

fn part_backward(
    slices: Slices,
    saved: Saved,
    (blocks, len): (&[Block], usize),
    kv: usize,
    (part, parts): (usize, usize),
) -> Partial {
    let heads = slices.heads;
    let (share, dim, scale) = (heads.sharing(), heads.dim, heads.scale());
    let tree_start = blocks[0].start;
    let mut partial = Partial { kv, dk: vec![0f32; len * dim], dv: vec![0f32; len * dim], dq: Vec::new() };
    let mut scratch = Scratch::default();
    for block in blocks.iter().skip(part).step_by(parts) {
        let stacked = block.rows * share;
        slices.stack(slices.q, block, kv, &mut scratch.q);
        slices.stack(saved.dout, block, kv, &mut scratch.dout);
        slices.stack(saved.out, block, kv, &mut scratch.out);
        let Scratch { q, dout, p, ds, out } = &mut scratch;
        let stride = stride_of(block);
        p.resize(stacked * stride, 0.0);
        ds.resize(stacked * stride, 0.0);
        slices.outer(block, q, slices.k, kv, p);
        slices.outer(block, dout, slices.v, kv, ds);
        vectorize!({
            for i in 0..stacked {
                let row = i * dim..(i + 1) * dim;
                let d = dot(&out[row.clone()], &dout[row]);
                let lse = saved.lse[(block.start + i / share) * heads.query + kv * share + i % share];
                let keys = i * stride..i * stride + block.keys();
                let seen = block.prefix_len + block.visible(i / share);
                let (p, ds) = (&mut p[keys.clone()], &mut ds[keys]);
                for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                    *p = exp(*p * scale - lse);
                    *ds = *p * (*ds - d) * scale;
                }
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
        });
        let mut dq = Vec::new();
        slices.inner(block, ds, slices.k, kv, &mut dq);
        partial.dq.push((block.start - tree_start, dq));
        for (start, len, column) in parts_of(block) {
            let at = (start - tree_start) * dim;
            for (weights, from, to) in [(&*ds, &*q, &mut partial.dk), (&*p, &*dout, &mut partial.dv)] {
                let weights = Mat::strided(&weights[column..], stacked, len, stride).t();
                let to = MatMut { data: &mut to[at..], row_stride: dim };
                gemm(weights, Mat::row_major(from, stacked, dim), to, Write::Accumulate, Threads::One);
            }
        }
    }
    partial
}
