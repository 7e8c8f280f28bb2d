//! The rows of a run's stages and of its evaluation, as tokens.

use std::path::Path;

use crate::config::stages::Balance;
use crate::config::{Config, Stage};
use crate::data::jsonl::{Dataset, EncodedRow, Limits, Source, Targets};
use crate::data::order::Order;
use crate::data::synthetic::{self, Spec, Split};
use crate::error::{Error, Result};
use crate::observe::Sinks;
use crate::task::Task;
use crate::text::PromptEncoder;

/// Those of a stage that the run does not have are empty.
pub struct Rows {
    pub sft: Vec<EncodedRow>,
    pub grpo: Vec<EncodedRow>,
    /// With every answer there is, for enumeration.
    pub answers: Vec<EncodedRow>,
    pub valid: Vec<EncodedRow>,
}

impl Rows {
    /// Only what the stages use is encoded.
    pub fn load(config: &Config, task: &Task, encoder: &PromptEncoder, sinks: &mut Sinks) -> Result<Self> {
        let data = &config.data;
        let source = |max_rows, targets| Source {
            task,
            encoder,
            limits: Limits {
                max_prompt_tokens: data.max_prompt_tokens,
                max_target_tokens: data.max_target_tokens,
                max_rows,
                targets,
            },
        };
        let [sft, grpo, answers] =
            [Stage::Sft, Stage::Grpo, Stage::Enumerate].map(|stage| config.stages.contains(&stage));
        let mut keep = |what: &str, dataset: Dataset| {
            for (reason, count) in &dataset.dropped {
                sinks.warn(format!("{what}: dropped {count} rows: {reason}"));
            }
            dataset.rows
        };
        if let Some(synthetic_data) = &data.synthetic {
            let name = Path::new("synthetic logs");
            let encode = |spec: Spec, targets| source(0, targets).encode(name, &synthetic::rows(&spec));
            let spec = Spec::new(config.seed, Split::Train, synthetic_data.sft_rows);
            let for_sft = Spec { safe_share: synthetic_data.sft_safe_share, ..spec };
            // A twin pair starts at an even index; GRPO's prompts begin after the warm-up's.
            let first = synthetic_data.sft_rows.next_multiple_of(2);
            let for_grpo = Spec { first, rows: synthetic_data.grpo_rows, ..spec };
            let valid = Spec::new(config.seed, Split::Test, synthetic_data.valid_rows);
            return Ok(Self {
                sft: if sft { keep("sft", encode(for_sft, Targets::Required)?) } else { Vec::new() },
                grpo: if grpo { keep("grpo", encode(for_grpo, Targets::Ignored)?) } else { Vec::new() },
                answers: match answers {
                    true => keep("enumerate", encode(for_grpo, Targets::Answers)?),
                    false => Vec::new(),
                },
                valid: keep("valid", encode(valid, Targets::Ignored)?),
            });
        }
        let (Some(train), Some(valid)) = (&data.train, &data.valid) else {
            return data.validate().and(Err(Error::Compute("no data".into())));
        };
        let valid = keep("data.valid", source(data.max_valid_rows, Targets::Ignored).load(valid)?);
        let mut load = |targets| -> Result<Vec<EncodedRow>> {
            Ok(keep("data.train", source(data.max_train_rows, targets).load(train)?))
        };
        let sft = if sft { load(Targets::Required)? } else { Vec::new() };
        let grpo = match grpo {
            true if !sft.is_empty() => sft.clone(),
            true => load(Targets::Ignored)?,
            false => Vec::new(),
        };
        let answers = if answers { load(Targets::Answers)? } else { Vec::new() };
        Ok(Self { sft, grpo, answers, valid })
    }
}

/// Tells the order of the prompts from that of SFT's rows. Sampled and enumerated steps of one seed see the same.
const ORDER: u32 = 1;

/// Rows in the order that `balance`, the config's `key`, says.
pub fn prompt_order(rows: &[EncodedRow], balance: Balance, key: &str, seed: u64) -> Result<Order> {
    match balance {
        Balance::None => Ok(Order::shuffled(rows.len(), seed, ORDER)),
        Balance::LabelSign => {
            Order::balanced(rows.iter().map(|row| row.gold.is_negative()), key, seed, ORDER)
        }
    }
}
