//! Rows to answer: conversations without a gold label.

use std::path::Path;
use std::sync::Arc;

use super::jsonl::{EncodedAnswer, EncodedRow, at_line};
use super::lines::{Line, Lines};
use crate::error::Result;
use crate::task::{LabelId, Task};
use crate::text::PromptEncoder;

/// Whether the labels' exact answers are wanted too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    Encoded,
    Left,
}

/// Reads a JSONL file a few rows at a time.
pub struct Unlabelled<'a> {
    pub task: &'a Task,
    pub encoder: &'a PromptEncoder,
    pub answers: Answers,
    /// A prompt with more bytes than so many tokens can stand for is left empty.
    pub max_prompt_tokens: usize,
    /// Rows so far with half of a character, in the place of which is U+FFFD.
    pub half_characters: usize,
    lines: Lines,
}

impl<'a> Unlabelled<'a> {
    pub fn open(
        task: &'a Task,
        encoder: &'a PromptEncoder,
        answers: Answers,
        max_prompt_tokens: usize,
        path: &Path,
    ) -> Result<Self> {
        let lines = Lines::open(path)?;
        Ok(Self { task, encoder, answers, max_prompt_tokens, half_characters: 0, lines })
    }

    /// At most `count` rows, none at the end. Their `gold` is a placeholder, the negative label.
    ///
    /// # Errors
    /// The first bad row, as `file:line`.
    pub fn next_rows(&mut self, count: usize) -> Result<Vec<EncodedRow>> {
        let lines = self.lines.next_chunk(count)?;
        self.half_characters += lines.iter().filter(|line| line.has_half_characters()).count();
        lines.iter().map(|line| self.encode(line)).collect()
    }

    fn encode(&self, read: &Line) -> Result<EncodedRow> {
        let (path, line, row) = (&read.place.file, read.place.line, read.parse()?);
        let conversation = self.task.conversation(&row, path, line)?;
        let at = |e| at_line(path, line, e);
        let prompt = self.encoder.encode_prompt_within(&conversation, self.max_prompt_tokens).map_err(at)?;
        let is_counted = prompt.is_some();
        let prompt = prompt.unwrap_or_default();
        let texts = match self.answers {
            Answers::Encoded if is_counted => self.task.answers(&row, path, line)?,
            Answers::Encoded | Answers::Left => Vec::new(),
        };
        let answers = texts.iter().map(|answer| {
            let encoded = self.encoder.encode_target_after(&prompt, &conversation, &answer.text);
            let token_ids = encoded.map_err(at)?;
            Ok(EncodedAnswer { label: answer.label, token_ids })
        });
        let answers = answers.collect::<Result<Vec<_>>>()?;
        Ok(EncodedRow {
            line: read.number,
            source: None,
            prompt,
            gold: LabelId::NEGATIVE,
            target: None,
            answers,
            attack_succeeded: None,
            evidence: self.task.evidence(&row, LabelId::NEGATIVE).map(Arc::new),
            control_texts: self.encoder.control_texts(&conversation),
            told: None,
            judge: None,
        })
    }
}
