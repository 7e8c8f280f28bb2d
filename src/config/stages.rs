//! `[sft]`, `[grpo]`: what each stage of a run does.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::distill::DistillConfig;
use super::entropy::AdaptiveEntropyConfig;
use super::loss::{KlEstimator, KlPlace, LossConfig};
use super::optim::OptimConfig;
use super::sampling::SamplingConfig;
use crate::error::{Error, Result};

/// `[sft]`: the warm-up, cross-entropy on the answer's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {
    /// Optimiser steps. 0: as many as `epochs` takes. Give this or `epochs`.
    #[schemars(range(max = 1_000_000_000))]
    pub steps: usize,
    /// How often each row is learned from. Give this or `steps`. Default 1 where neither is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub epochs: Option<f64>,
    /// Rows an optimiser step averages over.
    #[schemars(range(max = 1 << 20))]
    pub rows_per_step: usize,
    pub optim: OptimConfig,
    /// Absent: the answers alone are learned from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillConfig>,
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// Divide by the standard deviation of the group.
    Group,
    /// Divide by the standard deviation of the whole step.
    Batch,
    /// Subtract the group's mean only (Dr. GRPO).
    None,
}

/// Of which the rewards are taken for the standard deviation that divides advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleStd {
    /// Of a sample: the squares' sum over n - 1, as TRL, verl and torch divide.
    Sample,
    /// Of the whole: over n.
    Population,
}

/// What a completion's reward is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Baseline {
    /// The mean of the group.
    Mean,
    /// The mean of the other completions of the group (RLOO, arXiv:2402.14740).
    LeaveOneOut,
}

/// How the rewards of a task that has several become one advantage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CombineRewards {
    /// Their weighted sum is normalised.
    Sum,
    /// Each is normalised within its group, and their weighted sum over the step (GDPO, arXiv:2601.05242): rewards
    /// of different spread and rarity keep their say.
    NormalizeThenSum,
}

/// In which order a stage goes through its prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PromptOrder {
    /// Every prompt once an epoch.
    Shuffled,
    /// Drawn without replacement within a step, more often the nearer their running success rate is to a half.
    Difficulty,
}

/// What is learned from a completion that the budget cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TruncatedCompletions {
    /// What is learned from any other.
    Keep,
    /// It is part of its group's mean, but no token of it is trained on (DAPO, arXiv:2503.14476).
    Mask,
}

/// Which prompts a GRPO step sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// Prompts as the data has them.
    None,
    /// Half of each step's prompts have the negative gold label.
    LabelSign,
}

