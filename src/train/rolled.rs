//! The judged groups of a step, as they come in round after round.

use std::time::Instant;

use super::prompts::Prompts;
use crate::algo::advantage::{AdvantageRule, RewardPart, Rewards};
use crate::algo::summary::RewardSummary;
use crate::data::difficulty::Successes;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::observe::{Metrics, SampleRecord};
use crate::rollout::engine::{Rollouts, Timing};
use crate::rollout::judge::judge;
use crate::rollout::tapes::Tapes;
use crate::task::{Confusion, Outcome, Task};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Group};

pub struct Rolled<'a> {
    task: &'a Task,
    start: Instant,
    /// Rounds that were added.
    pub rounds: u32,
    pub groups: Vec<Group>,
    pub rewards: Rewards,
    /// The first round's.
    pub tapes: Tapes,
    pub samples: Vec<SampleRecord>,
    /// The row of each group, an index into the stage's rows, and how its completions fared.
    tried: Vec<(usize, Successes)>,
    confusion: Confusion,
    timing: Timing,
}

impl<'a> Rolled<'a> {
    /// Nothing yet; the clock runs.
    pub fn new(task: &'a Task) -> Self {
        let part =
            |r: &crate::task::NamedReward| RewardPart { weight: f64::from(r.weight), rewards: Vec::new() };
        let parts = task.rewards().iter().map(part).collect();
        Self {
            task,
            start: Instant::now(),
            rounds: 0,
            groups: Vec::new(),
            rewards: Rewards { total: Vec::new(), parts },
            tapes: Tapes::default(),
            samples: Vec::new(),
            tried: Vec::new(),
            confusion: Confusion::new(task),
            timing: Timing::default(),
        }
    }

    /// Live groups that a step of `wanted` still lacks.
    pub fn missing(&self, rule: &AdvantageRule, wanted: usize) -> usize {
        wanted.saturating_sub(rule.live(&self.rewards).into_iter().filter(|live| *live).count())
    }

    /// Judges a round. `indices` and `rows`: the prompts', in the order of the groups.
    pub fn add<'r>(
        &mut self,
        indices: &[usize],
        rows: impl Iterator<Item = &'r EncodedRow>,
        rollouts: Rollouts,
        encoder: &PromptEncoder,
    ) -> Result<()> {
        let Rollouts { groups, tapes, timing } = rollouts;
        for ((row, group), index) in rows.zip(&groups).zip(indices) {
            let (mut total, mut outcomes) = (Vec::new(), Vec::new());
            for rollout in &group.rollouts {
                let judged = judge(self.task, encoder, row.gold, rollout)?;
                self.confusion.add(row.gold, judged.verdict);
                total.push(judged.reward);
                outcomes.push(judged.outcome);
                self.samples.push(judged.record(self.task, row));
            }
            self.rewards.total.push(total);
            for (part, named) in self.rewards.parts.iter_mut().zip(self.task.rewards()) {
                part.rewards.push(outcomes.iter().map(|outcome| named.reward.of(*outcome)).collect());
            }
            let right = outcomes.iter().filter(|outcome| outcome.is_exact()).count() as u32;
            self.tried.push((*index, Successes { right, tried: outcomes.len() as u32 }));
        }
        self.groups.extend(groups);
        if self.rounds == 0 {
            self.tapes = tapes;
        }
        self.timing += timing;
        self.rounds += 1;
        Ok(())
    }

    pub fn samples_to(&self, prompts: &mut Prompts) {
        self.tried.iter().for_each(|(row, result)| prompts.tried(*row, *result));
    }

    /// Empties the groups that are not kept: they count in nothing that follows.
    pub fn drop_others(&mut self, kept: &[bool]) {
        let others = self.groups.iter_mut().zip(kept).filter(|(_, kept)| !**kept);
        others.for_each(|(group, _)| group.rollouts.clear());
    }

    /// Rewards, lengths and verdicts of everything that was sampled.
    /// `resampled`: what dynamic sampling still lacks of the step's groups, where it is on.
    pub fn metrics(&self, rule: &AdvantageRule, resampled: Option<usize>) -> Metrics {
        let summary =
            RewardSummary::new(&self.rewards.total, &rule.live(&self.rewards), best_reward(self.task));
        let mut metrics: Metrics = summary.metrics().into_iter().collect();
        for (part, named) in self.rewards.parts.iter().zip(self.task.rewards()) {
            let count = part.rewards.iter().map(Vec::len).sum::<usize>().max(1) as f64;
            let mean = part.rewards.iter().flatten().map(|r| f64::from(*r)).sum::<f64>() / count;
            metrics.insert(format!("rewards/{}/mean", named.name), mean);
        }
        metrics.extend(self.length_metrics());
        let report = self.confusion.report();
        metrics.extend(report.metrics().into_iter().filter(|(name, _)| name.matches('/').count() == 1));
        if let Some(missing) = resampled {
            metrics.insert("dynamic_sampling/rounds", f64::from(self.rounds - 1));
            metrics.insert("dynamic_sampling/groups", self.groups.len() as f64);
            metrics.insert("dynamic_sampling/missing", missing as f64);
        }
        metrics
    }

    fn length_metrics(&self) -> [(&'static str, f64); 4] {
        let rollouts = || self.groups.iter().flat_map(|g| &g.rollouts);
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

    /// Seconds since the rollout began, and of its phases.
    pub fn timing_metrics(&self) -> [(&'static str, f64); 3] {
        [
            ("time/rollout", self.start.elapsed().as_secs_f64()),
            ("time/prefill", self.timing.prefill_seconds),
            ("time/decode", self.timing.decode_seconds),
        ]
    }
}

/// The most that an answer to any row can earn.
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
