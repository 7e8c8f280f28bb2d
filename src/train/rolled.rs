//! The judged groups of a step, as they come in round after round.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::by_source::BySource;
use crate::algo::advantage::{AdvantageRule, ByGroup, RewardPart, Rewards, moments};
use crate::algo::summary::RewardSummary;
use crate::config::stages::{ScaleStd, TruncatedCompletions};
use crate::data::difficulty::Successes;
use crate::data::jsonl::EncodedRow;
use crate::dist::Ranks;
use crate::error::{Error, Result};
use crate::observe::{Metrics, SampleRecord};
use crate::reward::{Judges, Question, Said, Subject};
use crate::rollout::engine::{Rollouts, Timing};
use crate::rollout::judge::{Judged, judge};
use crate::rollout::tapes::Tapes;
use crate::task::{Answered, Confusion, NamedReward, Outcome, RewardKind, Task};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Group, Rollout, ScoredGroup};

pub struct Rolled<'a> {
    task: &'a Task,
    start: Instant,
    /// Rounds that were added.
    pub rounds: u32,
    pub groups: Vec<Group>,
    pub rewards: Rewards,
    /// The first round's.
    tapes: Tapes,
    samples: Vec<SampleRecord>,
    /// The row of each group, an index into the stage's rows, and how its completions fared.
    tried: Vec<(usize, Successes)>,
    confusion: Confusion,
    by_source: BySource,
    /// Of the groups' rows, where they have several.
    sources: Vec<Option<Arc<str>>>,
    timing: Timing,
    /// Whether this rank drew the group.
    mine: Vec<bool>,
    /// Of the round that is drawn, by group.
    judged: ByGroup<Judged>,
    /// Completions that somebody was asked about.
    asked: usize,
    /// Sum and count of what was said in parts, by `reward/part`; and how often nobody could say, by reward.
    named: BTreeMap<String, (f64, usize)>,
    failed: BTreeMap<String, usize>,
    reward_seconds: f64,
    /// What there is to warn of.
    pub warnings: Vec<String>,
}

/// A step's groups with their advantages, the activations that were kept of them, and what there is to show.
pub struct Scored {
    pub groups: Vec<ScoredGroup>,
    pub tapes: Tapes,
    pub samples: Vec<SampleRecord>,
    /// By group: this rank drew it, and learns from it.
    pub mine: Vec<bool>,
}

/// The prompts of one drawing, and who draws.
pub struct Round<'r> {
    /// Rows by their index, in the order of the groups.
    pub indices: &'r [usize],
    pub rows: &'r [&'r EncodedRow],
    pub owners: &'r [usize],
    pub encoder: &'r PromptEncoder,
    pub ranks: &'r Ranks,
}

impl Round<'_> {
    /// The groups that this rank draws.
    pub fn mine(&self) -> Vec<usize> {
        (0..self.rows.len()).filter(|group| self.owners.get(*group) == Some(&self.ranks.rank())).collect()
    }
}

/// What one rank has of a round.
#[derive(Serialize, Deserialize)]
struct Drawn {
    groups: VecDeque<Vec<Rollout>>,
    /// By completion; none where nobody is asked.
    said: VecDeque<Vec<Said>>,
    warnings: Vec<String>,
}

