//! The policy gradient of scored groups, pack by pack: GRPO training and `rlvr bench step` share it.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::dump::{self, Trace};
use super::learner::{Learner, LossSlopes, mean};
use super::reference;
use crate::algo::entropy::top_entropy;
use crate::algo::importance::truncated_importance;
use crate::algo::loss::{KlPenalty, LossSums, Sequence, StepTotals, policy_loss};
use crate::config::loss::LossConfig;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::forward::Distribution;
use crate::model::keep::Keep;
use crate::observe::Metrics;
use crate::ops::token_logprob::TokenLogprobs;
use crate::pack::runs;
use crate::rollout::tapes::Tapes;
use crate::types::{PackedBatch, ScoredGroup};

/// What the gradient of a step depends on besides the groups.
#[derive(Clone, Copy)]
pub struct Policy<'a> {
    pub loss: &'a LossConfig,
    pub penalty: KlPenalty,
    /// The sampler's distribution, cut as it was where `replay_truncation` says so.
    pub under: Distribution,
    pub max_completion_tokens: usize,
    pub max_tokens_per_pack: usize,
    /// Weight of the mean entropy over the step's tokens in the objective.
    pub entropy_coef: f64,
    /// Compute every group, for the mean entropy of all tokens.
    pub measures_entropy: bool,
    /// Share of the update's tokens, those of the highest entropy, that are learned from; None: all.
    pub top_entropy: Option<f64>,
    /// Bound of the importance weights, where they are wanted.
    pub importance_cap: Option<f64>,
    /// Frozen weights of the KL penalty.
    pub reference: Option<&'a Decoder>,
    /// Record every token: [`Learned::traces`].
    pub trace: bool,
    /// The groups that this rank learns from. `None`: all.
    pub mine: Option<&'a [bool]>,
}

/// What an update saw and did.
#[derive(Default)]
pub struct Learned {
    pub metrics: Metrics,
    pub traces: Vec<Trace>,
    /// Mean over the tokens that an entropy bonus counts, nats; None of none.
    pub entropy: Option<f64>,
}

/// Sums over the packs of an update.
#[derive(Default, Serialize, Deserialize)]
struct Tally {
    loss: f64,
    sums: LossSums,
    tokens: usize,
    reused_tokens: usize,
    entropies: Vec<f32>,
    /// Those that a bonus counts.
    counted: Vec<f32>,
    /// |sampler - trainer log-prob| of each token.
    differences: Vec<f32>,
    importance_weights: Vec<f32>,
    traces: Vec<Trace>,
}

/// Groups that are learned from in one pass.
struct Pack<'a> {
    policy: &'a Policy<'a>,
    totals: &'a StepTotals,
    groups: &'a [ScoredGroup],
    /// Indices into `groups`.
    members: &'a [usize],
    batch: &'a PackedBatch,
    ref_logps: Option<Vec<f64>>,
    hesitant: Option<&'a Hesitant>,
}

/// Tokens of an update whose entropy is among the highest.
struct Hesitant {
    threshold: f32,
    /// Of each group of the step, whose tokens these are; empty of groups that are another rank's. `[groups][tokens]`
    kept: Vec<Vec<bool>>,
    /// Of all ranks.
    count: usize,
}

