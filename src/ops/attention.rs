//! Packed shared-prefix attention: a token attends causally within its segment and to all of the segment's
//! prefix. Scores exist one block of query rows at a time, never as a `[T, T]` matrix.
//!
//! Softmax with the log-sum-exp kept for the backward pass: Dao et al., FlashAttention, arXiv:2205.14135.
//! One prompt computed once for all its completions: Prefix Grouper, arXiv:2506.05433.

use candle_core::Tensor;
use rayon::prelude::*;

use super::cuda::attention::DeviceLayout;
use super::gemm::{Mat, MatMut, Threads, Write, gemm};
use super::simd::{dot, exp, exp_scaled_in_place, max, vectorize};
use super::{View, cuda, tensor};
use crate::error::{Error, Result};
use crate::types::Segment;

/// Query rows whose scores are computed together: a block of scores over 1.5k keys stays in the L2 cache.
const BLOCK_ROWS: usize = 96;

/// Head counts and width. Query head `i` reads key/value head `i / (query / key_value)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    pub query: usize,
    pub key_value: usize,
    pub dim: usize,
}

impl Heads {
    pub fn query_width(&self) -> usize {
        self.query * self.dim
    }

    pub fn key_value_width(&self) -> usize {
        self.key_value * self.dim
    }

    /// Query heads that share one key/value head.
    pub fn sharing(&self) -> usize {
        self.query / self.key_value
    }

    /// `1 / sqrt(dim)`
    pub fn scale(&self) -> f32 {
        1.0 / (self.dim as f32).sqrt()
    }
}

/// A run of query rows of one segment and the keys they may see: all of the prefix, and their own segment up
/// to each row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// First query row.
    pub(crate) start: usize,
    pub(crate) rows: usize,
    pub(crate) prefix_start: usize,
    pub(crate) prefix_len: usize,
    pub(crate) own_start: usize,
    /// Own keys that the last row sees.
    pub(crate) own_len: usize,
}

impl Block {
    fn keys(&self) -> usize {
        self.prefix_len + self.own_len
    }

    /// Own keys that row `r` sees.
    fn visible(&self, r: usize) -> usize {
        self.own_len - self.rows + r + 1
    }
}

/// A prompt with its completions, or a segment alone: contiguous rows that attend to nothing else.
#[derive(Clone, Debug)]
struct Tree {
    start: usize,
    len: usize,
    blocks: Vec<Block>,
}

/// Who attends to whom in one packed batch.
#[derive(Clone, Debug)]
pub struct AttentionLayout {
    trees: Vec<Tree>,
    tokens: usize,
    /// The copy on a device, made by the first layer that runs there.
    pub(super) there: std::sync::OnceLock<DeviceLayout>,
}

impl AttentionLayout {
    /// Segments must follow one another without gaps, each prefix directly before the segments that use it.
    pub fn new(segments: &[Segment]) -> Result<Self> {
        let mut trees: Vec<Tree> = Vec::new();
        let mut root = 0;
        let mut tokens = 0;
        for (i, segment) in segments.iter().enumerate() {
            let refuse = |why: &str| Err(Error::Compute(format!("packed segment {i}: {why}").into()));
            if segment.start != tokens {
                return refuse("does not start where the one before it ends");
            }
            if segment.len == 0 {
                return refuse("is empty");
            }
            let prefix = match segment.prefix {
                None => {
                    root = i;
                    trees.push(Tree { start: segment.start, len: 0, blocks: Vec::new() });
                    None
                }
                Some(p) if p == root && i > 0 => Some(segments[p]),
                Some(_) => return refuse("its prefix is not the last segment without one"),
            };
            let Some(tree) = trees.last_mut() else { return refuse("has no root") };
            for first in (0..segment.len).step_by(BLOCK_ROWS) {
                let rows = BLOCK_ROWS.min(segment.len - first);
                tree.blocks.push(Block {
                    start: segment.start + first,
                    rows,
                    prefix_start: prefix.map_or(0, |p| p.start),
                    prefix_len: prefix.map_or(0, |p| p.len),
                    own_start: segment.start,
                    own_len: first + rows,
                });
            }
            tree.len += segment.len;
            tokens += segment.len;
        }
        Ok(Self { trees, tokens, there: std::sync::OnceLock::new() })
    }

