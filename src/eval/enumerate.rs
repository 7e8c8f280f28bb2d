//! Exact probabilities of the answers of a closed set: every answer of a row packed behind its prompt, no sampling.

use crate::data::jsonl::EncodedRow;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::keep::Keep;
use crate::pack::runs;
use crate::task::{LabelId, Task};
use crate::types::PackedBatch;

/// How likely a model is to give a row one of its labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LabelProbability {
    pub label: LabelId,
    /// Log-probability of the answer's text and end, nats. A label without a text of its own (the negative one,
    /// where a benign answer is free text) has that of everything that is no other answer.
    pub logp: f64,
    /// The labels' probabilities sum to 1. Where every label has a text it is the share of this one among them all;
    /// where the negative label has none it is `exp(logp)`.
    pub p: f64,
}

/// What the probabilities are taken under.
#[derive(Clone, Copy)]
pub struct Enumerator<'a> {
    pub decoder: &'a Decoder,
    pub task: &'a Task,
    /// Divides the logits; 1 is the model as it is.
    pub temperature: f32,
    /// Tokens in a packed batch; a row larger than that gets one of its own.
    pub max_tokens_per_pack: usize,
}

impl Enumerator<'_> {
    /// Every label's probability for every row, in the order of the task's labels. The rows were read with
    /// `Targets::Answers`.
    ///
    /// # Errors
    /// A row without answers, or one that does not fit the model's positions.
    pub fn label_probabilities(&self, rows: &[&EncodedRow]) -> Result<Vec<Vec<LabelProbability>>> {
        let mut all = Vec::with_capacity(rows.len());
        for run in runs(rows.iter().map(|row| packed_tokens(row)), self.max_tokens_per_pack) {
            let batch = answers_batch(&rows[run.clone()], self.decoder.max_positions())?;
            let forward = self.decoder.forward(&batch, Keep::Nothing)?;
            let logps = self.decoder.logprobs(&forward, self.temperature)?.logprobs;
            let mut sums = answer_logps(&batch, logps.into_iter().map(f64::from)).into_iter();
            for row in &rows[run] {
                let labels = row.answers.iter().map(|answer| answer.label);
                all.push(self.probabilities(labels.zip(sums.by_ref())));
            }
        }
        Ok(all)
    }

    fn probabilities(&self, answers: impl Iterator<Item = (LabelId, f64)>) -> Vec<LabelProbability> {
        let mut all: Vec<LabelProbability> =
            answers.map(|(label, logp)| LabelProbability { label, logp, p: logp.exp() }).collect();
        let mass: f64 = all.iter().map(|a| a.p).sum();
        if self.task.has_closed_answers() {
            // By differences of log-probs: answers too unlikely for a probability still have shares.
            let most = all.iter().map(|a| a.logp).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = all.iter().map(|a| (a.logp - most).exp()).sum();
            all.iter_mut().for_each(|a| a.p = (a.logp - most).exp() / sum);
        } else {
            let p = (1.0 - mass).max(0.0);
            all.insert(0, LabelProbability { label: LabelId::NEGATIVE, logp: p.ln(), p });
        }
        all
    }
}

/// Probability of all positive labels together.
pub fn flag_probability(labels: &[LabelProbability]) -> f64 {
    labels.iter().filter(|label| !label.label.is_negative()).map(|label| label.p).sum()
}

/// Tokens of a row's prompt and all its answers.
pub fn packed_tokens(row: &EncodedRow) -> usize {
    row.prompt.token_ids.len() + row.answers.iter().map(|a| a.token_ids.len()).sum::<usize>()
}

/// A group a row, its answers as completions.
///
/// # Errors
/// A row without answers, or one that does not fit `max_positions`.
pub fn answers_batch(rows: &[&EncodedRow], max_positions: usize) -> Result<PackedBatch> {
    let mut batch = PackedBatch::default();
    for row in rows {
        let longest = row.answers.iter().map(|a| a.token_ids.len()).max().unwrap_or(0);
        let tokens = row.prompt.token_ids.len() + longest;
        if longest == 0 || tokens > max_positions {
            let problem = match longest {
                0 => "was read without its answers".to_string(),
                _ => format!("{tokens} tokens do not fit the model's {max_positions} positions"),
            };
            let fix =
                "Read it with Targets::Answers; lower data.max_prompt_tokens or raise model.max_positions";
            return Err(Error::input(format!("row of line {}", row.line), problem, fix));
        }
        let answers = row.answers.iter().map(|a| a.token_ids.as_slice());
        batch.push_group(&row.prompt.token_ids, answers);
    }
    Ok(batch)
}

/// Sum over the tokens of each answer, f64. `logps`: of the batch's targets.
pub fn answer_logps(batch: &PackedBatch, logps: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut logps = logps.into_iter();
    batch.target_counts.iter().map(|count| logps.by_ref().take(*count).sum()).collect()
}
