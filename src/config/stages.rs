//! `[sft]`, `[grpo]`, `[eval]`: what each stage of a run does.

use serde::{Deserialize, Serialize};

use super::loss::LossConfig;
use super::optim::OptimConfig;
use super::sampling::SamplingConfig;
use crate::error::{Error, Result};

/// `[sft]`: the warm-up, cross-entropy on the answer's tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SftConfig {
    /// Optimiser steps. 0: as many as `epochs` takes.
    pub steps: usize,
    pub epochs: f64,
    /// Rows an optimiser step averages over.
    pub rows_per_step: usize,
    pub optim: OptimConfig,
}

/// How rewards become advantages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScaleRewards {
    /// Divide by the standard deviation of the group.
    Group,
    /// Divide by the standard deviation of the whole step.
    Batch,
    /// Subtract the group's mean only (Dr. GRPO).
    None,
}

/// Where the policy gradient comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Groups of sampled completions.
    Sampled,
    /// The exact expectation over every answer of a closed task ([answers] of the task file): no sampling. The
    /// keys of sampling that may stay, so that one config serves both: `group_size`, `max_completion_tokens`.
    Enumerate,
}

/// Which prompts a GRPO step sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// As the data has them.
    None,
    /// Half of each step's prompts have the negative gold label.
    LabelSign,
}

/// `[grpo]`: how rollouts become a gradient.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GrpoConfig {
    pub steps: usize,
    pub estimator: Estimator,
    /// Prompts per optimiser step. Rollouts per step = `prompts_per_step * group_size`.
    pub prompts_per_step: usize,
    /// Completions sampled per prompt (G in the paper). At least 2: one has no group to compare with.
    pub group_size: usize,
    /// Completion budget in tokens.
    pub max_completion_tokens: usize,
    pub sampling: SamplingConfig,
    pub scale_rewards: ScaleRewards,
    /// Added to the standard deviation that divides the advantages.
    pub advantage_eps: f64,
    pub balance: Balance,
    /// Optimiser steps on each rollout (mu). Above 1 the ratio leaves 1 and clipping starts to matter.
    pub updates_per_rollout: usize,
    /// KL penalty weight (beta), per token in nats. 0 keeps no reference model.
    pub kl_coef: f64,
    pub loss: LossConfig,
    pub optim: OptimConfig,
    /// Warn when |sampler logprob - trainer logprob| exceeds this on any token.
    pub max_logprob_difference: f32,
}

/// `[eval]`: run before training, after each stage, and every `every_steps` of GRPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps of GRPO between two evaluations. 0: only at the ends of stages.
    pub every_steps: usize,
    /// Completions per prompt, each counted.
    pub samples_per_prompt: usize,
    pub max_completion_tokens: usize,
    pub sampling: SamplingConfig,
}

impl Default for SftConfig {
    fn default() -> Self {
        Self { steps: 0, epochs: 1.0, rows_per_step: 32, optim: OptimConfig::default() }
    }
}

impl Default for GrpoConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            estimator: Estimator::Sampled,
            prompts_per_step: 8,
            group_size: 8,
            max_completion_tokens: 64,
            sampling: SamplingConfig::default(),
            scale_rewards: ScaleRewards::Group,
            advantage_eps: 1e-6,
            balance: Balance::None,
            updates_per_rollout: 1,
            kl_coef: 0.0,
            loss: LossConfig::default(),
            optim: OptimConfig::default(),
            max_logprob_difference: 0.01,
        }
    }
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every_steps: 0,
            samples_per_prompt: 1,
            max_completion_tokens: 64,
            sampling: SamplingConfig { temperature: 0.0, ..SamplingConfig::default() },
        }
    }
}

fn at_least(key: &str, got: usize, least: usize, why: &str) -> Result<()> {
    if got < least {
        return Err(Error::config(key, got, format!("{least} or more"), why));
    }
    Ok(())
}

impl SftConfig {
    pub fn validate(&self) -> Result<()> {
        at_least("sft.rows_per_step", self.rows_per_step, 1, "a step averages over rows")?;
        if self.steps == 0 && !(self.epochs > 0.0 && self.epochs.is_finite()) {
            let why = "sft.steps is 0, so epochs decide the length";
            return Err(Error::config("sft.epochs", self.epochs, "above 0", why));
        }
        self.optim.validate("sft.optim")
    }
}

impl GrpoConfig {
    pub fn validate(&self) -> Result<()> {
        at_least("grpo.steps", self.steps, 1, "the stage would do nothing")?;
        at_least("grpo.prompts_per_step", self.prompts_per_step, 1, "a step needs a prompt")?;
        at_least("grpo.group_size", self.group_size, 2, "advantages compare completions of one prompt")?;
        let why = "an empty completion has no token to learn from";
        at_least("grpo.max_completion_tokens", self.max_completion_tokens, 1, why)?;
        let why = "each rollout has to be learned from";
        at_least("grpo.updates_per_rollout", self.updates_per_rollout, 1, why)?;
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
        self.loss.validate("grpo.loss", self.updates_per_rollout)?;
        if self.estimator == Estimator::Enumerate {
            self.validate_enumerate()?;
        }
        self.optim.validate("grpo.optim")
    }
}

impl GrpoConfig {
    /// What has no effect without samples.
    fn validate_enumerate(&self) -> Result<()> {
        let sampling = SamplingConfig { temperature: self.sampling.temperature, ..SamplingConfig::default() };
        let without_effect = [
            ("loss", self.loss != LossConfig::default()),
            ("updates_per_rollout", self.updates_per_rollout != 1),
            ("sampling", self.sampling != sampling),
            ("scale_rewards", self.scale_rewards == ScaleRewards::Batch),
        ];
        match without_effect.into_iter().find(|(_, set)| *set) {
            None => Ok(()),
            Some((key, _)) => Err(Error::input(
                format!("grpo.{key}"),
                "has no effect with grpo.estimator = \"enumerate\", which samples nothing",
                match key {
                    "scale_rewards" => "Use \"group\" or \"none\"",
                    "sampling" => "Remove all of its keys but the temperature",
                    _ => "Remove the key",
                },
            )),
        }
    }
}

impl EvalConfig {
    pub fn validate(&self) -> Result<()> {
        at_least("eval.samples_per_prompt", self.samples_per_prompt, 1, "evaluation needs completions")?;
        at_least("eval.max_completion_tokens", self.max_completion_tokens, 1, "an answer needs tokens")?;
        if self.samples_per_prompt > 1 && self.sampling.temperature == 0.0 {
            let why = "greedy samples of one prompt are all equal (eval.sampling.temperature = 0)";
            return Err(Error::config("eval.samples_per_prompt", self.samples_per_prompt, "1", why));
        }
        self.sampling.validate("eval.sampling")
    }
}