/// `[grpo]`: how rollouts become a gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoConfig {
    /// Optimiser steps. 0: as many as `epochs` takes. Give this or `epochs`.
    #[schemars(range(max = 1_000_000_000))]
    pub steps: usize,
    /// How often each prompt is sampled for, dynamic sampling not counted. Give this or `steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub epochs: Option<f64>,
    /// Prompts per optimiser step. Rollouts per step = `prompts_per_step * group_size`.
    #[schemars(range(max = 1 << 20))]
    pub prompts_per_step: usize,
    /// Completions sampled per prompt (G in the paper). At least 2: one has no group to compare with.
    #[schemars(range(max = 4096))]
    pub group_size: usize,
    /// Completion budget in tokens.
    #[schemars(range(max = 1 << 20))]
    pub max_completion_tokens: usize,
    pub sampling: SamplingConfig,
    /// How rewards become advantages.
    pub scale_rewards: ScaleRewards,
    /// Which standard deviation divides.
    pub scale_std: ScaleStd,
    /// Added to the standard deviation that divides the advantages.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub advantage_eps: f64,
    /// What a completion's reward is compared with.
    pub baseline: Baseline,
    /// How the rewards of a task that has several become one advantage.
    pub combine_rewards: CombineRewards,
    /// Which prompts a step sees.
    pub balance: Balance,
    /// In which order the stage goes through its prompts.
    pub order: PromptOrder,
    /// Rounds of new prompts in the place of those whose completions all earned the same, until a step has
    /// `prompts_per_step` groups to learn from (dynamic sampling, DAPO). 0: dead groups stay.
    #[schemars(range(max = 1 << 16))]
    pub max_resamples: usize,
    /// What is learned from a completion that the budget cut off.
    pub truncated: TruncatedCompletions,
    /// A completion loses up to `overlong_penalty` of its reward over the last so many tokens of the budget
    /// (DAPO's soft punishment). 0: none.
    #[schemars(range(max = 1 << 20))]
    pub overlong_buffer_tokens: usize,
    /// Reward that is lost at the end of the budget. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub overlong_penalty: Option<f64>,
    /// Upper bound of `exp(trainer logp - sampler logp)`, with which a token's loss is multiplied when it is given
    /// (truncated importance sampling, arXiv:2510.13786). Only where a rollout's activations are not used again can
    /// it differ from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub importance_cap: Option<f64>,
    /// Weight of the mean entropy of the step's tokens, which is added to the objective.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub entropy_coef: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive_entropy: Option<AdaptiveEntropyConfig>,
    /// Share of an update's tokens, those at which the policy's entropy is highest, that are learned from (arXiv:2506.01939, which takes 0.2); a
    /// KL penalty in the loss stays on all. Costs a forward pass more an update. Default: every token.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub top_entropy_quantile: Option<f64>,
    /// Optimiser steps on each rollout (mu). Above 1 the ratio leaves 1 and clipping starts to matter.
    #[schemars(range(max = 1 << 16))]
    pub updates_per_rollout: usize,
    /// Parts that a step's groups are cut into, an optimiser update each: TRL's steps_per_generation, verl's train_batch_size over
    /// ppo_mini_batch_size. From the second part on the weights are not the sampler's any more, and the ratio is clipped.
    #[schemars(range(max = 1 << 20))]
    pub minibatches: usize,
    /// KL penalty weight (beta), per token in nats. 0 keeps no reference model.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub kl_coef: f64,
    /// Which estimate of the distance to the reference. Default: `k3` in the loss, `k1` in the reward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_estimator: Option<KlEstimator>,
    /// Where the distance to the reference is charged. Default `loss`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_in: Option<KlPlace>,
    /// Multiply each estimate in the loss by the policy's ratio to the weights that sampled, which the gradient sees too: TRL's
    /// use_bias_correction_kl, of DeepSeek-V3.2. Without it the slope is that of the estimate.
    pub kl_bias_correction: bool,
    /// Every so many steps the reference becomes the policy of that step. Default: it stays that of the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000_000))]
    pub reference_sync_steps: Option<usize>,
    pub loss: LossConfig,
    pub optim: OptimConfig,
    /// Warn when |sampler logprob - trainer logprob| exceeds this on any token.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_logprob_difference: f32,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self { steps: 0, epochs: None, rows_per_step: 32, optim: OptimConfig::default(), distill: None }
    }
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            epochs: None,
            prompts_per_step: 8,
            group_size: 8,
            max_completion_tokens: 64,
            sampling: SamplingConfig::default(),
            scale_rewards: ScaleRewards::Group,
            scale_std: ScaleStd::Sample,
            advantage_eps: 1e-6,
            baseline: Baseline::Mean,
            combine_rewards: CombineRewards::Sum,
            balance: Balance::None,
            order: PromptOrder::Shuffled,
            max_resamples: 0,
            truncated: TruncatedCompletions::Keep,
            overlong_buffer_tokens: 0,
            overlong_penalty: None,
            importance_cap: None,
            entropy_coef: 0.0,
            adaptive_entropy: None,
            top_entropy_quantile: None,
            updates_per_rollout: 1,
            minibatches: 1,
            kl_coef: 0.0,
            kl_estimator: None,
            kl_in: None,
            kl_bias_correction: false,
            reference_sync_steps: None,
            loss: LossConfig::default(),
            optim: OptimConfig::default(),
            max_logprob_difference: 0.01,
        }
    }
}

pub(super) fn at_least(key: &str, got: usize, least: usize, why: &str) -> Result<()> {
    if got < least {
        return Err(Error::config(key, got, format!("{least} or more"), why));
    }
    Ok(())
}

fn steps_of_epochs(epochs: f64, rows: usize, per_step: usize) -> u64 {
    ((epochs * rows as f64 / per_step as f64).ceil() as u64).max(1)
}

