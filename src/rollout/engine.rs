//! The rollout engine: prefill packs prompts, decode advances all their completions one token at a time.

use std::ops::Range;
use std::time::Instant;

use candle_core::Tensor;

use crate::config::sampling::SamplingConfig;
use crate::error::{Error, Result};
use crate::model::decoder::{Decoder, Keep};
use crate::model::kv_cache::DecodeStep;
use crate::model::tape::{Recording, Tape};
use crate::ops::decode_attention::{Readers, SharedPrefix};
use crate::ops::indices::Indices;
use crate::ops::sampling::{Sampled, Sampling, sample};
use crate::ops::{embedding, memory};
use crate::pack::runs;
use crate::rng::{Purpose, Stream};
use crate::text::StopTokens;
use crate::types::{FinishReason, Group, PackedBatch, Prompt, Rollout, Segment};

/// How completions are drawn. The same for every prompt of a call.
#[derive(Clone)]
pub struct Engine<'a> {
    pub decoder: &'a Decoder,
    pub stop_tokens: &'a StopTokens,
    pub sampling: SamplingConfig,
    /// Completions per prompt, G.
    pub group_size: usize,
    pub max_completion_tokens: usize,
    /// Bounds the tokens whose keys and values are alive at once.
    pub max_tokens_per_pack: usize,
    /// Kept for the update, on-policy: what of each pack, while the packs kept so far are within this many tokens.
    pub tape: TapePolicy,
    pub seed: u64,
    pub purpose: Purpose,
    /// Optimiser step, part of every draw's key.
    pub step: u32,
}

/// A prompt and the number that keys its draws: unique within a step, independent of the batch's order.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub prompt: &'a Prompt,
    pub sample_id: u32,
}

/// What of a rollout stays alive for the update's backward pass.
#[derive(Clone, Copy, Debug)]
pub struct TapePolicy {
    pub keep: Keep,
    pub max_tokens: usize,
}

impl TapePolicy {
    pub const NONE: Self = Self { keep: Keep::Nothing, max_tokens: 0 };
}

/// Groups in the order of their requests.
#[derive(Default)]
pub struct Rollouts {
    pub groups: Vec<Group>,
    /// The tape of the groups of a range.
    pub tapes: Vec<(Range<usize>, Tape)>,
    pub timing: Timing,
}

/// Seconds spent in each phase, summed over packs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
}

