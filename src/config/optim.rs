//! `[sft.optim]`, `[grpo.optim]`: AdamW, its schedule and the clip of the gradient.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// AdamW (Loshchilov and Hutter, arXiv:1711.05101) with a schedule and a clip by global norm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OptimConfig {
    /// Peak learning rate, reached after the warm-up.
    #[schemars(range(min = 0, max = 1e38))]
    pub learning_rate: f64,
    /// What happens to it after the warm-up.
    pub schedule: ScheduleConfig,
    /// Share of the stage's steps that warm up. Give this or `warmup_steps`.
    #[schemars(range(min = 0, max = 1))]
    pub warmup_ratio: f64,
    /// Steps that warm up. Give this or `warmup_ratio`.
    #[schemars(range(max = 1_000_000_000))]
    pub warmup_steps: u64,
    /// Decay rates of the first and second moment.
    #[schemars(inner(range(min = 0, max = 1)))]
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub eps: f64,
    /// Decoupled: each step shrinks a weight by `learning_rate * weight_decay` of itself.
    #[schemars(range(min = 0, max = 1e38))]
    pub weight_decay: f64,
    /// How the moments are kept.
    pub moments: MomentsConfig,
    /// How bf16 weights keep updates smaller than their last bit. f32 weights need nothing.
    pub bf16_weights: Bf16WeightsConfig,
    /// Type that the gradients of matrices are summed in; of norms it is f32. bf16 beside bf16 weights only.
    pub gradients: GradientsConfig,
    /// Gradients with a larger L2 norm over all weights are scaled down to it. 0 switches the clip off.
    #[schemars(range(min = 0, max = 1e38))]
    pub max_grad_norm: f64,
}

/// Memory of AdamW's moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MomentsConfig {
    /// 8 bytes a weight.
    #[default]
    F32,
    /// 2 bytes a weight and 8 for each 256: block-wise quantisation, Dettmers et al., arXiv:2110.02861.
    Int8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Bf16WeightsConfig {
    /// Stochastic rounding where weights are bf16.
    #[default]
    Auto,
    /// An f32 copy of each: 4 bytes a weight.
    Masters,
    /// Rounded up or down at random, so that the expected value is exact: no memory.
    StochasticRounding,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GradientsConfig {
    /// 4 bytes a weight.
    #[default]
    F32,
    /// 2 bytes a weight. Each pack's sum is rounded to 8 bits when it is added.
    Bf16,
}

/// The learning rate after the warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ScheduleConfig {
    /// Stays as it is.
    Constant {},
    /// Falls along a line to `min_learning_rate`.
    Linear {
        /// What it falls to.
        #[serde(default)]
        #[schemars(range(min = 0, max = 1e38))]
        min_learning_rate: f64,
    },
    /// Falls along half a cosine to `min_learning_rate`.
    Cosine {
        /// What it falls to.
        #[serde(default)]
        #[schemars(range(min = 0, max = 1e38))]
        min_learning_rate: f64,
        /// How often it falls, each time from the peak: above 1, cosine with restarts (SGDR, arXiv:1608.03983).
        #[serde(default = "one")]
        #[schemars(range(max = 1_000_000))]
        cycles: u64,
    },
    /// Stays as it is and falls to `min_learning_rate` at the end (WSD, arXiv:2404.06395).
    WarmupStableDecay {
        /// Share of the stage's steps that fall.
        #[serde(default = "tenth")]
        #[schemars(range(min = 0, max = 1))]
        decay_ratio: f64,
        /// Along what.
        #[serde(default)]
        decay: DecayShape,
        /// What it falls to.
        #[serde(default)]
        #[schemars(range(min = 0, max = 1e38))]
        min_learning_rate: f64,
    },
}

/// How the rate falls, p from 0 to 1 over the steps that fall.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DecayShape {
    /// Half a cosine.
    #[default]
    #[serde(rename = "cosine")]
    Cosine,
    /// 1 - p.
    #[serde(rename = "linear")]
    Linear,
    /// 1 - sqrt(p) (arXiv:2405.18392).
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

fn one() -> u64 {
    1
}

fn tenth() -> f64 {
    0.1
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            learning_rate: 1e-5,
            schedule: ScheduleConfig::Constant {},
            warmup_ratio: 0.0,
            warmup_steps: 0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.0,
            moments: MomentsConfig::F32,
            bf16_weights: Bf16WeightsConfig::Auto,
            gradients: GradientsConfig::F32,
            max_grad_norm: 1.0,
        }
    }
}

