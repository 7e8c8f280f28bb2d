//! The elements of a JSON list, one at a time, so that a file need not fit in memory.

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;

use super::format::unreadable;
use super::{Line, Source};
use crate::error::{Error, Result};

pub(super) struct List {
    text: Box<dyn BufRead>,
    file: Arc<Path>,
    /// Elements so far.
    row: usize,
    at: At,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Start,
    /// Behind an element.
    Within,
    End,
}

impl List {
    pub fn new(path: &Arc<Path>, text: Box<dyn BufRead>) -> Self {
        Self { text, file: Arc::clone(path), row: 0, at: At::Start }
    }

    fn fault<T>(&self, problem: &str) -> Result<T> {
        let fix = "Write a JSON list of objects, or one JSON object a line";
        Err(Error::input(format!("{}:{}", self.file.display(), self.row + 1), problem, fix))
    }

    /// The next byte that is no blank, left where it is.
    fn peek(&mut self) -> Result<Option<u8>> {
        loop {
            let bytes = self.text.fill_buf().map_err(unreadable(&self.file))?;
            let blank = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            if let Some(byte) = bytes.get(blank) {
                let byte = *byte;
                self.text.consume(blank);
                return Ok(Some(byte));
            }
            if blank == 0 {
                return Ok(None);
            }
            self.text.consume(blank);
        }
    }

    /// One element's bytes: to the bracket that closes it, or to the comma or bracket after it.
    fn element(&mut self) -> Result<Vec<u8>> {
        let mut element = Vec::new();
        let (mut depth, mut quoted, mut escaped) = (0, false, false);
        loop {
            let bytes = self.text.fill_buf().map_err(unreadable(&self.file))?;
            if bytes.is_empty() {
                return self.fault("the list ends within a row: the file is cut");
            }
            let mut taken = 0;
            let mut ended = false;
            for byte in bytes {
                if !quoted && depth == 0 && matches!(byte, b',' | b']') {
                    ended = true;
                    break;
                }
                taken += 1;
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' if quoted => escaped = true,
                    b'"' => quoted = !quoted,
                    b'{' | b'[' if !quoted => depth += 1,
                    b'}' | b']' if !quoted => depth -= 1,
                    _ => {}
                }
                if !quoted && depth == 0 && matches!(byte, b'}' | b']') {
                    ended = true;
                    break;
                }
            }
            element.extend_from_slice(&bytes[..taken]);
            self.text.consume(taken);
            if ended {
                return Ok(element);
            }
        }
    }
}

impl Source for List {
    fn next_line(&mut self) -> Result<Option<Line>> {
        match (self.at, self.peek()?) {
            (At::End, _) => return Ok(None),
            (_, None) => return self.fault("the list has no end: the file is cut"),
            (At::Start, _) => self.text.consume(1),
            (At::Within, Some(b',')) => {
                self.text.consume(1);
                if self.peek()? == Some(b']') {
                    return self.fault("a comma with no row after it");
                }
            }
            (At::Within, Some(b']')) => {}
            (At::Within, _) => return self.fault("neither a comma nor the list's end after a row"),
        }
        if self.peek()? == Some(b']') {
            self.text.consume(1);
            self.at = At::End;
            return match self.peek()? {
                None => Ok(None),
                Some(_) => self.fault("more follows the end of the list"),
            };
        }
        let bytes = self.element()?;
        self.at = At::Within;
        self.row += 1;
        Ok(Some(Line::text(self.row, &self.file, bytes)))
    }

    fn number(&self) -> usize {
        self.row
    }
}
