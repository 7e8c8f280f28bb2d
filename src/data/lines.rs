//! The lines of a JSONL file.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

/// Lines that are worked on at a time: enough for every core, few enough to keep in memory and to show how far it is.
pub(super) const CHUNK: usize = 64;

/// A line that is not blank.
pub(super) struct Line {
    /// 1-based.
    pub number: usize,
    bytes: Vec<u8>,
}

impl Line {
    /// # Errors
    /// `file:line`: not UTF-8, or not JSON.
    pub fn parse(&self, path: &Path) -> Result<(usize, Value)> {
        let place = || format!("{}:{}", path.display(), self.number);
        let text = std::str::from_utf8(self.bytes.trim_ascii_end()).map_err(|e| {
            let problem = format!("byte {} of the line is not UTF-8", e.valid_up_to() + 1);
            Error::input(place(), problem, "Save the file as UTF-8")
        })?;
        let value = serde_json::from_str(text).map_err(|e| {
            // serde_json counts lines too, but its line is always 1 here.
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or_default();
            let problem = format!("malformed JSON at column {}: {what}", e.column());
            Error::input(place(), problem, "Write one JSON object a line")
        })?;
        Ok((self.number, value))
    }
}

/// The row in line `line`, counted from 1.
///
/// # Errors
/// The file cannot be read, has no such line, or the line is blank or no JSON.
pub fn row_at(path: &Path, line: usize) -> Result<Value> {
    let mut lines = Lines::open(path)?;
    loop {
        let chunk = lines.next_chunk(CHUNK)?;
        if let Some(found) = chunk.iter().find(|l| l.number == line) {
            return Ok(found.parse(path)?.1);
        }
        if chunk.is_empty() || chunk.iter().any(|l| l.number > line) {
            let problem =
                if line == 0 || line > lines.number { "there is no such line" } else { "the line is blank" };
            let fix = "Lines count from 1; choose one that holds a row";
            return Err(Error::input(format!("{}:{line}", path.display()), problem, fix));
        }
    }
}

/// Lines of a file, blank ones too.
pub(super) fn count_lines(path: &Path) -> Result<usize> {
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    let (mut buffer, mut count, mut last) = (vec![0; 1 << 16], 0, b'\n');
    loop {
        let read = file.read(&mut buffer).map_err(Error::io(path, "read"))?;
        let Some(end) = buffer[..read].last() else { return Ok(count + usize::from(last != b'\n')) };
        last = *end;
        count += buffer[..read].iter().filter(|byte| **byte == b'\n').count();
    }
}

/// Lines of a file that are not blank, with their numbers.
pub(super) struct Lines {
    reader: BufReader<File>,
    path: std::path::PathBuf,
    number: usize,
}

impl Lines {
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            return Err(Error::input(path.display(), "is a folder, not a JSONL file", "Name a file in it"));
        }
        let file = File::open(path).map_err(Error::io(path, "read"))?;
        Ok(Self { reader: BufReader::new(file), path: path.to_path_buf(), number: 0 })
    }

    /// At most `count` lines; none at the end of the file.
    pub fn next_chunk(&mut self, count: usize) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        while lines.len() < count {
            let mut bytes = Vec::new();
            let read = self.reader.read_until(b'\n', &mut bytes).map_err(Error::io(&self.path, "read"))?;
            if read == 0 {
                break;
            }
            self.number += 1;
            // A byte order mark is no part of the first row.
            if self.number == 1 && bytes.starts_with(b"\xEF\xBB\xBF") {
                bytes.drain(..3);
            }
            if !bytes.trim_ascii().is_empty() {
                lines.push(Line { number: self.number, bytes });
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, "{\"a\": 1}\n\n{\"a\": 3}\n").unwrap();
        assert_eq!(row_at(&path, 1).unwrap()["a"], 1);
        assert_eq!(row_at(&path, 3).unwrap()["a"], 3);
        let error = |line| row_at(&path, line).unwrap_err().to_string();
        assert!(error(2).contains("rows.jsonl:2: the line is blank"));
        for absent in [0, 4, 9] {
            assert!(error(absent).contains("there is no such line"), "{absent}");
        }
    }

    #[test]
    fn lines_are_counted_with_and_without_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        for (text, want) in [("", 0), ("{}", 1), ("{}\n", 1), ("{}\n\n{}", 3)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(count_lines(&path).unwrap(), want, "{text:?}");
        }
    }
}
