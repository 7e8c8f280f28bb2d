//! The best model of a run so far: chosen by a score of its evaluations, kept beside the run's checkpoints, and what the
//! run ends with.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::full_disk::patiently;
use super::lora::Adapters;
use super::materials::Materials;
use super::place::merged_bound;
use crate::config::Config;
use crate::config::eval::EvalConfig;
use crate::disk::named_when_done;
use crate::error::{Error, Result};
use crate::formats::file::write_json;
use crate::formats::hf::load_decoder;
use crate::formats::peft;
use crate::hub::{RUN_ADAPTER, RUN_MODEL};
use crate::model::decoder::Decoder;
use crate::observe::{Metrics, Sinks, TableRow};
use crate::run::{RunDirectory, link_folder};
use crate::task::EvalReport;

/// What a checkpoint keeps of the choice.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Choice {
    pub best: Option<Best>,
    /// Evaluations after some training, so far.
    pub candidates: usize,
    /// The best value of the running stage, and its evaluations since.
    stage_best: Option<f64>,
    stale: usize,
}

/// The evaluation that has the best score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    pub metric: String,
    pub value: f64,
    /// 95%, where one is known.
    pub interval: Option<[f64; 2]>,
    pub stage: String,
    pub step: u64,
    /// Optimiser steps of all stages before it.
    pub total_steps: u64,
    pub result: Evaluated,
    /// [`Materials::probe`] of the weights, by which they are known again. Nats.
    logprobs: Vec<f32>,
}

/// A [`TableRow`] that can be read back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluated {
    pub name: String,
    pub metrics: Vec<(String, f64)>,
}

impl Evaluated {
    pub fn new(name: String, metrics: Vec<(String, f64)>) -> Self {
        Self { name, metrics }
    }

    pub fn row(&self) -> TableRow {
        let metrics: Metrics = self.metrics.iter().cloned().collect();
        TableRow { name: self.name.clone(), metrics }
    }
}

/// An evaluation that may be the best.
#[derive(Clone, Copy)]
pub struct Candidate<'a> {
    pub report: &'a EvalReport,
    pub stage: &'a str,
    pub step: u64,
    pub total_steps: u64,
}

/// Of which run.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub config: &'a Config,
    pub materials: &'a Materials,
    pub adapters: Option<&'a Adapters<'a>>,
    pub run: &'a RunDirectory,
}

impl Choice {
    /// A stage begins: what the one before reached does not end it.
    pub fn enter_stage(&mut self) {
        (self.stage_best, self.stale) = (None, 0);
    }

    /// Whether the stage has had `eval.patience` evaluations in a row without a better one.
    pub fn is_stale(&self, config: &EvalConfig) -> bool {
        config.patience.is_some_and(|patience| self.stale >= patience)
    }

    /// Counts an evaluation, and gives its value where it is the run's best.
    fn observe(&mut self, config: &EvalConfig, report: &EvalReport) -> Option<f64> {
        let (metric, direction) = config.choice()?;
        self.candidates += 1;
        self.stale += 1;
        let value = report.metrics().into_iter().find(|(name, _)| name == metric)?.1;
        if self.stage_best.is_none_or(|best| direction.is_better(value, best)) {
            (self.stage_best, self.stale) = (Some(value), 0);
        }
        let best = self.best.as_ref().map(|best| best.value);
        best.is_none_or(|best| direction.is_better(value, best)).then_some(value)
    }

    /// Counts an evaluation; where it is the run's best, keeps the weights in [`folder`].
    pub fn consider(
        &mut self,
        candidate: Candidate,
        at: Place,
        decoder: &Decoder,
        sinks: &mut Sinks,
    ) -> Result<()> {
        let Place { config, materials, adapters, run } = at;
        let Candidate { report, stage, step, total_steps } = candidate;
        let Some(value) = self.observe(&config.eval, report) else { return Ok(()) };
        let metric = config.eval.keep_best.clone();
        let name = format!("{stage} {step}");
        self.best = Some(Best {
            interval: report.interval(&metric).map(|i| [i.low, i.high]),
            metric,
            value,
            stage: stage.into(),
            step,
            total_steps,
            result: Evaluated::new(name, report.metrics()),
            logprobs: materials.probe(decoder)?,
        });
        let fill = |aside: &Path| match adapters {
            // The weights beside it are at hand.
            Some(adapters) => adapters.write_whole(config, decoder, run, &aside.join(RUN_ADAPTER)),
            None => materials.write_model(decoder, &aside.join(RUN_MODEL)),
        };
        patiently(sinks, || named_when_done(&folder(run), fill))
    }

    /// Into a checkpoint, which then has all that a resume needs.
    pub fn write(&self, run: &RunDirectory, checkpoint: &Path) -> Result<()> {
        match self.best {
            Some(_) => link_folder(&folder(run), &checkpoint.join(FOLDER)),
            None => Ok(()),
        }
    }

    /// Puts the best of `checkpoint` in the place of what the run came to after it.
    pub fn restore(&self, run: &RunDirectory, checkpoint: &Path) -> Result<()> {
        let target = folder(run);
        if self.best.is_some() {
            return named_when_done(&target, |aside| link_folder(&checkpoint.join(FOLDER), aside));
        }
        remove(&target)
    }
}

