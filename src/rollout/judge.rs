//! A completion becomes a verdict; the same for training rewards and evaluation.

use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::observe::SampleRecord;
use crate::task::{Answered, LabelId, Outcome, Task, Verdict};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Rollout};

/// A completion as the task sees it.
pub struct Judged {
    pub completion: String,
    pub tokens: usize,
    pub finish: FinishReason,
    pub verdict: Verdict,
    pub outcome: Outcome,
    /// Without what programs and addresses say.
    pub reward: f32,
}

/// Decodes a rollout and judges it.
pub fn judge(task: &Task, encoder: &PromptEncoder, gold: LabelId, rollout: &Rollout) -> Result<Judged> {
    let completion = encoder.decode_completion(&rollout.token_ids)?;
    Ok(Judged::new(task, gold, completion, rollout.token_ids.len(), rollout.finish))
}

impl Judged {
    /// `tokens`: of the completion, its end token included.
    pub fn new(task: &Task, gold: LabelId, completion: String, tokens: usize, finish: FinishReason) -> Self {
        let verdict = task.judge(&completion, finish);
        let outcome = Outcome::of(gold, verdict);
        let reward = task.own_reward(Answered { text: &completion, tokens: Some(tokens), outcome });
        Self { completion, tokens, finish, verdict, outcome, reward }
    }

    pub fn record(self, task: &Task, row: &EncodedRow) -> SampleRecord {
        SampleRecord {
            line: row.line,
            gold: task.label_text(row.gold),
            verdict: task.verdict_text(self.verdict),
            reward: self.reward,
            advantage: None,
            tokens: Some(self.tokens),
            finish: Some(self.finish),
            completion: self.completion,
        }
    }
}
