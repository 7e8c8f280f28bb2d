//! Answers to random prompts, as an evaluation makes them: greedy, one a prompt.

use std::time::Instant;

use super::random_tokens;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::ops::memory::synchronize;
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::text::StopTokens;
use crate::types::Prompt;

/// Prompts of a round, all alike; every count at least 1.
#[derive(Clone, Copy, Debug)]
pub struct EvalShape {
    pub prompts: usize,
    pub prompt_tokens: usize,
    /// Tokens of each answer, exactly.
    pub new_tokens: usize,
    pub max_rollout_tokens: usize,
}

/// Seconds of a round.
#[derive(Clone, Copy, Debug, Default)]
pub struct Answered {
    pub prefill: f64,
    pub decode: f64,
    pub total: f64,
}

impl EvalShape {
    /// Round number `round`, whose prompts no other round has.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn run(&self, decoder: &Decoder, round: u32) -> Result<Answered> {
        let vocab = decoder.config.vocab_size;
        let prompt = |i| Prompt { token_ids: random_tokens(vocab, [round, i, 2], self.prompt_tokens) };
        let prompts: Vec<Prompt> = (0..self.prompts as u32).map(prompt).collect();
        let requests: Vec<Request> =
            prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
        let none = StopTokens::new(Vec::new());
        let completions = Completions::greedy(self.new_tokens);
        let start = Instant::now();
        let timing = Engine::new(decoder, &none, completions, self.max_rollout_tokens)
            .generate(&requests, Draws::NONE)?
            .timing;
        synchronize(decoder.device())?;
        let total = start.elapsed().as_secs_f64();
        Ok(Answered { prefill: timing.prefill_seconds, decode: timing.decode_seconds, total })
    }
}
