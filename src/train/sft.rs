//! One SFT step: cross-entropy on the answers' tokens, averaged over all of the step's.

use super::step::{Trainee, mean};
use crate::config::PackConfig;
use crate::data::jsonl::EncodedRow;
use crate::error::{Error, Result};
use crate::observe::Metrics;
use crate::pack::runs;
use crate::types::PackedBatch;

/// Adds the gradient of `-(1/n) sum log p(target)` over the rows' n target tokens. Metrics: loss, entropy,
/// num_tokens.
pub fn accumulate(trainee: Trainee, rows: &[&EncodedRow], pack: &PackConfig) -> Result<Metrics> {
    let targets = rows
        .iter()
        .map(|row| row.target.as_deref().filter(|t| !t.is_empty()))
        .collect::<Option<Vec<&[u32]>>>()
        .ok_or_else(|| Error::input("sft", "a row has no target token", "Use rows with an answer"))?;
    let total: usize = targets.iter().map(|t| t.len()).sum();
    let sizes = rows.iter().zip(&targets).map(|(row, target)| row.prompt.token_ids.len() + target.len());
    let (mut loss, mut entropies, mut tokens) = (0.0, Vec::with_capacity(total), 0);
    for run in runs(sizes, pack.max_tokens_per_pack) {
        let mut batch = PackedBatch::default();
        for (row, target) in rows[run.clone()].iter().zip(&targets[run]) {
            batch.push_sequence(&row.prompt.token_ids, target);
        }
        tokens += batch.tokens.len();
        trainee.pass(&batch, 1.0, |now| {
            loss -= now.logprobs.iter().map(|l| f64::from(*l)).sum::<f64>() / total as f64;
            entropies.extend_from_slice(&now.entropies);
            Ok(vec![-1.0 / total as f32; now.logprobs.len()])
        })?;
    }
    Ok([("loss", loss), ("entropy", mean(&entropies)), ("num_tokens", tokens as f64)].into_iter().collect())
}
