use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `[data]`: what is trained and evaluated on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Rows to train on: JSON Lines, a JSON list, CSV, TSV or parquet, or hf:org/name:split of the hub.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// Rows to evaluate on, likewise. Choose settings here, never on the test set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub valid: Option<PathBuf>,
    /// Logs made from the seed instead of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<SyntheticConfig>,
    /// Longer prompts are dropped and counted, never truncated. Tokens.
    #[schemars(range(max = 1 << 20))]
    pub max_prompt_tokens: usize,
    /// Longer SFT answers are dropped and counted. Tokens, end token included.
    #[schemars(range(max = 1 << 20))]
    pub max_target_tokens: usize,
    /// Rows of `train` to use at most, from the top; 0 uses all.
    #[schemars(range(max = 1_000_000_000))]
    pub max_train_rows: usize,
    /// Rows of `valid` to use at most, from the top; 0 uses all.
    #[schemars(range(max = 1_000_000_000))]
    pub max_valid_rows: usize,
}

/// `[data.synthetic]`: see docs/synthetic.md.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Rows for the SFT warm-up.
    #[schemars(range(max = 100_000))]
    pub sft_rows: usize,
    /// Share of them that is Safe. RiskCue's training set has 0.235: a warm-up on it over-flags.
    #[schemars(range(min = 0, max = 1))]
    pub sft_safe_share: f64,
    /// Prompts for GRPO, half of them Safe.
    #[schemars(range(max = 100_000))]
    pub grpo_rows: usize,
    /// Held-out rows of another style, half of them Safe.
    #[schemars(range(max = 100_000))]
    pub valid_rows: usize,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: None,
            valid: None,
            synthetic: None,
            max_prompt_tokens: 3072,
            max_target_tokens: 512,
            max_train_rows: 0,
            max_valid_rows: 0,
        }
    }
}

impl DataConfig {
    pub fn validate(&self) -> Result<()> {
        match (&self.synthetic, &self.train, &self.valid) {
            (Some(_), None, None) | (None, Some(_), Some(_)) => {}
            (Some(_), ..) => {
                return Err(Error::input(
                    "data",
                    "[data.synthetic] and files are both given",
                    "Keep data.train and data.valid, or [data.synthetic]",
                ));
            }
            (None, train, _) => {
                let missing = if train.is_none() { "data.train" } else { "data.valid" };
                return Err(Error::input(
                    missing,
                    "is not set",
                    format!("Name a data file with --set {missing}=FILE"),
                ));
            }
        }
        for (key, value) in [
            ("data.max_prompt_tokens", self.max_prompt_tokens),
            ("data.max_target_tokens", self.max_target_tokens),
        ] {
            if value == 0 {
                return Err(Error::config(key, value, "1 or more", "0 drops every row"));
            }
        }
        if let Some(s) = &self.synthetic {
            let idle = [
                ("max_train_rows", self.max_train_rows, "sft_rows and data.synthetic.grpo_rows"),
                ("max_valid_rows", self.max_valid_rows, "valid_rows"),
            ];
            if let Some((name, _, heirs)) = idle.into_iter().find(|(_, rows, _)| *rows > 0) {
                let problem = "has no effect on synthetic logs, of which as many are made as are asked for";
                let fix = format!("Remove the key, or set data.synthetic.{heirs}");
                return Err(Error::input(format!("data.{name}"), problem, fix));
            }
            if !(0.0..=1.0).contains(&s.sft_safe_share) {
                let key = "data.synthetic.sft_safe_share";
                return Err(Error::config(key, s.sft_safe_share, "between 0 and 1", "it is a share"));
            }
            for (name, rows) in
                [("sft_rows", s.sft_rows), ("grpo_rows", s.grpo_rows), ("valid_rows", s.valid_rows)]
            {
                if rows == 0 {
                    let key = format!("data.synthetic.{name}");
                    return Err(Error::config(&key, rows, "1 or more", "a stage needs rows"));
                }
            }
        }
        Ok(())
    }
}
