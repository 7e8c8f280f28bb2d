//! `[enumerate]`: the stage whose gradient is exact over every answer of a closed task.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::optim::OptimConfig;
use super::stages::{Balance, at_least};
use crate::error::{Error, Result};

/// What divides the gradient of a prompt's expected reward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScaleExpected {
    /// The exact standard deviation of the reward on the prompt.
    Group,
    /// Nothing.
    None,
}

/// `[enumerate]`: the expectation over every answer of a closed task (`[answers]` of the task file), no sampling. Keys
/// that `[grpo]` has too mean the same there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EnumerateConfig {
    /// Optimiser steps.
    #[schemars(range(max = 1_000_000_000))]
    pub steps: usize,
    /// Prompts per optimiser step.
    #[schemars(range(max = 1 << 20))]
    pub prompts_per_step: usize,
    /// Divides the logits.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub temperature: f32,
    /// What divides the gradient of a prompt's expected reward.
    pub scale_rewards: ScaleExpected,
    /// Added to the standard deviation that divides.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub advantage_eps: f64,
    /// Which prompts a step sees.
    pub balance: Balance,
    /// KL penalty weight (beta), over whole answers, exact. 0 keeps no reference model.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub kl_coef: f64,
    /// Every so many steps the reference becomes the policy of that step. Default: it stays that of the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000_000))]
    pub reference_sync_steps: Option<usize>,
    pub optim: OptimConfig,
}

impl Default for EnumerateConfig {
    fn default() -> Self {
        Self {
            steps: 100,
            prompts_per_step: 8,
            temperature: 1.0,
            scale_rewards: ScaleExpected::Group,
            advantage_eps: 1e-6,
            balance: Balance::None,
            kl_coef: 0.0,
            reference_sync_steps: None,
            optim: OptimConfig::default(),
        }
    }
}

impl EnumerateConfig {
    pub fn validate(&self) -> Result<()> {
        at_least("enumerate.steps", self.steps, 1, "the stage would do nothing")?;
        at_least("enumerate.prompts_per_step", self.prompts_per_step, 1, "a step needs a prompt")?;
        let numbers = [
            (
                "temperature",
                f64::from(self.temperature),
                self.temperature > 0.0,
                "above 0",
                "it divides the logits",
            ),
            (
                "advantage_eps",
                self.advantage_eps,
                self.advantage_eps >= 0.0,
                "0 or more",
                "it is added to a deviation",
            ),
            (
                "kl_coef",
                self.kl_coef,
                self.kl_coef >= 0.0,
                "0 or more",
                "a negative penalty drives the model away from the reference",
            ),
        ];
        for (key, got, fine, want, why) in numbers {
            if !(fine && got.is_finite()) {
                return Err(Error::config(&format!("enumerate.{key}"), got, want, why));
            }
        }
        if self.scale_rewards == ScaleExpected::None && self.advantage_eps != Self::default().advantage_eps {
            let problem = "has no effect: with enumerate.scale_rewards = \"none\" no deviation divides";
            return Err(Error::input("enumerate.advantage_eps", problem, "Remove one of the two keys"));
        }
        if let Some(steps) = self.reference_sync_steps {
            if self.kl_coef == 0.0 {
                let problem = "has no effect: enumerate.kl_coef is 0, so there is no reference";
                let fix = "Remove the key, or set enumerate.kl_coef above 0";
                return Err(Error::input("enumerate.reference_sync_steps", problem, fix));
            }
            let why = "it counts steps; without it there is no sync";
            at_least("enumerate.reference_sync_steps", steps, 1, why)?;
        }
        self.optim.validate("enumerate.optim")
    }
}
