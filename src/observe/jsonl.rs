//! metrics.jsonl: a line for each step, each evaluation and each warning.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use super::{Event, Sink};
use crate::error::{Error, Result};

/// Appends to a file, a whole line at a time, so that a reader or a kill never sees a part of one.
pub struct JsonlSink {
    path: PathBuf,
    file: File,
    /// Length of the file up to its last whole line.
    whole_bytes: u64,
    /// A write failed and may have left a part of a line.
    torn: bool,
}

impl JsonlSink {
    /// Starts a new file, or an empty one anew.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::resume(path, 0)
    }

    /// Goes on after the first `keep_bytes` bytes, as many as the file had at the checkpoint resumed from
    /// (`Checkpoint::metrics_bytes`): lines of steps that will be made again are cut off.
    pub fn resume(path: impl AsRef<Path>, keep_bytes: u64) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let mut options = File::options();
        let file = options
            .read(true)
            .append(true)
            .create(true)
            .open(&path)
            .map_err(Error::io(&path, "open the metrics file"))?;
        let mut kept = Vec::new();
        (&file).take(keep_bytes).read_to_end(&mut kept).map_err(Error::io(&path, "read the metrics file"))?;
        // The file may be shorter than it was, after a crash of the whole machine, and end within a line.
        let whole_bytes = kept.iter().rposition(|b| *b == b'\n').map_or(0, |end| end as u64 + 1);
        file.set_len(whole_bytes).map_err(Error::io(&path, "write the metrics file"))?;
        Ok(Self { path, file, whole_bytes, torn: false })
    }

    fn append(&mut self, line: &[u8]) -> std::io::Result<()> {
        if self.torn {
            self.file.set_len(self.whole_bytes)?;
        }
        self.torn = true;
        self.file.write_all(line)?;
        self.torn = false;
        self.whole_bytes += line.len() as u64;
        Ok(())
    }
}

impl Sink for JsonlSink {
    fn name(&self) -> &str {
        "the metrics file"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        if !matches!(event, Event::Step { .. } | Event::Evaluation { .. } | Event::Warning { .. }) {
            return Ok(());
        }
        let mut line = serde_json::to_vec(event).map_err(|e| Error::Compute(e.into()))?;
        line.push(b'\n');
        let path = self.path.clone();
        self.append(&line).map_err(Error::io(path, "write the metrics file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::TensorBoard;

    fn step(step: u64) -> Event {
        Event::Step { stage: "sft".into(), step, metrics: [("loss", 0.5)].into_iter().collect() }
    }

    fn steps(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        assert!(text.ends_with('\n'));
        text.lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap())
            .collect()
    }

    #[test]
    fn each_step_is_on_disk_when_emit_returns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut sink = JsonlSink::create(&path).unwrap();
        sink.emit(&step(1)).unwrap();
        sink.emit(&Event::Note { text: "nothing to worry about".into() }).unwrap();
        assert_eq!(steps(&path), [1]);
        sink.emit(&step(2)).unwrap();
        assert_eq!(steps(&path), [1, 2]);
        sink.emit(&Event::Warning { text: "all answers are equal".into() }).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("\n{\"event\":\"warning\",\"text\":\"all answers are equal\"}\n"), "{text}");
        assert_eq!(TensorBoard::events_in(text.as_bytes()), 2);
    }

    #[test]
    fn a_resume_cuts_off_what_will_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut sink = JsonlSink::create(&path).unwrap();
        sink.emit(&step(1)).unwrap();
        let at_checkpoint = std::fs::metadata(&path).unwrap().len();
        sink.emit(&step(2)).unwrap();
        drop(sink);
        let mut sink = JsonlSink::resume(&path, at_checkpoint).unwrap();
        sink.emit(&step(2)).unwrap();
        sink.emit(&step(3)).unwrap();
        assert_eq!(steps(&path), [1, 2, 3]);
    }

    #[test]
    fn a_torn_line_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"st").unwrap();
        JsonlSink::resume(&path, 1000).unwrap().emit(&step(2)).unwrap();
        assert_eq!(steps(&path), [1, 2]);
    }

    #[test]
    fn a_path_that_cannot_open_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing/metrics.jsonl");
        let error = JsonlSink::create(&path).err().unwrap().to_string();
        assert!(error.contains("missing/metrics.jsonl: cannot open the metrics file"), "{error}");
    }
}
