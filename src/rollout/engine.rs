//! The rollout engine: prefill packs prompts, decode advances all their completions one token at a time.

use std::time::Instant;

use candle_core::Tensor;

use super::tapes::Tapes;
use crate::config::sampling::SamplingConfig;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::keep::Keep;
use crate::model::kv_cache::DecodeStep;
use crate::model::tape::{Slots, Tape, Taping};
use crate::ops::decode_attention::{Readers, SharedPrefix};
use crate::ops::indices::Indices;
use crate::ops::sampling::{Repetition, Sampled, Sampling, sample, sample_penalised};
use crate::ops::{embedding, memory};
use crate::pack::runs;
use crate::rng::{Purpose, Stream};
use crate::text::StopTokens;
use crate::types::{FinishReason, Group, PackedBatch, Prompt, Rollout, Segment};

/// What is drawn for every prompt of a call.
#[derive(Clone, Copy, Debug)]
pub struct Completions {
    /// Completions of each prompt, G.
    pub per_prompt: usize,
    /// The budget of one completion, tokens.
    pub max_tokens: usize,
    pub sampling: SamplingConfig,
}

impl Completions {
    /// The likeliest token each time, one completion a prompt.
    pub fn greedy(max_tokens: usize) -> Self {
        let sampling = SamplingConfig { temperature: 0.0, ..SamplingConfig::default() };
        Self { per_prompt: 1, max_tokens, sampling }
    }
}

/// What keys every draw of a call, beside its prompt, completion and token.
#[derive(Clone, Copy, Debug)]
pub struct Draws {
    pub seed: u64,
    pub purpose: Purpose,
    /// Optimiser step.
    pub step: u64,
}

impl Draws {
    /// Nothing is drawn: the completions are greedy.
    pub const NONE: Self = Self { seed: 0, purpose: Purpose::Evaluation, step: 0 };
}

/// Draws completions from a decoder.
pub struct Engine<'a> {
    decoder: &'a Decoder,
    stop_tokens: &'a StopTokens,
    completions: Completions,
    max_tokens_per_pack: usize,
    keep: Keep,
    max_taped_tokens: usize,
}

/// A prompt and the number that keys its draws: unique within a step, independent of the batch's order.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    pub prompt: &'a Prompt,
    pub sample_id: u32,
}

/// Groups in the order of their requests.
#[derive(Default)]
pub struct Rollouts {
    pub groups: Vec<Group>,
    pub tapes: Tapes,
    pub timing: Timing,
}

/// Hears of groups as they are drawn, with the number of the first.
pub type Watch<'a> = &'a mut dyn FnMut(usize, &[Group]) -> Result<()>;

/// Seconds spent in each phase, summed over packs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    pub prefill_seconds: f64,
    pub decode_seconds: f64,
}

impl std::ops::AddAssign for Timing {
    fn add_assign(&mut self, other: Self) {
        self.prefill_seconds += other.prefill_seconds;
        self.decode_seconds += other.decode_seconds;
    }
}

impl<'a> Engine<'a> {
    /// `max_tokens_per_pack` bounds the tokens whose keys and values are alive at once.
    pub fn new(
        decoder: &'a Decoder,
        stop_tokens: &'a StopTokens,
        completions: Completions,
        max_tokens_per_pack: usize,
    ) -> Self {
        let (keep, max_taped_tokens) = (Keep::Nothing, 0);
        Self { decoder, stop_tokens, completions, max_tokens_per_pack, keep, max_taped_tokens }
    }

    /// Keeps what an on-policy update will read, of the first groups of each pack for as long as they stay within
    /// `max_tokens` together.
    pub fn taping(self, keep: Keep, max_tokens: usize) -> Self {
        Self { keep, max_taped_tokens: max_tokens, ..self }
    }

    /// One group a request, in order.
    ///
    /// # Errors
    /// A prompt that leaves no room for its completions within the model's positions.
    pub fn generate(&self, requests: &[Request], draws: Draws) -> Result<Rollouts> {
        self.generate_watched(requests, draws, &mut |_, _| Ok(()))
    }

    /// [`Self::generate`], telling `watch` of each pack's groups, and the number of the first, before the next pack is drawn.
    ///
    /// # Errors
    /// As [`Self::generate`], and those of `watch`.
    pub fn generate_watched(&self, requests: &[Request], draws: Draws, watch: Watch) -> Result<Rollouts> {
        let Completions { per_prompt, max_tokens, .. } = self.completions;
        for request in requests {
            let longest = request.prompt.token_ids.len() + max_tokens;
            if request.prompt.token_ids.is_empty() || longest > self.decoder.max_positions() {
                return Err(Error::input(
                    format!("prompt of sample {}", request.sample_id),
                    format!(
                        "{} prompt tokens and {} completion tokens do not fit the model's {} positions",
                        request.prompt.token_ids.len(),
                        max_tokens,
                        self.decoder.max_positions()
                    ),
                    "Lower the budget of prompts (data.max_prompt_tokens, --max-prompt-tokens) or of completions, or raise \
                     model.max_positions",
                ));
            }
        }
        let size = |r: &Request| r.prompt.token_ids.len() + per_prompt * max_tokens;
        let mut rollouts = Rollouts::default();
        let mut left = self.max_taped_tokens;
        for run in runs(requests.iter().map(size), self.max_tokens_per_pack) {
            let pack = &requests[run.clone()];
            let mut taping = Taping { keep: self.keep, prompts: 0 };
            while let Some(request) = pack.get(taping.prompts)
                && self.keep != Keep::Nothing
                && let Some(rest) = left.checked_sub(size(request))
            {
                left = rest;
                taping.prompts += 1;
            }
            if let Some(tape) = self.generate_pack(pack, draws, taping, &mut rollouts)? {
                rollouts.tapes.push(run.start..run.start + taping.prompts, tape);
            }
            watch(run.start, rollouts.groups.get(run).unwrap_or_default())?;
        }
        Ok(rollouts)
    }

