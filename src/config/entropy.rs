//! `[grpo.adaptive_entropy]`: an entropy bonus that follows the entropy.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `[grpo.adaptive_entropy]`: after each update `entropy_coef` grows by `delta` where the mean entropy of its tokens was at most `target`, and
/// shrinks by it where it was above; it counts in updates after the former only (Skywork-OR1, arXiv:2505.22312). Absent: it stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AdaptiveEntropyConfig {
    /// Mean entropy of a token, nats.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub target: f64,
    /// What `entropy_coef` moves by.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub delta: f64,
    /// Its bounds. `grpo.entropy_coef` is where it starts.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub min: f64,
    /// The upper one.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max: f64,
}

impl Default for AdaptiveEntropyConfig {
    fn default() -> Self {
        Self { target: 0.2, delta: 0.005, min: 0.0, max: 1.0 }
    }
}

impl AdaptiveEntropyConfig {
    /// `coef`: where it starts.
    pub(super) fn validate(&self, coef: f64) -> Result<()> {
        let positive = [
            ("target", self.target, "an entropy is never below 0"),
            ("delta", self.delta, "without it nothing adapts"),
        ];
        if let Some((name, got, why)) =
            positive.into_iter().find(|(_, value, _)| !(*value > 0.0 && value.is_finite()))
        {
            return Err(Error::config(&format!("grpo.adaptive_entropy.{name}"), got, "above 0", why));
        }
        if !(self.min >= 0.0 && self.min <= self.max && self.max.is_finite()) {
            let want = format!("from 0 to grpo.adaptive_entropy.max = {}", self.max);
            return Err(Error::config(
                "grpo.adaptive_entropy.min",
                self.min,
                want,
                "it bounds a coefficient",
            ));
        }
        if !(self.min..=self.max).contains(&coef) {
            let want = format!("from {} to {} beside grpo.adaptive_entropy", self.min, self.max);
            return Err(Error::config("grpo.entropy_coef", coef, want, "it starts there"));
        }
        Ok(())
    }
}
