use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mix::{self, DataFile, MixSource, ValidFile};
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
    /// Several sources to train on, in the place of `train`: `[[data.mix]]` with `path`, `weight` (default 1) and `name` (default: from the
    /// path) each. A source's share of the rows that steps see is that of its weight; a small one is repeated, and an epoch is as many rows
    /// as all have together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mix: Vec<MixSource>,
    /// Several files to evaluate on, in the place of `valid`: `[[data.valid_files]]` with `path` and `name` each. They are scored together,
    /// and each by itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub valid_files: Vec<ValidFile>,
    /// Logs made from the seed instead of files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<SyntheticConfig>,
    /// Longer prompts are dropped and counted, never truncated. Tokens.
    #[schemars(range(max = 1 << 20))]
    pub max_prompt_tokens: usize,
    /// Longer SFT answers are dropped and counted. Tokens, end token included.
    #[schemars(range(max = 1 << 20))]
    pub max_target_tokens: usize,
    /// Rows of `train`, or of each source of `mix`, to use at most, from the top; 0 uses all.
    #[schemars(range(max = 1_000_000_000))]
    pub max_train_rows: usize,
    /// Rows of `valid`, or of each of `valid_files`, to use at most, from the top; 0 uses all.
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
            mix: Vec::new(),
            valid_files: Vec::new(),
            synthetic: None,
            max_prompt_tokens: 3072,
            max_target_tokens: 512,
            max_train_rows: 0,
            max_valid_rows: 0,
        }
    }
}

impl DataConfig {
    /// What is trained on: `train`, or the sources of `mix` in their order. None of synthetic logs.
    pub fn train_files(&self) -> Vec<DataFile<'_>> {
        match &self.train {
            Some(path) => vec![DataFile { key: "data.train".into(), path, source: None }],
            None => mix::sources(&self.mix),
        }
    }

    /// What is evaluated on, likewise.
    pub fn held_out_files(&self) -> Vec<DataFile<'_>> {
        match &self.valid {
            Some(path) => vec![DataFile { key: "data.valid".into(), path, source: None }],
            None => mix::valid_files(&self.valid_files),
        }
    }

    /// The paths of both with their keys, for what finds files by them.
    pub fn paths_mut(&mut self) -> Vec<(String, &mut PathBuf)> {
        let key = |list: &str, at: usize| format!("data.{list}[{at}].path");
        let single = [("data.train", &mut self.train), ("data.valid", &mut self.valid)];
        let single = single.into_iter().filter_map(|(key, path)| Some((key.to_string(), path.as_mut()?)));
        let mix = self.mix.iter_mut().enumerate().map(|(i, of)| (key("mix", i), &mut of.path));
        let valid = self.valid_files.iter_mut().enumerate();
        single.chain(mix).chain(valid.map(|(i, of)| (key("valid_files", i), &mut of.path))).collect()
    }

    pub fn validate(&self) -> Result<()> {
        for (one, many, both) in [
            ("data.train", "data.mix", self.train.is_some() && !self.mix.is_empty()),
            ("data.valid", "data.valid_files", self.valid.is_some() && !self.valid_files.is_empty()),
        ] {
            if both {
                let problem = format!("is given together with {many}, and only one can count");
                return Err(Error::input(one, problem, "Keep one of them"));
            }
        }
        mix::validate(&self.mix, &self.valid_files)?;
        let (trains, evaluates) = (!self.train_files().is_empty(), !self.held_out_files().is_empty());
        match (&self.synthetic, trains, evaluates) {
            (Some(_), false, false) | (None, true, true) => {}
            (Some(_), ..) => {
                return Err(Error::input(
                    "data",
                    "[data.synthetic] and files are both given",
                    "Keep data.train and data.valid, or [data.synthetic]",
                ));
            }
            (None, ..) => {
                let missing = if trains { "data.valid" } else { "data.train" };
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