impl<'a> Rolled<'a> {
    /// Nothing yet; the clock runs.
    pub fn new(task: &'a Task) -> Self {
        let part = |r: &NamedReward| RewardPart { weight: f64::from(r.weight), rewards: Vec::new() };
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
            by_source: BySource::default(),
            sources: Vec::new(),
            timing: Timing::default(),
            mine: Vec::new(),
            judged: Vec::new(),
            asked: 0,
            named: BTreeMap::new(),
            failed: BTreeMap::new(),
            reward_seconds: 0.0,
            warnings: Vec::new(),
        }
    }

    /// Live groups that a step of `wanted` still lacks.
    pub fn missing(&self, rule: &AdvantageRule, wanted: usize) -> usize {
        wanted.saturating_sub(rule.live(&self.rewards).into_iter().filter(|live| *live).count())
    }

    /// Judges groups that were drawn, and asks about them who has to be asked; `step` counts from 1 within the stage.
    pub fn hear(
        &mut self,
        rows: &[&EncodedRow],
        groups: &[Group],
        encoder: &PromptEncoder,
        (judges, step): (Option<&Judges>, u64),
    ) -> Result<()> {
        for (row, group) in rows.iter().zip(groups) {
            let judge = |rollout| judge(self.task, encoder, row.gold, row.evidence.as_deref(), rollout);
            let judged = group.rollouts.iter().map(judge).collect::<Result<Vec<_>>>()?;
            if let (Some(judges), Some(told)) = (judges, &row.told) {
                let gold = self.task.label_text(row.gold);
                for judged in &judged {
                    let subject = Subject {
                        completion: &judged.completion,
                        tokens: Some(judged.tokens),
                        truncated: judged.finish == FinishReason::Length,
                        verdict: &self.task.verdict_text(judged.verdict),
                        gold: &gold,
                        outcome: judged.outcome,
                    };
                    judges.ask(Question::new(format!("{step}.{}", self.asked), told, subject));
                    self.asked += 1;
                }
            }
            self.judged.push(judged);
        }
        Ok(())
    }

    /// Adds a round whose groups were heard of, once everybody has answered, together with what the other ranks drew of it.
    pub fn add(&mut self, round: &Round, rollouts: Rollouts, judges: Option<&mut Judges>) -> Result<()> {
        let Rollouts { groups, mut tapes, timing } = rollouts;
        let start = Instant::now();
        let (said, warnings) = judges.map_or(Ok(Default::default()), Judges::take)?;
        self.reward_seconds += start.elapsed().as_secs_f64();
        let (groups, said) = match round.ranks.is_alone() {
            true => {
                self.warnings.extend(warnings);
                self.mine.resize(self.mine.len() + groups.len(), true);
                (groups, said)
            }
            false => {
                tapes.renumber(&round.mine());
                let groups = groups.into_iter().map(|group| group.rollouts).collect();
                self.with_others(round, Drawn { groups, said: said.into(), warnings })?
            }
        };
        let mut said = said.into_iter();
        let judged = std::mem::take(&mut self.judged);
        for ((row, judged), index) in round.rows.iter().zip(judged).zip(round.indices) {
            let tried = judged.len() as u32;
            let right = judged.iter().filter(|judged| judged.outcome.is_exact()).count() as u32;
            self.tried.push((*index, Successes { right, tried }));
            self.rewards.total.push(Vec::new());
            self.rewards.parts.iter_mut().for_each(|part| part.rewards.push(Vec::new()));
            self.sources.push(row.source.clone());
            for mut judged in judged {
                self.confusion.add(row.gold, judged.verdict);
                judged.reward = self.reward(&judged, said.next().unwrap_or_default())?;
                let right = matches!(
                    judged.outcome,
                    Outcome::ExactPositive | Outcome::WrongLabel | Outcome::ExactNegative
                );
                self.by_source.add(row.source.as_deref(), "reward", f64::from(judged.reward), 1);
                self.by_source.add(row.source.as_deref(), "accuracy_strict", f64::from(u8::from(right)), 1);
                self.samples.push(judged.record(self.task, row));
            }
        }
        self.groups.extend(groups);
        if self.rounds == 0 {
            self.tapes = tapes;
        }
        self.timing += timing;
        self.rounds += 1;
        Ok(())
    }

    /// All groups of a round in their order, and what was said of their completions, from what each rank drew.
    fn with_others(&mut self, round: &Round, drawn: Drawn) -> Result<(Vec<Group>, Vec<Vec<Said>>)> {
        let mut all = round.ranks.gather(drawn)?;
        self.warnings.extend(all.iter_mut().flat_map(|drawn| std::mem::take(&mut drawn.warnings)));
        let mut judged_here = std::mem::take(&mut self.judged).into_iter();
        let (mut groups, mut said) = (Vec::new(), Vec::new());
        for (row, owner) in round.rows.iter().zip(round.owners) {
            let lacks = || Error::Compute(format!("rank {owner} drew less than its share").into());
            let from = all.get_mut(*owner).ok_or_else(lacks)?;
            let rollouts = from.groups.pop_front().ok_or_else(lacks)?;
            if !from.said.is_empty() {
                said.extend(from.said.drain(..rollouts.len().min(from.said.len())));
            }
            let mine = *owner == round.ranks.rank();
            let judge = |rollout| judge(self.task, round.encoder, row.gold, row.evidence.as_deref(), rollout);
            self.judged.push(match mine {
                true => judged_here.next().ok_or_else(lacks)?,
                false => rollouts.iter().map(judge).collect::<Result<Vec<_>>>()?,
            });
            self.mine.push(mine);
            groups.push(Group { prompt: row.prompt.clone(), rollouts });
        }
        Ok((groups, said))
    }

    /// Adds what a completion of the last group earns, part by part; their weighted sum.
    fn reward(&mut self, judged: &Judged, said: Vec<Said>) -> Result<f32> {
        let answered =
            Answered { text: &judged.completion, tokens: Some(judged.tokens), outcome: judged.outcome };
        let mut total = 0.0;
        for (at, (part, named)) in self.rewards.parts.iter_mut().zip(self.task.rewards()).enumerate() {
            let of_others = said.iter().find(|said| said.index == at);
            let value = named.of(answered).or(of_others.map(|said| said.value));
            let nobody = || Error::Compute(format!("extra_rewards.{} was not asked for", named.name).into());
            let value = value.ok_or_else(nobody)?;
            if let Some(group) = part.rewards.last_mut() {
                group.push(value);
            }
            total += named.weight * value;
            if let Some(said) = of_others {
                *self.failed.entry(named.name.clone()).or_default() += usize::from(said.failed);
                for (name, value) in &said.named {
                    let (sum, count) = self.named.entry(format!("{}/{name}", named.name)).or_default();
                    (*sum, *count) = (*sum + f64::from(*value), *count + 1);
                }
            }
        }
        if let Some(group) = self.rewards.total.last_mut() {
            group.push(total);
        }
        Ok(total)
    }

    /// The row of each group, and how its completions fared.
    pub fn take_tried(&mut self) -> Vec<(usize, Successes)> {
        std::mem::take(&mut self.tried)
    }

    /// Empties the groups that are not kept: they count in nothing that follows.
    pub fn drop_others(&mut self, kept: &[bool]) {
        let others = self.groups.iter_mut().zip(kept).filter(|(_, kept)| !**kept);
        others.for_each(|(group, _)| group.rollouts.clear());
    }

    /// With the advantages of each group: what the step learns from.
    pub fn scored(self, advantages: ByGroup<f32>, truncated: TruncatedCompletions) -> Scored {
        let Self { mut groups, rewards, tapes, mut samples, mine, .. } = self;
        let mut rest = samples.as_mut_slice();
        for (rewards, advantages) in rewards.total.iter().zip(&advantages) {
            let of_group = rest.split_off_mut(..rewards.len().min(rest.len())).unwrap_or_default();
            of_group.iter_mut().zip(advantages).for_each(|(sample, a)| sample.advantage = Some(*a));
        }
        if truncated == TruncatedCompletions::Mask {
            groups.iter_mut().for_each(mask_truncated);
        }
        let groups = groups.into_iter().zip(rewards.total).zip(advantages);
        let scored = groups.map(|((group, rewards), advantages)| ScoredGroup { group, rewards, advantages });
        Scored { groups: scored.collect(), tapes, samples, mine }
    }

    /// Rewards, lengths and verdicts of everything that was sampled.
    /// `resampled`: what dynamic sampling still lacks of the step's groups, where it is on.
    pub fn metrics(&self, rule: &AdvantageRule, resampled: Option<usize>) -> Metrics {
        let summary = RewardSummary::new(&self.rewards, rule, self.best_reward());
        let mut metrics: Metrics = summary.metrics().into_iter().collect();
        metrics.extend(self.reward_metrics());
        metrics.extend(self.length_metrics());
        let report = self.confusion.report();
        metrics.extend(report.metrics().into_iter().filter(|(name, _)| name.matches('/').count() == 1));
        metrics.extend(self.by_source.metrics());
        let mut dead = BySource::default();
        for (source, live) in self.sources.iter().zip(rule.live(&self.rewards)) {
            dead.add(source.as_deref(), "frac_reward_zero_std", f64::from(u8::from(!live)), 1);
        }
        metrics.extend(dead.metrics());
        if let Some(missing) = resampled {
            metrics.insert("dynamic_sampling/rounds", f64::from(self.rounds.saturating_sub(1)));
            metrics.insert("dynamic_sampling/groups", self.groups.len() as f64);
            metrics.insert("dynamic_sampling/missing", missing as f64);
        }
        metrics
    }

    /// Mean and standard deviation (the sample's, as TRL has it) of each reward over the completions, and what those who were asked said
    /// in parts.
    fn reward_metrics(&self) -> Vec<(String, f64)> {
        let mut metrics = Vec::new();
        for (part, named) in self.rewards.parts.iter().zip(self.task.rewards()) {
            let (mean, std) = moments(part.rewards.iter().flatten(), ScaleStd::Sample);
            metrics.push((format!("rewards/{}/mean", named.name), mean));
            metrics.push((format!("rewards/{}/std", named.name), std));
            if let Some(failed) = self.failed.get(&named.name) {
                let count = part.rewards.iter().flatten().count().max(1);
                metrics.push((format!("rewards/{}/failed", named.name), *failed as f64 / count as f64));
            }
        }
        let of_part = |(name, (sum, count)): (&String, &(f64, usize))| {
            (format!("rewards/{name}/mean"), sum / (*count).max(1) as f64)
        };
        metrics.extend(self.named.iter().map(of_part));
        metrics
    }

    /// The most that an answer to any row can earn, as far as that is known: of rewards that are no table, the most that a completion
    /// of the step earned.
    fn best_reward(&self) -> f32 {
        let best = |(part, named): (&RewardPart, &NamedReward)| match named.kind {
            RewardKind::Outcomes(_) => None,
            _ => part.rewards.iter().flatten().map(|value| named.weight * value).reduce(f32::max),
        };
        let others: f32 = self.rewards.parts.iter().zip(self.task.rewards()).filter_map(best).sum();
        best_outcome(self.task) + others
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
    /// `time/reward`: what those who were asked took after the last completion.
    pub fn timing_metrics(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let reward = self.task.asks().then_some(("time/reward", self.reward_seconds));
        let others = [
            ("time/rollout", self.start.elapsed().as_secs_f64()),
            ("time/prefill", self.timing.prefill_seconds),
            ("time/decode", self.timing.decode_seconds),
        ];
        others.into_iter().chain(reward)
    }
}

