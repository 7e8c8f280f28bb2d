//! The rows of a run's stages and of its evaluation, as tokens.

use std::collections::HashSet;
use std::path::Path;
use std::time::Instant;

use crate::config::data::DataConfig;
use crate::config::distill::DistillConfig;
use crate::config::mix::{DataFile, MixSource};
use crate::config::stages::Balance;
use crate::config::{Config, Stage};
use crate::data::coverage;
use crate::data::held_out::{held_out, limits};
use crate::data::jsonl::{Dataset, EncodedRow, Source, Watch};
use crate::data::limits::Targets;
use crate::data::order::{Mixed, Order, Share};
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
            let distill = config.sft.distill.as_ref().filter(|_| sft);
            let source = Source { task, encoder, limits: limits(config, max_rows, targets), distill };
            let start = Instant::now();
            let mut watch = |done: usize, total: usize| {
                sinks.emit(&Event::work(format!("tokenising {what}"), "rows", done, total, start));
            };
            let dataset = load(source, &mut watch)?;
            if let (Some(distill), Targets::Required) = (distill, targets) {
                let text = judged_rows(what, &dataset.rows, distill)?;
                sinks.emit(&Event::Note { text });
            }
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
        let trained = data.train_files();
        if trained.is_empty() {
            return data.validate().and(Err(Error::Compute("no data".into())));
        }
        let valid = read("data.valid", data.max_valid_rows, Targets::Ignored, &|_, watch| {
            held_out(config, task, encoder, watch)
        })?;
        let train = if data.mix.is_empty() { "data.train" } else { "data.mix" };
        let mut load = |what: &str, targets| {
            read(what, data.max_train_rows, targets, &|source, watch| source.load_all(&trained, watch))
        };
        let sft = if sft { load(train, Targets::Required)? } else { Vec::new() };
        let grpo = match grpo {
            true if !sft.is_empty() => sft.iter().map(without_answers).collect(),
            true => load(train, Targets::Ignored)?,
            false => Vec::new(),
        };
        let what = format!("{train} with all answers");
        let answers = if answers { load(&what, Targets::Answers)? } else { Vec::new() };
        if let Some(text) = known(&valid, [&sft, &grpo, &answers], data) {
            sinks.emit(&Event::Warning { text });
        }
        let valid_name = names(&data.held_out_files(), " and ");
        let rows = [&sft, &grpo, &answers].into_iter().find(|rows| !rows.is_empty());
        if let Some(text) = rows.and_then(|rows| mixture(rows, &data.mix)) {
            sinks.emit(&Event::Note { text });
        }
        Ok(Self { sft, grpo, answers, valid, valid_name })
    }
}

impl Rows {
    /// What to say of the labels of the rows that are learned from.
    pub fn remarks(&self, task: &Task) -> Vec<String> {
        // Stages read the same file; one that keeps fewer rows has the same labels, or has said what it dropped.
        let trained = [&self.sft, &self.grpo, &self.answers].into_iter().find(|rows| !rows.is_empty());
        let mixed = trained.is_some_and(|rows| rows.iter().any(|row| row.source.is_some()));
        let what = if mixed { "data.mix" } else { "data.train" };
        let golds = |rows: &[EncodedRow]| coverage::count(task, rows.iter().map(|row| row.gold));
        let trained = trained.map_or(Vec::new(), |rows| golds(rows));
        coverage::remarks(what, &trained, Some(&golds(&self.valid)))
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

/// GRPO samples its answers, and hears no judge.
fn without_answers(row: &EncodedRow) -> EncodedRow {
    EncodedRow { answers: Vec::new(), judge: None, ..row.clone() }
}

/// Says how many of SFT's rows have a judge's word.
///
/// # Errors
/// None has.
fn judged_rows(what: &str, rows: &[EncodedRow], distill: &DistillConfig) -> Result<String> {
    let (judged, column) = (rows.iter().filter(|row| row.judge.is_some()).count(), &distill.column);
    if judged == 0 {
        let problem = format!("no row of {what} has that key, so [sft.distill] has nothing to learn");
        let fix = "Correct the key, add the judge's numbers to the rows, or remove [sft.distill]";
        return Err(Error::input(format!("sft.distill.column = {column}"), problem, fix));
    }
    let others = match rows.len() - judged {
        0 => String::new(),
        others => format!("; {others} are learned from by their answer alone"),
    };
    Ok(format!("sft.distill: {judged} of {} rows of {what} have a judge's `{column}`{others}", rows.len()))
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
    let first = known.first()?;
    let against = format!(" --against {}", names(&data.train_files(), " --against "));
    let check = names(&data.held_out_files(), &format!("{against}` and `rlvr data check "));
    Some(format!(
        "{} of {} validation rows are training rows too, the first in line {first}: scores on them measure memory. `rlvr data \
         check {check}{against}` names them and those that are nearly the same",
        known.len(),
        valid.len(),
    ))
}

fn names(files: &[DataFile], between: &str) -> String {
    files.iter().map(|file| file.path.display().to_string()).collect::<Vec<_>>().join(between)
}

/// The sources of a mix; none of a single file's rows.
fn shares(rows: &[EncodedRow], mix: &[MixSource]) -> Vec<Share> {
    let mut first = 0;
    let sources = rows.chunk_by(|a, b| a.source == b.source).map(|rows| {
        first += rows.len();
        first - rows.len()..first
    });
    // Every source has a row, or it was refused.
    sources.zip(mix).map(|(rows, source)| Share { rows, weight: source.weight }).collect()
}

/// Says what the weights of a mix come to.
fn mixture(rows: &[EncodedRow], mix: &[MixSource]) -> Option<String> {
    let shares = shares(rows, mix);
    let each = shares.iter().zip(Mixed::new(&shares).repeats()).map(|(of, (share, times))| {
        let name = rows[of.rows.start].source.as_deref().unwrap_or_default();
        format!(
            "{name} {:.1}% of the rows drawn, its {} rows {times:.2} times an epoch",
            100.0 * share,
            of.rows.len()
        )
    });
    (!shares.is_empty()).then(|| format!("data.mix: {}", each.collect::<Vec<_>>().join("; ")))
}

/// Tell the orders of the stages apart. Sampled and enumerated steps of one seed see the same prompts.
const SFT: u32 = 0;
const PROMPTS: u32 = 1;

/// The order of SFT's rows.
pub fn sft_order(rows: &[EncodedRow], config: &Config) -> Order {
    order(rows, config, SFT)
}

fn order(rows: &[EncodedRow], config: &Config, stage: u32) -> Order {
    match config.data.mix.as_slice() {
        [] => Order::shuffled(rows.len(), config.seed, stage),
        mix => Order::mixed(&shares(rows, mix), config.seed, stage),
    }
}

/// Rows in the order that the weights of `data.mix` or `balance`, the config's `key`, say.
pub fn prompt_order(rows: &[EncodedRow], config: &Config, balance: Balance, key: &str) -> Result<Order> {
    match balance {
        Balance::None => Ok(order(rows, config, PROMPTS)),
        Balance::LabelSign => {
            Order::balanced(rows.iter().map(|row| row.gold.is_negative()), key, config.seed, PROMPTS)
        }
    }
}
