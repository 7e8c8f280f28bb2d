//! Keys and values of a rollout: the prompts' once, each completion's own beside them.

use candle_core::Tensor;

use super::block::{Activations, CacheRows, Projected};
use super::decoder::Decoder;
use super::keep::Keep;
use super::tape::{Slots, Tape, Taping};
use crate::error::Result;
use crate::ops::decode_attention::{self, Cache, Readers};
use crate::ops::embedding::{self, RowRun, Runs};
use crate::ops::indices::Indices;
use crate::stop;
use crate::types::PackedBatch;

/// One layer's keys and values.
struct Layer {
    /// `[all prompts' tokens, width]`
    prefix_k: Tensor,
    prefix_v: Tensor,
    /// `[sequences, capacity, width]`
    own_k: Tensor,
    own_v: Tensor,
}

pub struct KvCache {
    layers: Vec<Layer>,
    capacity: usize,
    tape: Option<Tape>,
}

/// The rows of one decode step. All completions of a batch advance together, so they have equal length.
#[derive(Clone, Copy)]
pub struct DecodeStep<'a> {
    /// The token each active sequence has just sampled. `[R]`
    pub tokens: &'a [u32],
    /// `[R]`
    pub positions: &'a [u32],
    /// Sequence of each row in the cache, and the prompts of the rows in row order.
    pub readers: &'a Readers,
    /// Tokens of every active completion already in the cache.
    pub cached: usize,
}

impl KvCache {
    /// The tape of the rollout, when one was recorded.
    pub fn into_tape(self) -> Option<Tape> {
        self.tape
    }
}

impl Decoder {
    /// Runs the prompts, a segment each: their hidden states `[T, H]`, and a cache with room for the completions that
    /// `slots` says. What `taping` asks for of the first prompts and their completions is taped.
    pub fn prefill(&self, batch: &PackedBatch, slots: Slots, taping: Taping) -> Result<(Tensor, KvCache)> {
        let sequences = batch.segments.len() * slots.per_prompt;
        let shape = (sequences, slots.tokens, self.heads().key_value_width());
        let own = || Tensor::zeros(shape, self.dtype(), self.device());
        let (mut prefixes, mut kept) = (Vec::new(), Vec::new());
        let taped = &batch.segments[..taping.prompts];
        let rows = taped.last().map_or(0, |prompt| prompt.start + prompt.len);
        let hidden = self
            .forward_with(batch, |k, a| {
                prefixes.push((k, a.v.clone()));
                match taping.keep {
                    _ if rows == 0 => {}
                    Keep::Nothing => {}
                    Keep::Inputs => kept.push(vec![first_rows(&a.x, rows)?]),
                    Keep::Activations => {
                        let tensors = a.tensors().map(|tensor| first_rows(tensor, rows));
                        kept.push(tensors.into_iter().collect::<Result<_>>()?);
                    }
                }
                Ok(None)
            })?
            .hidden;
        let layers = prefixes
            .into_iter()
            .map(|(prefix_k, prefix_v)| Ok(Layer { prefix_k, prefix_v, own_k: own()?, own_v: own()? }))
            .collect::<Result<_>>()?;
        let tape = match kept.is_empty() {
            true => None,
            false => Some(Tape::new(kept, first_rows(&hidden, rows)?, taped, slots)?),
        };
        Ok((hidden, KvCache { layers, capacity: slots.tokens, tape }))
    }

    /// Hidden states of one new token per row, `[R, H]`; their keys and values join the cache.
    pub fn decode(&self, cache: &KvCache, step: DecodeStep) -> Result<Tensor> {
        stop::look()?;
        let heads = self.heads();
        let eps = self.config.rms_norm_eps as f32;
        let sequences = step.readers.sequences().iter();
        let slot = |sequence: &usize| sequence * cache.capacity + step.cached;
        let slots: Indices = sequences.clone().map(slot).collect();
        // The rows are in the order of their sequences.
        let taped = cache.tape.as_ref().map(|tape| {
            let slots: Vec<usize> = sequences.take_while(|s| **s < tape.sequences()).map(slot).collect();
            (tape, slots.len(), slots.into_iter().collect::<Indices>())
        });
        let taped = taped.filter(|(_, rows, _)| *rows > 0);
        let positions = Indices::new(step.positions);
        let mut x = self.embed(step.tokens)?;
        for (index, (block, layer)) in self.layers().zip(&cache.layers).enumerate() {
            let read = Cache {
                prefix_k: &layer.prefix_k,
                prefix_v: &layer.prefix_v,
                own_k: &layer.own_k,
                own_v: &layer.own_v,
            };
            let (own_k, own_v) = (layer.own_k.flatten(0, 1)?, layer.own_v.flatten(0, 1)?);
            let own_len = step.cached + 1;
            let cache_rows = CacheRows { k: &own_k, v: &own_v, slots: &slots };
            // Where keys and values go to the cache alone, they are made there.
            let straight = match taped.as_ref().is_none_or(|(tape, ..)| tape.has_inputs_only()) {
                true => block.project_into(&x, &positions, self.rope(), eps, cache_rows)?,
                false => None,
            };
            let y = if let Some(q) = straight {
                let (attended, _) = decode_attention::forward(heads, &q, read, step.readers, own_len)?;
                if let Some((tape, rows, slots)) = &taped {
                    tape.record(index, slots, *rows, &[&x])?;
                }
                block.finish(&x, &attended, eps)?.0
            } else {
                let projected = block.project(&x, &positions, self.rope(), eps)?;
                let Projected { q, k, v, .. } = &projected;
                embedding::scatter(&own_k, &slots, k)?;
                embedding::scatter(&own_v, &slots, v)?;
                let (attended, lse) = decode_attention::forward(heads, q, read, step.readers, own_len)?;
                let (y, x_mid, gate_up) = block.finish(&x, &attended, eps)?;
                if let Some((tape, rows, slots)) = &taped {
                    let [q, k, v] = projected.into_kept();
                    let activations = Activations { x, q, k, v, attended, lse, x_mid, gate_up };
                    tape.record(index, slots, *rows, &activations.tensors())?;
                }
                y
            };
            x = y;
        }
        if let Some((tape, rows, slots)) = &taped {
            tape.record_hidden(slots, *rows, &x)?;
        }
        Ok(x)
    }
}

/// The first rows of `[T, width]`, in memory of their own where they are not all.
fn first_rows(tensor: &Tensor, rows: usize) -> Result<Tensor> {
    if rows == tensor.dim(0)? {
        return Ok(tensor.clone());
    }
    embedding::gather_runs([tensor, tensor], &Runs::new(vec![RowRun { part: 0, start: 0, len: rows }]))
}
