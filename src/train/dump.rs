//! A step token by token, to see what the loss saw (`run.dump_steps`).

use super::policy::Trace;
use crate::observe::{SampleRecord, TokenRecord, TokenRecords};
use crate::text::PromptEncoder;
use crate::types::ScoredGroup;

/// `samples`: of every completion that was sampled, group after group, those of groups that were dropped among them.
pub fn records(
    traces: &[Trace],
    groups: &[ScoredGroup],
    samples: &[SampleRecord],
    encoder: &PromptEncoder,
) -> Vec<TokenRecords> {
    let record = |trace: &Trace| -> Option<TokenRecords> {
        let scored = &groups[trace.group];
        let rollout = &scored.group.rollouts[trace.completion];
        let before: usize = groups[..trace.group].iter().map(|g| g.rewards.len()).sum();
        let token = |(t, id): (usize, &u32)| TokenRecord {
            id: *id,
            text: encoder.tokenizer().decode(&[*id]).unwrap_or_default(),
            sampler_logp: rollout.logprobs[t],
            old_logp: trace.old_logps[t],
            logp: trace.logps[t],
            ref_logp: trace.ref_logps.as_ref().map(|r| r[t]),
            slope: trace.slopes[t],
        };
        Some(TokenRecords {
            group: trace.group,
            completion: trace.completion,
            sample: samples.get(before + trace.completion)?.clone(),
            advantage: scored.advantages[trace.completion],
            tokens: rollout.token_ids.iter().enumerate().map(token).collect(),
        })
    };
    traces.iter().filter_map(record).collect()
}
