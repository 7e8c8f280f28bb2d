//! The arithmetic a GRPO step cannot do without.

use crate::error::Result;
use crate::model::config::ModelConfig;
use crate::ops::attention::AttentionLayout;
use crate::types::{Group, PackedBatch};

/// What a step had to compute: a shared prompt once, nothing that was computed again to save memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Tokens pushed through the blocks in one forward pass of the update, the shared prompt counted once.
    pub packed_tokens: usize,
    /// FLOP of the update: the backward pass, and the forward pass of what the rollout did not keep.
    pub update_flop: f64,
    /// FLOP of one forward pass: the rollout's, prompts once, completions token by token.
    pub rollout_flop: f64,
    /// FLOP of computing blocks again in the backward pass, where their inputs alone are kept: everything but the head
    /// and the down projections. No part of the others.
    pub recompute_flop: f64,
}

impl Work {
    /// Every packed token costs each block weight 2 FLOP forward and 4 backward; so do target rows the head.
    pub fn of(config: &ModelConfig, groups: &[Group]) -> Result<Self> {
        let head = (config.vocab_size * config.hidden_size) as f64;
        let blocks = config.matmul_parameter_count() as f64 - head;
        let down = (config.num_hidden_layers * config.hidden_size * config.intermediate_size) as f64;
        let pair = 4.0 * (config.num_hidden_layers * config.num_attention_heads * config.head_dim) as f64;
        let mut batch = PackedBatch::default();
        for group in groups {
            let completions = group.rollouts.iter().map(|r| r.token_ids.as_slice());
            batch.push_group(&group.prompt.token_ids, completions);
        }
        let pairs = pair * AttentionLayout::new(&batch.segments)?.pairs() as f64;
        let products = blocks * batch.tokens.len() as f64;
        let head = head * batch.targets.len() as f64;
        Ok(Self {
            packed_tokens: batch.tokens.len(),
            rollout_flop: 2.0 * (products + head) + pairs,
            update_flop: 4.0 * (products + head) + 2.0 * pairs,
            recompute_flop: 2.0 * (blocks - down) * batch.tokens.len() as f64 + pairs,
        })
    }

    /// The update computed this share of its forward pass, because no tape had it.
    pub fn add_forward(&mut self, share: f64) {
        self.update_flop += share * self.rollout_flop;
    }

    pub fn flop(&self) -> f64 {
        self.update_flop + self.rollout_flop
    }
}
