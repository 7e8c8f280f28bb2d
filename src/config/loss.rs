//! `[grpo.loss]`: which policy loss, and how far it trusts an old rollout.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Policy loss, by the name its paper gave it. Formulas: `algo/loss/` and docs/losses.md.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum LossConfig {
    /// Mean over completions of the mean over their tokens. Short completions weigh more per token.
    Grpo(ClipConfig),
    /// Mean over all tokens of the step: as a step is never averaged by parts here, the same as `dapo`.
    Bnpo(ClipConfig),
    /// Mean over all tokens of the step. Long completions weigh more.
    Dapo(ClipConfig),
    /// Sum over tokens divided by completions times the completion budget. No length bias.
    DrGrpo(ClipConfig),
    /// Mean over completions of the sum over their tokens.
    Luspo(ClipConfig),
    /// Policy gradient weighted by the bounded ratio: no token loses its gradient.
    Cispo(CispoConfig),
    /// A sigmoid of the ratio in the place of the clip.
    Sapo(SapoConfig),
    /// Policy gradient weighted by a gamma density of the whole completion's ratio.
    Vespo(VespoConfig),
}

/// What the probability ratio of new to old policy is taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RatioLevel {
    /// Each token.
    Token,
    /// Geometric mean over the completion (GSPO, arXiv:2507.18071).
    Sequence,
}

/// Which estimate of the distance to the reference model, by the names of Schulman's note.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlEstimator {
    /// `logp - ref_logp`. In the loss its gradient is zero in expectation: for rewards.
    K1,
    /// `(logp - ref_logp)^2 / 2`. In the loss its gradient is that of KL(policy || reference), in expectation.
    K2,
    /// `exp(ref_logp - logp) - (ref_logp - logp) - 1`
    K3,
    /// `|logp - ref_logp|`
    Abs,
}

/// Where the distance to the reference model is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlPlace {
    /// Added to each token's loss.
    Loss,
    /// Its sum over a completion is taken off the completion's reward.
    Reward,
}

/// How the ratio is clipped. On the first update of a rollout the ratio is 1 and none of these keys does
/// anything, so giving one needs `grpo.updates_per_rollout` or `grpo.minibatches` above 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ClipConfig {
    /// What the probability ratio of new to old policy is taken over. Default `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioLevel>,
    /// The ratio is clipped below at `1 - epsilon_low`. Default 0.2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub epsilon_low: Option<f64>,
    /// The ratio is clipped above at `1 + epsilon_high`. Default 0.2; DAPO (arXiv:2503.14476) uses 0.28.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub epsilon_high: Option<f64>,
    /// Upper bound of the unclipped ratio, which else has none where the advantage is negative
    /// (INTELLECT-2, arXiv:2505.07291). Dual-clip PPO (arXiv:1912.09729) is the same function with `c` for
    /// delta, hence the other name. Default: no bound.
    #[serde(skip_serializing_if = "Option::is_none", alias = "dual_clip")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub delta: Option<f64>,
}

/// Keys of `cispo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CispoConfig {
    /// What the probability ratio of new to old policy is taken over. Default `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioLevel>,
    /// Upper bound of the ratio that weighs a token, TRL's `epsilon_high`. Default 5 (ScaleRL, arXiv:2510.13786).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_ratio: Option<f64>,
}

/// Keys of `sapo`; single precision, as TRL computes them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SapoConfig {
    /// What the probability ratio of new to old policy is taken over. Default `token`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ratio: Option<RatioLevel>,
    /// Steepness for positive advantages. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub temperature_pos: Option<f32>,
    /// Steepness for the others. Default 1.05: a bad completion's gradient fades sooner.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub temperature_neg: Option<f32>,
}

/// Keys of `vespo`; single precision, as TRL computes them. The ratio is always the whole completion's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VespoConfig {
    /// Power of the ratio for advantages of 0 or more. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub k_pos: Option<f32>,
    /// Rate of the decay for advantages of 0 or more. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub lambda_pos: Option<f32>,
    /// Power for negative advantages. Default 3.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub k_neg: Option<f32>,
    /// Rate for negative advantages. Default 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub lambda_neg: Option<f32>,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self::Grpo(ClipConfig::default())
    }
}