    /// The blocks of each tree, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &[Block]> {
        self.trees.iter().map(|tree| tree.blocks.as_slice())
    }

    /// T, the number of packed tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Pairs (query, key) that attend to each other: what attention has to compute, per head.
    pub fn pairs(&self) -> usize {
        let blocks = self.trees.iter().flat_map(|tree| &tree.blocks);
        blocks.map(|b| (0..b.rows).map(|r| b.prefix_len + b.visible(r)).sum::<usize>()).sum()
    }
}

/// Inputs of one attention layer; q and k already rotated.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    pub layout: &'a AttentionLayout,
    pub heads: Heads,
    /// `[T, query heads * dim]`
    pub q: &'a Tensor,
    /// `[T, key/value heads * dim]`
    pub k: &'a Tensor,
    /// `[T, key/value heads * dim]`
    pub v: &'a Tensor,
}

struct Slices<'a> {
    heads: Heads,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
}

impl Slices<'_> {
    /// Rows `start..start + rows` of query head `head`, in q or anything shaped like it.
    fn query_rows<'b>(&self, x: &'b [f32], start: usize, rows: usize, head: usize) -> Mat<'b> {
        let width = self.heads.query_width();
        Mat::strided(&x[start * width + head * self.heads.dim..], rows, self.heads.dim, width)
    }

    /// Rows of the key/value head that query head `head` reads, in k or v.
    fn key_rows<'b>(&self, x: &'b [f32], start: usize, rows: usize, head: usize) -> Mat<'b> {
        let width = self.heads.key_value_width();
        let column = head / self.heads.sharing() * self.heads.dim;
        Mat::strided(&x[start * width + column..], rows, self.heads.dim, width)
    }

    /// `out[rows, keys] = a_rows b_keys^T` for the block's prefix and own keys.
    fn outer(&self, block: &Block, a: Mat, b: &[f32], head: usize, out: &mut [f32]) {
        let width = block.keys();
        for (start, len, column) in
            [(block.prefix_start, block.prefix_len, 0), (block.own_start, block.own_len, block.prefix_len)]
        {
            if len > 0 {
                let keys = self.key_rows(b, start, len, head).t();
                let out = MatMut { data: &mut out[column..], row_stride: width };
                gemm(a, keys, out, Write::Overwrite, Threads::One);
            }
        }
    }

    /// `out[rows, dim] = p[rows, keys] b_keys` with `out` rows `stride` apart.
    fn inner(&self, block: &Block, p: &[f32], b: &[f32], head: usize, out: MatMut) {
        let width = block.keys();
        let mut write = Write::Overwrite;
        for (start, len, column) in
            [(block.prefix_start, block.prefix_len, 0), (block.own_start, block.own_len, block.prefix_len)]
        {
            if len > 0 {
                let p = Mat::strided(&p[column..], block.rows, len, width);
                let b = self.key_rows(b, start, len, head);
                let out = MatMut { data: &mut *out.data, row_stride: out.row_stride };
                gemm(p, b, out, write, Threads::One);
                write = Write::Accumulate;
            }
        }
    }
}

/// Output `[T, query heads * dim]` and log-sum-exp of the scaled scores `[T, query heads]`.
pub fn forward(inputs: Inputs) -> Result<(Tensor, Tensor)> {
    if cuda::on(inputs.q) {
        return cuda::attention::forward(cuda::attention::layout_of(inputs)?, inputs);
    }
    let Inputs { layout, heads, q, k, v } = inputs;
    let n = layout.tokens;
    let width = heads.query_width();
    let (q_view, k_view, v_view) = (View::new(q)?, View::new(k)?, View::new(v)?);
    let slices = Slices { heads, q: &q_view, k: &k_view, v: &v_view };
    let mut out = vec![0f32; n * width];
    let mut lse = vec![0f32; n * heads.query];
    let mut tasks = Vec::new();
    let (mut out_rest, mut lse_rest) = (&mut out[..], &mut lse[..]);
    for block in layout.trees.iter().flat_map(|tree| &tree.blocks) {
        let (o, rest) = out_rest.split_at_mut(block.rows * width);
        out_rest = rest;
        let (l, rest) = lse_rest.split_at_mut(block.rows * heads.query);
        lse_rest = rest;
        tasks.push((block, o, l));
    }
    // Largest first, so that no thread ends up alone with a long one.
    tasks.sort_by_key(|(block, ..)| std::cmp::Reverse(block.rows * block.keys()));
    tasks.into_par_iter().with_max_len(1).for_each_init(Vec::new, |scores: &mut Vec<f32>, (block, o, l)| {
        scores.resize(block.rows * block.keys(), 0.0);
        for head in 0..heads.query {
            let q = slices.query_rows(slices.q, block.start, block.rows, head);
            slices.outer(block, q, slices.k, head, scores);
            vectorize(|| softmax_rows(block, heads, head, scores, l));
            let o = MatMut { data: &mut o[head * heads.dim..], row_stride: width };
            slices.inner(block, scores, slices.v, head, o);
        }
    });
    Ok((tensor(out, (n, width))?, tensor(lse, (n, heads.query))?))
}

