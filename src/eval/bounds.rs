//! Which bound of `[grounded]` lets the answers to imitate pass, and which hollow ones with them.

use std::path::Path;

use serde::Serialize;

use super::hollow::{AuditRow, Benign, QUESTION};
use crate::data::predictions::for_each_row;
use crate::error::{Error, Result};
use crate::task::{Bound, Task};

/// Heights that are tried.
const HEIGHTS: [f64; 10] = [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0];
/// Share of the targets that should pass.
pub const WANTED: f64 = 0.95;

/// One height: shares of the benign rows whose answer passes by it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Height {
    pub at: f64,
    pub targets: f64,
    /// The answer to another row, and a copy of the question.
    pub others: f64,
    pub questions: f64,
}

/// A bound at all heights.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Heights {
    pub key: &'static str,
    /// Benign rows with a target that have something to hold it against by this bound.
    pub rows: usize,
    pub heights: Vec<Height>,
    /// The greatest height by which 95% of the targets pass.
    pub highest: Option<f64>,
}

/// Both bounds, as far as the task has them; `min_f1` holds the target against itself, so only the others say something.
///
/// # Errors
/// The task has no `[grounded]`; a file cannot be read, or a row of it.
pub fn heights(task: &Task, data: &Path) -> Result<Vec<Heights>> {
    if !task.has_grounded() {
        let fix = "Add the section, or leave --grounded out; docs/tasks.md says how";
        return Err(Error::input(format!("task `{}`", task.name()), "has no [grounded]", fix));
    }
    let mut rows: Vec<Benign> = Vec::new();
    for_each_row(data, |_, place, row| {
        rows.extend(
            AuditRow::read(task, row, &place.file, place.line)?.benign.filter(|row| row.target.is_some()),
        );
        Ok(())
    })?;
    let of = |key, bound: fn(f64) -> Bound| {
        let passes = |row: &Benign, text: &str, at: f64| {
            row.evidence.as_ref().and_then(|evidence| task.grounded_by(bound(at), evidence, text))
        };
        let asked: Vec<&Benign> = rows.iter().filter(|row| passes(row, "", 1.0).is_some()).collect();
        let targets: Vec<Option<&str>> = asked.iter().map(|row| row.target.as_deref()).collect();
        let mut others = targets.clone();
        let by = usize::from(!others.is_empty());
        others.rotate_right(by);
        let questions: Vec<Option<&str>> = asked.iter().map(|row| row.copy(QUESTION)).collect();
        let share = |at: f64, texts: &[Option<&str>]| {
            let pairs = asked.iter().zip(texts);
            let passed =
                pairs.filter(|(row, text)| text.and_then(|text| passes(row, text, at)) == Some(true));
            passed.count() as f64 / asked.len().max(1) as f64
        };
        let heights = HEIGHTS.map(|at| Height {
            at,
            targets: share(at, &targets),
            others: share(at, &others),
            questions: share(at, &questions),
        });
        let highest = heights.iter().rev().find(|height| height.targets >= WANTED).map(|height| height.at);
        Heights { key, rows: asked.len(), heights: heights.to_vec(), highest }
    };
    let all = [of("min_share", Bound::Share), of("min_f1", Bound::F1)];
    Ok(all.into_iter().filter(|bound| bound.rows > 0).collect())
}
