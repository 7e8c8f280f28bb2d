//! Evaluation: completions of held-out prompts, judged by the task, counted under both rules.

pub mod audit;
pub mod audit_rewards;
pub mod bounds;
pub mod constants;
pub mod enumerate;
pub mod exact;
pub mod hollow;
pub mod parts;
pub mod predict;
pub mod roc;
mod summary;
mod table;
pub mod threshold;

use std::collections::BTreeMap;
use std::time::Instant;

pub use summary::{Group, Judgement, Samples, Spread, Summary, judge_recorded};
pub use table::{exact_text, summary_text, threshold_text};

use crate::config::PackConfig;
use crate::config::eval::EvalConfig;
use crate::data::jsonl::EncodedRow;
use crate::dist::Ranks;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::observe::{Event, Metrics, SampleKind, SampleRecord, Sinks, Work};
use crate::rng::Purpose;
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::rollout::judge::{Judged, judge};
use crate::task::{EvalReport, Task};
use crate::text::PromptEncoder;
use crate::types::{self, FinishReason};

/// Prompts, and tokens of prompts, that are answered between two signs of life.
const PROMPTS_PER_CALL: usize = 64;
const TOKENS_PER_CALL: usize = 8192;
/// Of the first call, from which the rest is estimated.
const FIRST_TOKENS: usize = 1024;

/// What evaluation needs besides the model's weights.
#[derive(Clone, Copy)]
pub struct Evaluator<'a> {
    pub task: &'a Task,
    pub encoder: &'a PromptEncoder,
    pub rows: &'a [EncodedRow],
    pub config: &'a EvalConfig,
    pub pack: &'a PackConfig,
    pub seed: u64,
}

/// Where in a run the evaluation stands.
#[derive(Clone, Copy)]
pub struct At<'a> {
    pub stage: &'a str,
    /// Optimiser steps of the stage.
    pub step: u64,
}

impl At<'_> {
    /// `grpo 50`.
    fn name(&self) -> String {
        if self.step > 0 { format!("{} {}", self.stage, self.step) } else { self.stage.into() }
    }
}

