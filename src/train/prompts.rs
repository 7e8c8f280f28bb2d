//! Which prompts a step samples, round after round of dynamic sampling.

use super::objective::Surroundings;
use super::rows::prompt_order;
use crate::config::stages::PromptOrder;
use crate::data::difficulty::{Difficulty, Successes};
use crate::data::order::Order;
use crate::error::Result;

pub struct Prompts {
    order: Order,
    /// In the place of the order, where the easiest and hardest prompts are to come last.
    difficulty: Option<Difficulty>,
    seed: u64,
    per_step: usize,
}

impl Prompts {
    /// `difficulty`: what a checkpoint kept of it.
    pub fn new(around: &Surroundings, difficulty: Option<Difficulty>) -> Result<Self> {
        let (config, rows) = (&around.config.grpo, &around.materials.rows.grpo);
        let by_difficulty = config.order == PromptOrder::Difficulty;
        Ok(Self {
            order: prompt_order(rows, around.config, config.balance, "grpo.balance")?,
            difficulty: by_difficulty.then(|| difficulty.unwrap_or_else(|| Difficulty::new(rows.len()))),
            seed: around.config.seed,
            per_step: config.prompts_per_step,
        })
    }

    pub fn difficulty(&self) -> Option<&Difficulty> {
        self.difficulty.as_ref()
    }

    /// The rows of a round: `wanted` of them, after `taken` in the rounds before.
    pub fn round(&self, step: u64, round: u32, taken: usize, wanted: usize) -> Vec<usize> {
        if let Some(difficulty) = &self.difficulty {
            let rows = difficulty.order(step, self.seed);
            // As many as a step wants may be more than there are rows.
            return (taken..taken + wanted).map(|i| rows[i % rows.len()]).collect();
        }
        if round == 0 {
            return self.order.indices(step, wanted);
        }
        let mut rows = self.order.redrawn(step, self.per_step, round);
        rows.truncate(wanted);
        rows
    }

    /// How the completions of a row fared.
    pub fn tried(&mut self, row: usize, result: Successes) {
        if let Some(difficulty) = &mut self.difficulty {
            difficulty.add(row, result);
        }
    }
}