impl OptimConfig {
    /// `prefix` is the section's key, as in `sft.optim`.
    pub fn validate(&self, prefix: &str) -> Result<()> {
        let refuse = |name: &str, got: f64, want: &str, why: &str| {
            Err(Error::config(&format!("{prefix}.{name}"), got, want, why))
        };
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return refuse("learning_rate", self.learning_rate, "above 0", "a step has to move the weights");
        }
        if !(0.0..1.0).contains(&self.warmup_ratio) {
            let why = "it is the share of steps before the peak";
            return refuse("warmup_ratio", self.warmup_ratio, "at least 0 and below 1", why);
        }
        if self.warmup_ratio > 0.0 && self.warmup_steps > 0 {
            return Err(Error::input(
                format!("{prefix}.warmup_ratio"),
                format!("is given together with {prefix}.warmup_steps, and only one can count"),
                "Set one of them to 0",
            ));
        }
        for beta in self.betas {
            if !(0.0..1.0).contains(&beta) {
                let want = "two numbers of at least 0 and below 1";
                return refuse("betas", beta, want, "they are decay rates");
            }
        }
        let not_negative = |x: f64| x >= 0.0 && x.is_finite();
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return refuse("eps", self.eps, "above 0", "it keeps the division finite");
        }
        if !not_negative(self.weight_decay) {
            let why = "a negative decay makes weights grow";
            return refuse("weight_decay", self.weight_decay, "0 or more", why);
        }
        if !not_negative(self.max_grad_norm) {
            let why = "it is the length of a vector; 0 switches the clip off";
            return refuse("max_grad_norm", self.max_grad_norm, "0 or more", why);
        }
        match self.schedule {
            ScheduleConfig::Cosine { cycles: 0, .. } => {
                return refuse("schedule.cycles", 0.0, "at least 1", "it is how often the rate falls");
            }
            ScheduleConfig::WarmupStableDecay { decay_ratio: decay, .. }
                if !(decay > 0.0 && decay + self.warmup_ratio <= 1.0) =>
            {
                let want = format!("above 0 and at most 1 - {prefix}.warmup_ratio");
                return refuse("schedule.decay_ratio", decay, &want, "both are shares of the stage's steps");
            }
            _ => {}
        }
        match self.schedule {
            ScheduleConfig::Linear { min_learning_rate: min }
            | ScheduleConfig::Cosine { min_learning_rate: min, .. }
            | ScheduleConfig::WarmupStableDecay { min_learning_rate: min, .. }
                if !(not_negative(min) && min < self.learning_rate) =>
            {
                let want = format!("at least 0 and below {prefix}.learning_rate = {}", self.learning_rate);
                refuse("schedule.min_learning_rate", min, &want, "the rate falls to it")
            }
            _ => Ok(()),
        }
    }
}

impl OptimConfig {
    /// Refuses keys that have no effect on f32 weights; `why` says why they are f32.
    pub fn validate_for_f32(&self, prefix: &str, why: &str) -> Result<()> {
        match (self.bf16_weights, self.gradients) {
            (Bf16WeightsConfig::Auto, GradientsConfig::F32) => Ok(()),
            (Bf16WeightsConfig::Auto, GradientsConfig::Bf16) => {
                Err(Error::config(&format!("{prefix}.gradients"), "bf16", "f32", why))
            }
            (other, _) => {
                let got = if other == Bf16WeightsConfig::Masters { "masters" } else { "stochastic_rounding" };
                Err(Error::config(&format!("{prefix}.bf16_weights"), got, "auto", why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> std::result::Result<OptimConfig, String> {
        toml::from_str(text).map_err(|e: toml::de::Error| e.to_string())
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap().validate("sft.optim").unwrap_err().to_string()
    }

    #[test]
    fn a_section_reads_and_writes_back() {
        let config =
            parse("learning_rate = 1e-5\nwarmup_ratio = 0.1\nschedule = {type = \"cosine\", min_learning_rate = 1e-6}")
                .unwrap();
        assert_eq!(config.schedule, ScheduleConfig::Cosine { min_learning_rate: 1e-6, cycles: 1 });
        assert!(config.validate("sft.optim").is_ok());
        assert_eq!(parse(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert_eq!(parse("").unwrap(), OptimConfig::default());
        assert_eq!(parse("moments = \"int8\"").unwrap().moments, MomentsConfig::Int8);
        assert!(parse("moments = \"int4\"").unwrap_err().contains("int8"));
        assert_eq!(
            parse("schedule = {type = \"linear\"}").unwrap().schedule,
            ScheduleConfig::Linear { min_learning_rate: 0.0 }
        );
    }

    #[test]
    fn a_typo_or_a_key_without_effect_is_an_error() {
        assert!(parse("learning_rte = 1").unwrap_err().contains("learning_rte"));
        let text = "schedule = {type = \"constant\", min_learning_rate = 1e-6}";
        assert!(parse(text).unwrap_err().contains("min_learning_rate"));
        assert!(refused("warmup_ratio = 0.1\nwarmup_steps = 5").contains("sft.optim.warmup_steps"));
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (text, start) in [
            ("learning_rate = 0.0", "sft.optim.learning_rate = 0: must be above 0"),
            ("learning_rate = nan", "sft.optim.learning_rate = NaN"),
            ("warmup_ratio = 1.0", "sft.optim.warmup_ratio = 1"),
            ("betas = [0.9, 1.0]", "sft.optim.betas = 1"),
            ("eps = -1.0", "sft.optim.eps = -1"),
            ("weight_decay = -0.1", "sft.optim.weight_decay = -0.1"),
            (
                "schedule = {type = \"cosine\", cycles = 0}",
                "sft.optim.schedule.cycles = 0: must be at least 1",
            ),
            (
                "warmup_ratio = 0.5\nschedule = {type = \"warmup_stable_decay\", decay_ratio = 0.6}",
                "sft.optim.schedule.decay_ratio = 0.6: must be above 0 and at most 1 - sft.optim.warmup_ratio",
            ),
            ("max_grad_norm = inf", "sft.optim.max_grad_norm = inf"),
            (
                "learning_rate = 1e-5\nschedule = {type = \"cosine\", min_learning_rate = 1e-4}",
                "sft.optim.schedule.min_learning_rate = 0.0001: must be at least 0 and below sft.optim.learning_rate",
            ),
        ] {
            let error = refused(text);
            assert!(error.starts_with(start), "{text}: {error}");
        }
    }
}