impl Evaluator<'_> {
    /// Samples, judges, and emits `Samples` and their `Evaluation`.
    pub fn evaluate(&self, decoder: &Decoder, at: At, sinks: &mut Sinks) -> Result<EvalReport> {
        let judgements = self.judgements(decoder, at, sinks, Vec::new(), |_| Ok(()))?;
        Ok(Summary::new(self.task, &judgements).report)
    }

    /// [`Self::evaluate`] together with other ranks, each of which answers its share of the rows.
    pub fn evaluate_among(
        &self,
        ranks: &Ranks,
        decoder: &Decoder,
        at: At,
        sinks: &mut Sinks,
    ) -> Result<EvalReport> {
        if ranks.is_alone() {
            return self.evaluate(decoder, at, sinks);
        }
        let costs: Vec<usize> = self.rows.iter().map(|row| self.tokens(row)).collect();
        let owners = ranks.owners(&costs);
        let mine: Vec<usize> = (0..costs.len()).filter(|i| owners[*i] == ranks.rank()).collect();
        let answers = ranks.gather(self.answers(decoder, at, &mine, sinks)?)?;
        let mut left: Vec<_> = answers.into_iter().map(Vec::into_iter).collect();
        let per = self.config.samples_per_prompt;
        let records = owners.iter().flat_map(|owner| {
            left.get_mut(*owner).map(|left| left.by_ref().take(per).collect::<Vec<_>>()).unwrap_or_default()
        });
        let judgements = self.judgements(decoder, at, sinks, records.collect(), |_| Ok(()))?;
        Ok(Summary::new(self.task, &judgements).report)
    }

    /// The judged answers to the rows of these numbers.
    fn answers(
        &self,
        decoder: &Decoder,
        at: At,
        numbers: &[usize],
        sinks: &mut Sinks,
    ) -> Result<Vec<SampleRecord>> {
        let rows: Vec<EncodedRow> = numbers.iter().map(|i| self.rows[*i].clone()).collect();
        let own = Evaluator { rows: &rows, ..*self };
        let (engine, draws) = self.engine(decoder, at);
        let (start, what) = (Instant::now(), format!("evaluating {}", at.name()));
        let mut answers = Vec::new();
        let mut done = 0;
        for end in own.call_ends() {
            sinks.emit(&Event::work(what.clone(), "rows", done, rows.len(), start));
            let judged = own.judged_now(&engine, draws, &numbers[done..end], &rows[done..end])?;
            for (row, judged) in rows[done..end].iter().zip(judged) {
                answers.extend(judged.into_iter().map(|judged| judged.record(self.task, row)));
            }
            done = end;
        }
        Ok(answers)
    }

    fn engine<'e>(&'e self, decoder: &'e Decoder, at: At) -> (Engine<'e>, Draws) {
        let completions = Completions {
            per_prompt: self.config.samples_per_prompt,
            max_tokens: self.config.max_completion_tokens,
            sampling: self.config.sampling,
        };
        let engine =
            Engine::new(decoder, self.encoder.stop_tokens(), completions, self.pack.rollout_tokens());
        (engine, Draws { seed: self.seed, purpose: Purpose::Evaluation, step: at.step })
    }

    /// How often a malformed answer is asked for again: a greedy one would come back as it was.
    fn retries(&self) -> u32 {
        if self.config.sampling.temperature > 0.0 { self.task.retries() } else { 0 }
    }

    fn judge_groups(&self, rows: &[EncodedRow], groups: &[types::Group]) -> Result<Vec<Vec<Judged>>> {
        let judge_one = |row: &EncodedRow, rollout| {
            judge(self.task, self.encoder, row.gold, row.evidence.as_deref(), rollout)
        };
        let groups = rows.iter().zip(groups);
        groups
            .map(|(row, group)| group.rollouts.iter().map(|rollout| judge_one(row, rollout)).collect())
            .collect()
    }

    /// What a row costs at most.
    fn tokens(&self, row: &EncodedRow) -> usize {
        row.prompt.token_ids.len() + self.config.samples_per_prompt * self.config.max_completion_tokens
    }

    /// Rows from `from` on for one call: one, or as many as have no more than `most` prompt tokens.
    fn next_rows(&self, from: usize, most: usize) -> &[EncodedRow] {
        let left = &self.rows[from..];
        let lengths = left.iter().take(PROMPTS_PER_CALL).scan(0, |sum, row| {
            *sum += row.prompt.token_ids.len();
            Some(*sum)
        });
        &left[..lengths.take_while(|sum| *sum <= most).count().max(1)]
    }

    /// Rows that are answered by the end of each call.
    pub fn call_ends(&self) -> Vec<usize> {
        let mut ends = Vec::new();
        let mut done = 0;
        while done < self.rows.len() {
            let most = if done == 0 { FIRST_TOKENS } else { TOKENS_PER_CALL };
            done += self.next_rows(done, most).len();
            ends.push(done);
        }
        ends
    }

    /// [`Self::evaluate`], answer by answer; prompts are numbered as the rows are. `kept` are the answers of whole calls that an
    /// earlier evaluation of the same made, in order; `each` is given the others, call by call.
    pub fn judgements(
        &self,
        decoder: &Decoder,
        at: At,
        sinks: &mut Sinks,
        kept: Vec<SampleRecord>,
        mut each: impl FnMut(&[SampleRecord]) -> Result<()>,
    ) -> Result<Vec<Judgement>> {
        let (engine, draws) = self.engine(decoder, at);
        let mut judgements = Vec::new();
        let mut samples = Vec::new();
        let (start, what) = (Instant::now(), format!("evaluating {}", at.name()));
        let all_tokens: usize = self.rows.iter().map(|row| self.tokens(row)).sum();
        let (mut done, mut tokens) = (0, 0);
        let mut kept = kept.into_iter();
        for end in self.call_ends() {
            let (what, total) = (what.clone(), self.rows.len());
            let share = tokens as f64 / all_tokens.max(1) as f64;
            let work = Work { share, ..Work::new(what, "rows", done, total, start) };
            sinks.emit(&Event::Work(work));
            let rows = &self.rows[done..end];
            let earlier = kept.len() > 0;
            let judged = match earlier {
                true => self.judged_earlier(rows, &mut kept),
                false => self.judged_now(&engine, draws, &(done..end).collect::<Vec<_>>(), rows)?,
            };
            let first = samples.len();
            for ((i, row), answers) in rows.iter().enumerate().zip(judged) {
                for (sample, judged) in answers.into_iter().enumerate() {
                    judgements.push(Judgement {
                        prompt: done + i,
                        sample,
                        gold: row.gold,
                        verdict: judged.verdict,
                        group: row.source.as_ref().map(|source| source.to_string()),
                        attack_succeeded: row.attack_succeeded,
                    });
                    samples.push(judged.record(self.task, row));
                }
            }
            if !earlier {
                each(&samples[first..])?;
            }
            done = end;
            tokens += rows.iter().map(|row| self.tokens(row)).sum::<usize>();
        }
        sinks.emit(&Event::work(what, "rows", done, done, start));
        let Summary { report, groups, .. } = Summary::new(self.task, &judgements);
        let stage = at.stage.to_string();
        let mut metrics: Metrics = report.metrics().into_iter().collect();
        metrics.extend(groups.iter().flat_map(|group| {
            group.scores().map(|(name, score)| (format!("source/{}/{name}", group.value), score))
        }));
        let mut json = serde_json::to_value(&report).unwrap_or_default();
        if !groups.is_empty() {
            let scores = |group: &Group| {
                let scores: BTreeMap<_, _> = group.scores().collect();
                (group.value.clone(), serde_json::json!(scores))
            };
            json["sources"] = groups.iter().map(scores).collect::<serde_json::Map<_, _>>().into();
        }
        let kind = SampleKind::Evaluation;
        sinks.emit(&Event::Samples { kind, stage: stage.clone(), step: at.step, samples });
        sinks.emit(&Event::Evaluation { stage, step: at.step, metrics, report: json });
        Ok(judgements)
    }

    /// Answers to `rows`, those that are malformed asked for again. `numbers`: theirs among all rows, which key the draws.
    fn judged_now(
        &self,
        engine: &Engine,
        draws: Draws,
        numbers: &[usize],
        rows: &[EncodedRow],
    ) -> Result<Vec<Vec<Judged>>> {
        let requests: Vec<Request> = rows
            .iter()
            .zip(numbers)
            .map(|(row, number)| Request { prompt: &row.prompt, sample_id: *number as u32 })
            .collect();
        let groups = engine.generate(&requests, draws)?.groups;
        let mut judged = self.judge_groups(rows, &groups)?;
        for retry in 1..=self.retries() {
            let bad = |of_one: &Vec<Judged>| of_one.iter().any(|judged| judged.verdict.is_malformed());
            let again: Vec<usize> = (0..rows.len()).filter(|i| bad(&judged[*i])).collect();
            if again.is_empty() {
                break;
            }
            let draws = Draws { seed: retry_seed(self.seed, retry), ..draws };
            let asked: Vec<Request> = again.iter().map(|i| requests[*i]).collect();
            let groups = engine.generate(&asked, draws)?.groups;
            let asked: Vec<EncodedRow> = again.iter().map(|i| rows[*i].clone()).collect();
            for (i, answers) in again.into_iter().zip(self.judge_groups(&asked, &groups)?) {
                for (kept, answer) in judged[i].iter_mut().zip(answers) {
                    if kept.verdict.is_malformed() {
                        *kept = answer;
                    }
                }
            }
        }
        Ok(judged)
    }

    fn judged_earlier(
        &self,
        rows: &[EncodedRow],
        kept: &mut impl Iterator<Item = SampleRecord>,
    ) -> Vec<Vec<Judged>> {
        let one = |row: &EncodedRow, record: SampleRecord| {
            let finish = record.finish.unwrap_or(FinishReason::Stop);
            let of_row = (row.gold, row.evidence.as_deref());
            Judged::new(self.task, of_row, record.completion, record.tokens.unwrap_or(0), finish)
        };
        let all = rows.iter().map(|row| {
            kept.by_ref().take(self.config.samples_per_prompt).map(|record| one(row, record)).collect()
        });
        all.collect()
    }
}

/// Another random stream for each retry; seeds that users choose are small numbers.
fn retry_seed(seed: u64, retry: u32) -> u64 {
    seed ^ u64::from(retry) << 40
}
