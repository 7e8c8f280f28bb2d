//! The probability of a flag as a score, and the threshold that is saved with a model.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::enumerate::{Enumerator, flag_probability};
use super::roc::{Curves, OperatingPoint, Scored};
use crate::data::jsonl::EncodedRow;
use crate::disk;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::keep::Keep;
use crate::pack::runs;
use crate::run::replace_file;
use crate::task::Task;
use crate::types::PackedBatch;

/// Which probability is a row's score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreKind {
    /// That of a flag's first token.
    FirstToken,
    /// That of all positive labels' exact answers together.
    Labels,
}

/// Scores rows that were read with `Targets::Answers`.
#[derive(Clone, Copy)]
pub struct Scorer<'a> {
    pub decoder: &'a Decoder,
    pub task: &'a Task,
    pub kind: ScoreKind,
    pub max_tokens_per_pack: usize,
}

impl Scorer<'_> {
    /// A probability for each row.
    ///
    /// # Errors
    /// A row without answers, or that does not fit the model; with `FirstToken`, answers of the negative label that
    /// begin as a flag does.
    pub fn scores(&self, rows: &[&EncodedRow]) -> Result<Vec<f64>> {
        match self.kind {
            ScoreKind::FirstToken => self.first_tokens(rows),
            ScoreKind::Labels => {
                let enumerator = Enumerator {
                    decoder: self.decoder,
                    task: self.task,
                    temperature: 1.0,
                    max_tokens_per_pack: self.max_tokens_per_pack,
                };
                let all = enumerator.label_probabilities(rows)?;
                Ok(all.iter().map(|labels| flag_probability(labels)).collect())
            }
        }
    }

    fn first_tokens(&self, rows: &[&EncodedRow]) -> Result<Vec<f64>> {
        let mut scores = Vec::with_capacity(rows.len());
        for run in runs(rows.iter().map(|row| row.prompt.token_ids.len()), self.max_tokens_per_pack) {
            let mut batch = PackedBatch::default();
            let mut counts = Vec::new();
            for row in &rows[run] {
                let tokens = flag_tokens(row)?;
                let length = row.prompt.token_ids.len();
                if length > self.decoder.max_positions() {
                    let most = self.decoder.max_positions();
                    let problem = format!("{length} tokens do not fit the model's {most} positions");
                    let fix = "Lower --max-prompt-tokens";
                    return Err(Error::input(format!("row of line {}", row.line), problem, fix));
                }
                counts.push(tokens.len());
                batch.push_group(&row.prompt.token_ids, tokens.iter().map(std::slice::from_ref));
            }
            let forward = self.decoder.forward(&batch, Keep::Nothing)?;
            let logprobs = self.decoder.logprobs(&forward, 1.0)?.logprobs;
            let mut logprobs = logprobs.iter();
            for count in counts {
                scores.push(logprobs.by_ref().take(count).map(|logp| f64::from(*logp).exp()).sum());
            }
        }
        Ok(scores)
    }
}

/// What a flag's first token can be.
fn flag_tokens(row: &EncodedRow) -> Result<Vec<u32>> {
    let first = |negative: bool| {
        let answers = row.answers.iter().filter(move |answer| answer.label.is_negative() == negative);
        answers.filter_map(|answer| answer.token_ids.first().copied())
    };
    let mut tokens: Vec<u32> = first(false).collect();
    tokens.sort_unstable();
    tokens.dedup();
    let place = || format!("row of line {}", row.line);
    if tokens.is_empty() {
        return Err(Error::input(place(), "was read without its answers", "Read it with Targets::Answers"));
    }
    if first(true).any(|token| tokens.contains(&token)) {
        let problem = "the negative label's answer begins with the same token as another label's";
        return Err(Error::input(place(), problem, "Use --score labels"));
    }
    Ok(tokens)
}

/// `threshold.json` in a model's folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Threshold {
    pub task: String,
    pub score: ScoreKind,
    /// What was asked for.
    pub max_false_positive_rate: f64,
    /// On the rows it was fitted on.
    #[serde(flatten)]
    pub point: OperatingPoint,
    /// The file it was fitted on.
    pub data: PathBuf,
    pub rows: usize,
    #[serde(flatten)]
    pub curves: Curves,
}

impl Threshold {
    pub fn path(model: &Path) -> PathBuf {
        model.join("threshold.json")
    }

    pub fn save(&self, model: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::Compute(e.into()))?;
        replace_file(&Self::path(model), text.as_bytes())
    }

    /// None: no threshold was fitted for this model.
    ///
    /// # Errors
    /// The file is damaged, or belongs to another task.
    pub fn load(model: &Path, task: &Task) -> Result<Option<Self>> {
        let path = Self::path(model);
        if !path.exists() {
            return Ok(None);
        }
        let text = disk::read(&path)?;
        let fix = "Fit it again with `rlvr eval MODEL valid.jsonl --fit-threshold`";
        let found: Self = serde_json::from_slice(&text)
            .map_err(|e| Error::input(path.display(), format!("is no threshold: {e}"), fix))?;
        if found.task != task.name() {
            let problem = format!("belongs to task `{}`, not `{}`", found.task, task.name());
            return Err(Error::input(path.display(), problem, fix));
        }
        for (key, rate) in
            [("threshold", found.point.threshold), ("max_false_positive_rate", found.max_false_positive_rate)]
        {
            // A threshold above every score can lie a rounding error above 1.
            if !(0.0..=1.000_01).contains(&rate) {
                let problem = format!("{key} is {rate:?}, no probability from 0 to 1");
                return Err(Error::input(path.display(), problem, fix));
            }
        }
        Ok(Some(found))
    }

    /// Fits on `scored`.
    ///
    /// # Errors
    /// As [`Curves::new`].
    pub fn fit(
        task: &Task,
        score: ScoreKind,
        scored: &[Scored],
        max_false_positive_rate: f64,
        data: &Path,
    ) -> Result<Self> {
        Ok(Self {
            task: task.name().into(),
            score,
            max_false_positive_rate,
            point: OperatingPoint::fit(scored, max_false_positive_rate)?,
            data: data.into(),
            rows: scored.len(),
            curves: Curves::new(scored)?,
        })
    }
}