fn positive_epochs(stage: &str, epochs: f64) -> Result<()> {
    if epochs > 0.0 && epochs.is_finite() {
        return Ok(());
    }
    let why = format!("{stage}.steps is 0, so epochs decide the length");
    Err(Error::config(&format!("{stage}.epochs"), epochs, "above 0", why))
}

impl SftConfig {
    /// What counts where `steps` is 0.
    pub fn epochs(&self) -> f64 {
        self.epochs.unwrap_or(1.0)
    }

    /// Optimiser steps over so many rows.
    pub fn steps_of(&self, rows: usize) -> u64 {
        match self.steps {
            0 => steps_of_epochs(self.epochs(), rows, self.rows_per_step),
            steps => steps as u64,
        }
    }

    pub fn validate(&self) -> Result<()> {
        at_least("sft.rows_per_step", self.rows_per_step, 1, "a step averages over rows")?;
        if self.steps == 0 {
            positive_epochs("sft", self.epochs())?;
        }
        self.distill.iter().try_for_each(DistillConfig::validate)?;
        self.optim.validate("sft.optim")
    }
}

impl GrpoConfig {
    /// Optimiser updates of a step.
    pub fn updates(&self) -> usize {
        self.updates_per_rollout.saturating_mul(self.minibatches)
    }

    /// Steps over so many prompts.
    pub fn steps_of(&self, rows: usize) -> u64 {
        match self.steps {
            0 => steps_of_epochs(self.epochs.unwrap_or(0.0), rows, self.prompts_per_step),
            steps => steps as u64,
        }
    }

    pub fn validate(&self) -> Result<()> {
        match self.epochs {
            Some(epochs) if self.steps == 0 => positive_epochs("grpo", epochs)?,
            _ => at_least("grpo.steps", self.steps, 1, "the stage would do nothing")?,
        }
        at_least("grpo.prompts_per_step", self.prompts_per_step, 1, "a step needs a prompt")?;
        at_least("grpo.group_size", self.group_size, 2, "advantages compare completions of one prompt")?;
        let why = "an empty completion has no token to learn from";
        at_least("grpo.max_completion_tokens", self.max_completion_tokens, 1, why)?;
        let why = "each rollout has to be learned from";
        at_least("grpo.updates_per_rollout", self.updates_per_rollout, 1, why)?;
        at_least("grpo.minibatches", self.minibatches, 1, why)?;
        if self.minibatches > self.prompts_per_step {
            let want = format!("at most grpo.prompts_per_step = {}", self.prompts_per_step);
            return Err(Error::config("grpo.minibatches", self.minibatches, want, "a group is not cut"));
        }
        self.sampling.validate("grpo.sampling")?;
        if self.sampling.temperature == 0.0 {
            let why = "greedy completions of one prompt are all equal, so no group has an advantage";
            return Err(Error::config("grpo.sampling.temperature", 0, "above 0", why));
        }
        if !(self.advantage_eps >= 0.0 && self.advantage_eps.is_finite()) {
            let why = "it is added to a standard deviation";
            return Err(Error::config("grpo.advantage_eps", self.advantage_eps, "0 or more", why));
        }
        if !(self.kl_coef >= 0.0 && self.kl_coef.is_finite()) {
            let why = "a negative penalty drives the model away from the reference";
            return Err(Error::config("grpo.kl_coef", self.kl_coef, "0 or more", why));
        }
        if !(self.max_logprob_difference >= 0.0 && self.max_logprob_difference.is_finite()) {
            let got = self.max_logprob_difference;
            let why = "it is a distance";
            return Err(Error::config("grpo.max_logprob_difference", got, "0 or more", why));
        }
        self.loss.validate("grpo.loss", self.updates())?;
        self.validate_kl()?;
        self.validate_advantage()?;
        self.optim.validate("grpo.optim")
    }
}

impl GrpoConfig {
    pub fn kl_in(&self) -> KlPlace {
        self.kl_in.unwrap_or(KlPlace::Loss)
    }

    pub fn kl_estimator(&self) -> KlEstimator {
        self.kl_estimator.unwrap_or(match self.kl_in() {
            KlPlace::Loss => KlEstimator::K3,
            KlPlace::Reward => KlEstimator::K1,
        })
    }

