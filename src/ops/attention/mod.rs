//! Packed shared-prefix attention: a token attends causally within its segment and to all of the segment's
//! prefix. Scores exist one block of query rows at a time, never as a `[T, T]` matrix.
//!
//! Softmax with the log-sum-exp kept for the backward pass: Dao et al., FlashAttention, arXiv:2205.14135.
//! One prompt computed once for all its completions: Prefix Grouper, arXiv:2506.05433.

mod cpu;
pub mod cuda;
pub mod tiles;

use std::sync::OnceLock;

use candle_core::Tensor;

use self::cuda::DeviceLayout;
use crate::error::Result;
use crate::ops::fault::fault;
use crate::trail;
use crate::types::Segment;

/// Query tokens whose scores are computed together: with three heads that share a key/value head, a block of
/// scores over 1.5k keys stays about within the L2 cache.
const BLOCK_ROWS: usize = 64;

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
struct Block {
    /// First query row.
    start: usize,
    rows: usize,
    prefix_start: usize,
    prefix_len: usize,
    own_start: usize,
    /// Own keys that the last row sees.
    own_len: usize,
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
    len: usize,
    blocks: Vec<Block>,
}

/// Who attends to whom in one packed batch.
#[derive(Clone, Debug)]
pub struct AttentionLayout {
    trees: Vec<Tree>,
    tokens: usize,
    /// The copy on a device, made by the first layer that runs there.
    there: OnceLock<DeviceLayout>,
}

impl AttentionLayout {
    /// Segments must follow one another without gaps, each prefix directly before the segments that use it.
    pub fn new(segments: &[Segment]) -> Result<Self> {
        let mut trees: Vec<Tree> = Vec::new();
        let mut root = 0;
        let mut tokens = 0;
        for (i, segment) in segments.iter().enumerate() {
            let refuse = |why: &str| Err(fault(format!("packed segment {i}: {why}")));
            if segment.start != tokens {
                return refuse("does not start where the one before it ends");
            }
            if segment.len == 0 {
                return refuse("is empty");
            }
            let prefix = match segment.prefix {
                None => {
                    root = i;
                    trees.push(Tree { len: 0, blocks: Vec::new() });
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
        Ok(Self { trees, tokens, there: OnceLock::new() })
    }

    /// The blocks of each tree, in order.
    fn blocks(&self) -> impl Iterator<Item = &[Block]> {
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

/// Output `[T, query heads * dim]` and log-sum-exp of the scaled scores `[T, query heads]`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for [`backward`].
pub fn forward(inputs: Inputs) -> Result<(Tensor, Tensor)> {
    trail::begin("attention");
    if inputs.q.device().is_cuda() {
        cuda::forward(cuda::layout_of(inputs)?, inputs)
    } else {
        cpu::forward(inputs)
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

/// With `P = exp(scale q k^T - lse)` and `D = rowsum(out * dout)`: `dv = P^T dout`,
/// `dS = P * (dout v^T - D) * scale`, `dq = dS k`, `dk = dS^T q`.
///
/// Deterministic: a tree is split into a number of parts that depends on its length only, and the parts are
/// summed in order.
pub fn backward(inputs: Inputs, upstream: Upstream) -> Result<Gradients> {
    trail::begin("attention backward");
    if inputs.q.device().is_cuda() {
        cuda::backward(cuda::layout_of(inputs)?, inputs, upstream)
    } else {
        cpu::backward(inputs, upstream)
    }
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
