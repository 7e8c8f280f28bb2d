//! Rows as a file has them, before a task makes samples of them.

use std::path::Path;

use serde_json::Value;

use super::lines::Lines;
use crate::error::Result;

/// The first rows of a JSONL file, at most `most`, each with its line from 1.
///
/// # Errors
/// The file cannot be read, or a line is no JSON.
pub fn rows(path: &Path, most: usize) -> Result<Vec<(usize, Value)>> {
    Lines::open(path)?.next_chunk(most)?.iter().map(|line| line.parse(path)).collect()
}
