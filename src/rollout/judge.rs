//! A completion becomes a verdict; the same for training rewards and evaluation.

use std::collections::BTreeMap;

use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::observe::SampleRecord;
use crate::task::{Answered, Evidence, LabelId, Outcome, Task, Verdict};
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

/// Decodes a rollout and judges it. `evidence`: what its row gives a benign answer to repeat.
pub fn judge(
    task: &Task,
    encoder: &PromptEncoder,
    gold: LabelId,
    evidence: Option<&Evidence>,
    rollout: &Rollout,
) -> Result<Judged> {
    let completion = encoder.decode_completion(&rollout.token_ids)?;
    Ok(Judged::new(task, (gold, evidence), completion, rollout.token_ids.len(), rollout.finish))
}

impl Judged {
    /// `gold` and `evidence`: the row's. `tokens`: of the completion, its end token included.
    pub fn new(
        task: &Task,
        (gold, evidence): (LabelId, Option<&Evidence>),
        completion: String,
        tokens: usize,
        finish: FinishReason,
    ) -> Self {
        let verdict = task.judge_in(evidence, &completion, finish);
        let outcome = Outcome::of(gold, verdict);
        let reward = task.own_reward(Answered { text: &completion, tokens: Some(tokens), outcome });
        Self { completion, tokens, finish, verdict, outcome, reward }
    }

    /// What each of several rewards pays, as far as nobody has to be asked; of a task with one none: it is the whole.
    fn parts(&self, task: &Task) -> BTreeMap<String, f32> {
        let answered = Answered { text: &self.completion, tokens: Some(self.tokens), outcome: self.outcome };
        match task.rewards() {
            [_] => BTreeMap::new(),
            several => {
                several.iter().filter_map(|part| Some((part.name.clone(), part.of(answered)?))).collect()
            }
        }
    }

    pub fn record(self, task: &Task, row: &EncodedRow) -> SampleRecord {
        SampleRecord {
            line: row.line,
            gold: task.label_text(row.gold),
            verdict: task.verdict_text(self.verdict),
            reason: (self.verdict == Verdict::Ungrounded).then(|| Verdict::UNGROUNDED.into()),
            reward: self.reward,
            rewards: self.parts(task),
            advantage: None,
            tokens: Some(self.tokens),
            finish: Some(self.finish),
            completion: self.completion,
        }
    }
}
