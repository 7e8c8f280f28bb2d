//! What a run's folder says, whole or half-written.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::answers::Found;
use crate::config::keys_of;
use crate::error::{Error, Result};

/// A run as its files tell it.
#[derive(Clone, Debug, Default)]
pub struct Run {
    pub name: String,
    /// Config keys `a.b` and values as TOML writes them.
    pub config: BTreeMap<String, String>,
    pub steps: Vec<Step>,
    pub evaluations: Vec<Evaluation>,
    pub answers: Found,
    /// `model/threshold.json`.
    pub threshold: Option<Value>,
    /// What the run warned of: after which step, and the text.
    pub warnings: Vec<(String, String)>,
    /// Which evaluation chose the run's model, where one did.
    pub chosen: Option<Chosen>,
    /// What was missing or damaged.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Step {
    pub stage: String,
    pub step: u64,
    /// Step of the whole run: the stages' steps one after another.
    pub total: u64,
    pub metrics: BTreeMap<String, f64>,
}

#[derive(Clone, Debug)]
pub struct Evaluation {
    /// "vanilla", "sft 400", or the name of an eval file.
    pub name: String,
    /// Step of the whole run; None for an evaluation of its own.
    pub total: Option<u64>,
    /// `EvalReport` as JSON.
    pub report: Value,
}

/// `model/best.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Chosen {
    pub metric: String,
    pub value: f64,
    pub interval_95: Option<[f64; 2]>,
    pub stage: String,
    pub step: u64,
    pub evaluations: usize,
    pub chosen_on: String,
}

impl Chosen {
    /// The name of its evaluation.
    pub fn name(&self) -> String {
        format!("{} {}", self.stage, self.step)
    }

    pub fn text(&self) -> String {
        let interval =
            self.interval_95.map_or(String::new(), |[low, high]| format!(" (95% {low:.3}-{high:.3})"));
        format!(
            "model/ is that of {}, {} {:.3}{interval}, the best of {} evaluations; it was chosen on {}, which flatters its \
             score there",
            self.name(),
            self.metric,
            self.value,
            self.evaluations,
            self.chosen_on
        )
    }
}

impl Evaluation {
    /// A number of the report: `number(&["strict", "accuracy"])`.
    pub fn number(&self, path: &[&str]) -> Option<f64> {
        path.iter().try_fold(&self.report, |value, key| value.get(*key))?.as_f64()
    }

    pub fn labels(&self) -> Vec<&str> {
        self.report["labels"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    }

    /// Gold label by verdict, the last column malformed.
    pub fn confusion(&self) -> Vec<Vec<u64>> {
        let row = |row: &Value| row.as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
        self.report["confusion"].as_array().into_iter().flatten().map(row).collect()
    }
}

impl Run {
    /// # Errors
    /// The folder is no run: it has neither a config nor metrics.
    pub fn read(folder: &Path) -> Result<Self> {
        let (config, metrics) = (folder.join("config.resolved.toml"), folder.join("metrics.jsonl"));
        if !config.is_file() && !metrics.is_file() {
            let problem = "is not a run: it has no config.resolved.toml and no metrics.jsonl";
            let fix = "Name the directory that `rlvr train` printed as `run:`";
            return Err(Error::input(folder.display(), problem, fix));
        }
        let name = folder.canonicalize().unwrap_or_else(|_| folder.into());
        let name = name.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        let mut run = Self { name, ..Self::default() };
        let text = std::fs::read_to_string(&config).unwrap_or_default();
        match keys_of("config.resolved.toml", &text) {
            Ok(keys) if !text.is_empty() => run.config = keys,
            _ => run.notes.push("config.resolved.toml is missing or damaged".into()),
        }
        match std::fs::read(&metrics) {
            Ok(content) => run.read_metrics(&content),
            Err(_) => run.notes.push("metrics.jsonl is missing: nothing was measured yet".into()),
        }
        if !folder.join("model").is_dir() {
            run.notes.push("the run has not finished: it has no final model".into());
        }
        run.read_eval_files(folder);
        let chosen = std::fs::read(folder.join("model/best.json")).ok();
        run.chosen = chosen.and_then(|text| serde_json::from_slice(&text).ok());
        let must: Vec<&str> = run.milestones().into_iter().map(|e| e.name.as_str()).collect();
        let total = |stage: &str, step| run.total(stage, step);
        run.answers = Found::read(&folder.join("samples"), total, &must);
        let threshold = std::fs::read(folder.join("model/threshold.json")).ok();
        run.threshold = threshold.and_then(|text| serde_json::from_slice(&text).ok());
        Ok(run)
    }

