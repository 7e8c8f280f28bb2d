//! A task file and a config from the rows of a data file: what they are is recognised, not asked.

mod fields;
mod files;
mod labels;
mod split;

use std::path::Path;

use serde_json::Value;

pub use self::fields::Reading;
pub use self::files::{Files, Lengths};
pub use self::labels::Labels;
pub use self::split::{Halves, split};
use crate::data::lines::Place;
use crate::data::raw;
use crate::error::{Error, Result};

/// A row as the files of a draft have it.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// `{text fields or messages, label}`
    pub json: Value,
    pub label: String,
}

/// What was recognised.
#[derive(Clone, Debug)]
pub struct Draft {
    pub reading: Reading,
    pub labels: Labels,
    pub rows: Vec<Row>,
}

/// Reads every row of `data`. `negative` names the label that flags nothing; it is guessed where it is absent.
///
/// # Errors
/// No text, no label, labels that are free text, or a row that is unlike the others.
pub fn draft(data: &Path, negative: Option<&str>) -> Result<Draft> {
    let rows = raw::rows(data, usize::MAX)?;
    if rows.is_empty() {
        return Err(Error::input(data.display(), "has no rows", "Write one JSON object a line"));
    }
    let reading = Reading::of(data, &rows)?;
    let rows = rows
        .iter()
        .map(|(Place { file, line }, row)| {
            reading.row(row).map(|(json, label)| Row { json, label }).map_err(|problem| {
                let fix = "Complete the row or take it out: every row has to be like the first";
                Error::input(format!("{}:{line}", file.display()), problem, fix)
            })
        })
        .collect::<Result<Vec<Row>>>()?;
    let labels = Labels::of(data, &rows, negative)?;
    Ok(Draft { reading, labels, rows })
}
