//! Distillation beside SFT: every answer of the set behind its prompt, drawn towards a judge's probabilities of them.

use super::learner::Learner;
use crate::algo::distill::distilled;
use crate::config::distill::DistillConfig;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::eval::enumerate::{answer_logps, answers_batch, packed_tokens};
use crate::observe::Metrics;
use crate::pack::runs;

/// Adds the gradient of `weight` times the mean of [`distilled`]'s loss over those `rows` that have a judge's word. Metrics: distill/loss, the
/// mean with its weight; distill/kl; distill/agreement, how often the likeliest label is the same; distill/rows; num_tokens.
pub fn learn(
    learner: &mut Learner,
    rows: &[&EncodedRow],
    config: &DistillConfig,
    max_tokens_per_pack: usize,
) -> Result<Metrics> {
    let told: Vec<(&EncodedRow, &[f64])> =
        rows.iter().filter_map(|row| Some((*row, row.judge.as_deref()?))).collect();
    let sizes: Vec<usize> = told.iter().map(|(row, _)| packed_tokens(row)).collect();
    let (owners, rank) = (learner.ranks().owners(&sizes), learner.ranks().rank());
    let mine: Vec<usize> = (0..told.len()).filter(|i| owners[*i] == rank).collect();
    let (mut loss, mut kl, mut agreed, mut tokens) = (0.0, 0.0, 0.0, 0);
    let packs = runs(mine.iter().map(|i| sizes[*i]), max_tokens_per_pack);
    let (own, most) = (packs.len(), learner.most_passes(packs.len())?);
    for run in packs {
        let of_pack: Vec<(&EncodedRow, &[f64])> = mine[run].iter().map(|i| told[*i]).collect();
        let rows_of_pack: Vec<&EncodedRow> = of_pack.iter().map(|(row, _)| *row).collect();
        let batch = answers_batch(&rows_of_pack, learner.decoder().max_positions())?;
        tokens += batch.tokens.len();
        learner.pass(&batch, 1.0, |now| {
            let logps = answer_logps(&batch, now.logprobs.iter().map(|l| f64::from(*l)));
            let (mut logps, mut counts) = (logps.as_slice(), batch.target_counts.as_slice());
            let mut dlogps = Vec::with_capacity(batch.targets.len());
            for (row, judge) in &of_pack {
                let (of_row, rest) = logps.split_at(row.answers.len());
                let (lengths, others) = counts.split_at(row.answers.len());
                (logps, counts) = (rest, others);
                let judge: Vec<f64> = row.answers.iter().map(|answer| judge[answer.label.index()]).collect();
                let found = distilled(of_row, &judge, config.temperature);
                loss += config.weight * found.loss;
                kl += found.kl;
                agreed += f64::from(u8::from(found.agrees));
                for (slope, length) in found.dloss_dlogp.iter().zip(lengths) {
                    let slope = config.weight * slope / told.len() as f64;
                    dlogps.extend(std::iter::repeat_n(slope as f32, *length));
                }
            }
            Ok(dlogps)
        })?;
    }
    learner.end_passes(own, most)?;
    let all = learner.ranks().gather(([loss, kl, agreed], tokens))?;
    let sum = |i: usize| all.iter().map(|(sums, _)| sums[i]).sum::<f64>();
    let tokens: usize = all.iter().map(|(_, tokens)| tokens).sum();
    let count = told.len() as f64;
    let mut metrics: Metrics = [("distill/rows", count), ("num_tokens", tokens as f64)].into_iter().collect();
    if !told.is_empty() {
        let means = ["distill/loss", "distill/kl", "distill/agreement"].into_iter().enumerate();
        metrics.extend(means.map(|(i, name)| (name, sum(i) / count)));
    }
    Ok(metrics)
}