    fn read_metrics(&mut self, content: &[u8]) {
        let mut stages: Vec<(String, u64)> = Vec::new();
        let mut damaged = 0;
        for line in content.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty()) {
            let Ok(event) = serde_json::from_slice::<Value>(line) else {
                damaged += 1;
                continue;
            };
            if event["event"] == "warning" {
                let after = match self.steps.last() {
                    Some(step) => format!("{} {}", step.stage, step.step),
                    None => "the start".into(),
                };
                self.warnings.push((after, event["text"].as_str().unwrap_or_default().into()));
                continue;
            }
            let stage = event["stage"].as_str().unwrap_or_default().to_string();
            let step = event["step"].as_u64().unwrap_or(0);
            match stages.iter_mut().find(|(name, _)| *name == stage) {
                Some((_, last)) => *last = (*last).max(step),
                None => stages.push((stage.clone(), step)),
            }
            let before: u64 =
                stages.iter().take_while(|(name, _)| *name != stage).map(|(_, last)| last).sum();
            let total = before + step;
            match event["event"].as_str() {
                Some("step") => {
                    let numbers = event.as_object().into_iter().flatten();
                    let metrics = numbers.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?)));
                    let metrics = metrics.filter(|(name, _)| name != "step").collect();
                    self.steps.push(Step { stage, step, total, metrics });
                }
                Some("evaluation") => {
                    let name = if step == 0 { stage } else { format!("{stage} {step}") };
                    let report = event["report"].clone();
                    self.evaluations.push(Evaluation { name, total: Some(total), report });
                }
                _ => {}
            }
        }
        if damaged > 0 {
            self.notes.push(format!("metrics.jsonl: left out lines that are cut or damaged: {damaged}"));
        }
    }

    /// What `rlvr eval --out` wrote into the folder.
    fn read_eval_files(&mut self, folder: &Path) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "json")) {
            let report =
                std::fs::read(path).ok().and_then(|text| serde_json::from_slice::<Value>(&text).ok());
            if let Some(report) = report.filter(|report| report["confusion"].is_array()) {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                self.evaluations.push(Evaluation { name, total: None, report });
            }
        }
    }

    /// Step of the whole run at a stage's step.
    fn total(&self, stage: &str, step: u64) -> u64 {
        let stages = self.stages();
        if !stages.contains(&stage) {
            return step;
        }
        let last = |of: &&str| self.steps.iter().rev().find(|s| s.stage == **of).map_or(0, |s| s.step);
        stages.iter().take_while(|of| **of != stage).map(last).sum::<u64>() + step
    }

    /// Points (step of the stage, value) of a metric.
    pub fn curve(&self, stage: &str, metric: &str) -> Vec<(f64, f64)> {
        let of_stage = self.steps.iter().filter(|step| step.stage == stage);
        of_stage.filter_map(|step| Some((step.step as f64, *step.metrics.get(metric)?))).collect()
    }

    /// Points (step of the run, value) of a score of the evaluations.
    pub fn evaluation_curve(&self, path: &[&str]) -> Vec<(f64, f64)> {
        self.evaluations.iter().filter_map(|e| Some((e.total? as f64, e.number(path)?))).collect()
    }

    /// The last evaluation made while training, or else the last of all.
    pub fn last_evaluation(&self) -> Option<&Evaluation> {
        self.evaluations.iter().rfind(|e| e.total.is_some()).or(self.evaluations.last())
    }

    /// Before training, at the end of each stage, the one that chose the model, and evaluations of their own.
    pub fn milestones(&self) -> Vec<&Evaluation> {
        let stage = |e: &Evaluation| e.name.split(' ').next().unwrap_or_default().to_string();
        let last_of_stage = |i: usize| match self.evaluations.get(i + 1) {
            Some(next) => next.total.is_none() || stage(next) != stage(&self.evaluations[i]),
            None => true,
        };
        let kept = self.evaluations.iter().enumerate();
        let chosen = self.chosen.as_ref().map(Chosen::name);
        let is_chosen = |e: &Evaluation| chosen.as_ref() == Some(&e.name);
        kept.filter(|(i, e)| e.total.is_none() || last_of_stage(*i) || is_chosen(e)).map(|(_, e)| e).collect()
    }

    pub fn stages(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = self.steps.iter().map(|step| step.stage.as_str()).collect();
        stages.dedup();
        stages
    }

    /// What a stage took: name and text.
    pub fn cost(&self, stage: &str) -> Vec<(String, f64)> {
        let of_stage = || self.steps.iter().filter(|step| step.stage == stage);
        let sum = |metric: &str| of_stage().filter_map(|step| step.metrics.get(metric)).sum::<f64>();
        let most =
            |metric: &str| of_stage().filter_map(|step| step.metrics.get(metric)).copied().reduce(f64::max);
        let mut names: Vec<&String> = of_stage().flat_map(|step| step.metrics.keys()).collect();
        names.sort();
        names.dedup();
        let mut cost =
            vec![("steps".to_string(), of_stage().count() as f64), ("step_time".into(), sum("step_time"))];
        for name in names {
            if name.starts_with("time/") {
                cost.push((name.clone(), sum(name)));
            } else if name.starts_with("memory/") {
                cost.extend(most(name).map(|value| (name.clone(), value)));
            }
        }
        cost
    }
}
