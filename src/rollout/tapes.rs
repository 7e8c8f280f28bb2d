//! The activations that a rollout kept for its update, a tape for each of its packs.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::model::forward::Forward;
use crate::model::tape::Tape;
use crate::types::PackedBatch;

/// Tapes and the groups they are of, in order. Other groups have none.
#[derive(Default)]
pub struct Tapes(Vec<(Vec<usize>, Tape)>);

impl Tapes {
    pub(super) fn push(&mut self, groups: Range<usize>, tape: Tape) {
        self.0.push((groups.collect(), tape));
    }

    /// The groups that each tape has.
    pub fn groups(&self) -> impl Iterator<Item = &[usize]> + '_ {
        self.0.iter().map(|(groups, _)| groups.as_slice())
    }

    /// Group number i is `numbers[i]` from now on.
    pub fn renumber(&mut self, numbers: &[usize]) {
        let all = self.0.iter_mut().flat_map(|(groups, _)| groups);
        all.for_each(|group| *group = numbers.get(*group).copied().unwrap_or(usize::MAX));
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
        let Some((taped, tape)) = self.0.iter().find(|(taped, _)| taped.contains(first)) else {
            return Ok(None);
        };
        let place = |group: &usize| taped.iter().position(|taped| taped == group);
        let in_tape: Option<Vec<usize>> = groups.iter().map(place).collect();
        let in_tape = in_tape.ok_or_else(|| Error::Compute("a pass over groups of two tapes".into()))?;
        Forward::from_tape(tape, batch, &in_tape).map(Some)
    }

    /// Frees the tapes that have none of `groups`.
    pub fn retain_for(&mut self, groups: &[usize]) {
        self.0.retain(|(taped, _)| groups.iter().any(|group| taped.contains(group)));
    }
}
