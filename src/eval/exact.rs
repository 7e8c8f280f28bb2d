//! A model judged by its exact probabilities of the answers that a task lists: one forward pass, no sampling.

use serde::Serialize;

use super::enumerate::{Enumerator, LabelProbability, flag_probability};
use super::roc::{Curves, OperatingPoint, Scored};
use super::summary::{Judgement, Summary};
use super::threshold::{ScoreKind, Threshold};
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::task::Verdict;

/// The likeliest label of each row as its verdict, and what its probability is worth. Serialises as [`Summary`] with
/// more keys.
#[derive(Clone, Debug, Serialize)]
pub struct Exact {
    #[serde(flatten)]
    pub summary: Summary,
    /// Mean of -ln P(gold label) over the rows, in nats.
    pub label_cross_entropy: f64,
    /// Area under the ROC curve of the probability of all positive labels together. `None` where all rows are risky or
    /// all are benign.
    pub auc: Option<f64>,
    pub average_precision: Option<f64>,
    /// What the model's saved threshold does on these rows, if it is one of this score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at_threshold: Option<OperatingPoint>,
}

impl Exact {
    /// `rows` were read with `Targets::Answers`; `groups` is empty or has a name for each row.
    ///
    /// # Errors
    /// As [`Enumerator::label_probabilities`].
    pub fn new(
        enumerator: &Enumerator,
        rows: &[EncodedRow],
        groups: &[String],
        threshold: Option<&Threshold>,
    ) -> Result<Self> {
        let all = enumerator.label_probabilities(&rows.iter().collect::<Vec<_>>())?;
        let judgements: Vec<Judgement> = rows
            .iter()
            .zip(&all)
            .enumerate()
            .map(|(prompt, (row, labels))| Judgement {
                prompt,
                sample: 0,
                gold: row.gold,
                verdict: likeliest(labels),
                group: groups.get(prompt).cloned(),
                attack_succeeded: row.attack_succeeded,
            })
            .collect();
        let scored: Vec<Scored> = rows
            .iter()
            .zip(&all)
            .map(|(row, labels)| Scored { score: flag_probability(labels), risky: !row.gold.is_negative() })
            .collect();
        let of_gold = rows.iter().zip(&all).map(|(row, labels)| {
            let gold = labels.iter().find(|label| label.label == row.gold);
            gold.map_or(f64::INFINITY, |label| -label.p.ln())
        });
        let curves = Curves::new(&scored).ok();
        let at = |found: &Threshold| OperatingPoint::at(&scored, found.point.threshold);
        Ok(Self {
            summary: Summary::new(enumerator.task, &judgements),
            label_cross_entropy: of_gold.sum::<f64>() / rows.len().max(1) as f64,
            auc: curves.as_ref().map(|curves| curves.auc),
            average_precision: curves.as_ref().map(|curves| curves.average_precision),
            at_threshold: threshold.filter(|found| found.score == ScoreKind::Labels).map(at).transpose()?,
        })
    }
}

/// The label of the largest probability as a verdict; the first of equal ones.
fn likeliest(labels: &[LabelProbability]) -> Verdict {
    let most = labels.iter().map(|label| label.p).fold(f64::NEG_INFINITY, f64::max);
    match labels.iter().find(|label| label.p == most) {
        Some(found) if !found.label.is_negative() => Verdict::Positive(found.label),
        _ => Verdict::Negative,
    }
}
