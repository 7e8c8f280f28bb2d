//! Rows of CSV and TSV: the header's names with a record's cells, all of them texts.

use std::cell::Cell;
use std::collections::HashSet;
use std::io::{BufRead, Read};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use csv::{ErrorKind, Reader, ReaderBuilder, StringRecord};
use serde_json::{Map, Value};

use super::format::unreadable;
use super::{Line, Source};
use crate::error::{Error, Result};

pub(super) struct Delimited {
    reader: Reader<Quotes>,
    file: Arc<Path>,
    columns: Vec<String>,
    /// The next record: whether there is one tells whether a cell took in the end of the file.
    ahead: Option<StringRecord>,
    /// Where the latest record starts.
    line: usize,
    /// Quotes seen so far.
    quotes: Rc<Cell<u64>>,
}

/// Counts quotes: the csv crate takes a file's end for that of a quoted cell, and a cell can swallow the rest of a file.
struct Quotes {
    text: Box<dyn BufRead>,
    seen: Rc<Cell<u64>>,
}

impl Read for Quotes {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.text.read(buffer)?;
        let quotes = buffer[..read].iter().filter(|byte| **byte == b'"').count();
        self.seen.set(self.seen.get() + quotes as u64);
        Ok(read)
    }
}

impl Delimited {
    /// # Errors
    /// No header, or one with an empty name or the same name twice.
    pub fn new(path: &Arc<Path>, text: Box<dyn BufRead>, delimiter: u8) -> Result<Self> {
        let quotes = Rc::new(Cell::new(0));
        let counted = Quotes { text, seen: Rc::clone(&quotes) };
        let mut reader = ReaderBuilder::new().delimiter(delimiter).from_reader(counted);
        let header = reader.headers().map_err(|e| fault(path, e))?;
        let columns: Vec<String> = header.iter().map(|name| name.trim().to_string()).collect();
        let wrong = |problem: String| {
            let problem = format!("read as CSV: {problem}");
            Err(Error::input(
                format!("{}:1", path.display()),
                problem,
                "The first line names the columns, each once",
            ))
        };
        if let Some(at) = columns.iter().position(String::is_empty) {
            // pandas writes its index into a column without a name.
            if at > 0 || columns.len() == 1 {
                return wrong(format!("column {} has no name", at + 1));
            }
        }
        let mut seen = HashSet::new();
        if let Some(twice) = columns.iter().find(|name| !seen.insert(name.as_str())) {
            return wrong(format!("two columns are called `{twice}`"));
        }
        Ok(Self { reader, file: Arc::clone(path), columns, ahead: None, line: 1, quotes })
    }
}

impl Delimited {
    fn record(&mut self) -> Result<Option<StringRecord>> {
        let mut record = StringRecord::new();
        let read = self.reader.read_record(&mut record).map_err(|e| fault(&self.file, e))?;
        Ok(read.then_some(record))
    }
}

impl Source for Delimited {
    fn next_line(&mut self) -> Result<Option<Line>> {
        let record = match self.ahead.take() {
            Some(record) => record,
            None => match self.record()? {
                Some(record) => record,
                None => return Ok(None),
            },
        };
        self.line = record.position().map_or(self.line + 1, |at| at.line() as usize);
        self.ahead = self.record()?;
        let last = self.ahead.is_none() && self.quotes.get() % 2 == 1;
        if last && record.iter().any(|cell| cell.contains('\n')) {
            let place = format!("{}:{}", self.file.display(), self.line);
            let problem = "a quoted cell has no closing quote and takes in the rest of the file";
            return Err(Error::input(place, problem, "Close it; a quote within a cell is written twice"));
        }
        let cells = self.columns.iter().zip(record.iter());
        let row: Map<String, Value> = cells.map(|(name, cell)| (name.clone(), Value::from(cell))).collect();
        Ok(Some(Line::row(self.line, &self.file, Value::Object(row))))
    }

    fn number(&self) -> usize {
        self.line
    }
}

fn fault(path: &Path, error: csv::Error) -> Error {
    let at = error.position().map_or(1, csv::Position::line);
    let place = format!("{}:{at}", path.display());
    match error.into_kind() {
        ErrorKind::Io(error) => unreadable(path)(error),
        ErrorKind::UnequalLengths { expected_len, len, .. } => {
            let problem = format!("read as CSV: {len} cells, where the header names {expected_len}");
            Error::input(place, problem, "Quote cells that hold the delimiter or a line break")
        }
        ErrorKind::Utf8 { err, .. } => {
            Error::input(place, format!("cell {} is not UTF-8", err.field() + 1), "Save the file as UTF-8")
        }
        other => Error::input(place, format!("read as CSV: {other:?}"), "Correct the record"),
    }
}
