//! `[eval]`: how a run evaluates itself, and which of its models it keeps.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::choice::{Direction, LAST};
use super::sampling::SamplingConfig;
use super::stages::at_least;
use crate::error::{Error, Result};

/// `[eval]`: run before training, after each stage, and every `every_steps` of GRPO.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EvalConfig {
    /// Steps of GRPO between two evaluations. 0: only at the ends of stages.
    #[schemars(range(max = 1_000_000_000))]
    pub every_steps: usize,
    /// Completions per prompt, each counted.
    #[schemars(range(max = 4096))]
    pub samples_per_prompt: usize,
    /// Completion budget in tokens.
    #[schemars(range(max = 1 << 20))]
    pub max_completion_tokens: usize,
    pub sampling: SamplingConfig,
    /// The score by which `model/` is chosen among the evaluations after some training, ties to the earlier; "last" takes
    /// the last step's model. A metric's name in metrics.jsonl, such as "verdict/macro_f1".
    pub keep_best: String,
    /// Evaluations in a row, within a stage, without a better one than the stage had, after which it ends. Default: a
    /// stage makes all its steps.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000_000))]
    pub patience: Option<usize>,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            every_steps: 0,
            samples_per_prompt: 1,
            max_completion_tokens: 64,
            sampling: SamplingConfig { temperature: 0.0, ..SamplingConfig::default() },
            keep_best: "verdict/accuracy_strict".into(),
            patience: None,
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
        if self.sampling.replay_truncation {
            let problem = "has no effect: evaluation trains nothing";
            return Err(Error::input("eval.sampling.replay_truncation", problem, "Remove it"));
        }
        self.validate_choice()?;
        self.sampling.validate("eval.sampling")
    }

    /// The score that chooses the model and which way it gets better; `None` where the last step's is taken.
    pub fn choice(&self) -> Option<(&str, Direction)> {
        Some((self.keep_best.as_str(), Direction::of(&self.keep_best)?))
    }

    fn validate_choice(&self) -> Result<()> {
        if self.keep_best != LAST && self.choice().is_none() {
            let want = format!("\"{LAST}\" or one of {}", Direction::known());
            let why = "of another number it is not known which way is better";
            return Err(Error::config("eval.keep_best", &self.keep_best, want, why));
        }
        let Some(patience) = self.patience else { return Ok(()) };
        at_least(
            "eval.patience",
            patience,
            1,
            "it counts evaluations; without it a stage makes all its steps",
        )?;
        let without_effect = [
            (self.keep_best == LAST, "eval.keep_best is \"last\"", "say there which score has to get better"),
            (self.every_steps == 0, "eval.every_steps is 0", "evaluate within the stage"),
        ];
        match without_effect.into_iter().find(|(useless, ..)| *useless) {
            Some((_, cause, fix)) => {
                let problem = format!("has no effect: {cause}");
                Err(Error::input("eval.patience", problem, format!("Remove the key, or {fix}")))
            }
            None => Ok(()),
        }
    }
}
