//! Rows of one file that are in another too, exactly or nearly.

use std::collections::HashMap;
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;

use super::check::fingerprint;
use super::lines::{Line, Lines};
use super::near::{Corpus, Shingles};
use crate::error::Result;
use crate::task::Task;

/// A row as comparisons need it.
pub struct Read {
    pub line: usize,
    pub row: Value,
    /// SHA-256 of what the model is given.
    pub fingerprint: [u8; 32],
    pub shingles: Shingles,
    pub gold: String,
}

impl Read {
    fn of(task: &Task, line: &Line) -> Result<Self> {
        let row = line.parse()?;
        let sample = task.sample(&row, &line.place.file, line.place.line)?;
        let text = sample.conversation.messages.iter().fold(String::new(), |text, message| {
            let more =
                message.more.values().fold(String::new(), |more, value| more + " " + &value.to_string());
            text + "\n" + &message.text() + &more
        });
        let (fingerprint, shingles) = (fingerprint(&sample.conversation), Shingles::of(&text));
        Ok(Self { line: line.number, row, fingerprint, shingles, gold: sample.gold })
    }
}

/// Every row of a file.
///
/// # Errors
/// The file cannot be read; the first bad row, as `file:line`.
pub fn read(task: &Task, path: &Path) -> Result<Vec<Read>> {
    let lines = Lines::open(path)?.next_chunk(usize::MAX)?;
    lines.par_iter().map(|line| Read::of(task, line)).collect()
}

/// A row that another file has too.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leak {
    pub line: usize,
    /// Of the other file.
    pub there: usize,
    /// 1: the model is given the same.
    pub similarity: f64,
    pub same_label: bool,
}

/// Rows of `path` that `other` has, each with the first that is the same or else the first that is similar by `near` or
/// more. Rows of `path` that cannot be read are left out.
///
/// # Errors
/// A file cannot be read; the first bad row of `other`.
pub fn leaks(task: &Task, path: &Path, other: &Path, near: f64) -> Result<Vec<Leak>> {
    let there = read(task, other)?;
    let mut same: HashMap<[u8; 32], usize> = HashMap::new();
    for (at, row) in there.iter().enumerate() {
        same.entry(row.fingerprint).or_insert(at);
    }
    let corpus = Corpus::new(there.iter().map(|row| row.shingles.clone()).collect());
    let lines = Lines::open(path)?.next_chunk(usize::MAX)?;
    let leak = |line: &Line| {
        let row = Read::of(task, line).ok()?;
        let leak = |at: usize, similarity| Leak {
            line: row.line,
            there: there[at].line,
            similarity,
            same_label: there[at].gold == row.gold,
        };
        if let Some(at) = same.get(&row.fingerprint) {
            return Some(leak(*at, 1.0));
        }
        let text = corpus.stripped(row.shingles.clone());
        let candidates = corpus.candidates(&text).into_iter();
        let mut similar = candidates.map(|at| (at, text.similarity(corpus.text(at))));
        let (at, similarity) = similar.find(|(_, similarity)| *similarity >= near)?;
        // Two texts with the same words are not the same text.
        Some(leak(at, similarity.min(0.999)))
    };
    Ok(lines.par_iter().filter_map(leak).collect())
}
