//! One GRPO step on random tokens: rollout, update, optimiser, timed by phase.

use std::time::Instant;

use super::random_tokens;
use crate::algo::advantage::centered;
use crate::config::ActivationMemory;
use crate::config::lora::LoraConfig;
use crate::config::loss::LossConfig;
use crate::config::optim::OptimConfig;
use crate::config::sampling::SamplingConfig;
use crate::config::stages::{ScaleRewards, ScaleStd};
use crate::error::Result;
use crate::model::adapter::Adapter;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Placement};
use crate::observe::Metrics;
use crate::ops::memory::synchronize;
use crate::plan::time::Parts;
use crate::plan::work::Work;
use crate::rng::Purpose;
use crate::rollout::engine::{Completions, Draws, Engine, Request, Rollouts};
use crate::rollout::tapes::Tapes;
use crate::text::StopTokens;
use crate::train::learner::Learner;
use crate::train::policy::Policy;
use crate::types::{Group, Prompt, ScoredGroup};

/// What a step is made of. All counts but `max_reused_tokens` are at least 1.
#[derive(Clone, Copy, Debug)]
pub struct StepShape {
    pub groups: usize,
    pub group_size: usize,
    pub prompt_tokens: usize,
    /// Tokens of each completion, exactly.
    pub new_tokens: usize,
    /// As in `[pack]` of a config.
    pub max_tokens_per_pack: usize,
    pub max_rollout_tokens: usize,
    pub max_reused_tokens: usize,
    pub activations: ActivationMemory,
}

/// One step: what its phases took, what they had to compute, and what the learner says of it.
#[derive(Clone, Debug)]
pub struct Stepped {
    /// Seconds.
    pub phases: Parts,
    pub work: Work,
    /// Of the update: loss, grad_norm, sampling/*, num_tokens, num_tokens_reused.
    pub metrics: Metrics,
}

impl StepShape {
    /// Random weights of `config` at `place`, all of them trained, or an adapter of rank `lora_rank` above 0.
    ///
    /// # Errors
    /// There is not enough memory, or the adapter does not fit the model.
    pub fn learner(
        &self,
        place: &Placement,
        config: ModelConfig,
        optim: &OptimConfig,
        lora_rank: usize,
    ) -> Result<Learner> {
        let mut decoder = Decoder::random_on(place, config, 1, self.prompt_tokens + self.new_tokens)?;
        if lora_rank > 0 {
            let config = LoraConfig { rank: lora_rank, ..LoraConfig::default() };
            let adapter = Adapter::fresh((&config).into(), &decoder.config, &place.device, 1, 0)?;
            decoder.attach(adapter)?;
        }
        Learner::new(decoder, optim, self.activations, 1)
    }

    /// Step number `step`, whose prompts no other step has.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn run(&self, learner: &mut Learner, step: u64) -> Result<Stepped> {
        let vocab = learner.decoder().config.vocab_size;
        let prompt = |group| random_tokens(vocab, [step as u32, group, 0], self.prompt_tokens);
        let prompts: Vec<Prompt> =
            (0..self.groups as u32).map(|group| Prompt { token_ids: prompt(group) }).collect();
        let requests: Vec<Request> =
            prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
        let completions = Completions {
            per_prompt: self.group_size,
            max_tokens: self.new_tokens,
            sampling: SamplingConfig::default(),
        };
        let none = StopTokens::new(Vec::new());
        let Rollouts { groups, tapes, timing } =
            Engine::new(learner.decoder(), &none, completions, self.max_rollout_tokens)
                .taping(self.activations.into(), self.max_reused_tokens)
                .generate(&requests, Draws { seed: 1, purpose: Purpose::Bench, step })?;
        let mut phases =
            Parts { prefill: timing.prefill_seconds, decode: timing.decode_seconds, ..Parts::default() };
        let start = Instant::now();
        let (work, mut metrics) = self.update(learner, groups, tapes)?;
        synchronize(learner.decoder().device())?;
        phases.update = start.elapsed().as_secs_f64();
        let start = Instant::now();
        metrics.extend(learner.step(1e-6)?);
        phases.optimizer = start.elapsed().as_secs_f64();
        Ok(Stepped { phases, work, metrics })
    }

    /// A GRPO update on made-up rewards: half of each group right.
    fn update(&self, learner: &mut Learner, groups: Vec<Group>, tapes: Tapes) -> Result<(Work, Metrics)> {
        let rewards: Vec<f32> = (0..self.group_size).map(|i| (i % 2) as f32).collect();
        let of_groups = vec![rewards.as_slice(); groups.len()];
        let advantages = centered(&of_groups, ScaleRewards::Group, ScaleStd::Sample, 1e-6);
        let mut work = Work::of(&learner.decoder().config, &groups)?;
        let groups: Vec<ScoredGroup> = groups
            .into_iter()
            .zip(advantages)
            .map(|(group, advantages)| ScoredGroup { group, rewards: rewards.clone(), advantages })
            .collect();
        let loss = LossConfig::default();
        let policy = Policy {
            max_completion_tokens: self.new_tokens,
            max_tokens_per_pack: self.max_tokens_per_pack,
            ..Policy::plain(&loss)
        };
        let metrics = learner.learn(&policy, &groups, 0..groups.len(), tapes, &mut Vec::new())?.metrics;
        let reused = metrics.get("num_tokens_reused").unwrap_or(0.0);
        work.add_forward(1.0 - reused / work.packed_tokens as f64);
        if self.activations == ActivationMemory::Keep {
            work.recompute_flop = 0.0;
        }
        Ok((work, metrics))
    }
}
