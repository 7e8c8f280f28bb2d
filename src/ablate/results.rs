//! What an arm's run left behind: metrics.jsonl and the judged answers in samples/.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use crate::config::Config;
use crate::config::ablate::Arm;
use crate::error::{Error, Result};
use crate::observe::{SampleKind, SampleRecord};
use crate::run::{SampleSet, sample_sets};

/// A query of the evaluation: its line, and the seed where every seed has queries of its own.
pub type Query = (Option<u64>, usize);

/// One arm at one seed.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub seed: u64,
    /// Metrics of the evaluation after the arm's last stage, or where `eval.keep_best` chooses the model, of the best one
    /// after some training; by name.
    pub metrics: BTreeMap<String, f64>,
    /// Seconds of the arm's optimiser steps; evaluation, loading and saving left out.
    pub training_seconds: f64,
    /// Tokens trained on, a shared prompt counted once.
    pub tokens: u64,
    /// Share of strictly right answers (risk or no risk; malformed is wrong).
    #[serde(skip)]
    pub right: BTreeMap<Query, f64>,
}

impl Outcome {
    /// `run`: a finished run that passes through the arm's stages. Synthetic logs follow the seed.
    pub fn read(run: &Path, arm: &Arm, config: &Config) -> Result<Self> {
        let path = run.join("metrics.jsonl");
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path, "read"))?;
        let broken = |problem: String| Error::input(path.display(), problem, AGAIN);
        let mut outcome = Self { seed: config.seed, ..Self::default() };
        let mut evaluation: Option<Value> = None;
        let choice = config.eval.choice().filter(|_| !arm.stages.is_empty());
        let is_of = |stage: &str| match choice {
            Some(_) => arm.stages.iter().any(|s| s.name() == stage),
            None => stage == arm.last_stage(),
        };
        let replaces = |event: &Value, kept: &Value| match choice {
            None => true,
            Some((metric, direction)) => match (event[metric].as_f64(), kept[metric].as_f64()) {
                (Some(value), Some(kept)) => direction.is_better(value, kept),
                (value, kept) => value.is_some() || kept.is_none(),
            },
        };
        for (i, line) in text.lines().enumerate() {
            let event: Value =
                serde_json::from_str(line).map_err(|e| broken(format!("line {}: {e}", i + 1)))?;
            let stage = event["stage"].as_str().unwrap_or_default();
            match event["event"].as_str() {
                Some("evaluation")
                    if is_of(stage) && evaluation.as_ref().is_none_or(|kept| replaces(&event, kept)) =>
                {
                    evaluation = Some(event);
                }
                Some("step") if arm.stages.iter().any(|s| s.name() == stage) => {
                    outcome.training_seconds += event["step_time"].as_f64().unwrap_or(0.0);
                    outcome.tokens = event["num_tokens"].as_f64().unwrap_or(0.0) as u64;
                }
                _ => {}
            }
        }
        let Some(evaluation) = evaluation else {
            return Err(broken(format!("has no evaluation of stage {}", arm.last_stage())));
        };
        let numbers = evaluation.as_object().into_iter().flatten();
        outcome.metrics = numbers.filter_map(|(k, v)| Some((k.clone(), v.as_f64()?))).collect();
        let negative = evaluation["report"]["labels"][0].as_str().unwrap_or_default();
        let step = evaluation["step"].as_u64().unwrap_or(0);
        let stage = evaluation["stage"].as_str().unwrap_or_default();
        let samples = run.join("samples");
        let is_it =
            |set: &SampleSet| set.kind == SampleKind::Evaluation && set.stage == stage && set.step == step;
        let set = sample_sets(&samples)?.into_iter().find(is_it).ok_or_else(|| {
            let problem = format!("has no answers of the evaluation of {stage} {step}");
            Error::input(samples.display(), problem, AGAIN)
        })?;
        let own = config.data.synthetic.is_some().then_some(config.seed);
        let right = read_right(&set, negative)?;
        outcome.right = right.into_iter().map(|(line, right)| ((own, line), right)).collect();
        Ok(outcome)
    }
}

const AGAIN: &str = "Remove the run's folder; it is then made again";

fn read_right(set: &SampleSet, negative: &str) -> Result<BTreeMap<usize, f64>> {
    let text = set.read()?;
    let mut counts: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    for (i, line) in text.lines().enumerate() {
        let sample: SampleRecord = serde_json::from_str(line).map_err(|e| {
            let place = format!("{}, line {} of step {}", set.path().display(), i + 1, set.step);
            Error::input(place, e, AGAIN)
        })?;
        let same_side = (sample.gold == negative) == (sample.verdict == negative);
        let right = sample.verdict != "malformed" && same_side;
        let (sum, count) = counts.entry(sample.line).or_default();
        *sum += f64::from(u8::from(right));
        *count += 1.0;
    }
    Ok(counts.into_iter().map(|(line, (sum, count))| (line, sum / count)).collect())
}
