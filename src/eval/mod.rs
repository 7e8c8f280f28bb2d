//! Evaluation: completions of held-out prompts, judged by the task, counted under both rules.

pub mod enumerate;
pub mod paired;

use crate::config::PackConfig;
use crate::config::stages::EvalConfig;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::observe::{Event, Metrics, SampleKind, SampleRecord, Sinks};
use crate::rng::Purpose;
use crate::rollout::engine::{Engine, Request, TapePolicy};
use crate::task::{Confusion, EvalReport, LabelId, Outcome, Task, Verdict};
use crate::text::PromptEncoder;
use crate::types::Rollout;

/// Prompts sampled between two signs of life.
const PROMPTS_PER_CALL: usize = 64;

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

impl Evaluator<'_> {
    /// Samples, judges, and emits an `Evaluation` and its `Samples`.
    pub fn evaluate(&self, decoder: &Decoder, at: At, sinks: &mut Sinks) -> Result<EvalReport> {
        let engine = Engine {
            decoder,
            stop_tokens: self.encoder.stop_tokens(),
            sampling: self.config.sampling,
            group_size: self.config.samples_per_prompt,
            max_completion_tokens: self.config.max_completion_tokens,
            max_tokens_per_pack: self.pack.max_rollout_tokens,
            tape: TapePolicy::NONE,
            seed: self.seed,
            purpose: Purpose::Evaluation,
            step: at.step as u32,
        };
        let mut confusion = Confusion::new(self.task);
        let mut samples = Vec::new();
        for (chunk, rows) in self.rows.chunks(PROMPTS_PER_CALL).enumerate() {
            let done = chunk * PROMPTS_PER_CALL;
            sinks.emit(&Event::Phase { text: format!("evaluating {done}/{}", self.rows.len()) });
            let requests: Vec<Request> = rows
                .iter()
                .enumerate()
                .map(|(i, row)| Request { prompt: &row.prompt, sample_id: (done + i) as u32 })
                .collect();
            let groups = engine.generate(&requests)?.groups;
            for (row, group) in rows.iter().zip(groups) {
                for rollout in &group.rollouts {
                    let judged = judge(self.task, self.encoder, row.gold, rollout)?;
                    confusion.add(row.gold, judged.verdict);
                    samples.push(judged.record(self.task, row));
                }
            }
        }
        let report = confusion.report();
        let stage = at.stage.to_string();
        let metrics: Metrics = report.metrics().into_iter().collect();
        let json = serde_json::to_value(&report).unwrap_or_default();
        sinks.emit(&Event::Evaluation { stage: stage.clone(), step: at.step, metrics, report: json });
        sinks.emit(&Event::Samples { kind: SampleKind::Evaluation, stage, step: at.step, samples });
        Ok(report)
    }
}

/// A completion as the task sees it.
pub struct Judged {
    pub completion: String,
    pub verdict: Verdict,
    pub outcome: Outcome,
    pub reward: f32,
}

/// Decodes a rollout and judges it; the same for training rewards and evaluation.
pub fn judge(task: &Task, encoder: &PromptEncoder, gold: LabelId, rollout: &Rollout) -> Result<Judged> {
    let completion = encoder.decode_completion(&rollout.token_ids)?;
    let verdict = task.judge(&completion, rollout.finish);
    let outcome = Outcome::of(gold, verdict);
    Ok(Judged { completion, verdict, outcome, reward: task.reward(outcome) })
}

impl Judged {
    pub fn record(self, task: &Task, row: &EncodedRow) -> SampleRecord {
        let label = |id: LabelId| task.labels().get(id.index()).cloned().unwrap_or_default();
        SampleRecord {
            line: row.line,
            gold: label(row.gold),
            verdict: match self.verdict {
                Verdict::Positive(id) => label(id),
                Verdict::Negative => label(LabelId::NEGATIVE),
                Verdict::Malformed(_) => "malformed".into(),
            },
            reward: self.reward,
            completion: self.completion,
        }
    }
}
