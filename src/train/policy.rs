//! The policy gradient of scored groups, pack by pack: GRPO training and `rlvr bench step` share it.

use std::ops::Range;
use std::rc::Rc;

use super::step::{Distribution, LossSlopes, Trainee, mean};
use crate::algo::importance::truncated_importance;
use crate::algo::loss::{KlPenalty, LossSums, Sequence, StepTotals, policy_loss};
use crate::config::loss::LossConfig;
use crate::error::Result;
use crate::model::decoder::{Decoder, Head, Keep};
use crate::model::tape::{Tape, TapedGroup};
use crate::observe::Metrics;
use crate::ops::sampling::Sampling;
use crate::pack::runs;
use crate::types::{Group, PackedBatch, ScoredGroup};

/// What the gradient of a step depends on besides the groups.
#[derive(Clone, Copy)]
pub struct PolicyUpdate<'a> {
    pub loss: &'a LossConfig,
    pub penalty: KlPenalty,
    pub temperature: f32,
    /// The sampler's cuts, where log-probs are those of what they leave (`replay_truncation`).
    pub cut: Option<Sampling>,
    pub max_completion_tokens: usize,
    pub max_tokens_per_pack: usize,
    /// Weight of the mean entropy over the step's tokens in the objective.
    pub entropy_coef: f64,
    /// Bound of the importance weights, where they are wanted.
    pub importance_cap: Option<f64>,
    /// Frozen weights of the KL penalty.
    pub reference: Option<&'a Decoder>,
}

/// Groups of one packed batch and the tape that has their activations, if the rollout kept them. The last pack
/// of a tape frees it.
struct Pack<'a> {
    /// Indices into the step's groups.
    groups: &'a [usize],
    tape: Option<Rc<(Range<usize>, Tape)>>,
}