    fn generate_pack(
        &self,
        requests: &[Request],
        draws: Draws,
        taping: Taping,
        collected: &mut Rollouts,
    ) -> Result<Option<Tape>> {
        let Completions { per_prompt, max_tokens, .. } = self.completions;
        let start = Instant::now();
        let batch = prompts_batch(requests);
        let slots = Slots { per_prompt, tokens: max_tokens };
        let (hidden, cache) = self.decoder.prefill(&batch, slots, taping)?;
        let last_rows: Indices = batch.segments.iter().map(|s| s.start + s.len - 1).collect();
        let first_logits = self.decoder.logits(&embedding::gather(&hidden, &last_rows)?)?;
        drop(hidden);
        memory::synchronize(self.decoder.device())?;
        collected.timing.prefill_seconds += start.elapsed().as_secs_f64();

        let start = Instant::now();
        let sequences = requests.len() * per_prompt;
        let mut rollouts: Vec<Rollout> = (0..sequences)
            .map(|_| Rollout { token_ids: Vec::new(), logprobs: Vec::new(), finish: FinishReason::Length })
            .collect();
        let mut active: Vec<usize> = (0..sequences).collect();
        let group_of = |sequence: &usize| sequence / per_prompt;
        // A row of logits a prompt; its completions all draw from it.
        let mut drawn = self.draw(requests, draws, &active, &rollouts, &first_logits)?;
        let mut readers: Option<Readers> = None;
        for t in 0..max_tokens {
            for (sequence, s) in active.iter().zip(&drawn) {
                let rollout = &mut rollouts[*sequence];
                rollout.token_ids.push(s.token);
                rollout.logprobs.push(s.logprob);
                if self.stop_tokens.contains(s.token) {
                    rollout.finish = FinishReason::Stop;
                }
            }
            active.retain(|sequence| rollouts[*sequence].finish == FinishReason::Length);
            if active.is_empty() || t + 1 == max_tokens {
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
            drawn = self.draw(requests, draws, &active, &rollouts, &logits)?;
        }
        collected.timing.decode_seconds += start.elapsed().as_secs_f64();
        let mut rollouts = rollouts.into_iter();
        let group = |request: &Request| Group {
            prompt: request.prompt.clone(),
            rollouts: rollouts.by_ref().take(per_prompt).collect(),
        };
        collected.groups.extend(requests.iter().map(group));
        Ok(cache.into_tape())
    }

    /// The prompts of the active sequences, in order.
    fn prefixes(&self, batch: &PackedBatch, active: &[usize]) -> Vec<SharedPrefix> {
        let group_of = |sequence: &usize| sequence / self.completions.per_prompt;
        active
            .chunk_by(|a, b| group_of(a) == group_of(b))
            .map(|rows| {
                let segment = batch.segments[group_of(&rows[0])];
                SharedPrefix { start: segment.start, len: segment.len, rows: rows.len() }
            })
            .collect()
    }

    /// The next token of every active sequence. `logits`: a row a sequence, or a row for several in a run.
    fn draw(
        &self,
        requests: &[Request],
        draws: Draws,
        active: &[usize],
        rollouts: &[Rollout],
        logits: &Tensor,
    ) -> Result<Vec<Sampled>> {
        let uniform = |sequence: &usize| {
            let (group, rollout) =
                (sequence / self.completions.per_prompt, sequence % self.completions.per_prompt);
            let ids = [draws.step as u32, requests[group].sample_id, rollout as u32];
            Stream::new(draws.seed, draws.purpose, ids).uniform(rollouts[*sequence].token_ids.len() as u32)
        };
        let uniforms: Vec<f32> = active.iter().map(uniform).collect();
        let (sampling, factor) =
            (Sampling::from(&self.completions.sampling), self.completions.sampling.repetition_penalty);
        let seen = |sequence: &usize| {
            let prompt = &requests[sequence / self.completions.per_prompt].prompt.token_ids;
            [prompt.as_slice(), &rollouts[*sequence].token_ids].concat()
        };
        let drawn = match factor == 1.0 {
            true => sample(logits, &sampling, &uniforms)?,
            false => {
                let seen: Vec<Vec<u32>> = active.iter().map(seen).collect();
                sample_penalised(logits, &sampling, &uniforms, Repetition { factor, seen: &seen })?
            }
        };
        self.decoder.refuse_no_distribution(drawn.iter().map(|s| s.logprob))?;
        Ok(drawn)
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
