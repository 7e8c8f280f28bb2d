//! Answers to rows that have no label: what the model says, and what that means.

use std::collections::BTreeMap;

use serde::Serialize;

use super::enumerate::Enumerator;
use super::threshold::{Scorer, Threshold};
use crate::config::PackConfig;
use crate::data::EncodedRow;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::rollout::judge::judge;
use crate::task::{LabelId, Task, Verdict};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Rollout};

/// What is said of one row; a line of the output of `rlvr predict`.
#[derive(Debug, Default, Serialize)]
pub struct Predicted<'a> {
    /// 1-based line of the input.
    pub line: usize,
    /// What the answer says: a label, or `malformed`.
    pub verdict: Option<&'a str>,
    /// By the threshold where there is one, else by the verdict.
    pub flagged: Option<bool>,
    /// The answer's label; where the threshold decides otherwise, the likeliest label that agrees with it. None of a
    /// malformed answer that is not flagged.
    pub label: Option<&'a str>,
    /// Probability of a refusal; none without a threshold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// The probability of every label, summing to 1; none unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probabilities: Option<BTreeMap<&'a str, f64>>,
    pub completion: String,
    /// `stop`, or `length` where the token budget cut the answer.
    pub finish: Option<FinishReason>,
    /// Control tokens that the row's texts try to write. They were read as text.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub control_tokens: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Predicted<'_> {
    /// Answered with a label, and not flagged. A malformed answer passes only where a threshold decides.
    pub fn passes(&self) -> bool {
        self.flagged == Some(false) && self.label.is_some()
    }
}

/// A model that answers rows of one task, greedily.
#[derive(Clone, Copy)]
pub struct Predictor<'a> {
    pub task: &'a Task,
    pub encoder: &'a PromptEncoder,
    pub decoder: &'a Decoder,
    /// Decides who is flagged; without one the answer does.
    pub threshold: Option<&'a Threshold>,
    /// Whether every label's probability is computed too.
    pub probabilities: bool,
    /// A longer prompt is not answered.
    pub max_prompt_tokens: usize,
    pub max_completion_tokens: usize,
}

impl<'a> Predictor<'a> {
    /// A prediction for each row, in their order. Where there is a threshold, or with `probabilities`, the rows were
    /// read with their answers encoded.
    ///
    /// # Errors
    /// As [`Engine::generate`], [`Scorer::scores`] and [`Enumerator::label_probabilities`].
    pub fn predict<'r>(&self, rows: &'r [EncodedRow]) -> Result<Vec<Predicted<'r>>>
    where
        'a: 'r,
    {
        let most = self.max_prompt_tokens;
        let is_short = |row: &EncodedRow| (1..=most).contains(&row.prompt.token_ids.len());
        let short: Vec<&EncodedRow> = rows.iter().filter(|row| is_short(row)).collect();
        let pack = PackConfig::ROLLOUT_TOKENS;
        let completions = Completions::greedy(self.max_completion_tokens);
        let engine = Engine::new(self.decoder, self.encoder.stop_tokens(), completions, pack);
        let requests: Vec<Request> =
            short.iter().map(|row| Request { prompt: &row.prompt, sample_id: row.line as u32 }).collect();
        let groups = engine.generate(&requests, Draws::NONE)?.groups;
        let scores = match self.threshold {
            Some(threshold) => {
                let (task, decoder, kind) = (self.task, self.decoder, threshold.score);
                let scorer = Scorer { decoder, task, kind, max_tokens_per_pack: pack };
                scorer.scores(&short)?.into_iter().map(Some).collect()
            }
            None => vec![None; short.len()],
        };
        let exact = match self.probabilities {
            true => self.enumerator().label_probabilities(&short)?.into_iter().map(Some).collect(),
            false => vec![None; short.len()],
        };
        let mut answered = short.iter().zip(groups).zip(scores).zip(exact);
        let mut all = Vec::with_capacity(rows.len());
        for row in rows {
            let tokens = row.prompt.token_ids.len();
            if !is_short(row) {
                let allowed = format!("than the {most} that are allowed or that fit the model");
                let error = match tokens {
                    0 => format!("the prompt has more tokens {allowed}"),
                    _ => format!("the prompt has {tokens} tokens, more {allowed}"),
                };
                let control_tokens = row.control_texts.as_slice();
                all.push(Predicted {
                    line: row.line,
                    error: Some(error),
                    control_tokens,
                    ..Predicted::default()
                });
                continue;
            }
            let Some((((row, group), score), exact)) = answered.next() else { break };
            let Some(rollout) = group.rollouts.first() else { continue };
            let exact =
                exact.map(|all| all.into_iter().map(|label| (self.name(label.label), label.p)).collect());
            all.push(Predicted { probabilities: exact, ..self.read(row, rollout, score)? });
        }
        Ok(all)
    }

    /// What the answer says, and whether the row is flagged.
    fn read<'r>(&self, row: &'r EncodedRow, rollout: &Rollout, score: Option<f64>) -> Result<Predicted<'r>>
    where
        'a: 'r,
    {
        let evidence = row.evidence.as_deref();
        let judged = judge(self.task, self.encoder, LabelId::NEGATIVE, evidence, rollout)?;
        let flagged = match (self.threshold, score) {
            (Some(threshold), Some(score)) => score >= threshold.point.threshold,
            _ => judged.verdict.is_positive(),
        };
        let label = match judged.verdict {
            Verdict::Positive(label) if flagged => Some(label),
            _ if flagged => self.likeliest(row)?,
            Verdict::Malformed(_) | Verdict::Ungrounded if self.threshold.is_none() => None,
            _ => Some(LabelId::NEGATIVE),
        };
        Ok(Predicted {
            line: row.line,
            verdict: Some(match judged.verdict {
                Verdict::Positive(label) => self.name(label),
                Verdict::Negative => self.name(LabelId::NEGATIVE),
                Verdict::Malformed(_) | Verdict::Ungrounded => "malformed",
            }),
            flagged: Some(flagged),
            label: label.map(|label| self.name(label)),
            score,
            completion: judged.completion,
            finish: Some(rollout.finish),
            control_tokens: &row.control_texts,
            ..Predicted::default()
        })
    }

    fn name(&self, label: LabelId) -> &'a str {
        self.task.labels().get(label.index()).map_or("", String::as_str)
    }

    fn enumerator(&self) -> Enumerator<'a> {
        let max_tokens_per_pack = PackConfig::ROLLOUT_TOKENS;
        Enumerator { decoder: self.decoder, task: self.task, temperature: 1.0, max_tokens_per_pack }
    }

    /// The positive label with the likeliest refusal.
    fn likeliest(&self, row: &EncodedRow) -> Result<Option<LabelId>> {
        let all = self.enumerator().label_probabilities(&[row])?;
        let positive = all.into_iter().flatten().filter(|label| !label.label.is_negative());
        Ok(positive.max_by(|a, b| a.logp.total_cmp(&b.logp)).map(|label| label.label))
    }
}