impl PolicyUpdate<'_> {
    /// Adds the gradient of the policy loss over all groups. `old_logps[g]` holds group g's log-probs under the
    /// weights that sampled it: empty on the first update of a rollout, which fills it. `tapes` are the rollout's
    /// and serve that first update only: later ones have other weights.
    ///
    /// A group without advantages adds no gradient, so without a KL penalty or an entropy bonus it is not computed at
    /// all; it still counts in the averages. A completion without tokens counts as a completion only.
    pub fn accumulate(
        &self,
        trainee: Trainee,
        groups: &[ScoredGroup],
        tapes: Vec<(Range<usize>, Tape)>,
        old_logps: &mut Vec<Vec<f64>>,
    ) -> Result<Metrics> {
        let totals = StepTotals {
            sequences: groups.iter().map(|g| g.group.rollouts.len()).sum(),
            active_tokens: groups.iter().map(|g| completion_tokens(&g.group)).sum(),
            max_completion_tokens: self.max_completion_tokens,
        };
        let always = self.reference.is_some() || self.entropy_coef != 0.0;
        let is_live = |g: &ScoredGroup| {
            completion_tokens(&g.group) > 0 && (always || g.advantages.iter().any(|a| *a != 0.0))
        };
        let live: Vec<usize> = (0..groups.len()).filter(|i| is_live(&groups[*i])).collect();
        let first_update = old_logps.is_empty();
        old_logps.resize(groups.len(), Vec::new());
        let mut sums = LossSums::default();
        let (mut loss, mut tokens, mut reused_tokens) = (0.0, 0, 0);
        let (mut entropies, mut differences) = (Vec::new(), Vec::new());
        let mut importance_weights = Vec::new();
        for pack in self.packs(groups, &live, tapes) {
            let mut batch = PackedBatch::default();
            let rollouts = || pack.groups.iter().flat_map(|g| &groups[*g].group.rollouts);
            for g in pack.groups {
                let group = &groups[*g].group;
                let completions = group.rollouts.iter().map(|r| r.token_ids.as_slice());
                batch.push_group(&group.prompt.token_ids, completions);
            }
            tokens += batch.tokens.len();
            let reference =
                self.reference.map(|model| reference_logps(model, &batch, self.temperature)).transpose()?;
            let forward = match &pack.tape {
                Some(taped) => {
                    let (range, tape) = &**taped;
                    reused_tokens += batch.tokens.len();
                    let rows = pack.groups.iter().map(|g| completion_rows(&groups[*g].group));
                    let rows: Vec<Vec<usize>> = rows.collect();
                    let taped: Vec<TapedGroup> = pack
                        .groups
                        .iter()
                        .zip(&rows)
                        .map(|(g, rows)| TapedGroup { index: g - range.start, completion_rows: rows })
                        .collect();
                    tape.forward(&batch, &taped)?
                }
                None => trainee.forward(&batch)?,
            };
            // From here the pass holds the rows alone and frees them block by block.
            drop(pack.tape);
            let advantages = pack.groups.iter().flat_map(|g| &groups[*g].advantages);
            let under = Distribution { temperature: self.temperature, cut: self.cut };
            trainee.learn(&batch, forward, under, |now| {
                let logps: Vec<f64> = now.logprobs.iter().map(|l| f64::from(*l)).collect();
                if first_update {
                    let sampled = rollouts().flat_map(|r| &r.logprobs);
                    differences.extend(sampled.zip(&now.logprobs).map(|(a, b)| (a - b).abs()));
                    let mut rest = logps.as_slice();
                    for g in pack.groups {
                        let (of_group, after) = rest.split_at(completion_tokens(&groups[*g].group));
                        old_logps[*g] = of_group.to_vec();
                        rest = after;
                    }
                }
                let old: Vec<f64> = pack.groups.iter().flat_map(|g| &old_logps[*g]).copied().collect();
                let importance = self.importance_cap.map(|cap| {
                    let sampled: Vec<f32> = rollouts().flat_map(|r| &r.logprobs).copied().collect();
                    truncated_importance(&old, &sampled, cap)
                });
                importance_weights.extend(importance.iter().flatten().map(|w| *w as f32));
                let sequences: Vec<Sequence> = batch
                    .target_ranges()
                    .zip(advantages)
                    .map(|(range, advantage)| Sequence {
                        logps: &logps[range.clone()],
                        old_logps: &old[range.clone()],
                        ref_logps: reference.as_deref().map(|r| &r[range.clone()]),
                        importance: importance.as_deref().map(|w| &w[range]),
                        advantage: f64::from(*advantage),
                    })
                    .collect();
                let out = policy_loss(self.loss, self.penalty, &sequences, &totals)?;
                loss += out.loss;
                sums += out.sums;
                entropies.extend_from_slice(&now.entropies);
                let dlogprobs: Vec<f32> = out.dloss_dlogp.iter().map(|d| *d as f32).collect();
                let mut dentropies = Vec::new();
                if self.entropy_coef != 0.0 {
                    let each = self.entropy_coef / totals.active_tokens as f64;
                    loss -= each * now.entropies.iter().map(|h| f64::from(*h)).sum::<f64>();
                    dentropies = vec![-each as f32; dlogprobs.len()];
                }
                Ok(LossSlopes { dlogprobs, dentropies })
            })?;
        }
        let mut metrics = Metrics::default();
        metrics.insert("loss", loss);
        metrics.extend(sums.metrics(self.loss));
        // A step of dead groups only has computed nothing to take a mean of.
        if !entropies.is_empty() {
            metrics.insert("entropy", mean(&entropies));
        }
        if !importance_weights.is_empty() {
            // TRL's name for the same.
            metrics.insert("sampling/importance_sampling_ratio/mean", mean(&importance_weights));
        }
        if !differences.is_empty() {
            let worst = differences.iter().copied().fold(0f32, f32::max);
            metrics.insert("sampling/sampling_logp_difference/mean", mean(&differences));
            metrics.insert("sampling/sampling_logp_difference/max", f64::from(worst));
        }
        metrics.insert("num_tokens", tokens as f64);
        metrics.insert("num_tokens_reused", reused_tokens as f64);
        Ok(metrics)
    }

    /// Live groups in order, cut so that a pack stays within its bound and within one tape. A tape whose groups
    /// are all dead is freed here.
    fn packs<'g>(
        &self,
        groups: &[ScoredGroup],
        live: &'g [usize],
        tapes: Vec<(Range<usize>, Tape)>,
    ) -> Vec<Pack<'g>> {
        let tapes: Vec<Rc<(Range<usize>, Tape)>> = tapes.into_iter().map(Rc::new).collect();
        let tape_of = |g: &usize| tapes.iter().position(|tape| tape.0.contains(g));
        let size = |g: &usize| groups[*g].group.prompt.token_ids.len() + completion_tokens(&groups[*g].group);
        let mut packs = Vec::new();
        for part in live.chunk_by(|a, b| tape_of(a) == tape_of(b)) {
            let tape = tape_of(&part[0]).map(|index| &tapes[index]);
            let cuts = runs(part.iter().map(size), self.max_tokens_per_pack);
            packs.extend(cuts.into_iter().map(|run| Pack { groups: &part[run], tape: tape.cloned() }));
        }
        packs
    }
}

/// Log-probs of the batch's targets under the frozen weights.
pub(super) fn reference_logps(model: &Decoder, batch: &PackedBatch, temperature: f32) -> Result<Vec<f64>> {
    let hidden = model.forward(batch, Keep::Nothing)?.hidden;
    let logps = model.logprobs(&hidden, Head { targets: &batch.targets, temperature })?.logprobs;
    Ok(logps.into_iter().map(f64::from).collect())
}

/// Input rows of each completion: its last token predicts nothing.
fn completion_rows(group: &Group) -> Vec<usize> {
    group.rollouts.iter().map(|r| r.token_ids.len().saturating_sub(1)).collect()
}

pub(super) fn completion_tokens(group: &Group) -> usize {
    group.rollouts.iter().map(|r| r.token_ids.len()).sum()
}