pub const FOLDER: &str = "best";
/// In a model's folder: which evaluation chose it.
const NOTE: &str = "best.json";

/// `best/` of a run: `model/` in Hugging Face layout or, of a run with adapters, `adapter/` alone.
pub fn folder(run: &RunDirectory) -> PathBuf {
    run.path().join(FOLDER)
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "remove")(error)),
        _ => Ok(()),
    }
}

impl Best {
    /// `grpo 150`.
    pub fn name(&self) -> &str {
        &self.result.name
    }

    /// `verdict/accuracy_strict 0.907 (95% 0.874-0.932)`.
    pub fn score(&self) -> String {
        let interval =
            self.interval.map_or(String::new(), |[low, high]| format!(" (95% {low:.3}-{high:.3})"));
        format!("{} {:.3}{interval}", self.metric, self.value)
    }

    /// Which evaluation chose the model, beside the model.
    pub fn write_note(&self, model: &Path, candidates: usize, data: &str) -> Result<()> {
        let note = serde_json::json!({
            "metric": self.metric, "value": self.value, "interval_95": self.interval, "stage": self.stage,
            "step": self.step, "evaluations": candidates, "chosen_on": data,
        });
        write_json(&model.join(NOTE), &note)
    }

    /// Loads what was kept, makes sure that it says what the weights said then, and gives it the names `adapter/` and
    /// `model/`, the latter last of all.
    pub fn hand_over(
        &self,
        config: &Config,
        materials: &Materials,
        adapters: Option<&Adapters>,
        last: &Decoder,
        run: &RunDirectory,
        candidates: usize,
    ) -> Result<()> {
        let (kept, data) = (folder(run), &materials.rows.valid_name);
        let model = kept.join(RUN_MODEL);
        let again = match adapters {
            None => load_decoder(&model, config.model.max_positions, &last.place())?,
            Some(adapters) => {
                let mut base = adapters.base(config, last)?;
                peft::attach(&kept.join(RUN_ADAPTER), &mut base)?;
                base
            }
        };
        // Adapters of several stages became one, and another number of threads adds up in another order.
        let bound = merged_bound(last);
        Materials::same(&self.logprobs, &materials.probe(&again)?, bound, &kept)?;
        if adapters.is_some() {
            let target = run.path().join(RUN_ADAPTER);
            named_when_done(&target, |aside| link_folder(&kept.join(RUN_ADAPTER), aside))?;
            return materials
                .save_model(&again, &run.model(), |aside| self.write_note(aside, candidates, data));
        }
        named_when_done(&run.model(), |aside| {
            link_folder(&model, aside)?;
            self.write_note(aside, candidates, data)
        })
    }
}

/// Removes folders that a run that is over needs no longer.
pub fn clear(folders: impl IntoIterator<Item = PathBuf>) -> Result<()> {
    folders.into_iter().try_for_each(|folder| remove(&folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Confusion, LabelId, Task, Verdict};

    /// `right` of ten logs, half of them risky.
    fn report(right: usize) -> EvalReport {
        let mut confusion = Confusion::new(&Task::load("demo").unwrap());
        for i in 0..10 {
            let gold = LabelId(u16::from(i % 2 == 0));
            let verdict = match (i < right, gold.is_negative()) {
                (true, true) | (false, false) => Verdict::Negative,
                (true, false) | (false, true) => Verdict::Positive(LabelId(1)),
            };
            confusion.add(gold, verdict);
        }
        confusion.report()
    }

    #[test]
    fn ties_go_to_the_earlier_and_patience_counts_within_a_stage() {
        let config = EvalConfig { patience: Some(2), every_steps: 1, ..EvalConfig::default() };
        let mut choice = Choice::default();
        let observe = |choice: &mut Choice, right| {
            let value = choice.observe(&config, &report(right));
            if let Some(value) = value {
                choice.best = Some(Best {
                    metric: String::new(),
                    value,
                    interval: None,
                    stage: String::new(),
                    step: 0,
                    total_steps: 0,
                    result: Evaluated::new(String::new(), Vec::new()),
                    logprobs: Vec::new(),
                });
            }
            (value, choice.is_stale(&config))
        };
        assert_eq!(observe(&mut choice, 8), (Some(0.8), false));
        choice.enter_stage();
        // The stage climbs from below what the one before had reached.
        assert_eq!(observe(&mut choice, 5), (None, false));
        assert_eq!(observe(&mut choice, 6), (None, false));
        assert_eq!(observe(&mut choice, 8), (None, false), "a tie");
        assert_eq!(observe(&mut choice, 8), (None, false));
        assert_eq!(observe(&mut choice, 7), (None, true));
        assert_eq!(observe(&mut choice, 9), (Some(0.9), false));
        assert_eq!(choice.candidates, 7);
        let last = EvalConfig { keep_best: "last".into(), ..EvalConfig::default() };
        assert_eq!(choice.observe(&last, &report(10)), None);
        // A lower rate of false alarms is better: 5 of the wrong ones are benign logs flagged.
        let low = EvalConfig { keep_best: "verdict/false_positive_rate".into(), ..EvalConfig::default() };
        let mut choice = Choice::default();
        assert!(choice.observe(&low, &report(8)).is_some());
    }
}
