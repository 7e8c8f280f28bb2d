//! Rows as a file has them, before a task makes samples of them.

use std::path::Path;

use serde_json::Value;

use super::lines::{CHUNK, Lines, Place};
use crate::error::Result;

/// The first rows of a data file, at most `most`, each with its place.
///
/// # Errors
/// The file cannot be read, or a line is no JSON.
pub fn rows(path: &Path, most: usize) -> Result<Vec<(Place, Value)>> {
    let lines = Lines::open(path)?.next_chunk(most)?;
    lines.iter().map(|line| Ok((line.place.clone(), line.parse()?))).collect()
}

/// How many rows a file has; none is parsed.
///
/// # Errors
/// The file cannot be read.
pub fn count(path: &Path) -> Result<usize> {
    let (mut lines, mut count) = (Lines::open(path)?, 0);
    loop {
        match lines.next_chunk(CHUNK)?.len() {
            0 => return Ok(count),
            more => count += more,
        }
    }
}
