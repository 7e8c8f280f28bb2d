//! One GRPO step: sample groups, judge, turn rewards into advantages, learn.

use std::ops::Range;
use std::time::Instant;

use super::kl_reward::Distance;
use super::policy::PolicyUpdate;
use crate::algo::advantage::{RewardSummary, advantages};
use crate::algo::gdpo::{RewardColumn, normalize_then_sum};
use crate::algo::leave_one_out::leave_one_out;
use crate::algo::loss::KlPenalty;
use crate::algo::overlong::overlong_penalty;
use crate::config::PackConfig;
use crate::config::loss::KlPlace;
use crate::config::stages::{Baseline, CombineRewards, GrpoConfig, TruncatedCompletions};
use crate::data::difficulty::Successes;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::eval::judge;
use crate::model::decoder::Decoder;
use crate::model::tape::Tape;
use crate::observe::{Metrics, SampleRecord};
use crate::ops::sampling::Sampling;
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
    /// How each row that was sampled fared.
    pub tried: Vec<(usize, Successes)>,
}

/// Groups of a step as they come in, round after round.
struct Rolled {
    groups: Vec<Group>,
    tapes: Vec<(Range<usize>, Tape)>,
    timing: Timing,
    /// `[groups][G]`
    outcomes: Vec<Vec<Outcome>>,
    rewards: Vec<Vec<f32>>,
    samples: Vec<SampleRecord>,
    confusion: Confusion,
}

