//! SFT: cross-entropy on the answers' tokens, averaged over all of a step's, and distillation beside it.

use super::by_source::BySource;
use super::distill;
use super::learner::{Learner, mean};
use super::objective::{At, Objective, Surroundings};
use super::rows::sft_order;
use crate::config::optim::OptimConfig;
use crate::config::stages::SftConfig;
use crate::data::jsonl::EncodedRow;
use crate::data::order::Order;
use crate::error::{Error, Result};
use crate::observe::{Metrics, Sinks};
use crate::pack::runs;
use crate::types::PackedBatch;

pub struct Sft<'a> {
    config: &'a SftConfig,
    rows: &'a [EncodedRow],
    order: Order,
    max_tokens_per_pack: usize,
}

impl<'a> Sft<'a> {
    pub fn new(around: Surroundings<'a>) -> Self {
        let Surroundings { config, materials, .. } = around;
        let rows = &materials.rows.sft;
        let order = sft_order(rows, config);
        Self { config: &config.sft, rows, order, max_tokens_per_pack: config.pack.max_tokens_per_pack }
    }
}

impl Objective for Sft<'_> {
    fn steps(&self) -> u64 {
        self.config.steps_of(self.rows.len())
    }

    fn optim(&self) -> &OptimConfig {
        &self.config.optim
    }

    fn step(&mut self, learner: &mut Learner, at: At, _: &mut Sinks) -> Result<Metrics> {
        let per_step = self.config.rows_per_step;
        let rows: Vec<&EncodedRow> =
            self.order.indices(at.step, per_step).into_iter().map(|i| &self.rows[i]).collect();
        let mut metrics = learn(learner, &rows, self.max_tokens_per_pack)?;
        if let Some(config) = &self.config.distill {
            let distilled = distill::learn(learner, &rows, config, self.max_tokens_per_pack)?;
            let both = |a: &str, b: &str| metrics.get(a).unwrap_or(0.0) + distilled.get(b).unwrap_or(0.0);
            let sums =
                [("loss", both("loss", "distill/loss")), ("num_tokens", both("num_tokens", "num_tokens"))];
            metrics.extend(distilled.iter());
            metrics.extend(sums);
        }
        metrics.extend(learner.step(at.learning_rate)?);
        metrics.insert("epoch", ((at.step + 1) * per_step as u64) as f64 / self.rows.len() as f64);
        Ok(metrics)
    }

    fn is_evaluated_within(&self) -> bool {
        false
    }
}

/// Adds the gradient of `-(1/n) sum log p(target)` over the rows' n target tokens. Metrics: loss, also by source, entropy,
/// num_tokens.
pub fn learn(learner: &mut Learner, rows: &[&EncodedRow], max_tokens_per_pack: usize) -> Result<Metrics> {
    let targets = rows
        .iter()
        .map(|row| row.target.as_deref().filter(|t| !t.is_empty()))
        .collect::<Option<Vec<&[u32]>>>()
        .ok_or_else(|| Error::input("sft", "a row has no target token", "Use rows with an answer"))?;
    let total: usize = targets.iter().map(|t| t.len()).sum();
    let size = |(row, target): (&&EncodedRow, &&[u32])| row.prompt.token_ids.len() + target.len();
    let sizes: Vec<usize> = rows.iter().zip(&targets).map(size).collect();
    let (owners, rank) = (learner.ranks().owners(&sizes), learner.ranks().rank());
    let mine: Vec<usize> = (0..rows.len()).filter(|i| owners[*i] == rank).collect();
    let (mut loss, mut entropies, mut tokens) = (0.0, Vec::with_capacity(total), 0);
    let mut by_source = BySource::default();
    let packs = runs(mine.iter().map(|i| sizes[*i]), max_tokens_per_pack);
    let (own, most) = (packs.len(), learner.most_passes(packs.len())?);
    for run in packs {
        let mut batch = PackedBatch::default();
        for &i in &mine[run.clone()] {
            batch.push_sequence(&rows[i].prompt.token_ids, targets[i]);
        }
        tokens += batch.tokens.len();
        learner.pass(&batch, 1.0, |now| {
            loss -= now.logprobs.iter().map(|l| f64::from(*l)).sum::<f64>() / total as f64;
            entropies.extend_from_slice(&now.entropies);
            for (row, range) in mine[run].iter().map(|i| rows[*i]).zip(batch.target_ranges()) {
                let count = range.len();
                by_source.add(
                    row.source.as_deref(),
                    "loss",
                    -now.logprobs[range].iter().map(|l| f64::from(*l)).sum::<f64>(),
                    count,
                );
            }
            Ok(vec![-1.0 / total as f32; now.logprobs.len()])
        })?;
    }
    learner.end_passes(own, most)?;
    let all = learner.ranks().gather((loss, entropies, tokens, by_source))?;
    let loss: f64 = all.iter().map(|(loss, ..)| loss).sum();
    let tokens: usize = all.iter().map(|(_, _, tokens, _)| tokens).sum();
    let (mut entropies, mut by_source) = (Vec::new(), BySource::default());
    for (_, more, _, means) in all {
        entropies.extend(more);
        by_source = by_source.and(means);
    }
    let whole = [("loss", loss), ("entropy", mean(&entropies)), ("num_tokens", tokens as f64)];
    let mut metrics: Metrics = whole.into_iter().collect();
    metrics.extend(by_source.metrics());
    Ok(metrics)
}
