//! The distance to the reference model, for rewards.

use super::policy::{completion_tokens, reference_logps};
use crate::algo::kl::kl;
use crate::config::loss::KlEstimator;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::pack::runs;
use crate::types::{Group, PackedBatch};

/// What the distance is measured with.
#[derive(Clone, Copy)]
pub struct Distance<'a> {
    pub reference: &'a Decoder,
    pub estimator: KlEstimator,
    pub temperature: f32,
    pub max_tokens_per_pack: usize,
}

impl Distance<'_> {
    /// The estimate of each completion, summed over its tokens, by group; the policy's log-probs are the sampler's.
    pub fn of(&self, groups: &[Group]) -> Result<Vec<Vec<f64>>> {
        let size = |g: &Group| g.prompt.token_ids.len() + completion_tokens(g);
        let mut all = Vec::with_capacity(groups.len());
        for run in runs(groups.iter().map(size), self.max_tokens_per_pack) {
            let mut batch = PackedBatch::default();
            for group in &groups[run.clone()] {
                let completions = group.rollouts.iter().map(|r| r.token_ids.as_slice());
                batch.push_group(&group.prompt.token_ids, completions);
            }
            let logps = reference_logps(self.reference, &batch, self.temperature)?;
            let mut rest = logps.as_slice();
            for group in &groups[run] {
                let of_completion = |logprobs: &Vec<f32>| {
                    let (reference, after) = rest.split_at(logprobs.len());
                    rest = after;
                    let pairs = logprobs.iter().zip(reference);
                    pairs.map(|(l, r)| kl(self.estimator, f64::from(*l), *r).value).sum()
                };
                all.push(group.rollouts.iter().map(|r| &r.logprobs).map(of_completion).collect());
            }
        }
        Ok(all)
    }
}
