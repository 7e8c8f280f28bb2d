//! The all-labels policy gradient: every answer of the set behind its prompt, no sampling, no decoding.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::by_source::BySource;
use super::learner::{Learner, mean};
use super::objective::{At, Objective, Surroundings};
use super::reference::{self, Reference};
use super::rows::prompt_order;
use crate::algo::enumerate::{AnswerSet, Expected};
use crate::config::enumerate::{EnumerateConfig, ScaleExpected};
use crate::config::optim::OptimConfig;
use crate::data::jsonl::EncodedRow;
use crate::data::order::Order;
use crate::error::Result;
use crate::eval::enumerate::{answer_logps, answers_batch, packed_tokens};
use crate::model::decoder::Decoder;
use crate::observe::{Metrics, Sinks};
use crate::pack::runs;
use crate::task::{LabelId, Outcome, Task, Verdict};

pub struct Enumerate<'a> {
    around: Surroundings<'a>,
    config: &'a EnumerateConfig,
    order: Order,
    /// `None` without a KL penalty.
    reference: Option<Reference<'a>>,
}

impl<'a> Enumerate<'a> {
    pub fn new(around: Surroundings<'a>, policy: &Decoder, sinks: &mut Sinks) -> Result<Self> {
        let config = &around.config.enumerate;
        let reference = match config.kl_coef {
            0.0 => None,
            _ => Some(Reference::open(around, policy, config.reference_sync_steps, sinks)?),
        };
        let rows = &around.materials.rows.answers;
        let order = prompt_order(rows, around.config, config.balance, "enumerate.balance")?;
        Ok(Self { around, config, order, reference })
    }
}

impl Objective for Enumerate<'_> {
    fn step(&mut self, learner: &mut Learner, at: At, sinks: &mut Sinks) -> Result<Metrics> {
        let (config, all) = (self.config, &self.around.materials.rows.answers);
        let indices = self.order.indices(at.step, config.prompts_per_step);
        let rows: Vec<&EncodedRow> = indices.into_iter().map(|i| &all[i]).collect();
        let expectation = Expectation {
            task: &self.around.materials.task,
            config,
            max_tokens_per_pack: self.around.config.pack.max_tokens_per_pack,
            reference: self.reference.as_ref().map(Reference::weights),
        };
        let start = Instant::now();
        let mut metrics = expectation.learn(learner, &rows)?;
        metrics.extend(learner.step(at.learning_rate)?);
        metrics.insert("time/update", start.elapsed().as_secs_f64());
        let seen = (at.step + 1) * config.prompts_per_step as u64;
        metrics.insert("epoch", seen as f64 / all.len() as f64);
        if let Some(reference) = &mut self.reference {
            reference.after_step(at.step + 1, learner.decoder(), sinks)?;
        }
        Ok(metrics)
    }

    fn steps(&self) -> u64 {
        self.config.steps as u64
    }

    fn optim(&self) -> &OptimConfig {
        &self.config.optim
    }

    fn reference(&self) -> Option<&str> {
        self.reference.as_ref().and_then(Reference::digest)
    }
}

/// What the gradient of a step depends on besides the rows.
#[derive(Clone, Copy)]
pub struct Expectation<'a> {
    pub task: &'a Task,
    pub config: &'a EnumerateConfig,
    pub max_tokens_per_pack: usize,
    /// Frozen weights of the KL penalty.
    pub reference: Option<&'a Decoder>,
}

/// Means over the step's prompts, and what they are made of.
#[derive(Clone, Copy, Default, Serialize, Deserialize)]
struct Sums {
    reward: f64,
    /// Of the squared reward.
    squares: f64,
    exact: f64,
    /// Probability of a flag on risky prompts and on benign ones, of the negative label on benign ones; and how many.
    hits: f64,
    false_alarms: f64,
    passes: f64,
    risky: f64,
    rest: f64,
    kl: f64,
    loss: f64,
    /// Expected entropy and length of an answer.
    entropy: f64,
    length: f64,
}