impl Learner {
    /// Adds the gradient of the policy loss over `part` of a step's groups, all of one update. `old_logps[g]` holds group g's log-probs
    /// under the weights that sampled it: empty on the first update of a rollout, which fills it with what it finds, as
    /// later parts do with what the sampler found. `tapes` are the rollout's and serve that first update only: later ones have other
    /// weights.
    ///
    /// A group without advantages adds no gradient, so without a KL penalty or an entropy bonus it is not computed at
    /// all; it still counts in the averages. A completion without tokens counts as a completion only.
    pub fn learn(
        &mut self,
        policy: &Policy,
        groups: &[ScoredGroup],
        part: Range<usize>,
        mut tapes: Tapes,
        old_logps: &mut Vec<Vec<f64>>,
    ) -> Result<Learned> {
        let totals = StepTotals {
            sequences: groups[part.clone()].iter().map(|g| g.group.rollouts.len()).sum(),
            active_tokens: groups[part.clone()].iter().map(|g| g.group.completion_tokens()).sum(),
            max_completion_tokens: policy.max_completion_tokens,
        };
        let teaches = |g: &ScoredGroup| {
            let always = policy.reference.is_some() || policy.entropy_coef != 0.0 || policy.measures_entropy;
            g.group.completion_tokens() > 0 && (always || g.advantages.iter().any(|a| *a != 0.0))
        };
        let mine = |g: &usize| policy.mine.is_none_or(|mine| mine.get(*g) == Some(&true));
        let own: Vec<usize> =
            part.filter(mine).filter(|g| groups[*g].group.completion_tokens() > 0).collect();
        let hesitant = policy.top_entropy.map(|top| self.hesitant(policy, groups, &own, top)).transpose()?;
        let teaching: Vec<usize> = own.into_iter().filter(|g| teaches(&groups[*g])).collect();
        let first_update = old_logps.is_empty();
        old_logps.resize(groups.len(), Vec::new());
        let mut tally = Tally::default();
        let own = policy.packs(groups, &teaching, &tapes);
        let most = self.most_passes(own)?;
        let mut ahead = teaching.as_slice();
        while !ahead.is_empty() {
            tapes.retain_for(ahead);
            let (members, rest) = ahead.split_at(policy.pack_len(groups, ahead, &tapes));
            ahead = rest;
            let mut batch = PackedBatch::default();
            members.iter().for_each(|g| batch.push(&groups[*g].group));
            tally.tokens += batch.tokens.len();
            let ref_logps = policy
                .reference
                .map(|weights| reference::logps(weights, &batch, policy.under.temperature))
                .transpose()?;
            let forward = match tapes.forward(&batch, members)? {
                Some(forward) => {
                    tally.reused_tokens += batch.tokens.len();
                    forward
                }
                None => self.forward(&batch)?,
            };
            // A tape that is read to its end: from here the pass holds its rows alone and frees them block by block.
            tapes.retain_for(ahead);
            let hesitant = hesitant.as_ref();
            let pack = Pack { policy, totals: &totals, groups, members, batch: &batch, ref_logps, hesitant };
            self.backward(forward, policy.under, |now| {
                match first_update {
                    true => pack.keep_old(now, old_logps, &mut tally),
                    false => pack.keep_sampled(old_logps),
                }
                pack.loss(now, old_logps, &mut tally)
            })?;
        }
        self.end_passes(own, most)?;
        // Of all ranks, in their order.
        let tally = self.ranks().gather(tally)?.into_iter().reduce(Tally::and).unwrap_or_default();
        let mut metrics = tally.metrics(policy.loss);
        metrics.extend(hesitant.map(|of| ("entropy_threshold", f64::from(of.threshold))));
        let entropy = (!tally.counted.is_empty()).then(|| mean(&tally.counted));
        Ok(Learned { metrics, traces: tally.traces, entropy })
    }

    /// Looks at all tokens of an update before it learns from the first, at those of dead groups too: a forward pass of its own, so
    /// that the choice does not depend on how the update is cut into packs.
    fn hesitant(&self, policy: &Policy, groups: &[ScoredGroup], own: &[usize], top: f64) -> Result<Hesitant> {
        let mut entropies: Vec<Vec<f32>> = vec![Vec::new(); groups.len()];
        let sizes = own.iter().map(|g| groups[*g].group.packed_tokens());
        for run in runs(sizes, policy.max_tokens_per_pack) {
            let mut batch = PackedBatch::default();
            own[run.clone()].iter().for_each(|g| batch.push(&groups[*g].group));
            let forward = self.decoder().forward(&batch, Keep::Nothing)?;
            let found = self.decoder().logprobs(&forward, policy.under)?.entropies;
            let mut rest = found.as_slice();
            for g in &own[run] {
                let (of_group, after) = rest.split_at(groups[*g].group.completion_tokens());
                entropies[*g] = of_group.to_vec();
                rest = after;
            }
        }
        let all = self.ranks().gather(entropies.concat())?.concat();
        let threshold = top_entropy(&all, top).unwrap_or_default();
        let is_kept = |entropy: &f32| *entropy >= threshold;
        let kept = entropies.iter().map(|of| of.iter().map(is_kept).collect()).collect();
        Ok(Hesitant { threshold, kept, count: all.iter().filter(|entropy| is_kept(entropy)).count() })
    }
}

