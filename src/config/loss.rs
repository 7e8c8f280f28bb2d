//! `[grpo.loss]`: which policy loss, and how far it trusts an old rollout.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Policy loss, by the name its paper gave it. Formulas: `algo/loss/`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LossConfig {
    /// Mean over completions of the mean over their tokens. Short completions weigh more per token.
    Grpo(ClipConfig),
    /// Mean over all tokens of the step. Long completions weigh more.
    Dapo(ClipConfig),
    /// Sum over tokens divided by completions times the completion budget. No length bias.
    DrGrpo(ClipConfig),
}

/// What the probability ratio of new to old policy is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    Token,
    /// Geometric mean over the completion (GSPO, arXiv:2507.18071).
    Sequence,
}

/// How the ratio is clipped. On the first update of a rollout the ratio is 1 and none of these keys does
/// anything, so giving one needs `grpo.updates_per_rollout` above 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipConfig {
    /// Default `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioLevel>,
    /// The ratio is clipped below at `1 - epsilon_low`. Default 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_low: Option<f64>,
    /// The ratio is clipped above at `1 + epsilon_high`. Default 0.2; DAPO (arXiv:2503.14476) uses 0.28.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epsilon_high: Option<f64>,
    /// Upper bound of the unclipped ratio, which else has none where the advantage is negative
    /// (INTELLECT-2, arXiv:2505.07291). Default: no bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<f64>,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self::Grpo(ClipConfig::default())
    }
}

impl LossConfig {
    pub fn clip(&self) -> &ClipConfig {
        match self {
            Self::Grpo(clip) | Self::Dapo(clip) | Self::DrGrpo(clip) => clip,
        }
    }

    /// `prefix` is the section's key, as in `grpo.loss`.
    ///
    /// # Errors
    /// A value out of its range, or a key that takes no effect with this many updates per rollout.
    pub fn validate(&self, prefix: &str, updates_per_rollout: usize) -> Result<()> {
        self.clip().validate(prefix, updates_per_rollout)
    }
}

impl ClipConfig {
    pub fn ratio(&self) -> RatioLevel {
        self.ratio.unwrap_or(RatioLevel::Token)
    }

    pub fn epsilon_low(&self) -> f64 {
        self.epsilon_low.unwrap_or(0.2)
    }

    pub fn epsilon_high(&self) -> f64 {
        self.epsilon_high.unwrap_or(0.2)
    }

    fn validate(&self, prefix: &str, updates_per_rollout: usize) -> Result<()> {
        let given = [
            ("ratio", self.ratio.is_some()),
            ("epsilon_low", self.epsilon_low.is_some()),
            ("epsilon_high", self.epsilon_high.is_some()),
            ("delta", self.delta.is_some()),
        ];
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given && updates_per_rollout < 2) {
            return Err(Error::input(
                format!("{prefix}.{name}"),
                "has no effect: with one update per rollout the ratio is always 1",
                "Remove the key, or set grpo.updates_per_rollout to 2 or more",
            ));
        }
        let key = |name: &str| format!("{prefix}.{name}");
        let (low, high) = (self.epsilon_low(), self.epsilon_high());
        if !(low > 0.0 && low <= 1.0) {
            let why = "the lower bound of the ratio is 1 minus it, and a ratio is not negative";
            return Err(Error::config(&key("epsilon_low"), low, "above 0 and at most 1", why));
        }
        if !(high > 0.0 && high.is_finite()) {
            let why = "the upper bound of the ratio is 1 plus it";
            return Err(Error::config(&key("epsilon_high"), high, "above 0", why));
        }
        match self.delta {
            Some(delta) if !(delta > 1.0 + high && delta.is_finite()) => {
                let want = format!("above 1 + epsilon_high = {}", 1.0 + high);
                let why = "it bounds the ratio where the clip does not";
                Err(Error::config(&key("delta"), delta, want, why))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<LossConfig, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| e.to_string())
    }

    fn refused(text: &str, updates: usize) -> String {
        parse(text).unwrap().validate("grpo.loss", updates).unwrap_err().to_string()
    }

    #[test]
    fn a_loss_is_named_by_its_type_and_a_typo_is_an_error() {
        assert_eq!(parse("type = \"grpo\"").unwrap(), LossConfig::default());
        assert_eq!(parse("type = \"dr_grpo\"").unwrap(), LossConfig::DrGrpo(ClipConfig::default()));
        let config = parse("type = \"dapo\"\nepsilon_high = 0.28\nratio = \"sequence\"").unwrap();
        let clip = config.clip();
        assert_eq!((clip.epsilon_low(), clip.epsilon_high(), clip.delta), (0.2, 0.28, None));
        assert_eq!(clip.ratio(), RatioLevel::Sequence);
        assert!(parse("type = \"grpo\"\nepsilon_hihg = 0.3").unwrap_err().contains("epsilon_hihg"));
        assert!(parse("type = \"ppo\"").unwrap_err().contains("ppo"));
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in ["type = \"grpo\"\n", "type = \"dapo\"\nratio = \"token\"\ndelta = 2.0\n"] {
            let config = parse(text).unwrap();
            assert_eq!(toml::to_string(&config).unwrap(), text);
        }
    }

    #[test]
    fn a_key_without_effect_is_refused() {
        let text = refused("type = \"grpo\"\nepsilon_high = 0.28", 1);
        assert!(text.starts_with("grpo.loss.epsilon_high: has no effect"), "{text}");
        assert!(refused("type = \"grpo\"\nratio = \"token\"", 1).contains("grpo.loss.ratio"));
        assert!(parse("type = \"dapo\"").unwrap().validate("grpo.loss", 1).is_ok());
        assert!(parse("type = \"dapo\"\nepsilon_high = 0.28").unwrap().validate("grpo.loss", 2).is_ok());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(refused("type = \"grpo\"\nepsilon_low = 1.5", 2).contains("grpo.loss.epsilon_low = 1.5"));
        assert!(refused("type = \"grpo\"\nepsilon_high = 0.0", 2).contains("grpo.loss.epsilon_high = 0"));
        assert!(refused("type = \"grpo\"\ndelta = 1.1", 2).contains("above 1 + epsilon_high = 1.2"));
        assert!(refused("type = \"grpo\"\ndelta = nan", 2).contains("grpo.loss.delta = NaN"));
    }
}
