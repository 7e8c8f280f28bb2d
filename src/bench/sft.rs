//! One SFT step on random rows.

use std::time::Instant;

use super::random_tokens;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::observe::Metrics;
use crate::ops::memory::synchronize;
use crate::task::LabelId;
use crate::train::learner::Learner;
use crate::train::sft;
use crate::types::Prompt;

/// Rows of a step, all alike; every count at least 1.
#[derive(Clone, Copy, Debug)]
pub struct SftShape {
    pub rows: usize,
    pub prompt_tokens: usize,
    /// Tokens of the answer: the loss is on these.
    pub target_tokens: usize,
    pub max_tokens_per_pack: usize,
}

impl SftShape {
    /// Step number `step`, whose rows no other step has: its seconds, loss, entropy, num_tokens and grad_norm.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn run(&self, learner: &mut Learner, step: u32) -> Result<(f64, Metrics)> {
        let vocab = learner.decoder().config.vocab_size;
        let row = |i: usize| {
            let mut token_ids =
                random_tokens(vocab, [step, i as u32, 1], self.prompt_tokens + self.target_tokens);
            let target = token_ids.split_off(self.prompt_tokens);
            EncodedRow {
                line: i + 1,
                source: None,
                prompt: Prompt { token_ids },
                gold: LabelId(0),
                target: Some(target),
                attack_succeeded: None,
                evidence: None,
                answers: Vec::new(),
                control_texts: Vec::new(),
                told: None,
                judge: None,
            }
        };
        let rows: Vec<EncodedRow> = (0..self.rows).map(row).collect();
        let start = Instant::now();
        let mut metrics = sft::learn(learner, &rows.iter().collect::<Vec<_>>(), self.max_tokens_per_pack)?;
        metrics.extend(learner.step(1e-6)?);
        synchronize(learner.decoder().device())?;
        Ok((start.elapsed().as_secs_f64(), metrics))
    }
}
