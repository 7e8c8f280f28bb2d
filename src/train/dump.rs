//! A step token by token, to see what the loss saw (`run.dump_steps`).

use serde::{Deserialize, Serialize};

use crate::algo::loss::Sequence;
use crate::observe::{SampleRecord, TokenRecord, TokenRecords};
use crate::text::PromptEncoder;
use crate::types::ScoredGroup;

/// One completion as the loss saw it. Log-probs in nats, `[L]` each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Index of the group in the step, and of the completion in the group.
    pub group: usize,
    pub completion: usize,
    pub logps: Vec<f64>,
    pub old_logps: Vec<f64>,
    pub ref_logps: Option<Vec<f64>>,
    /// Derivative of the step's loss by each log-prob.
    pub slopes: Vec<f64>,
}

/// What the loss saw of a pack: `sequences` and their slopes, `members` of the step's groups after one another.
pub fn traces(
    groups: &[ScoredGroup],
    members: &[usize],
    sequences: &[Sequence],
    slopes: &[f64],
) -> Vec<Trace> {
    let completions = members.iter().flat_map(|&group| {
        (0..groups[group].group.rollouts.len()).map(move |completion| (group, completion))
    });
    let mut rest = slopes;
    let trace = |((group, completion), s): ((usize, usize), &Sequence)| {
        // The loss leaves empty sequences out of its slopes, and they have none.
        let (slopes, after) = rest.split_at(s.logps.len());
        rest = after;
        Trace {
            group,
            completion,
            logps: s.logps.to_vec(),
            old_logps: s.old_logps.to_vec(),
            ref_logps: s.ref_logps.map(<[f64]>::to_vec),
            slopes: slopes.to_vec(),
        }
    };
    completions.zip(sequences).map(trace).collect()
}

/// For the run's files. `samples`: of every completion that was sampled, group after group, those of groups that were dropped among them.
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