/// Scores become probabilities; what a row may not see becomes 0.
#[inline(always)]
fn softmax_rows(block: &Block, heads: Heads, head: usize, scores: &mut [f32], lse: &mut [f32]) {
    let scale = heads.scale();
    for (r, row) in scores.chunks_exact_mut(block.keys()).enumerate() {
        let (seen, unseen) = row.split_at_mut(block.prefix_len + block.visible(r));
        let shift = max(seen) * scale;
        let sum = exp_scaled_in_place(seen, scale, shift);
        let inverse = 1.0 / sum;
        seen.iter_mut().for_each(|p| *p *= inverse);
        unseen.fill(0.0);
        lse[r * heads.query + head] = shift + sum.ln();
    }
}

/// What the forward pass produced, and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Upstream<'a> {
    /// `[T, query heads * dim]`
    pub out: &'a Tensor,
    /// `[T, query heads]`
    pub lse: &'a Tensor,
    /// `[T, query heads * dim]`
    pub dout: &'a Tensor,
}

/// Gradients of q, k and v, shaped like them. The prompt's k and v collect the gradients of all completions.
pub struct Gradients {
    pub dq: Tensor,
    pub dk: Tensor,
    pub dv: Tensor,
}

/// One query head's share of a tree's gradients, `[tree length, dim]` each.
struct Partial {
    head: usize,
    dq: Vec<f32>,
    dk: Vec<f32>,
    dv: Vec<f32>,
}

/// With `P = exp(scale q k^T - lse)` and `D = rowsum(out * dout)`: `dv = P^T dout`,
/// `dS = P * (dout v^T - D) * scale`, `dq = dS k`, `dk = dS^T q`.
///
/// Deterministic: each head's blocks are split into a number of parts that depends on the tree's length only,
/// and the parts are summed in order.
pub fn backward(inputs: Inputs, upstream: Upstream) -> Result<Gradients> {
    if cuda::on(inputs.q) {
        return cuda::attention::backward(cuda::attention::layout_of(inputs)?, inputs, upstream);
    }
    let Inputs { layout, heads, q, k, v } = inputs;
    let n = layout.tokens;
    let (q_width, kv_width) = (heads.query_width(), heads.key_value_width());
    let (q_view, k_view, v_view) = (View::new(q)?, View::new(k)?, View::new(v)?);
    let (out, lse, dout) = (View::new(upstream.out)?, View::new(upstream.lse)?, View::new(upstream.dout)?);
    let slices = Slices { heads, q: &q_view, k: &k_view, v: &v_view };
    let (mut dq, mut dk, mut dv) =
        (vec![0f32; n * q_width], vec![0f32; n * kv_width], vec![0f32; n * kv_width]);
    let mut tasks = Vec::new();
    let (mut dq_rest, mut dk_rest, mut dv_rest) = (&mut dq[..], &mut dk[..], &mut dv[..]);
    for tree in &layout.trees {
        let (a, rest) = dq_rest.split_at_mut(tree.len * q_width);
        dq_rest = rest;
        let (b, rest) = dk_rest.split_at_mut(tree.len * kv_width);
        dk_rest = rest;
        let (c, rest) = dv_rest.split_at_mut(tree.len * kv_width);
        dv_rest = rest;
        tasks.push((tree, a, b, c));
    }
    tasks.into_par_iter().with_max_len(1).for_each(|(tree, dq, dk, dv)| {
        let parts = if tree.len > 4 * BLOCK_ROWS { 2 } else { 1 };
        let jobs: Vec<_> = (0..heads.query).flat_map(|h| (0..parts).map(move |p| (h, p))).collect();
        let partials: Vec<Partial> = jobs
            .into_par_iter()
            .with_max_len(1)
            .map(|(head, part)| {
                let blocks = tree.blocks.iter().skip(part).step_by(parts);
                head_backward(&slices, tree.start..tree.start + tree.len, head, blocks, [&out, &lse, &dout])
            })
            .collect();
        let rows = dq
            .par_chunks_mut(q_width)
            .zip(dk.par_chunks_mut(kv_width))
            .zip(dv.par_chunks_mut(kv_width))
            .enumerate()
            .with_min_len(32);
        rows.for_each(|(i, ((dq, dk), dv))| {
            let row = i * heads.dim..(i + 1) * heads.dim;
            for part in &partials {
                let (q_at, kv_at) = (part.head * heads.dim, part.head / heads.sharing() * heads.dim);
                for (to, from) in [
                    (&mut dq[q_at..q_at + heads.dim], &part.dq),
                    (&mut dk[kv_at..kv_at + heads.dim], &part.dk),
                    (&mut dv[kv_at..kv_at + heads.dim], &part.dv),
                ] {
                    to.iter_mut().zip(&from[row.clone()]).for_each(|(t, f)| *t += f);
                }
            }
        });
    });
    Ok(Gradients {
        dq: tensor(dq, (n, q_width))?,
        dk: tensor(dk, (n, kv_width))?,
        dv: tensor(dv, (n, kv_width))?,
    })
}

