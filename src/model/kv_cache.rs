//! Keys and values of a rollout: the prompts' once, each completion's own beside them.

use candle_core::{DType, Device, Tensor};

use super::decoder::{Decoder, Forward};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::decode_attention::{self, Cache, Own, SharedPrefix};
use crate::ops::embedding;

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
}

/// The rows of one decode step. All completions of a batch advance together, so they have equal length.
#[derive(Clone, Copy)]
pub struct DecodeStep<'a> {
    /// The token each active sequence has just sampled. `[R]`
    pub tokens: &'a [u32],
    /// `[R]`
    pub positions: &'a [u32],
    /// Sequence of each row in the cache. `[R]`
    pub sequences: &'a [usize],
    /// Prompts of the rows, in row order.
    pub prefixes: &'a [SharedPrefix],
    /// Tokens of every active completion already in the cache.
    pub cached: usize,
}

impl KvCache {
    /// Takes the prompts' keys and values from a prefill that kept them; room for `sequences` completions of up
    /// to `capacity` tokens.
    pub fn new(prefill: Forward, heads: Heads, sequences: usize, capacity: usize) -> Result<Self> {
        let shape = (sequences, capacity, heads.key_value_width());
        let own = || Tensor::zeros(shape, DType::F32, &Device::Cpu);
        let layers = prefill
            .keys_and_values
            .into_iter()
            .map(|(prefix_k, prefix_v)| Ok(Layer { prefix_k, prefix_v, own_k: own()?, own_v: own()? }));
        Ok(Self { layers: layers.collect::<Result<_>>()?, capacity })
    }
}

impl Decoder {
    /// Hidden states of one new token per row, `[R, H]`; their keys and values join the cache.
    pub fn decode(&self, cache: &KvCache, step: DecodeStep) -> Result<Tensor> {
        let heads = self.heads();
        let eps = self.config.rms_norm_eps as f32;
        let slots: Vec<usize> = step.sequences.iter().map(|s| s * cache.capacity + step.cached).collect();
        let mut x = self.embed(step.tokens)?;
        for (block, layer) in self.layers().zip(&cache.layers) {
            let projected = block.project(&x, step.positions, self.rope(), eps)?;
            for (own, new) in [(&layer.own_k, &projected.k), (&layer.own_v, &projected.v)] {
                embedding::scatter(&own.flatten(0, 1)?, &slots, new)?;
            }
            let read = Cache {
                prefix_k: &layer.prefix_k,
                prefix_v: &layer.prefix_v,
                own_k: &layer.own_k,
                own_v: &layer.own_v,
            };
            let own = Own { sequences: step.sequences, len: step.cached + 1 };
            let attended = decode_attention::forward(heads, &projected.q, read, step.prefixes, own)?;
            x = block.finish(&x, &attended, eps)?.0;
        }
        Ok(x)
    }
}