impl<'a> Policy<'a> {
    /// The loss alone, at temperature 1, in packs of any size: no penalty, no bonus, nothing recorded.
    pub fn plain(loss: &'a LossConfig) -> Self {
        Self {
            loss,
            penalty: KlPenalty::NONE,
            under: 1.0.into(),
            max_completion_tokens: usize::MAX,
            max_tokens_per_pack: usize::MAX,
            entropy_coef: 0.0,
            measures_entropy: false,
            top_entropy: None,
            importance_cap: None,
            reference: None,
            trace: false,
            mine: None,
        }
    }

    /// Passes over these groups.
    fn packs(&self, groups: &[ScoredGroup], mut ahead: &[usize], tapes: &Tapes) -> usize {
        let mut packs = 0;
        while !ahead.is_empty() {
            ahead = &ahead[self.pack_len(groups, ahead, tapes)..];
            packs += 1;
        }
        packs
    }

    /// How many of the next groups go into one pass: within the bound, and all of one tape.
    fn pack_len(&self, groups: &[ScoredGroup], ahead: &[usize], tapes: &Tapes) -> usize {
        let together = ahead.iter().take_while(|g| tapes.together(ahead[0], **g));
        let size = |g: &usize| groups[*g].group.packed_tokens();
        runs(together.map(size), self.max_tokens_per_pack).first().map_or(1, |run| run.len())
    }
}