impl GrpoStage<'_> {
    /// Samples a group a row and scores it. `prompts` gives the rows, indices into `rows`, of each round: how many
    /// are wanted in round 0, and in the place of dead groups in the rounds of dynamic sampling after it.
    pub fn roll_out(
        &self,
        decoder: &Decoder,
        rows: &[EncodedRow],
        prompts: &mut dyn FnMut(u32, usize) -> Vec<usize>,
        step: u64,
    ) -> Result<Scored> {
        let start = Instant::now();
        let mut rolled = Rolled {
            groups: Vec::new(),
            tapes: Vec::new(),
            timing: Timing::default(),
            outcomes: Vec::new(),
            rewards: Vec::new(),
            samples: Vec::new(),
            confusion: Confusion::new(self.task),
        };
        let mut sampled: Vec<usize> = Vec::new();
        let mut wanted = self.config.prompts_per_step;
        let mut rounds = 0;
        loop {
            let indices = prompts(rounds, wanted);
            self.sample(decoder, indices.iter().map(|i| &rows[*i]).collect(), step, &mut rolled)?;
            sampled.extend(indices);
            let live =
                rolled.rewards.iter().filter(|rewards| rewards.iter().any(|r| *r != rewards[0])).count();
            wanted = self.config.prompts_per_step.saturating_sub(live);
            if wanted == 0 || rounds as usize == self.config.max_resamples {
                break;
            }
            rounds += 1;
        }
        let slices: Vec<&[f32]> = rolled.rewards.iter().map(Vec::as_slice).collect();
        let summary = RewardSummary::new(&slices, best_reward(self.task));
        let mut metrics: Metrics = summary.metrics().into_iter().collect();
        metrics.extend(self.reward_means(&rolled.outcomes));
        metrics.extend(length_metrics(&rolled.groups));
        let report = rolled.confusion.report();
        metrics.extend(report.metrics().into_iter().filter(|(name, _)| name.matches('/').count() == 1));
        if self.config.max_resamples > 0 {
            metrics.insert("dynamic_sampling/rounds", f64::from(rounds));
            metrics.insert("dynamic_sampling/groups", sampled.len() as f64);
            metrics.insert("dynamic_sampling/missing", wanted as f64);
        }
        let tried = sampled.into_iter().zip(rolled.outcomes.iter().map(|outcomes| Successes {
            right: outcomes.iter().filter(|o| o.is_exact()).count() as u32,
            tried: outcomes.len() as u32,
        }));
        let tried = tried.collect();
        let kept = self.kept(&rolled.rewards);
        for (group, kept) in rolled.groups.iter_mut().zip(&kept) {
            if !kept {
                group.rollouts.clear();
            }
        }
        let penalties = self.penalties(&rolled.groups, &mut metrics)?;
        let advantages = self.advantages(&rolled, &kept, &penalties);
        metrics.extend(timing_metrics(&rolled.timing, start.elapsed().as_secs_f64()));
        let Rolled { mut groups, rewards, tapes, samples, .. } = rolled;
        if self.config.truncated == TruncatedCompletions::Mask {
            groups.iter_mut().for_each(mask_truncated);
        }
        let groups = groups.into_iter().zip(rewards).zip(advantages);
        let scored = groups.map(|((group, rewards), advantages)| ScoredGroup { group, rewards, advantages });
        Ok(Scored { groups: scored.collect(), tapes, metrics, samples, tried })
    }

    fn sample(
        &self,
        decoder: &Decoder,
        rows: Vec<&EncodedRow>,
        step: u64,
        rolled: &mut Rolled,
    ) -> Result<()> {
        let engine = Engine {
            decoder,
            stop_tokens: self.encoder.stop_tokens(),
            sampling: self.config.sampling,
            group_size: self.config.group_size,
            max_completion_tokens: self.config.max_completion_tokens,
            max_tokens_per_pack: self.pack.max_rollout_tokens,
            tape: self.tape_policy(step, rolled.groups.is_empty()),
            seed: self.seed,
            purpose: Purpose::Rollout,
            step: step as u32,
        };
        let first = rolled.groups.len();
        let requests: Vec<Request> = rows
            .iter()
            .enumerate()
            .map(|(i, row)| Request { prompt: &row.prompt, sample_id: (first + i) as u32 })
            .collect();
        let Rollouts { groups, tapes, timing } = engine.generate(&requests)?;
        for (row, group) in rows.iter().zip(&groups) {
            let (mut rewards, mut outcomes) = (Vec::new(), Vec::new());
            for rollout in &group.rollouts {
                let judged = judge(self.task, self.encoder, row.gold, rollout)?;
                rolled.confusion.add(row.gold, judged.verdict);
                rewards.push(judged.reward);
                outcomes.push(judged.outcome);
                rolled.samples.push(judged.record(self.task, row));
            }
            rolled.rewards.push(rewards);
            rolled.outcomes.push(outcomes);
        }
        rolled.groups.extend(groups);
        rolled.tapes.extend(tapes);
        rolled.timing.prefill_seconds += timing.prefill_seconds;
        rolled.timing.decode_seconds += timing.decode_seconds;
        Ok(())
    }

    /// Which groups the step learns from: with dynamic sampling the live ones, and dead ones only as far as live ones
    /// are missing; else all.
    fn kept(&self, rewards: &[Vec<f32>]) -> Vec<bool> {
        let mut kept: Vec<bool> = rewards.iter().map(|group| group.iter().any(|r| *r != group[0])).collect();
        let mut missing =
            self.config.prompts_per_step.saturating_sub(kept.iter().filter(|kept| **kept).count());
        for kept in kept.iter_mut().filter(|kept| !**kept) {
            *kept = missing > 0;
            missing = missing.saturating_sub(1);
        }
        kept
    }

    /// What is taken off each completion's reward, by group; empty without penalties.
    fn penalties(&self, groups: &[Group], metrics: &mut Metrics) -> Result<Vec<Vec<f64>>> {
        let config = self.config;
        let mut penalties = Vec::new();
        if config.overlong_buffer_tokens > 0 {
            let (budget, buffer) = (config.max_completion_tokens, config.overlong_buffer_tokens);
            let penalty = config.overlong_penalty.unwrap_or(1.0);
            let of = |length| overlong_penalty(length, budget, buffer, penalty);
            let of_group = |g: &Group| g.rollouts.iter().map(|r| of(r.token_ids.len())).collect::<Vec<f64>>();
            penalties = groups.iter().map(of_group).collect();
            metrics.insert("rewards/overlong/mean", -flat_mean(&penalties));
        }
        if let (Some(reference), KlPlace::Reward) = (self.reference, config.kl_in()) {
            let distance = Distance {
                reference,
                estimator: config.kl_estimator(),
                temperature: config.sampling.temperature,
                max_tokens_per_pack: self.pack.max_tokens_per_pack,
            };
            let distances = distance.of(groups)?;
            let tokens: usize = groups.iter().flat_map(|g| &g.rollouts).map(|r| r.token_ids.len()).sum();
            let sum: f64 = distances.iter().flatten().sum();
            metrics.insert("kl", sum / tokens.max(1) as f64);
            penalties.resize_with(groups.len(), Vec::new);
            for (penalties, distances) in penalties.iter_mut().zip(distances) {
                penalties.resize(distances.len(), 0.0);
                penalties.iter_mut().zip(distances).for_each(|(p, d)| *p += config.kl_coef * d);
            }
        }
        Ok(penalties)
    }

    /// Of the kept groups; the others get none.
    fn advantages(&self, rolled: &Rolled, kept: &[bool], penalties: &[Vec<f64>]) -> Vec<Vec<f32>> {
        let config = self.config;
        let indices: Vec<usize> = (0..kept.len()).filter(|i| kept[*i]).collect();
        let penalised = |reward: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
            let of = |g: usize, i: usize| match penalties.get(g) {
                Some(group) => (f64::from(reward(g, i)) - group[i]) as f32,
                None => reward(g, i),
            };
            indices.iter().map(|g| (0..rolled.rewards[*g].len()).map(|i| of(*g, i)).collect()).collect()
        };
        let mut of_kept = match config.combine_rewards {
            CombineRewards::Sum => {
                let rewards = penalised(&|g, i| rolled.rewards[g][i]);
                let slices: Vec<&[f32]> = rewards.iter().map(Vec::as_slice).collect();
                advantages(&slices, config.scale_rewards, config.advantage_eps)
            }
            CombineRewards::NormalizeThenSum => {
                let rewards = self.task.rewards().iter();
                let columns: Vec<RewardColumn> = rewards
                    .enumerate()
                    .map(|(k, named)| {
                        let reward = |g: usize, i: usize| named.reward.of(rolled.outcomes[g][i]);
                        // Penalties belong to the task's main reward.
                        let rewards = match k {
                            0 => penalised(&reward),
                            _ => indices
                                .iter()
                                .map(|g| (0..rolled.rewards[*g].len()).map(|i| reward(*g, i)).collect())
                                .collect(),
                        };
                        RewardColumn { weight: f64::from(named.weight), rewards }
                    })
                    .collect();
                normalize_then_sum(&columns, config.advantage_eps)
            }
        };
        if config.baseline == Baseline::LeaveOneOut {
            leave_one_out(&mut of_kept);
        }
        let mut of_kept = of_kept.into_iter();
        kept.iter().map(|kept| if *kept { of_kept.next().unwrap_or_default() } else { Vec::new() }).collect()
    }

    fn reward_means(&self, outcomes: &[Vec<Outcome>]) -> Vec<(String, f64)> {
        let count = outcomes.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        let mean = |named: &crate::task::NamedReward| {
            outcomes.iter().flatten().map(|o| f64::from(named.reward.of(*o))).sum::<f64>() / count
        };
        self.task.rewards().iter().map(|r| (format!("rewards/{}/mean", r.name), mean(r))).collect()
    }

    /// What the update of this stage's groups needs.
    pub fn policy_update(&self) -> PolicyUpdate<'_> {
        let in_loss = self.config.kl_in() == KlPlace::Loss;
        let coef = if in_loss { self.config.kl_coef } else { 0.0 };
        PolicyUpdate {
            loss: &self.config.loss,
            penalty: KlPenalty { coef, estimator: self.config.kl_estimator() },
            temperature: self.config.sampling.temperature,
            cut: Some(Sampling::from(&self.config.sampling)).filter(|sampling| sampling.replay_truncation),
            max_completion_tokens: self.config.max_completion_tokens,
            max_tokens_per_pack: self.pack.max_tokens_per_pack,
            entropy_coef: self.config.entropy_coef,
            importance_cap: self.config.importance_cap,
            reference: self.reference.filter(|_| in_loss),
        }
    }

    /// Every so many steps, from the first on, the update computes its forward pass anew, so that the sampler's
    /// log-probs are held against a packed pass and not against themselves. Rounds of dynamic sampling after the
    /// first keep nothing.
    fn tape_policy(&self, step: u64, first_round: bool) -> TapePolicy {
        if step.is_multiple_of(STEPS_BETWEEN_CHECKS) || !first_round {
            return TapePolicy::NONE;
        }
        TapePolicy { keep: self.pack.activations.into(), max_tokens: self.pack.max_reused_tokens }
    }
}

/// Of this many steps one does not reuse what its rollout computed.
const STEPS_BETWEEN_CHECKS: u64 = 50;

/// A completion that the budget cut off has no token to learn from.
fn mask_truncated(group: &mut Group) {
    for rollout in group.rollouts.iter_mut().filter(|r| r.finish == FinishReason::Length) {
        rollout.token_ids.clear();
        rollout.logprobs.clear();
    }
}

fn flat_mean(values: &[Vec<f64>]) -> f64 {
    let count = values.iter().map(Vec::len).sum::<usize>().max(1);
    values.iter().flatten().sum::<f64>() / count as f64
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
