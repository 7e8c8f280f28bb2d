//! What a reward that is asked for is told of a row.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::lines::Lines;
use crate::error::Result;
use crate::task::Task;
use crate::types::Sample;

/// Kept with a row where its task asks programs or addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `file:line`, for errors.
    pub place: String,
    /// The conversation that the model answers: its messages in OpenAI's form, JSON.
    pub prompt: String,
    /// The row as the data file has it, JSON.
    pub row: String,
}

impl Told {
    /// `None` where nobody is asked.
    pub(super) fn where_asked(task: &Task, sample: &Sample, row: &Value, file: &Path) -> Option<Arc<Self>> {
        if !task.asks() {
            return None;
        }
        Some(Arc::new(Self::of(sample, row, file)))
    }

    fn of(sample: &Sample, row: &Value, file: &Path) -> Self {
        let messages: Value = sample.conversation.messages.iter().map(|message| message.to_json()).collect();
        let place = format!("{}:{}", file.display(), sample.line);
        Self { place, prompt: messages.to_string(), row: row.to_string() }
    }
}

/// The first `count` rows of a file, fewer where it has fewer, and what is told of them.
///
/// # Errors
/// The file cannot be read; a row cannot be mapped.
pub fn first_rows(task: &Task, path: &Path, count: usize) -> Result<Vec<(Value, Sample, Arc<Told>)>> {
    let lines = Lines::open(path)?.next_chunk(count)?;
    let read = lines.iter().map(|line| {
        let row = line.parse()?;
        let sample = task.sample(&row, &line.place.file, line.place.line)?;
        let told = Arc::new(Told::of(&sample, &row, &line.place.file));
        Ok((row, sample, told))
    });
    read.collect()
}
