//! samples/: judged completions to read, a JSON object a line.

use std::path::PathBuf;

use serde::Serialize;

use super::{RunDirectory, replace_file};
use crate::error::{Error, Result};
use crate::observe::{Event, SampleKind, Sink};

/// Writes `samples/<stage>-<step>-<kind>.jsonl`; a step made again after a resume replaces its file.
pub struct SampleFiles {
    folder: PathBuf,
}

impl SampleFiles {
    pub fn new(run: &RunDirectory) -> Self {
        Self { folder: run.samples() }
    }
}

impl Sink for SampleFiles {
    fn name(&self) -> &str {
        "the samples folder"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        match event {
            Event::Samples { kind: SampleKind::Rollouts, stage, step, samples } => {
                self.write(stage, *step, "rollouts", samples)
            }
            Event::Samples { kind: SampleKind::Evaluation, stage, step, samples } => {
                self.write(stage, *step, "evaluation", samples)
            }
            Event::Tokens { stage, step, completions } => self.write(stage, *step, "tokens", completions),
            _ => Ok(()),
        }
    }
}

impl SampleFiles {
    fn write(&self, stage: &str, step: u64, kind: &str, lines: &[impl Serialize]) -> Result<()> {
        let mut content = Vec::new();
        for line in lines {
            serde_json::to_writer(&mut content, line).map_err(|e| Error::Compute(e.into()))?;
            content.push(b'\n');
        }
        replace_file(&self.folder.join(format!("{stage}-{step:06}-{kind}.jsonl")), &content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::SampleRecord;

    #[test]
    fn a_batch_is_a_file_and_a_completion_a_line() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        let sample = SampleRecord {
            line: 7,
            gold: "Safe".into(),
            verdict: "malformed".into(),
            reward: 0.0,
            completion: "two\nlines".into(),
        };
        let event = Event::Samples {
            kind: SampleKind::Evaluation,
            stage: "grpo".into(),
            step: 20,
            samples: vec![sample.clone(), SampleRecord { line: 8, ..sample.clone() }],
        };
        SampleFiles::new(&run).emit(&event).unwrap();
        let text = std::fs::read_to_string(run.samples().join("grpo-000020-evaluation.jsonl")).unwrap();
        let lines: Vec<SampleRecord> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(lines, [sample.clone(), SampleRecord { line: 8, ..sample }]);
    }
}
