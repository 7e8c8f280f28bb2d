//! A finished forward pass over one packed batch, and what of it stays for the backward pass.

use std::rc::Rc;

use candle_core::Tensor;

use super::block::Activations;
use super::tape::{Tape, TapedBlock};
use crate::error::{Error, Result};
use crate::ops::attention::AttentionLayout;
use crate::ops::indices::Indices;
use crate::ops::sampling::Sampling;
use crate::types::{PackedBatch, Target};

/// One block's part of what a forward pass kept.
pub(super) enum Kept {
    Input(Tensor),
    Activations(Box<Activations>),
    /// Rows of a rollout, brought together when the backward pass reaches the block.
    Taped(TapedBlock),
}

/// What a pass reads of its packed batch.
pub(super) struct Rows {
    pub tokens: Indices,
    pub positions: Indices,
    pub layout: AttentionLayout,
    pub targets: Vec<Target>,
}

impl Rows {
    pub fn new(batch: &PackedBatch) -> Result<Self> {
        let layout = AttentionLayout::new(&batch.segments)?;
        if layout.tokens() != batch.tokens.len() || batch.positions.len() != batch.tokens.len() {
            return Err(Error::Compute("packed batch: segments, tokens and positions disagree".into()));
        }
        Ok(Self {
            tokens: Indices::new(batch.tokens.as_slice()),
            positions: Indices::new(batch.positions.as_slice()),
            layout,
            targets: batch.targets.clone(),
        })
    }
}

/// A forward pass and the batch it was made of: log-probs and the backward pass need nothing else.
pub struct Forward {
    /// Before the final norm. `[T, H]`
    pub hidden: Tensor,
    pub(super) kept: Vec<Kept>,
    pub(super) rows: Rows,
}

impl Forward {
    /// The pass over `batch`, which packs `groups` of the tape's rollout in this order: nothing is computed. Rows are
    /// copied out block by block during the backward pass; the tape's memory is freed along, once the tape itself
    /// is dropped.
    ///
    /// # Errors
    /// When the tape's rows of `groups` are not those of `batch`.
    pub fn from_tape(tape: &Tape, batch: &PackedBatch, groups: &[usize]) -> Result<Self> {
        let runs = Rc::new(tape.runs(batch, groups)?);
        let kept = tape.blocks(&runs).map(Kept::Taped).collect();
        Ok(Self { hidden: tape.hidden(&runs)?, kept, rows: Rows::new(batch)? })
    }
}

/// The distribution that log-probs are taken under.
#[derive(Clone, Copy, Debug)]
pub struct Distribution {
    /// Divides the logits.
    pub temperature: f32,
    /// The sampler's cuts, where log-probs are those of what they leave.
    pub cut: Option<Sampling>,
}

impl From<f32> for Distribution {
    fn from(temperature: f32) -> Self {
        Self { temperature, cut: None }
    }
}