/// A key, whether it was given, and its value with what a value must be, where it is a number.
type Key = (&'static str, bool, Option<Bound>);

/// A positive number.
type Bound = (f64, &'static str);

impl LossConfig {
    /// The clip of the losses that have one.
    pub fn clip(&self) -> Option<&ClipConfig> {
        match self {
            Self::Grpo(clip)
            | Self::Bnpo(clip)
            | Self::Dapo(clip)
            | Self::DrGrpo(clip)
            | Self::Luspo(clip) => Some(clip),
            Self::Cispo(_) | Self::Sapo(_) | Self::Vespo(_) => None,
        }
    }

    /// What each ratio is taken over.
    pub fn ratio(&self) -> RatioLevel {
        let given = match self {
            Self::Cispo(config) => config.ratio,
            Self::Sapo(config) => config.ratio,
            Self::Vespo(_) => Some(RatioLevel::Sequence),
            other => other.clip().and_then(|clip| clip.ratio),
        };
        given.unwrap_or(RatioLevel::Token)
    }

    /// `prefix` is the section's key, as in `grpo.loss`.
    ///
    /// # Errors
    /// A value out of its range, or a key that takes no effect with this many updates per rollout.
    pub fn validate(&self, prefix: &str, updates: usize) -> Result<()> {
        let keys = self.keys();
        if let Some((name, ..)) = keys.iter().find(|(_, given, _)| *given && updates < 2) {
            return Err(Error::input(
                format!("{prefix}.{name}"),
                "has no effect: with one update per rollout the ratio is always 1",
                "Remove the key, or set grpo.updates_per_rollout or grpo.minibatches to 2 or more",
            ));
        }
        for (name, _, bound) in keys {
            if let Some((got, why)) = bound.filter(|(got, _)| !(*got > 0.0 && got.is_finite())) {
                return Err(Error::config(&format!("{prefix}.{name}"), got, "above 0", why));
            }
        }
        self.clip().map_or(Ok(()), |clip| clip.validate(prefix))
    }

    fn keys(&self) -> Vec<Key> {
        let positive = |name, value: Option<f32>, why| -> Key {
            (name, value.is_some(), value.map(|value| (f64::from(value), why)))
        };
        let ratio = |level: Option<RatioLevel>| -> Key { ("ratio", level.is_some(), None) };
        match self {
            Self::Cispo(c) => {
                vec![
                    ratio(c.ratio),
                    (
                        "max_ratio",
                        c.max_ratio.is_some(),
                        c.max_ratio.map(|max| (max, "it bounds the ratio above")),
                    ),
                ]
            }
            Self::Sapo(c) => {
                let why = "it is the steepness of a sigmoid";
                vec![
                    ratio(c.ratio),
                    positive("temperature_pos", c.temperature_pos, why),
                    positive("temperature_neg", c.temperature_neg, why),
                ]
            }
            Self::Vespo(c) => {
                let why = "it shapes a gamma density";
                vec![
                    positive("k_pos", c.k_pos, why),
                    positive("lambda_pos", c.lambda_pos, why),
                    positive("k_neg", c.k_neg, why),
                    positive("lambda_neg", c.lambda_neg, why),
                ]
            }
            other => other.clip().map_or_else(Vec::new, |c| {
                vec![
                    ratio(c.ratio),
                    ("epsilon_low", c.epsilon_low.is_some(), None),
                    ("epsilon_high", c.epsilon_high.is_some(), None),
                    ("delta", c.delta.is_some(), None),
                ]
            }),
        }
    }
}

impl ClipConfig {
    pub fn epsilon_low(&self) -> f64 {
        self.epsilon_low.unwrap_or(0.2)
    }

    pub fn epsilon_high(&self) -> f64 {
        self.epsilon_high.unwrap_or(0.2)
    }

    fn validate(&self, prefix: &str) -> Result<()> {
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
        let clip = config.clip().unwrap();
        assert_eq!((clip.epsilon_low(), clip.epsilon_high(), clip.delta), (0.2, 0.28, None));
        assert_eq!(config.ratio(), RatioLevel::Sequence);
        assert!(parse("type = \"grpo\"\nepsilon_hihg = 0.3").unwrap_err().contains("epsilon_hihg"));
        assert!(parse("type = \"sapo\"\nepsilon_high = 0.3").unwrap_err().contains("epsilon_high"));
        assert!(parse("type = \"vespo\"\nratio = \"token\"").unwrap_err().contains("ratio"));
        assert!(parse("type = \"ppo\"").unwrap_err().contains("ppo"));
    }

    #[test]
    fn what_is_written_reads_back() {
        for text in [
            "type = \"grpo\"\n",
            "type = \"dapo\"\nratio = \"token\"\ndelta = 2.0\n",
            "type = \"cispo\"\nmax_ratio = 4.0\n",
            "type = \"sapo\"\ntemperature_neg = 2.0\n",
            "type = \"vespo\"\nk_pos = 1.0\n",
        ] {
            let config = parse(text).unwrap();
            assert_eq!(toml::to_string(&config).unwrap(), text);
        }
    }

    #[test]
    fn dual_clip_is_deltas_other_name() {
        let config = parse("type = \"luspo\"\ndual_clip = 3.0").unwrap();
        assert_eq!(config.clip().unwrap().delta, Some(3.0));
        assert!(parse("type = \"luspo\"\ndual_clip = 3.0\ndelta = 3.0").is_err());
    }

    #[test]
    fn a_key_without_effect_is_refused() {
        let text = refused("type = \"grpo\"\nepsilon_high = 0.28", 1);
        assert!(text.starts_with("grpo.loss.epsilon_high: has no effect"), "{text}");
        assert!(refused("type = \"grpo\"\nratio = \"token\"", 1).contains("grpo.loss.ratio"));
        assert!(refused("type = \"cispo\"\nmax_ratio = 4.0", 1).contains("grpo.loss.max_ratio"));
        assert!(refused("type = \"sapo\"\ntemperature_pos = 2.0", 1).contains("grpo.loss.temperature_pos"));
        assert!(refused("type = \"vespo\"\nlambda_neg = 4.0", 1).contains("grpo.loss.lambda_neg"));
        assert!(parse("type = \"dapo\"").unwrap().validate("grpo.loss", 1).is_ok());
        assert!(parse("type = \"dapo\"\nepsilon_high = 0.28").unwrap().validate("grpo.loss", 2).is_ok());
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert!(refused("type = \"grpo\"\nepsilon_low = 1.5", 2).contains("grpo.loss.epsilon_low = 1.5"));
        assert!(refused("type = \"grpo\"\nepsilon_high = 0.0", 2).contains("grpo.loss.epsilon_high = 0"));
        assert!(refused("type = \"grpo\"\ndelta = 1.1", 2).contains("above 1 + epsilon_high = 1.2"));
        assert!(refused("type = \"grpo\"\ndelta = nan", 2).contains("grpo.loss.delta = NaN"));
        assert!(refused("type = \"cispo\"\nmax_ratio = 0.0", 2).contains("grpo.loss.max_ratio = 0"));
        assert!(refused("type = \"sapo\"\ntemperature_neg = -1.0", 2).contains("temperature_neg = -1"));
        assert!(refused("type = \"vespo\"\nk_neg = inf", 2).contains("k_neg = inf"));
    }
}