fn head_backward<'b>(
    slices: &Slices,
    rows: std::ops::Range<usize>,
    head: usize,
    blocks: impl Iterator<Item = &'b Block>,
    [out, lse, dout]: [&[f32]; 3],
) -> Partial {
    let heads = slices.heads;
    let dim = heads.dim;
    let zeros = || vec![0f32; rows.len() * dim];
    let mut partial = Partial { head, dq: zeros(), dk: zeros(), dv: zeros() };
    let (mut p, mut ds) = (Vec::new(), Vec::new());
    for block in blocks {
        let size = block.rows * block.keys();
        p.resize(size, 0f32);
        ds.resize(size, 0f32);
        let q = slices.query_rows(slices.q, block.start, block.rows, head);
        let g = slices.query_rows(dout, block.start, block.rows, head);
        slices.outer(block, q, slices.k, head, &mut p);
        slices.outer(block, g, slices.v, head, &mut ds);
        vectorize(|| {
            for r in 0..block.rows {
                let row = block.start + r;
                let at = row * heads.query_width() + head * dim;
                let d = dot(&out[at..at + dim], &dout[at..at + dim]);
                let keys = r * block.keys()..(r + 1) * block.keys();
                let seen = block.prefix_len + block.visible(r);
                let (p, ds) = (&mut p[keys.clone()], &mut ds[keys]);
                let (scale, lse) = (heads.scale(), lse[row * heads.query + head]);
                for (p, ds) in p[..seen].iter_mut().zip(&mut ds[..seen]) {
                    *p = exp(*p * scale - lse);
                    *ds = *p * (*ds - d) * scale;
                }
                p[seen..].fill(0.0);
                ds[seen..].fill(0.0);
            }
        });
        let at = (block.start - rows.start) * dim;
        slices.inner(block, &ds, slices.k, head, MatMut { data: &mut partial.dq[at..], row_stride: dim });
        for (start, len, column) in
            [(block.prefix_start, block.prefix_len, 0), (block.own_start, block.own_len, block.prefix_len)]
        {
            if len == 0 {
                continue;
            }
            let at = (start - rows.start) * dim;
            for (weights, from, to) in [(&ds, q, &mut partial.dk), (&p, g, &mut partial.dv)] {
                let weights = Mat::strided(&weights[column..], block.rows, len, block.keys()).t();
                let to = MatMut { data: &mut to[at..], row_stride: dim };
                gemm(weights, from, to, Write::Accumulate, Threads::One);
            }
        }
    }
    partial
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(start: usize, len: usize, prefix: Option<usize>) -> Segment {
        Segment { start, len, prefix }
    }

    #[test]
    fn pairs_of_a_group_grow_with_p_plus_g_r() {
        // Prompt 4: 1+2+3+4 = 10. Each completion of 3 sees the prompt and itself: 5+6+7 = 18.
        let segments = [segment(0, 4, None), segment(4, 3, Some(0)), segment(7, 3, Some(0))];
        assert_eq!(AttentionLayout::new(&segments).unwrap().pairs(), 46);
    }

    #[test]
    fn bad_segments_are_refused() {
        for (segments, want) in [
            (vec![segment(1, 2, None)], "does not start"),
            (vec![segment(0, 0, None)], "is empty"),
            (vec![segment(0, 2, Some(0))], "prefix"),
            (vec![segment(0, 2, None), segment(2, 2, None), segment(4, 1, Some(0))], "prefix"),
        ] {
            let err = AttentionLayout::new(&segments).unwrap_err().to_string();
            assert!(err.contains(want), "{err}");
        }
    }
}
