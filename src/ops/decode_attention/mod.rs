//! Attention of one new token per sequence. Sequences of a group read their prompt's keys and values once,
//! together; each reads its own beside it; one softmax runs over both.

mod cpu;
pub mod cuda;

use std::sync::OnceLock;

use candle_core::Tensor;

use self::cuda::DecodeLayout;
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::indices::once;
use crate::trail;

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

/// `q: [R, query heads * dim]` -> the same shape, and the log-sum-exp of the scaled scores `[R, query heads]`.
/// Row `r` sees its prompt and the first `own_len` positions of its sequence in the own cache.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails.
pub fn forward(
    heads: Heads,
    q: &Tensor,
    cache: Cache,
    readers: &Readers,
    own_len: usize,
) -> Result<(Tensor, Tensor)> {
    trail::begin("decode_attention");
    if q.device().is_cuda() {
        cuda::forward(readers.there(heads, q)?, q, cache, own_len)
    } else {
        cpu::forward(heads, q, cache, readers, own_len)
    }
}
