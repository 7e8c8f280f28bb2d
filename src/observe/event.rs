//! Everything a run reports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::ser::SerializeMap;
use serde::{Deserialize, Serialize, Serializer};

use super::work::Work;
use crate::types::FinishReason;

/// One thing that happened. `stage` is `sft`, `grpo` or, before any training, `vanilla`; `step` counts the
/// optimiser steps of the stage, from 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// `done` of the stage's `steps` were made before; above 0 after a resume. `before`: optimiser steps of the stages
    /// that went before it.
    StageStarted {
        stage: String,
        steps: u64,
        done: u64,
        before: u64,
    },
    /// `step` of the stage begins, from 1.
    StepStarted {
        stage: String,
        step: u64,
    },
    /// Metric names are TRL's where it has one. Serialises flat: one JSON object with a key a metric.
    Step {
        stage: String,
        step: u64,
        #[serde(flatten)]
        metrics: Metrics,
    },
    /// `metrics` are the numbers of `report` under their metric names. Its `Samples` come just before it.
    Evaluation {
        stage: String,
        step: u64,
        #[serde(flatten)]
        metrics: Metrics,
        report: serde_json::Value,
    },
    /// How far something long is. Shown, kept nowhere.
    Work(Work),
    /// What the run is at beside steps, where no `Work` says it: for those who watch from outside.
    Phase {
        what: String,
    },
    /// Shown, and kept between the steps it came up at.
    Warning {
        text: String,
    },
    /// What is good to know and nothing to worry about. Shown, kept nowhere.
    Note {
        text: String,
    },
    /// `step` counts all optimiser steps of the run.
    Checkpoint {
        step: u64,
        path: PathBuf,
    },
    Samples {
        kind: SampleKind,
        stage: String,
        step: u64,
        samples: Vec<SampleRecord>,
    },
    /// What `Samples` of this kind answer. May come again.
    Prompts {
        kind: SampleKind,
        prompts: Vec<PromptRecord>,
    },
    /// Every token of a step's completions, for `run.dump_steps`.
    Tokens {
        stage: String,
        step: u64,
        completions: Vec<TokenRecords>,
    },
    /// The run is over: a row for the model before training and after each stage.
    Finished {
        rows: Vec<TableRow>,
        run: PathBuf,
        /// Which of its models it ends with.
        chosen: Option<String>,
    },
}

impl Event {
    /// [`Work::new`].
    pub fn work(what: String, unit: &'static str, done: usize, total: usize, start: Instant) -> Self {
        Self::Work(Work::new(what, unit, done, total, start))
    }

    pub fn phase(what: impl Into<String>) -> Self {
        Self::Phase { what: what.into() }
    }
}

/// Numbers by metric name, in the order they were given.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(Vec<(String, f64)>);

/// One row of the final table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TableRow {
    /// "vanilla", "SFT", "SFT+GRPO".
    pub name: String,
    /// An evaluation's.
    pub metrics: Metrics,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SampleKind {
    /// Completions that a training step learned from.
    Rollouts,
    Evaluation,
}

/// One judged completion, as samples/ shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SampleRecord {
    /// 1-based line of the data file that the prompt came from.
    pub line: usize,
    pub gold: String,
    pub verdict: String,
    /// Why it is malformed, where the form is not why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub reward: f32,
    /// The parts that it is the weighted sum of, where the task has several.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rewards: BTreeMap<String, f32>,
    /// Over the other completions of its group. None in an evaluation, and for a group that was dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f32>,
    /// Of the completion, its end token included. Earlier versions did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<usize>,
    /// Earlier versions did not keep it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finish: Option<FinishReason>,
    pub completion: String,
}

/// What the model read, special tokens written out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PromptRecord {
    /// As [`SampleRecord::line`].
    pub line: usize,
    pub prompt: String,
}

impl Metrics {
    /// A name that is there already takes the new value in its old place.
    pub fn insert(&mut self, name: impl Into<String>, value: f64) {
        let name = name.into();
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    pub fn get(&self, name: &str) -> Option<f64> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }
}

impl<N: Into<String>> Extend<(N, f64)> for Metrics {
    fn extend<I: IntoIterator<Item = (N, f64)>>(&mut self, metrics: I) {
        metrics.into_iter().for_each(|(name, value)| self.insert(name, value));
    }
}

impl<N: Into<String>> FromIterator<(N, f64)> for Metrics {
    fn from_iter<I: IntoIterator<Item = (N, f64)>>(metrics: I) -> Self {
        let mut all = Self::default();
        all.extend(metrics);
        all
    }
}

impl Serialize for Metrics {
    /// A number that is not finite becomes null in JSON.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

/// One completion of a training step as the loss saw it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenRecords {
    /// Index of the group in the step, and of the completion in the group.
    pub group: usize,
    pub completion: usize,
    pub sample: SampleRecord,
    pub advantage: f32,
    pub tokens: Vec<TokenRecord>,
}

/// Log-probs in nats, at the sampling temperature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenRecord {
    pub id: u32,
    pub text: String,
    /// The sampler's.
    pub sampler_logp: f32,
    /// Under the weights that sampled, and under those that were updated.
    pub old_logp: f64,
    pub logp: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ref_logp: Option<f64>,
    /// Derivative of the step's loss by `logp`.
    pub slope: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_one_flat_object_in_order() {
        let mut metrics: Metrics = [("loss", 0.5), ("kl", f64::NAN)].into_iter().collect();
        metrics.insert("reward", 1.0);
        metrics.insert("loss", 0.25);
        let event = Event::Step { stage: "grpo".into(), step: 7, metrics };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"step","stage":"grpo","step":7,"loss":0.25,"kl":null,"reward":1.0}"#
        );
    }

    #[test]
    fn an_evaluation_keeps_its_report() {
        let metrics = [("verdict/accuracy_strict", 0.5)].into_iter().collect();
        let report = serde_json::json!({"confusion": [[1, 0]]});
        let event = Event::Evaluation { stage: "vanilla".into(), step: 0, metrics, report };
        assert_eq!(
            serde_json::to_string(&event).unwrap(),
            r#"{"event":"evaluation","stage":"vanilla","step":0,"verdict/accuracy_strict":0.5,"report":{"confusion":[[1,0]]}}"#
        );
    }
}
