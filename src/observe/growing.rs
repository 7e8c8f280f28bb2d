//! A file that grows by whole lines, and waits for a disk that is full.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Bytes of lines that wait for room; what comes beyond them is lost.
const MOST_WAITING: usize = 64 << 20;

/// Appends a whole line at a time, so that a reader or a kill never sees a part of one.
pub struct GrowingFile {
    path: PathBuf,
    /// `None` before the first line of a new file.
    file: Option<File>,
    /// Length of the file up to its last whole line.
    whole_bytes: u64,
    /// A write failed and may have left a part of a line.
    torn: bool,
    /// Lines that could not be written yet.
    waiting: Vec<u8>,
}

impl GrowingFile {
    /// Goes on after the whole lines in the first `keep_bytes` bytes of what is there, as many as the file had at the checkpoint that
    /// is resumed from: what comes after them will be made again, and is cut off.
    pub fn open(path: &Path, keep_bytes: u64) -> Result<Self> {
        let mut options = File::options();
        let file =
            options.read(true).append(true).create(true).open(path).map_err(Error::io(path, "open"))?;
        let mut kept = Vec::new();
        (&file).take(keep_bytes).read_to_end(&mut kept).map_err(Error::io(path, "read"))?;
        // The file may be shorter than it was, after a crash of the whole machine, and end within a line.
        let whole_bytes = kept.iter().rposition(|b| *b == b'\n').map_or(0, |end| end as u64 + 1);
        file.set_len(whole_bytes).map_err(Error::io(path, "write"))?;
        Ok(Self { path: path.into(), file: Some(file), whole_bytes, torn: false, waiting: Vec::new() })
    }

    /// A file that is not there yet, made with its first line.
    pub fn begin(path: PathBuf) -> Self {
        Self { path, file: None, whole_bytes: 0, torn: false, waiting: Vec::new() }
    }

    /// With what waits to be written.
    pub fn bytes(&self) -> u64 {
        self.whole_bytes + self.waiting.len() as u64
    }

    /// # Errors
    /// The lines are not written; they are with the next ones, or at [`Self::flush`].
    pub fn append(&mut self, lines: &[u8]) -> Result<()> {
        if self.waiting.len() + lines.len() <= MOST_WAITING || self.waiting.is_empty() {
            self.waiting.extend_from_slice(lines);
        }
        self.flush()
    }

    /// Writes what waits.
    pub fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let mut write = || {
            let file = match &mut self.file {
                Some(file) => file,
                none => none.insert(File::options().append(true).create(true).open(&self.path)?),
            };
            if self.torn {
                file.set_len(self.whole_bytes)?;
            }
            self.torn = true;
            file.write_all(&self.waiting)
        };
        write().map_err(Error::io(&self.path, "write"))?;
        self.torn = false;
        self.whole_bytes += self.waiting.len() as u64;
        self.waiting.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_find_no_room_wait_and_come_before_the_next() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        let path = folder.join("lines.jsonl");
        let mut file = GrowingFile::begin(path.clone());
        assert!(file.append(b"1\n").is_err() && file.append(b"2\n").is_err());
        assert!(file.flush().is_err());
        assert_eq!(file.bytes(), 4);
        std::fs::create_dir(&folder).unwrap();
        file.append(b"3\n").unwrap();
        assert_eq!((std::fs::read_to_string(&path).unwrap().as_str(), file.bytes()), ("1\n2\n3\n", 6));
    }

    #[test]
    fn a_line_that_was_written_in_part_is_written_anew() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("lines.jsonl");
        let mut file = GrowingFile::open(&path, 0).unwrap();
        file.append(b"1\n").unwrap();
        // What a disk leaves that is full within the second line.
        std::fs::write(&path, "1\n{\"st").unwrap();
        (file.torn, file.waiting) = (true, b"{\"step\":2}\n".to_vec());
        file.append(b"3\n").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n{\"step\":2}\n3\n");
    }

    #[test]
    fn what_waits_for_ever_does_not_fill_the_memory() {
        let root = tempfile::tempdir().unwrap();
        let mut file = GrowingFile::begin(root.path().join("absent/lines.jsonl"));
        let line = vec![b'x'; MOST_WAITING / 2 + 1];
        for _ in 0..3 {
            assert!(file.append(&line).is_err());
        }
        assert_eq!(file.waiting.len(), line.len());
    }
}