impl Pack<'_> {
    /// On the first update the weights are the sampler's: what the trainer finds is `old_logps`, and should be what
    /// the sampler found.
    fn keep_old(&self, now: &TokenLogprobs, old_logps: &mut [Vec<f64>], tally: &mut Tally) {
        tally.differences.extend(self.sampled().zip(&now.logprobs).map(|(a, b)| (a - b).abs()));
        let mut rest = now.logprobs.as_slice();
        for g in self.members {
            let (of_group, after) = rest.split_at(self.groups[*g].group.completion_tokens());
            old_logps[*g] = of_group.iter().map(|l| f64::from(*l)).collect();
            rest = after;
        }
    }

    /// Of groups that no update has seen.
    fn keep_sampled(&self, old_logps: &mut [Vec<f64>]) {
        for g in self.members {
            let rollouts = &self.groups[*g].group.rollouts;
            if old_logps[*g].is_empty() {
                old_logps[*g] = rollouts.iter().flat_map(|r| &r.logprobs).map(|l| f64::from(*l)).collect();
            }
        }
    }

    /// The sampler's log-probs, in the order of the batch's targets.
    fn sampled(&self) -> impl Iterator<Item = f32> {
        let rollouts = self.members.iter().flat_map(|g| &self.groups[*g].group.rollouts);
        rollouts.flat_map(|rollout| &rollout.logprobs).copied()
    }

    /// The step's loss over this pack, and its slopes.
    fn loss(&self, now: &TokenLogprobs, old_logps: &[Vec<f64>], tally: &mut Tally) -> Result<LossSlopes> {
        let policy = self.policy;
        let logps: Vec<f64> = now.logprobs.iter().map(|l| f64::from(*l)).collect();
        let old: Vec<f64> = self.members.iter().flat_map(|g| &old_logps[*g]).copied().collect();
        let importance = policy.importance_cap.map(|cap| {
            let sampled: Vec<f32> = self.sampled().collect();
            truncated_importance(&old, &sampled, cap)
        });
        tally.importance_weights.extend(importance.iter().flatten().map(|w| *w as f32));
        let kept: Option<Vec<bool>> =
            self.hesitant.map(|of| self.members.iter().flat_map(|g| &of.kept[*g]).copied().collect());
        let factors = match (importance, &kept) {
            (Some(factors), Some(kept)) => Some(
                factors.iter().zip(kept).map(|(factor, kept)| if *kept { *factor } else { 0.0 }).collect(),
            ),
            (None, Some(kept)) => Some(kept.iter().map(|kept| f64::from(u8::from(*kept))).collect()),
            (importance, None) => importance,
        };
        let advantages = self.members.iter().flat_map(|g| &self.groups[*g].advantages);
        let sequences: Vec<Sequence> = self
            .batch
            .target_ranges()
            .zip(advantages)
            .map(|(range, advantage)| Sequence {
                logps: &logps[range.clone()],
                old_logps: &old[range.clone()],
                ref_logps: self.ref_logps.as_deref().map(|r| &r[range.clone()]),
                factors: factors.as_deref().map(|w: &[f64]| &w[range]),
                advantage: f64::from(*advantage),
            })
            .collect();
        let out = policy_loss(policy.loss, policy.penalty, &sequences, self.totals)?;
        tally.loss += out.loss;
        tally.sums += out.sums;
        tally.entropies.extend_from_slice(&now.entropies);
        if policy.trace {
            tally.traces.extend(dump::traces(self.groups, self.members, &sequences, &out.dloss_dlogp));
        }
        let dlogprobs: Vec<f32> = out.dloss_dlogp.iter().map(|d| *d as f32).collect();
        let counts = |t: usize| kept.as_ref().is_none_or(|kept| kept[t]);
        let counted = || (0..now.entropies.len()).filter(|t| counts(*t)).map(|t| now.entropies[t]);
        tally.counted.extend(counted());
        let mut dentropies = Vec::new();
        if policy.entropy_coef != 0.0 {
            let count = self.hesitant.map_or(self.totals.active_tokens, |of| of.count);
            let each = policy.entropy_coef / count.max(1) as f64;
            tally.loss -= each * counted().map(f64::from).sum::<f64>();
            dentropies = (0..dlogprobs.len()).map(|t| if counts(t) { -each as f32 } else { 0.0 }).collect();
        }
        Ok(LossSlopes { dlogprobs, dentropies })
    }
}

impl Tally {
    fn and(mut self, other: Self) -> Self {
        self.loss += other.loss;
        self.sums += other.sums;
        self.tokens += other.tokens;
        self.reused_tokens += other.reused_tokens;
        self.entropies.extend(other.entropies);
        self.counted.extend(other.counted);
        self.differences.extend(other.differences);
        self.importance_weights.extend(other.importance_weights);
        self.traces.extend(other.traces);
        self
    }

    fn metrics(&self, loss: &LossConfig) -> Metrics {
        let mut metrics = Metrics::default();
        metrics.insert("loss", self.loss);
        metrics.extend(self.sums.metrics(loss));
        // A step of dead groups only has computed nothing to take a mean of.
        if !self.entropies.is_empty() {
            metrics.insert("entropy", mean(&self.entropies));
        }
        if !self.importance_weights.is_empty() {
            // TRL's name for the same.
            metrics.insert("sampling/importance_sampling_ratio/mean", mean(&self.importance_weights));
        }
        if !self.differences.is_empty() {
            let worst = self.differences.iter().copied().fold(0f32, f32::max);
            metrics.insert("sampling/sampling_logp_difference/mean", mean(&self.differences));
            metrics.insert("sampling/sampling_logp_difference/max", f64::from(worst));
        }
        metrics.insert("num_tokens", self.tokens as f64);
        metrics.insert("num_tokens_reused", self.reused_tokens as f64);
        metrics
    }
}
