//! `[sft.distill]`: a loss beside SFT, from what a stronger judge said of the rows.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `[sft.distill]`: learn a recorded judge's probabilities of the labels beside the answers, on tasks whose answers are a closed set. Absent:
/// the answers alone are learned from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DistillConfig {
    /// Weight of `temperature^2 KL(judge || model)` over a row's answers, which is added to SFT's loss.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: f64,
    /// Divides the log-probs of both, Hinton et al., arXiv:1503.02531; above 1 the unlikely labels have more of a say.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub temperature: f64,
    /// Where a row has them: a key, or keys joined by dots, of an object of label to number. Labels that it leaves out have probability 0. A row
    /// without it is learned from by its answer alone.
    pub column: String,
    /// What the numbers are.
    pub values: JudgeValues,
}

/// What a judge's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum JudgeValues {
    /// Probabilities, as `rlvr predict --probabilities` writes them.
    Probabilities,
    /// Their natural logarithms.
    Logprobs,
}

impl Default for DistillConfig {
    fn default() -> Self {
        let values = JudgeValues::Probabilities;
        Self { weight: 1.0, temperature: 1.0, column: "probabilities".into(), values }
    }
}

impl DistillConfig {
    pub(super) fn validate(&self) -> Result<()> {
        let why = "without [sft.distill] there is no such loss";
        for (name, value, why) in
            [("weight", self.weight, why), ("temperature", self.temperature, "it divides log-probs")]
        {
            if !(value > 0.0 && value.is_finite()) {
                return Err(Error::config(&format!("sft.distill.{name}"), value, "above 0", why));
            }
        }
        if self.column.split('.').any(|key| key.trim().is_empty()) {
            let why = "an empty one names nothing";
            return Err(Error::config(
                "sft.distill.column",
                format!("{:?}", self.column),
                "a key of the rows",
                why,
            ));
        }
        Ok(())
    }
}
