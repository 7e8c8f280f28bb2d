//! The activations that a rollout kept for its update, a tape for each of its packs.

use std::ops::Range;

use crate::error::Result;
use crate::model::forward::Forward;
use crate::model::tape::Tape;
use crate::types::PackedBatch;

/// Tapes by the groups they are of, in order. Groups between them have none.
#[derive(Default)]
pub struct Tapes(Vec<(Range<usize>, Tape)>);

impl Tapes {
    pub(super) fn push(&mut self, groups: Range<usize>, tape: Tape) {
        self.0.push((groups, tape));
    }

    /// The groups that each tape has.
    pub fn ranges(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.iter().map(|(groups, _)| groups.clone())
    }

    /// Whether one pass may read both groups: they are of one tape, or both of none.
    pub fn together(&self, one: usize, other: usize) -> bool {
        let tape = |group: usize| self.0.iter().position(|(groups, _)| groups.contains(&group));
        tape(one) == tape(other)
    }

    /// The forward pass over `batch`, which packs `groups` in this order; `None` where their activations were not
    /// kept.
    ///
    /// # Errors
    /// When the tape's rows are not the batch's.
    pub fn forward(&self, batch: &PackedBatch, groups: &[usize]) -> Result<Option<Forward>> {
        let Some(first) = groups.first() else { return Ok(None) };
        let Some((range, tape)) = self.0.iter().find(|(range, _)| range.contains(first)) else {
            return Ok(None);
        };
        let in_tape: Vec<usize> = groups.iter().map(|group| group - range.start).collect();
        Forward::from_tape(tape, batch, &in_tape).map(Some)
    }

    /// Frees the tapes that have none of `groups`.
    pub fn retain_for(&mut self, groups: &[usize]) {
        self.0.retain(|(range, _)| groups.iter().any(|group| range.contains(group)));
    }
}