/// A completion that the budget cut off has no token to learn from.
fn mask_truncated(group: &mut Group) {
    for rollout in group.rollouts.iter_mut().filter(|r| r.finish == FinishReason::Length) {
        rollout.token_ids.clear();
        rollout.logprobs.clear();
    }
}

/// The most that an outcome can earn.
fn best_outcome(task: &Task) -> f32 {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Prompt;

    /// Two groups of two: tokens, and whether the budget cut them off.
    fn rolled(task: &Task) -> Rolled<'_> {
        let rollout = |(length, finish): (usize, FinishReason)| Rollout {
            token_ids: vec![7; length],
            logprobs: vec![-1.0; length],
            finish,
        };
        let group = |of: [(usize, FinishReason); 2]| Group {
            prompt: Prompt { token_ids: vec![1, 2] },
            rollouts: of.map(rollout).into(),
        };
        let (stop, length) = (FinishReason::Stop, FinishReason::Length);
        let mut rolled = Rolled::new(task);
        rolled.groups = vec![group([(3, stop), (5, length)]), group([(5, length), (1, stop)])];
        rolled.rewards.total = vec![vec![1.0, 0.0], vec![0.0, 0.0]];
        rolled
    }

    #[test]
    fn a_completion_that_was_cut_off_keeps_its_reward_and_loses_its_tokens() {
        let task = Task::load("demo").unwrap();
        let advantages = || vec![vec![0.5, -0.5], vec![0.0, 0.0]];
        let lengths = |scored: &Scored| -> Vec<usize> {
            scored.groups.iter().flat_map(|g| &g.group.rollouts).map(|r| r.token_ids.len()).collect()
        };
        let kept = rolled(&task).scored(advantages(), TruncatedCompletions::Keep);
        assert_eq!(lengths(&kept), [3, 5, 5, 1]);
        let masked = rolled(&task).scored(advantages(), TruncatedCompletions::Mask);
        assert_eq!(lengths(&masked), [3, 0, 0, 1]);
        assert_eq!(
            (&masked.groups[0].rewards, &masked.groups[0].advantages),
            (&vec![1.0, 0.0], &vec![0.5, -0.5])
        );
        assert!(masked.groups[0].group.rollouts[1].logprobs.is_empty());
    }

    #[test]
    fn a_group_that_is_not_kept_counts_in_nothing_that_follows() {
        let task = Task::load("demo").unwrap();
        let mut rolled = rolled(&task);
        assert_eq!(rolled.metrics(&RULE, Some(1)).get("completions/mean_length"), Some(3.5));
        rolled.drop_others(&[true, false]);
        assert_eq!(rolled.groups.iter().map(|g| g.rollouts.len()).collect::<Vec<_>>(), [2, 0]);
        assert_eq!(rolled.missing(&RULE, 3), 2, "one of the two groups is live");
    }

    const RULE: AdvantageRule = AdvantageRule {
        combine_rewards: crate::config::stages::CombineRewards::Sum,
        scale_rewards: crate::config::stages::ScaleRewards::Group,
        scale_std: ScaleStd::Sample,
        baseline: crate::config::stages::Baseline::Mean,
        eps: 0.0,
    };
}
