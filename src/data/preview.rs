//! A row as the model sees it, and the tokens that SFT trains on.

use std::path::Path;

use super::jsonl::at_line;
use super::lines::{Place, row_at};
use crate::error::Result;
use crate::task::{Outcome, Task};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Sample};

/// A row's conversation as token ids.
pub struct Preview {
    pub sample: Sample,
    pub place: Place,
    pub prompt: Vec<u32>,
    /// Control tokens in its texts, which are text there.
    pub control_texts: Vec<String>,
}

/// What SFT trains on.
pub struct Trained {
    pub answer: Vec<u32>,
    /// The end of the turn.
    pub end: Vec<u32>,
    /// Whether the task judges the answer as the row's label.
    pub agrees: bool,
}

impl Preview {
    /// The row in this line of `file`, counted from 1.
    ///
    /// # Errors
    /// There is no such row, or it cannot be mapped or encoded; named as `file:line`.
    pub fn read(task: &Task, encoder: &PromptEncoder, file: &Path, line: usize) -> Result<Self> {
        let (place, row) = row_at(file, line)?;
        let sample = task.sample(&row, &place.file, place.line)?;
        let prompt = encoder
            .encode_prompt(&sample.conversation)
            .map_err(|error| at_line(&place.file, place.line, error))?;
        let control_texts = encoder.control_texts(&sample.conversation);
        Ok(Self { sample, place, prompt: prompt.token_ids, control_texts })
    }

    /// None of a row without a target.
    ///
    /// # Errors
    /// The target cannot be encoded; named as `file:line`.
    pub fn trained(&self, task: &Task, encoder: &PromptEncoder) -> Result<Option<Trained>> {
        let Self { sample, place, .. } = self;
        let Some(text) = &sample.target else { return Ok(None) };
        let target = encoder.encode_target(&sample.conversation, text);
        let mut answer = target.map_err(|error| at_line(&place.file, place.line, error))?;
        let end = answer.split_off(answer.len() - encoder.end_of_turn().token_ids.len());
        let verdict = task.judge(text, FinishReason::Stop);
        let agrees = task.label_id(&sample.gold).is_some_and(|gold| Outcome::of(gold, verdict).is_exact());
        Ok(Some(Trained { answer, end, agrees }))
    }
}
