//! What a rollout computed and the update would compute again: block inputs, or all activations, of the prompts
//! (from the prefill) and of the completions' tokens (from the decode steps).
//!
//! On-policy the weights of the update are those of the rollout, so the update's forward pass has nothing to add.

use std::rc::Rc;

use candle_core::Tensor;

use super::keep::Keep;
use crate::error::{Error, Result};
use crate::ops::embedding::{self, RowRun, Runs};
use crate::ops::indices::Indices;
use crate::types::{PackedBatch, Segment};

/// Completions a prompt may have in a rollout.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// Completions of each prompt, G.
    pub per_prompt: usize,
    /// Tokens a completion may have.
    pub tokens: usize,
}

/// What of a rollout pack is taped.
#[derive(Clone, Copy, Debug)]
pub struct Taping {
    pub keep: Keep,
    /// How many of the pack's first prompts, with their completions.
    pub prompts: usize,
}

/// One tensor of one layer: the prompts' rows and the completions'.
#[derive(Clone)]
struct Taped {
    /// `[all prompts' tokens, width]`
    prompts: Tensor,
    /// `[sequences * slots.tokens, width]`; row `s * slots.tokens + t` belongs to token t of sequence s.
    completions: Tensor,
}

impl Taped {
    fn new(prompts: Tensor, rows: usize) -> Result<Self> {
        let completions = Tensor::zeros((rows, prompts.dim(1)?), prompts.dtype(), prompts.device())?;
        Ok(Self { prompts, completions })
    }

    /// The first `count` of `rows`, to `at`.
    fn record(&self, at: &Indices, count: usize, rows: &Tensor) -> Result<()> {
        match count == rows.dim(0)? {
            true => embedding::scatter(&self.completions, at, rows),
            false => embedding::scatter(&self.completions, at, &rows.narrow(0, 0, count)?),
        }
    }

    fn gather(&self, runs: &Runs) -> Result<Tensor> {
        embedding::gather_runs([&self.prompts, &self.completions], runs)
    }
}

/// One block's rows of a packed batch, still in the tape.
pub(super) struct TapedBlock {
    tensors: Vec<Taped>,
    runs: Rc<Runs>,
}

impl TapedBlock {
    /// The block's input alone, or all of `Activations::tensors`.
    pub fn gather(self) -> Result<Vec<Tensor>> {
        self.tensors.iter().map(|taped| taped.gather(&self.runs)).collect()
    }
}

/// Activations of the first prompts of one rollout pack, and of their completions.
pub struct Tape {
    /// What is kept of each block: its input alone, or all of `Activations::tensors`.
    blocks: Vec<Vec<Taped>>,
    hidden: Taped,
    /// The prompts' rows.
    prompts: Vec<Segment>,
    slots: Slots,
}

impl Tape {
    /// `blocks`: what the prefill kept of each; `hidden`: its output.
    pub(super) fn new(
        blocks: Vec<Vec<Tensor>>,
        hidden: Tensor,
        prompts: &[Segment],
        slots: Slots,
    ) -> Result<Self> {
        let rows = prompts.len() * slots.per_prompt * slots.tokens;
        let block = |tensors: Vec<Tensor>| tensors.into_iter().map(|t| Taped::new(t, rows)).collect();
        Ok(Self {
            blocks: blocks.into_iter().map(block).collect::<Result<_>>()?,
            hidden: Taped::new(hidden, rows)?,
            prompts: prompts.to_vec(),
            slots,
        })
    }

    /// Sequences of the rollout pack, from the first, that are taped.
    pub(super) fn sequences(&self) -> usize {
        self.prompts.len() * self.slots.per_prompt
    }

    /// Writes the first `count` of one decode step's rows of one block.
    pub(super) fn record(&self, block: usize, at: &Indices, count: usize, rows: &[&Tensor]) -> Result<()> {
        self.blocks[block].iter().zip(rows).try_for_each(|(taped, rows)| taped.record(at, count, rows))
    }

    /// Whether block inputs are all that is kept.
    pub(super) fn has_inputs_only(&self) -> bool {
        self.blocks.iter().all(|kept| kept.len() == 1)
    }

    pub(super) fn record_hidden(&self, at: &Indices, count: usize, hidden: &Tensor) -> Result<()> {
        self.hidden.record(at, count, hidden)
    }

    /// Where the rows of `batch` lie, which packs `groups` of the rollout in this order.
    pub(super) fn runs(&self, batch: &PackedBatch, groups: &[usize]) -> Result<Runs> {
        let Slots { per_prompt, tokens } = self.slots;
        let mut runs = Vec::new();
        for (&group, counts) in groups.iter().zip(batch.target_counts.chunks(per_prompt.max(1))) {
            let prompt = self.prompts[group];
            runs.push(RowRun { part: 0, start: prompt.start, len: prompt.len });
            runs.extend(counts.iter().enumerate().map(|(completion, count)| RowRun {
                part: 1,
                start: (group * per_prompt + completion) * tokens,
                // The last token predicts nothing and is no input.
                len: count.saturating_sub(1),
            }));
        }
        let runs = Runs::new(runs);
        if runs.rows() != batch.tokens.len() {
            return Err(Error::Compute("the tape's rows are not the packed batch's".into()));
        }
        Ok(runs)
    }

    pub(super) fn hidden(&self, runs: &Runs) -> Result<Tensor> {
        self.hidden.gather(runs)
    }

    pub(super) fn blocks(&self, runs: &Rc<Runs>) -> impl Iterator<Item = TapedBlock> {
        self.blocks.iter().map(|tensors| TapedBlock { tensors: tensors.clone(), runs: Rc::clone(runs) })
    }
}
