//! `[lora]`: train a low-rank adapter beside frozen weights, Hu et al., arXiv:2106.09685.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Stage;
use crate::error::{Error, Result};

/// The linear layers of a block that an adapter may stand beside, in the order of the forward pass.
pub const PROJECTIONS: [&str; 7] =
    ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];

/// `[lora]`. Absent: all weights are trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct LoraConfig {
    /// Rows of A and columns of B (r in the paper).
    #[schemars(range(max = 1 << 16))]
    pub rank: usize,
    /// `y = W x + (alpha / rank) B A x`.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub alpha: f64,
    /// Scale by `alpha / sqrt(rank)` instead, Kalajdzievski, arXiv:2312.03732.
    pub rslora: bool,
    /// Which layers get an adapter: "all-linear", or some of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.
    pub targets: Targets,
    /// Share of the adapter's inputs that is dropped while training. Only 0 so far.
    #[schemars(range(min = 0, max = 1))]
    pub dropout: f64,
    /// What happens to the adapter between two stages.
    pub stages: LoraStages,
}

/// Which layers get an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "must be \"all-linear\" or a list of layer names such as [\"q_proj\", \"v_proj\"]"
)]
pub enum Targets {
    All(AllLinear),
    /// Some of the seven.
    Named(Vec<String>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AllLinear {
    /// All of the seven.
    #[serde(rename = "all-linear")]
    AllLinear,
}

/// What happens to the adapter between two stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LoraStages {
    /// One adapter goes through all stages.
    One,
    /// Each stage trains its own; the one before is merged into the weights.
    Fresh,
}

impl Default for LoraConfig {
    /// TRL's rank and alpha.
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            rslora: false,
            targets: Targets::All(AllLinear::AllLinear),
            dropout: 0.0,
            stages: LoraStages::One,
        }
    }
}

impl Targets {
    /// Names in the order of [`PROJECTIONS`].
    pub fn names(&self) -> Vec<&'static str> {
        let wanted = |name: &&&str| match self {
            Self::All(_) => true,
            Self::Named(names) => names.iter().any(|n| n == **name),
        };
        PROJECTIONS.iter().filter(wanted).copied().collect()
    }
}

impl LoraConfig {
    /// `stages`: those of the run.
    pub fn validate(&self, stages: &[Stage]) -> Result<()> {
        if self.rank == 0 || self.rank > 1 << 16 {
            let why = "it is the width of the adapter";
            return Err(Error::config("lora.rank", self.rank, "1 to 65536", why));
        }
        if !(self.alpha > 0.0 && self.alpha.is_finite()) {
            let why = "the adapter's output is scaled by it";
            return Err(Error::config("lora.alpha", self.alpha, "above 0", why));
        }
        if self.dropout != 0.0 {
            let why = "dropout of the adapter's inputs is not there yet: a rollout's activations serve its update, \
                       and they are sampled without";
            return Err(Error::config("lora.dropout", self.dropout, "0", why));
        }
        if let Targets::Named(names) = &self.targets {
            let all = PROJECTIONS.join(", ");
            let got = || format!("{names:?}");
            if names.is_empty() {
                let why = "an adapter beside no layer trains nothing";
                return Err(Error::config(
                    "lora.targets",
                    "[]",
                    format!("\"all-linear\" or some of {all}"),
                    why,
                ));
            }
            if let Some(name) = names.iter().find(|name| !PROJECTIONS.contains(&name.as_str())) {
                let why = format!("{name} is no linear layer of a block");
                return Err(Error::config(
                    "lora.targets",
                    got(),
                    format!("\"all-linear\" or some of {all}"),
                    why,
                ));
            }
            if names.iter().enumerate().any(|(i, name)| names[..i].contains(name)) {
                return Err(Error::config(
                    "lora.targets",
                    got(),
                    "without repeats",
                    "a layer has one adapter",
                ));
            }
        }
        if self.stages == LoraStages::Fresh && stages.len() < 2 {
            let why = "with one stage there is one adapter";
            return Err(Error::config("lora.stages", "fresh", "one", why));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn load(overrides: &[&str]) -> std::result::Result<Config, String> {
        let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
        Config::load("demo", &overrides).map_err(|e| e.to_string())
    }

    #[test]
    fn one_key_switches_it_on_and_the_rest_has_defaults() {
        assert_eq!(load(&[]).unwrap().lora, None);
        let config = load(&["lora.rank=8"]).unwrap();
        let lora = config.lora.clone().unwrap();
        assert_eq!(lora, LoraConfig { rank: 8, ..LoraConfig::default() });
        assert_eq!(lora.targets.names(), PROJECTIONS);
        let again = Config::from_toml("again", &config.to_toml().unwrap(), &[]).unwrap();
        assert_eq!(again, config);
        let some = load(&["lora.targets=[\"v_proj\", \"q_proj\"]"]).unwrap().lora.unwrap();
        assert_eq!(some.targets.names(), ["q_proj", "v_proj"]);
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        for (set, want) in [
            ("lora.rank=0", "lora.rank = 0"),
            ("lora.alpha=-1", "lora.alpha = -1"),
            ("lora.dropout=0.1", "lora.dropout = 0.1: must be 0"),
            ("lora.targets=[]", "lora.targets = []"),
            ("lora.targets=[\"lm_head\"]", "lm_head is no linear layer of a block"),
            ("lora.targets=[\"q_proj\",\"q_proj\"]", "without repeats"),
            ("lora.targets=all", "lora.targets"),
            ("lora.r=8", "lora"),
            ("lora.stages=two", "lora.stages"),
        ] {
            let error = load(&[set]).unwrap_err();
            assert!(error.contains(want), "{set}: {error}");
        }
        let error = load(&["lora.stages=fresh", "stages=[\"grpo\"]"]).unwrap_err();
        assert!(error.contains("lora.stages = fresh: must be one"), "{error}");
        for key in ["gradients=bf16", "bf16_weights=masters"] {
            let error = load(&["lora.rank=8", &format!("grpo.optim.{key}")]).unwrap_err();
            assert!(error.contains("grpo.optim.") && error.contains("adapter"), "{error}");
        }
    }
}
