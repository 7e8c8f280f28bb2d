use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a token is drawn from the model's distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingConfig {
    /// Divides the logits; the trainer's log-probs use the same. 0 is greedy (evaluation only).
    #[schemars(range(min = 0, max = 1_000_000))]
    pub temperature: f32,
    /// Keep the k most probable tokens; 0 keeps all.
    #[schemars(range(max = 1 << 24))]
    pub top_k: usize,
    /// Keep the smallest set of tokens with this much probability; 1 keeps all.
    #[schemars(range(min = 0, max = 1))]
    pub top_p: f32,
    /// Keep tokens with at least this share of the largest probability; 0 keeps all.
    #[schemars(range(min = 0, max = 1))]
    pub min_p: f32,
    /// Divides the positive logits of tokens that the prompt or the completion has already, and multiplies their negative ones, before the
    /// temperature (arXiv:1909.05858); 1 is none. It chooses the tokens; log-probs are those without it, sampler's and trainer's alike. CPU only.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub repetition_penalty: f32,
    /// Log-probs are those of the distribution that was cut: the trainer cuts its own in the same way, and the
    /// sampled token is always part of it. Else top_k, top_p and min_p choose the tokens, and log-probs are those of
    /// the whole distribution. CPU only. Default false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub replay_truncation: bool,
}

impl Default for SamplingConfig {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            replay_truncation: false,
        }
    }
}

impl SamplingConfig {
    /// Whether some tokens are never drawn.
    pub fn cuts(&self) -> bool {
        self.top_k != 0 || self.top_p != 1.0 || self.min_p != 0.0
    }

    /// `key` is the section's path in the config.
    pub fn validate(&self, key: &str) -> Result<()> {
        let refuse = |name: &str, got: f32, want: &str, why: &str| {
            Err(Error::config(&format!("{key}.{name}"), got, want, why))
        };
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return refuse("temperature", self.temperature, "0 or more", "it divides the logits");
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return refuse("top_p", self.top_p, "above 0 and at most 1", "it is a share of probability");
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return refuse("min_p", self.min_p, "at least 0 and at most 1", "it is a share of probability");
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            let why = "it divides logits; above 1 tokens are repeated less";
            return refuse("repetition_penalty", self.repetition_penalty, "above 0", why);
        }
        if self.replay_truncation && self.repetition_penalty != 1.0 {
            let why = "the trainer cuts a distribution without the penalty";
            return refuse("repetition_penalty", self.repetition_penalty, "1 beside replay_truncation", why);
        }
        if self.replay_truncation && !self.cuts() {
            let problem = "has no effect: top_k, top_p and min_p leave every token";
            return Err(Error::input(
                format!("{key}.replay_truncation"),
                problem,
                "Remove it, or set one of them",
            ));
        }
        if self.temperature == 0.0 && self.cuts() {
            let why = "greedy decoding ignores top_k, top_p and min_p";
            return refuse("temperature", 0.0, "above 0 when top_k, top_p or min_p is set", why);
        }
        Ok(())
    }
}
