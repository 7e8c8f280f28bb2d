//! One GRPO step: sample groups, judge, turn rewards into advantages, learn.

use std::time::Instant;

use super::step::{Trainee, mean};
use crate::algo::advantage::{RewardSummary, advantages};
use crate::algo::loss::{LossSums, Sequence, StepTotals, policy_loss};
use crate::config::PackConfig;
use crate::config::stages::GrpoConfig;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::eval::judge;
use crate::model::decoder::{Decoder, Head, Keep};
use crate::observe::{Metrics, SampleRecord};
use crate::pack::runs;
use crate::rng::Purpose;
use crate::rollout::engine::{Engine, Request, Timing};
use crate::task::{Confusion, Outcome, Task};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Group, PackedBatch, ScoredGroup};

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
            seed: self.seed,
            purpose: Purpose::Rollout,
            step: step as u32,
        };
        let requests: Vec<Request> = rows
            .iter()
            .map(|(row, sample_id)| Request { prompt: &row.prompt, sample_id: *sample_id })
            .collect();
        let (groups, timing) = engine.generate(&requests)?;
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
        Ok(Scored { groups, metrics, samples })
    }

    /// Adds the gradient of the policy loss over all groups. `old_logps` holds each pack's log-probs under the
    /// weights that sampled it: empty on the first update of a rollout, which fills it.
    ///
    /// A group without advantages adds no gradient, so without a KL penalty it is not computed at all; it still
    /// counts in the averages.
    pub fn accumulate(
        &self,
        trainee: Trainee,
        groups: &[ScoredGroup],
        old_logps: &mut Vec<Vec<f64>>,
    ) -> Result<Metrics> {
        let totals = StepTotals {
            sequences: groups.iter().map(|g| g.group.rollouts.len()).sum(),
            active_tokens: groups.iter().map(|g| completion_tokens(&g.group)).sum(),
            max_completion_tokens: self.config.max_completion_tokens,
        };
        let live: Vec<&ScoredGroup> = groups
            .iter()
            .filter(|g| self.reference.is_some() || g.advantages.iter().any(|a| *a != 0.0))
            .collect();
        let first_update = old_logps.is_empty();
        let temperature = self.config.sampling.temperature;
        let mut sums = LossSums::default();
        let (mut loss, mut tokens) = (0.0, 0);
        let (mut entropies, mut differences) = (Vec::new(), Vec::new());
        let sizes = live.iter().map(|g| g.group.prompt.token_ids.len() + completion_tokens(&g.group));
        for (index, run) in runs(sizes, self.pack.max_tokens_per_pack).into_iter().enumerate() {
            let mut batch = PackedBatch::default();
            for g in &live[run.clone()] {
                let completions = g.group.rollouts.iter().map(|r| r.token_ids.as_slice());
                batch.push_group(&g.group.prompt.token_ids, completions);
            }
            tokens += batch.tokens.len();
            let reference =
                self.reference.map(|model| reference_logps(model, &batch, temperature)).transpose()?;
            let rollouts = || live[run.clone()].iter().flat_map(|g| &g.group.rollouts);
            let advantages = live[run.clone()].iter().flat_map(|g| &g.advantages);
            trainee.pass(&batch, temperature, |now| {
                let logps: Vec<f64> = now.logprobs.iter().map(|l| f64::from(*l)).collect();
                if first_update {
                    let sampled = rollouts().flat_map(|r| &r.logprobs);
                    differences.extend(sampled.zip(&now.logprobs).map(|(a, b)| (a - b).abs()));
                    old_logps.push(logps.clone());
                }
                let old = old_logps.get(index).map_or(&logps[..], Vec::as_slice);
                let sequences: Vec<Sequence> = batch
                    .target_ranges()
                    .zip(advantages)
                    .map(|(range, advantage)| Sequence {
                        logps: &logps[range.clone()],
                        old_logps: &old[range.clone()],
                        ref_logps: reference.as_deref().map(|r| &r[range]),
                        advantage: f64::from(*advantage),
                    })
                    .collect();
                let out = policy_loss(&self.config.loss, self.config.kl_coef, &sequences, &totals)?;
                loss += out.loss;
                sums += out.sums;
                entropies.extend_from_slice(&now.entropies);
                Ok(out.dloss_dlogp.iter().map(|d| *d as f32).collect())
            })?;
        }
        let mut metrics = Metrics::default();
        metrics.insert("loss", loss);
        metrics.extend(sums.metrics());
        // A step of dead groups only has computed nothing to take a mean of.
        if !entropies.is_empty() {
            metrics.insert("entropy", mean(&entropies));
        }
        if !differences.is_empty() {
            let worst = differences.iter().copied().fold(0f32, f32::max);
            metrics.insert("sampling/sampling_logp_difference/mean", mean(&differences));
            metrics.insert("sampling/sampling_logp_difference/max", f64::from(worst));
        }
        metrics.insert("num_tokens", tokens as f64);
        Ok(metrics)
    }
}

/// Log-probs of the batch's targets under the frozen weights.
fn reference_logps(model: &Decoder, batch: &PackedBatch, temperature: f32) -> Result<Vec<f64>> {
    let hidden = model.forward(batch, Keep::Nothing)?.hidden;
    let logps = model.logprobs(&hidden, Head { targets: &batch.targets, temperature })?.logprobs;
    Ok(logps.into_iter().map(f64::from).collect())
}

fn completion_tokens(group: &Group) -> usize {
    group.rollouts.iter().map(|r| r.token_ids.len()).sum()
}

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