impl Engine<'_> {
    /// One group a request, in order.
    ///
    /// # Errors
    /// A prompt that leaves no room for `max_completion_tokens` within the model's positions.
    pub fn generate(&self, requests: &[Request]) -> Result<Rollouts> {
        for request in requests {
            let longest = request.prompt.token_ids.len() + self.max_completion_tokens;
            if request.prompt.token_ids.is_empty() || longest > self.decoder.max_positions() {
                return Err(Error::input(
                    format!("prompt of sample {}", request.sample_id),
                    format!(
                        "{} prompt tokens and {} completion tokens do not fit the model's {} positions",
                        request.prompt.token_ids.len(),
                        self.max_completion_tokens,
                        self.decoder.max_positions()
                    ),
                    "Lower data.max_prompt_tokens or the completion budget, or raise model.max_positions",
                ));
            }
        }
        let size = |r: &Request| r.prompt.token_ids.len() + self.group_size * self.max_completion_tokens;
        let mut rollouts = Rollouts::default();
        let mut taped_tokens = 0;
        for run in runs(requests.iter().map(size), self.max_tokens_per_pack) {
            let tokens: usize = requests[run.clone()].iter().map(size).sum();
            let keep = match taped_tokens + tokens <= self.tape.max_tokens {
                true => self.tape.keep,
                false => Keep::Nothing,
            };
            let tape = self.generate_pack(&requests[run.clone()], keep, &mut rollouts)?;
            if let Some(tape) = tape {
                taped_tokens += tokens;
                rollouts.tapes.push((run, tape));
            }
        }
        Ok(rollouts)
    }

    fn generate_pack(
        &self,
        requests: &[Request],
        keep: Keep,
        collected: &mut Rollouts,
    ) -> Result<Option<Tape>> {
        let start = Instant::now();
        let batch = prompts_batch(requests);
        let capacity = self.max_completion_tokens;
        let recording = Recording { keep, group_size: self.group_size, capacity };
        let (hidden, cache) = self.decoder.prefill(&batch, recording)?;
        let last_rows: Indices = batch.segments.iter().map(|s| s.start + s.len - 1).collect();
        let first_logits = self.decoder.logits(&embedding::gather(&hidden, &last_rows)?)?;
        drop(hidden);
        memory::synchronize(self.decoder.device())?;
        collected.timing.prefill_seconds += start.elapsed().as_secs_f64();

        let start = Instant::now();
        let sequences = requests.len() * self.group_size;
        let mut rollouts: Vec<Rollout> = (0..sequences)
            .map(|_| Rollout { token_ids: Vec::new(), logprobs: Vec::new(), finish: FinishReason::Length })
            .collect();
        let mut active: Vec<usize> = (0..sequences).collect();
        let group_of = |sequence: &usize| sequence / self.group_size;
        // A row of logits a prompt; its completions all draw from it.
        let mut drawn = self.draw(requests, &active, 0, &first_logits)?;
        let mut readers: Option<Readers> = None;
        for t in 0..self.max_completion_tokens {
            for (sequence, s) in active.iter().zip(&drawn) {
                let rollout = &mut rollouts[*sequence];
                rollout.token_ids.push(s.token);
                rollout.logprobs.push(s.logprob);
                if self.stop_tokens.contains(s.token) {
                    rollout.finish = FinishReason::Stop;
                }
            }
            active.retain(|sequence| rollouts[*sequence].finish == FinishReason::Length);
            if active.is_empty() || t + 1 == self.max_completion_tokens {
                break;
            }
            let last = |s: &usize| rollouts[*s].token_ids.last().copied().unwrap_or_default();
            let tokens: Vec<u32> = active.iter().map(last).collect();
            let prompt_len = |s: &usize| batch.segments[group_of(s)].len;
            let positions: Vec<u32> = active.iter().map(|s| (prompt_len(s) + t) as u32).collect();
            // The same until a sequence ends.
            let readers = match readers.take().filter(|r| r.sequences().len() == active.len()) {
                Some(same) => readers.insert(same),
                None => readers.insert(Readers::new(self.prefixes(&batch, &active), active.clone())),
            };
            let step = DecodeStep { tokens: &tokens, positions: &positions, readers, cached: t };
            let logits = self.decoder.logits(&self.decoder.decode(&cache, step)?)?;
            drawn = self.draw(requests, &active, t as u32 + 1, &logits)?;
        }
        collected.timing.decode_seconds += start.elapsed().as_secs_f64();
        let mut rollouts = rollouts.into_iter();
        let group = |request: &Request| Group {
            prompt: request.prompt.clone(),
            rollouts: rollouts.by_ref().take(self.group_size).collect(),
        };
        collected.groups.extend(requests.iter().map(group));
        Ok(cache.into_tape())
    }

    /// The prompts of the active sequences, in order.
    fn prefixes(&self, batch: &PackedBatch, active: &[usize]) -> Vec<SharedPrefix> {
        let group_of = |sequence: &usize| sequence / self.group_size;
        active
            .chunk_by(|a, b| group_of(a) == group_of(b))
            .map(|rows| {
                let segment = batch.segments[group_of(&rows[0])];
                SharedPrefix { start: segment.start, len: segment.len, rows: rows.len() }
            })
            .collect()
    }

    /// One token for every active sequence. `logits`: a row a sequence, or a row for several in a run.
    fn draw(
        &self,
        requests: &[Request],
        active: &[usize],
        token_index: u32,
        logits: &Tensor,
    ) -> Result<Vec<Sampled>> {
        let uniform = |sequence: &usize| {
            let (group, rollout) = (sequence / self.group_size, sequence % self.group_size);
            let ids = [self.step, requests[group].sample_id, rollout as u32];
            Stream::new(self.seed, self.purpose, ids).uniform(token_index)
        };
        let uniforms: Vec<f32> = active.iter().map(uniform).collect();
        let drawn = sample(logits, &Sampling::from(&self.sampling), &uniforms)?;
        match drawn.iter().position(|s| !s.logprob.is_finite()) {
            None => Ok(drawn),
            Some(i) => Err(Error::Diverged {
                step: u64::from(self.step) + 1,
                problem: format!(
                    "the logits of sample {} are no distribution (NaN or infinite)",
                    requests[active[i] / self.group_size].sample_id
                ),
                fix: "Check the weights; lower the learning rate, or resume from an earlier checkpoint"
                    .into(),
            }),
        }
    }
}

/// Prompts as segments of their own.
fn prompts_batch(requests: &[Request]) -> PackedBatch {
    let mut batch = PackedBatch::default();
    for request in requests {
        let ids = &request.prompt.token_ids;
        batch.segments.push(Segment { start: batch.tokens.len(), len: ids.len(), prefix: None });
        batch.tokens.extend_from_slice(ids);
        batch.positions.extend(0..ids.len() as u32);
    }
    batch
}
