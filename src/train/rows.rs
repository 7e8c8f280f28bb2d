//! The rows of a run's stages and of its evaluation, as tokens.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::config::data::DataConfig;
use crate::config::stages::Balance;
use crate::config::{Config, Stage};
use crate::data::coverage;
use crate::data::held_out::{held_out, limits};
use crate::data::jsonl::{Dataset, EncodedRow, Source, Watch};
use crate::data::limits::Targets;
use crate::data::order::Order;
use crate::data::synthetic::{self, Spec, Split};
use crate::error::{Error, Result};
use crate::eval::parts;
use crate::observe::{Event, Sinks};
use crate::task::{LabelId, Task};
use crate::text::PromptEncoder;

type Load<'a> = dyn Fn(Source, Watch) -> Result<Dataset> + 'a;

const SYNTHETIC_VALID: &str = "synthetic validation logs";

/// Those of a stage that the run does not have are empty.
pub struct Rows {
    pub sft: Vec<EncodedRow>,
    pub grpo: Vec<EncodedRow>,
    /// With every answer there is, for enumeration.
    pub answers: Vec<EncodedRow>,
    pub valid: Vec<EncodedRow>,
    /// What the latter are called.
    pub valid_name: String,
}

impl Rows {
    /// Only what the stages use is encoded.
    pub fn load(config: &Config, task: &Task, encoder: &PromptEncoder, sinks: &mut Sinks) -> Result<Self> {
        let data = &config.data;
        let [sft, grpo, answers] =
            [Stage::Sft, Stage::Grpo, Stage::Enumerate].map(|stage| config.stages.contains(&stage));
        let mut read = |what: &str, max_rows, targets, load: &Load| -> Result<Vec<EncodedRow>> {
            let source = Source { task, encoder, limits: limits(config, max_rows, targets) };
            let start = Instant::now();
            let mut watch = |done: usize, total: usize| {
                sinks.emit(&Event::work(format!("tokenising {what}"), "rows", done, total, start));
            };
            let dataset = load(source, &mut watch)?;
            let (text, is_much) = dataset.account.say(what, task, &source.limits);
            sinks.emit(&if is_much { Event::Warning { text } } else { Event::Note { text } });
            Ok(dataset.rows)
        };
        if let Some(made) = &data.synthetic {
            let name = Path::new("synthetic logs");
            let spec = Spec::new(config.seed, Split::Train, made.sft_rows);
            let for_sft = Spec { safe_share: made.sft_safe_share, ..spec };
            // A twin pair starts at an even index; GRPO's prompts begin after the warm-up's.
            let first = made.sft_rows.next_multiple_of(2);
            let for_grpo = Spec { first, rows: made.grpo_rows, ..spec };
            let mut make = |what: &str, spec: Spec, targets, wanted: bool| match wanted {
                true => read(what, 0, targets, &|source, _| source.encode(name, &synthetic::rows(&spec))),
                false => Ok(Vec::new()),
            };
            return Ok(Self {
                sft: make("synthetic logs for SFT", for_sft, Targets::Required, sft)?,
                grpo: make("synthetic logs for GRPO", for_grpo, Targets::Ignored, grpo)?,
                answers: make("synthetic logs for enumeration", for_grpo, Targets::Answers, answers)?,
                valid: read(SYNTHETIC_VALID, 0, Targets::Ignored, &|_, watch| {
                    held_out(config, task, encoder, watch)
                })?,
                valid_name: format!("the {SYNTHETIC_VALID}"),
            });
        }
        let Some(train) = &data.train else {
            return data.validate().and(Err(Error::Compute("no data".into())));
        };
        let valid = read("data.valid", data.max_valid_rows, Targets::Ignored, &|_, watch| {
            held_out(config, task, encoder, watch)
        })?;
        let mut load = |what: &str, targets| {
            read(what, data.max_train_rows, targets, &|source, watch| source.load_watched(train, watch))
        };
        let sft = if sft { load("data.train", Targets::Required)? } else { Vec::new() };
        let grpo = match grpo {
            true if !sft.is_empty() => sft.clone(),
            true => load("data.train", Targets::Ignored)?,
            false => Vec::new(),
        };
        let answers =
            if answers { load("data.train with all answers", Targets::Answers)? } else { Vec::new() };
        if let Some(text) = known(&valid, [&sft, &grpo, &answers], data) {
            sinks.emit(&Event::Warning { text });
        }
        let valid_name = data.valid.as_ref().map_or(String::new(), |path| path.display().to_string());
        Ok(Self { sft, grpo, answers, valid, valid_name })
    }
}

impl Rows {
    /// What to say of the labels of the rows that are learned from.
    pub fn remarks(&self, task: &Task) -> Vec<String> {
        // Stages read the same file; one that keeps fewer rows has the same labels, or has said what it dropped.
        let trained = [&self.sft, &self.grpo, &self.answers].into_iter().find(|rows| !rows.is_empty());
        let golds = |rows: &[EncodedRow]| coverage::count(task, rows.iter().map(|row| row.gold));
        let trained = trained.map_or(Vec::new(), |rows| golds(rows));
        coverage::remarks("data.train", &trained, Some(&golds(&self.valid)))
    }

    /// What to say of the rewards that the rows of GRPO or enumeration can earn.
    pub fn reward_remarks(&self, task: &Task) -> Vec<String> {
        let Some(rows) = [&self.grpo, &self.answers].into_iter().find(|rows| !rows.is_empty()) else {
            return Vec::new();
        };
        let labels: Vec<LabelId> = rows.iter().map(|row| row.gold).collect();
        parts::warnings(&parts::parts(task, &labels, &[], None))
    }
}

/// Says how many validation rows ask what a training row asks too: they measure memory.
fn known(valid: &[EncodedRow], trained: [&[EncodedRow]; 3], data: &DataConfig) -> Option<String> {
    let trained: HashSet<&[u32]> =
        trained.into_iter().flatten().map(|row| row.prompt.token_ids.as_slice()).collect();
    let known: Vec<usize> = valid
        .iter()
        .filter(|row| trained.contains(row.prompt.token_ids.as_slice()))
        .map(|row| row.line)
        .collect();
    let (first, name) = (known.first()?, |path: &Option<PathBuf>| {
        path.as_ref().map_or(String::new(), |path| path.display().to_string())
    });
    let (train, valid_file) = (name(&data.train), name(&data.valid));
    Some(format!(
        "{} of {} validation rows are training rows too, the first in line {first}: scores on them measure memory. `rlvr data \
         check {valid_file} --against {train}` names them and those that are nearly the same",
        known.len(),
        valid.len(),
    ))
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
