//! metrics.jsonl: a line for each step, each evaluation and each warning.

use std::path::Path;

use super::growing::GrowingFile;
use super::{Event, Sink};
use crate::error::{Error, Result};

/// Each line is in the file when [`Sink::emit`] returns, unless the disk is full.
pub struct JsonlSink(GrowingFile);

impl JsonlSink {
    /// Starts a new file, or an empty one anew.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        Self::resume(path, 0)
    }

    /// Goes on after the first `keep_bytes` bytes, as many as the file had at the checkpoint resumed from
    /// (`Checkpoint::metrics_bytes`): lines of steps that will be made again are cut off.
    pub fn resume(path: impl AsRef<Path>, keep_bytes: u64) -> Result<Self> {
        GrowingFile::open(path.as_ref(), keep_bytes).map(Self)
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
        self.0.append(&line)
    }

    fn waits(&self) -> bool {
        true
    }

    fn flush(&mut self) -> Result<()> {
        self.0.flush()
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
        assert!(error.contains("missing/metrics.jsonl: cannot open:"), "{error}");
    }
}