impl Expectation<'_> {
    /// Adds the gradient of the mean over `rows` of `-E[reward] / scale + kl_coef KL`. With
    /// `scale_rewards = "group"` the scale is the reward's exact standard deviation on the prompt, held fixed, plus
    /// `advantage_eps`. The rows were read with `Targets::Answers`.
    pub fn learn(&self, learner: &mut Learner, rows: &[&EncodedRow]) -> Result<Metrics> {
        let temperature = self.config.temperature;
        let (mut sums, mut tokens, mut by_source) = (Sums::default(), 0, BySource::default());
        let sizes: Vec<usize> = rows.iter().map(|row| packed_tokens(row)).collect();
        let (owners, rank) = (learner.ranks().owners(&sizes), learner.ranks().rank());
        let mine = (0..rows.len()).filter(|i| owners[*i] == rank);
        let (sizes, mine): (Vec<usize>, Vec<&EncodedRow>) = mine.map(|i| (sizes[i], rows[i])).unzip();
        let packs = runs(sizes.iter().copied(), self.max_tokens_per_pack);
        let (own, most) = (packs.len(), learner.most_passes(packs.len())?);
        for run in packs {
            let rows_of_pack = &mine[run];
            let batch = answers_batch(rows_of_pack, learner.decoder().max_positions())?;
            tokens += batch.tokens.len();
            let reference = match self.reference {
                Some(weights) => {
                    let logps = reference::logps(weights, &batch, temperature)?;
                    Some(answer_logps(&batch, logps))
                }
                None => None,
            };
            learner.pass(&batch, temperature, |now| {
                let logps = answer_logps(&batch, now.logprobs.iter().map(|l| f64::from(*l)));
                let lengths = &batch.target_counts;
                let mut ranges = batch.target_ranges();
                let mut dlogps = Vec::with_capacity(batch.targets.len());
                let mut first = 0;
                for row in rows_of_pack {
                    let answers = first..first + row.answers.len();
                    first = answers.end;
                    let set = self.answer_set(row);
                    let expected = Expected::new(AnswerSet {
                        logps: &logps[answers.clone()],
                        rewards: &set.rewards,
                        rest_reward: set.rest_reward,
                        ref_logps: reference.as_ref().map(|r| &r[answers.clone()]),
                    });
                    let scale = match self.config.scale_rewards {
                        ScaleExpected::Group => expected.std + self.config.advantage_eps,
                        ScaleExpected::None => 1.0,
                    };
                    // All rewards equal and eps 0: nothing to learn, and nothing to divide by.
                    let scale = if scale > 0.0 { scale } else { 1.0 };
                    let slopes = expected.dloss_dlogp(&set.rewards, scale, self.config.kl_coef);
                    sums.loss += self.config.kl_coef * expected.kl - expected.reward / scale;
                    for (i, (slope, &length)) in slopes.iter().zip(&lengths[answers]).enumerate() {
                        dlogps.extend(std::iter::repeat_n((slope / rows.len() as f64) as f32, length));
                        let entropies = ranges.next().map(|range| mean(&now.entropies[range]));
                        sums.entropy += expected.p[i] * entropies.unwrap_or(0.0) * length as f64;
                        sums.length += expected.p[i] * length as f64;
                    }
                    let right = sums.add(&expected, row, &set);
                    by_source.add(row.source.as_deref(), "reward", expected.reward, 1);
                    by_source.add(row.source.as_deref(), "accuracy_strict", right, 1);
                }
                Ok(dlogps)
            })?;
        }
        learner.end_passes(own, most)?;
        let all = learner.ranks().gather((sums, tokens, by_source))?;
        let whole = all.into_iter().reduce(|(a, m, x), (b, n, y)| (a.and(&b), m + n, x.and(y)));
        let (sums, tokens, by_source) = whole.unwrap_or_default();
        let mut metrics = sums.metrics(self, rows.len(), tokens);
        metrics.extend(by_source.metrics());
        Ok(metrics)
    }

    fn answer_set(&self, row: &EncodedRow) -> RewardedAnswers {
        let outcome = |verdict| Outcome::of(row.gold, verdict);
        let of_answer = |label| match label {
            LabelId::NEGATIVE => outcome(Verdict::Negative),
            label => outcome(Verdict::Positive(label)),
        };
        let outcomes: Vec<Outcome> = row.answers.iter().map(|answer| of_answer(answer.label)).collect();
        RewardedAnswers {
            rewards: outcomes.iter().map(|o| f64::from(self.task.reward(*o))).collect(),
            exact: outcomes.iter().map(|o| o.is_exact()).collect(),
            rest_reward: f64::from(self.task.reward(outcome(self.task.remainder()))),
        }
    }
}

