//! One GRPO step: sample groups, judge, turn rewards into advantages, learn.

use std::ops::Range;
use std::time::Instant;

use super::policy::PolicyUpdate;
use crate::algo::advantage::{RewardSummary, advantages};
use crate::algo::loss::KlPenalty;
use crate::config::PackConfig;
use crate::config::loss::KlEstimator;
use crate::config::stages::GrpoConfig;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::eval::judge;
use crate::model::decoder::Decoder;
use crate::model::tape::Tape;
use crate::observe::{Metrics, SampleRecord};
use crate::rng::Purpose;
use crate::rollout::engine::{Engine, Request, Rollouts, TapePolicy, Timing};
use crate::task::{Confusion, Outcome, Task};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Group, ScoredGroup};

/// What a GRPO step needs besides the weights.
#[derive(Clone, Copy)]
pub struct GrpoStage<'a> {
    pub task: &'a Task,
    pub encoder: &'a PromptEncoder,
    pub config: &'a GrpoConfig,
    pub pack: &'a PackConfig,
    pub seed: u64,
    /// Frozen weights of the KL penalty.
    pub reference: Option<&'a Decoder>,
}

/// Judged groups of one step and what they say.
pub struct Scored {
    pub groups: Vec<ScoredGroup>,
    /// The rollout's activations, for the first update.
    pub tapes: Vec<(Range<usize>, Tape)>,
    pub metrics: Metrics,
    pub samples: Vec<SampleRecord>,
}

impl GrpoStage<'_> {
    /// Samples a group a row and scores it. `rows[i]` pairs a row with the id that keys its draws.
    pub fn roll_out(&self, decoder: &Decoder, rows: &[(&EncodedRow, u32)], step: u64) -> Result<Scored> {
        let start = Instant::now();
        let engine = Engine {
            decoder,
            stop_tokens: self.encoder.stop_tokens(),
            sampling: self.config.sampling,
            group_size: self.config.group_size,
            max_completion_tokens: self.config.max_completion_tokens,
            max_tokens_per_pack: self.pack.max_rollout_tokens,
            tape: self.tape_policy(step),
            seed: self.seed,
            purpose: Purpose::Rollout,
            step: step as u32,
        };
        let requests: Vec<Request> = rows
            .iter()
            .map(|(row, sample_id)| Request { prompt: &row.prompt, sample_id: *sample_id })
            .collect();
        let Rollouts { groups, tapes, timing } = engine.generate(&requests)?;
        let mut confusion = Confusion::new(self.task);
        let mut samples = Vec::new();
        let mut rewards: Vec<Vec<f32>> = Vec::new();
        for ((row, _), group) in rows.iter().zip(&groups) {
            let mut of_group = Vec::new();
            for rollout in &group.rollouts {
                let judged = judge(self.task, self.encoder, row.gold, rollout)?;
                confusion.add(row.gold, judged.verdict);
                of_group.push(judged.reward);
                samples.push(judged.record(self.task, row));
            }
            rewards.push(of_group);
        }
        let slices: Vec<&[f32]> = rewards.iter().map(Vec::as_slice).collect();
        let summary = RewardSummary::new(&slices, best_reward(self.task));
        let mut metrics: Metrics = summary.metrics().into_iter().collect();
        metrics.insert(format!("rewards/{}/mean", self.task.name()), summary.mean);
        metrics.extend(length_metrics(&groups));
        let report = confusion.report();
        metrics.extend(report.metrics().into_iter().filter(|(name, _)| name.matches('/').count() == 1));
        metrics.extend(timing_metrics(&timing, start.elapsed().as_secs_f64()));
        let advantages = advantages(&slices, self.config.scale_rewards, self.config.advantage_eps);
        let groups = groups
            .into_iter()
            .zip(rewards)
            .zip(advantages)
            .map(|((group, rewards), advantages)| ScoredGroup { group, rewards, advantages })
            .collect();
        Ok(Scored { groups, tapes, metrics, samples })
    }

    /// What the update of this stage's groups needs.
    pub fn policy_update(&self) -> PolicyUpdate<'_> {
        PolicyUpdate {
            loss: &self.config.loss,
            penalty: KlPenalty { coef: self.config.kl_coef, estimator: KlEstimator::K3 },
            temperature: self.config.sampling.temperature,
            max_completion_tokens: self.config.max_completion_tokens,
            max_tokens_per_pack: self.pack.max_tokens_per_pack,
            reference: self.reference,
        }
    }

    /// Every so many steps, from the first on, the update computes its forward pass anew, so that the sampler's
    /// log-probs are held against a packed pass and not against themselves.
    fn tape_policy(&self, step: u64) -> TapePolicy {
        if step.is_multiple_of(STEPS_BETWEEN_CHECKS) {
            return TapePolicy::NONE;
        }
        TapePolicy { keep: self.pack.activations.into(), max_tokens: self.pack.max_reused_tokens }
    }
}

/// Of this many steps one does not reuse what its rollout computed.
const STEPS_BETWEEN_CHECKS: u64 = 50;

fn best_reward(task: &Task) -> f32 {
    let outcomes = [
        Outcome::ExactPositive,
        Outcome::ExactNegative,
        Outcome::WrongLabel,
        Outcome::FalsePositive,
        Outcome::FalseNegative,
        Outcome::Malformed,
    ];
    outcomes.into_iter().map(|o| task.reward(o)).fold(f32::NEG_INFINITY, f32::max)
}

fn length_metrics(groups: &[Group]) -> [(&'static str, f64); 4] {
    let rollouts = || groups.iter().flat_map(|g| &g.rollouts);
    let lengths = || rollouts().map(|r| r.token_ids.len());
    let count = rollouts().count().max(1) as f64;
    let clipped = rollouts().filter(|r| r.finish == FinishReason::Length).count();
    [
        ("completions/mean_length", lengths().sum::<usize>() as f64 / count),
        ("completions/min_length", lengths().min().unwrap_or(0) as f64),
        ("completions/max_length", lengths().max().unwrap_or(0) as f64),
        ("completions/clipped_ratio", clipped as f64 / count),
    ]
}

fn timing_metrics(timing: &Timing, rollout_seconds: f64) -> [(&'static str, f64); 3] {
    [
        ("time/rollout", rollout_seconds),
        ("time/prefill", timing.prefill_seconds),
        ("time/decode", timing.decode_seconds),
    ]
}
