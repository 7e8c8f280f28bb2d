//! What a rollout computed and the update would compute again: block inputs, or all activations, of the prompts
//! (from the prefill) and of the completions' tokens (from the decode steps).
//!
//! On-policy the weights of the update are those of the rollout, so the update's forward pass has nothing to add.

use candle_core::Tensor;

use super::block::Activations;
use super::decoder::{Forward, Keep, Kept};
use crate::error::{Error, Result};
use crate::ops::attention::AttentionLayout;
use crate::ops::embedding::{self, RowRun, Runs};
use crate::ops::indices::Indices;
use crate::types::{PackedBatch, Segment};

/// One tensor of one layer: the prompts' rows and the completions'.
#[derive(Clone)]
struct Taped {
    /// `[all prompts' tokens, width]`
    prompts: Tensor,
    /// `[sequences * capacity, width]`; row `s * capacity + t` belongs to token t of sequence s.
    completions: Tensor,
}

impl Taped {
    fn new(prompts: Tensor, slots: usize) -> Result<Self> {
        let completions = Tensor::zeros((slots, prompts.dim(1)?), prompts.dtype(), prompts.device())?;
        Ok(Self { prompts, completions })
    }

    fn record(&self, slots: &Indices, rows: &Tensor) -> Result<()> {
        embedding::scatter(&self.completions, slots, rows)
    }

    fn gather(&self, runs: &Runs) -> Result<Tensor> {
        embedding::gather_runs([&self.prompts, &self.completions], runs)
    }
}

/// One block's activations: its input alone, or all nine of [`Activations::tensors`].
type TapedLayer = Vec<Taped>;

/// One block's rows of a packed batch, still in the tape.
pub(super) struct TapedBlock {
    layer: TapedLayer,
    runs: std::rc::Rc<Runs>,
}

impl TapedBlock {
    pub(super) fn gather(self) -> Result<Kept> {
        let gathered = self.layer.iter().map(|taped| taped.gather(&self.runs)).collect::<Result<Vec<_>>>()?;
        match <[Tensor; 9]>::try_from(gathered) {
            Ok(tensors) => Ok(Kept::Activations(Box::new(Activations::from_tensors(tensors)))),
            Err(mut input) => {
                input.pop().map(Kept::Input).ok_or_else(|| Error::Compute("an empty tape".into()))
            }
        }
    }
}

/// Activations of one rollout pack.
pub struct Tape {
    layers: Vec<TapedLayer>,
    hidden: Taped,
    /// Prompts in `prompts` rows.
    segments: Vec<Segment>,
    group_size: usize,
    capacity: usize,
}

/// A group of the rollout pack and how many input rows each of its completions has.
#[derive(Clone, Copy, Debug)]
pub struct TapedGroup<'a> {
    /// Index within the rollout pack.
    pub index: usize,
    pub completion_rows: &'a [usize],
}

/// What a tape is made for.
#[derive(Clone, Copy, Debug)]
pub struct Recording {
    /// [`Keep::Nothing`]: no tape.
    pub keep: Keep,
    pub group_size: usize,
    /// Completion tokens a sequence may have.
    pub capacity: usize,
}

impl Tape {
    /// `layers`: of each block the prefill's input alone or all of [`Activations::tensors`]; `hidden`: its output.
    pub(super) fn new(
        layers: Vec<Vec<Tensor>>,
        hidden: Tensor,
        segments: &[Segment],
        recording: Recording,
    ) -> Result<Self> {
        let Recording { group_size, capacity, .. } = recording;
        let slots = segments.len() * group_size * capacity;
        let layer = |prompts: Vec<Tensor>| prompts.into_iter().map(|t| Taped::new(t, slots)).collect();
        Ok(Self {
            layers: layers.into_iter().map(layer).collect::<Result<_>>()?,
            hidden: Taped::new(hidden, slots)?,
            segments: segments.to_vec(),
            group_size,
            capacity,
        })
    }

    /// Writes one decode step's rows of one layer.
    pub(super) fn record(&self, layer: usize, slots: &Indices, a: &Activations) -> Result<()> {
        self.layers[layer].iter().zip(a.tensors()).try_for_each(|(taped, rows)| taped.record(slots, rows))
    }

    pub(super) fn record_hidden(&self, slots: &Indices, hidden: &Tensor) -> Result<()> {
        self.hidden.record(slots, hidden)
    }

    /// The forward pass of `batch`, which packs `groups` in this order. Rows are copied out block by block during
    /// the backward pass; the tape's memory is freed along, once the tape itself is dropped.
    ///
    /// # Errors
    /// When the rows of `groups` are not those of `batch`.
    pub fn forward(&self, batch: &PackedBatch, groups: &[TapedGroup]) -> Result<Forward> {
        let mut runs = Vec::new();
        for group in groups {
            let prompt = self.segments[group.index];
            runs.push(RowRun { part: 0, start: prompt.start, len: prompt.len });
            for (completion, &len) in group.completion_rows.iter().enumerate() {
                let sequence = group.index * self.group_size + completion;
                runs.push(RowRun { part: 1, start: sequence * self.capacity, len });
            }
        }
        let runs = std::rc::Rc::new(Runs::new(runs));
        if runs.rows() != batch.tokens.len() {
            return Err(Error::Compute("the tape's rows are not the packed batch's".into()));
        }
        let hidden = self.hidden.gather(&runs)?;
        let block = |layer: &TapedLayer| Kept::Taped(TapedBlock { layer: layer.clone(), runs: runs.clone() });
        let kept = self.layers.iter().map(block).collect();
        let positions = Indices::new(batch.positions.as_slice());
        Ok(Forward { hidden, kept, layout: AttentionLayout::new(&batch.segments)?, positions })
    }
}