/// What each answer to a row earns, whether it is exactly right, and what anything else earns.
struct RewardedAnswers {
    rewards: Vec<f64>,
    exact: Vec<bool>,
    rest_reward: f64,
}

impl Sums {
    fn and(self, other: &Self) -> Self {
        Self {
            reward: self.reward + other.reward,
            squares: self.squares + other.squares,
            exact: self.exact + other.exact,
            hits: self.hits + other.hits,
            false_alarms: self.false_alarms + other.false_alarms,
            passes: self.passes + other.passes,
            risky: self.risky + other.risky,
            rest: self.rest + other.rest,
            kl: self.kl + other.kl,
            loss: self.loss + other.loss,
            entropy: self.entropy + other.entropy,
            length: self.length + other.length,
        }
    }

    /// Returns the probability of a flag on a risky prompt, of the negative label on a benign one.
    fn add(&mut self, expected: &Expected, row: &EncodedRow, set: &RewardedAnswers) -> f64 {
        let mass = |of: &dyn Fn(usize) -> bool| -> f64 {
            expected.p.iter().enumerate().filter(|(i, _)| of(*i)).map(|(_, p)| p).sum()
        };
        let flags = mass(&|i| !row.answers[i].label.is_negative());
        let right =
            if row.gold.is_negative() { mass(&|i| row.answers[i].label.is_negative()) } else { flags };
        if row.gold.is_negative() {
            self.false_alarms += flags;
            self.passes += right;
        } else {
            self.risky += 1.0;
            self.hits += right;
        }
        self.exact += mass(&|i| set.exact[i]);
        self.reward += expected.reward;
        self.squares += expected.std.powi(2) + expected.reward.powi(2);
        self.rest += expected.rest;
        self.kl += expected.kl;
        right
    }

    /// Expectations under the policy at the sampling temperature, by the names that sampled GRPO's estimates have.
    fn metrics(&self, of: &Expectation, rows: usize, tokens: usize) -> Metrics {
        let prompts = rows.max(1) as f64;
        let answered = (prompts - self.rest).max(f64::MIN_POSITIVE);
        let mut metrics: Metrics = [
            ("reward", self.reward / prompts),
            ("reward_std", (self.squares / prompts - (self.reward / prompts).powi(2)).max(0.0).sqrt()),
            ("verdict/accuracy_strict", (self.hits + self.passes) / prompts),
            ("verdict/exact_label_accuracy", self.exact / prompts),
            ("verdict/malformed_rate", self.rest / prompts),
            ("completions/mean_length", self.length / answered),
            ("loss", self.loss / prompts),
            ("entropy", self.entropy / self.length.max(f64::MIN_POSITIVE)),
            ("num_tokens", tokens as f64),
        ]
        .into_iter()
        .collect();
        let benign = prompts - self.risky;
        let rates = [
            ("verdict/recall", self.hits, self.risky),
            ("verdict/false_positive_rate", self.false_alarms, benign),
        ];
        metrics
            .extend(rates.into_iter().filter(|(_, _, of)| *of > 0.0).map(|(name, sum, of)| (name, sum / of)));
        metrics.insert(format!("rewards/{}/mean", of.task.name()), self.reward / prompts);
        if of.reference.is_some() {
            metrics.insert("kl", self.kl / prompts);
        }
        metrics
    }
}