    fn validate_kl(&self) -> Result<()> {
        if self.sampling.replay_truncation && self.kl_coef != 0.0 {
            let why = "policy and reference would be cut at different tokens, and their distance be infinite";
            return Err(Error::config("grpo.kl_coef", self.kl_coef, "0 beside replay_truncation", why));
        }
        let given = [
            ("kl_estimator", self.kl_estimator.is_some()),
            ("kl_in", self.kl_in.is_some()),
            ("kl_bias_correction", self.kl_bias_correction),
            ("reference_sync_steps", self.reference_sync_steps.is_some()),
        ];
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given && self.kl_coef == 0.0) {
            let problem = "has no effect: grpo.kl_coef is 0, so there is no reference";
            let fix = "Remove the key, or set grpo.kl_coef above 0";
            return Err(Error::input(format!("grpo.{name}"), problem, fix));
        }
        if self.kl_bias_correction && self.kl_in() == KlPlace::Reward {
            let problem = "has no effect: with grpo.kl_in = \"reward\" no gradient goes through the distance";
            return Err(Error::input("grpo.kl_bias_correction", problem, "Remove one of the two keys"));
        }
        match self.reference_sync_steps {
            Some(steps) => at_least(
                "grpo.reference_sync_steps",
                steps,
                1,
                "it counts steps; without it there is no sync",
            ),
            None => Ok(()),
        }
    }

    fn validate_advantage(&self) -> Result<()> {
        let number = |key: &str, got: f64, fine: bool, want: &str, why: &str| match fine && got.is_finite() {
            true => Ok(()),
            false => Err(Error::config(&format!("grpo.{key}"), got, want, why)),
        };
        let coef = self.entropy_coef;
        if self.scale_rewards != ScaleRewards::Group
            && self.combine_rewards == CombineRewards::NormalizeThenSum
        {
            let problem = "has no effect beside grpo.combine_rewards = \"normalize_then_sum\", which has a way of its own";
            return Err(Error::input("grpo.scale_rewards", problem, "Remove one of the two keys"));
        }
        let nothing_divides = self.scale_rewards == ScaleRewards::None;
        let idle = [
            ("grpo.advantage_eps", self.advantage_eps != Self::default().advantage_eps),
            ("grpo.scale_std", self.scale_std != Self::default().scale_std),
        ];
        if let Some((key, _)) = idle.into_iter().find(|(_, given)| nothing_divides && *given) {
            let problem = "has no effect: with grpo.scale_rewards = \"none\" no deviation divides";
            return Err(Error::input(key, problem, "Remove one of the two keys"));
        }
        number("entropy_coef", coef, coef >= 0.0, "0 or more", "a negative bonus makes the policy collapse")?;
        self.adaptive_entropy.iter().try_for_each(|rule| rule.validate(coef))?;
        if let Some(top) = self.top_entropy_quantile {
            let why = "it is a share of the tokens; without the key all are learned from";
            number("top_entropy_quantile", top, top > 0.0 && top < 1.0, "above 0 and below 1", why)?;
        }
        if let Some(cap) = self.importance_cap {
            number("importance_cap", cap, cap > 0.0, "above 0", "it bounds a ratio of probabilities")?;
            if matches!(self.loss, LossConfig::Vespo(_)) {
                let why = "vespo weighs completions as a whole, and corrects for the sampler in no token";
                return Err(Error::config("grpo.importance_cap", cap, "no such key beside vespo", why));
            }
        }
        if let Some(penalty) = self.overlong_penalty {
            number("overlong_penalty", penalty, penalty > 0.0, "above 0", "it is taken off the reward")?;
            if self.overlong_buffer_tokens == 0 {
                let problem = "has no effect: grpo.overlong_buffer_tokens is 0";
                let fix = "Remove the key, or say over how many last tokens the penalty grows";
                return Err(Error::input("grpo.overlong_penalty", problem, fix));
            }
        }
        if self.overlong_buffer_tokens >= self.max_completion_tokens {
            let want = format!("below grpo.max_completion_tokens = {}", self.max_completion_tokens);
            let why = "it is the end of the budget";
            return Err(Error::config("grpo.overlong_buffer_tokens", self.overlong_buffer_tokens, want, why));
        }
        if self.order == PromptOrder::Difficulty && self.balance != Balance::None {
            let why = "grpo.balance orders the prompts already";
            return Err(Error::config("grpo.order", "difficulty", "\"shuffled\", or no balance", why));
        }
        Ok(())
    }
}
