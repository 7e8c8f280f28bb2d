//! samples/: judged completions to read, a JSON object a line.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{RunDirectory, replace_file};
use crate::error::{Error, Result};
use crate::observe::{Event, PromptRecord, SampleKind, Sink};

/// Writes `samples/<stage>-<step>-<kind>.jsonl`; a step made again after a resume replaces its file.
///
/// The prompts, which many completions share, are in `samples/prompts-of-evaluations.jsonl` and `-of-rollouts.jsonl`, each
/// once.
pub struct SampleFiles {
    folder: PathBuf,
    /// By kind, once it was asked for.
    prompts: [Option<Prompts>; 2],
}

/// A file that grows, and the data lines whose prompts it has.
struct Prompts {
    path: PathBuf,
    file: File,
    known: BTreeSet<usize>,
}

impl SampleFiles {
    pub fn new(run: &RunDirectory) -> Self {
        Self { folder: run.samples(), prompts: [None, None] }
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
            Event::Prompts { kind, prompts } => {
                let at = usize::from(*kind == SampleKind::Rollouts);
                let kept = match &mut self.prompts[at] {
                    Some(kept) => kept,
                    none => none.insert(Prompts::open(prompts_file(&self.folder, *kind))?),
                };
                kept.add(prompts)
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

/// Where the prompts of a kind of samples are.
pub fn prompts_file(samples: &Path, kind: SampleKind) -> PathBuf {
    samples.join(match kind {
        SampleKind::Evaluation => "prompts-of-evaluations.jsonl",
        SampleKind::Rollouts => "prompts-of-rollouts.jsonl",
    })
}

impl Prompts {
    /// Goes on after the whole lines that are there. They are written anew: the file may be another run's as well
    /// (`Checkpoint::hand_on`), and end within a line.
    fn open(path: PathBuf) -> Result<Self> {
        let mut content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::io(&path, "read")(error)),
        };
        content.truncate(content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        replace_file(&path, &content)?;
        let lines = content.split(|byte| *byte == b'\n');
        let records = lines.filter_map(|line| serde_json::from_slice::<PromptRecord>(line).ok());
        let known = records.map(|record| record.line).collect();
        let file = File::options().append(true).open(&path).map_err(Error::io(&path, "open"))?;
        Ok(Self { path, file, known })
    }

    fn add(&mut self, prompts: &[PromptRecord]) -> Result<()> {
        let mut content = Vec::new();
        for prompt in prompts.iter().filter(|prompt| self.known.insert(prompt.line)) {
            serde_json::to_writer(&mut content, prompt).map_err(|e| Error::Compute(e.into()))?;
            content.push(b'\n');
        }
        self.file.write_all(&content).map_err(Error::io(&self.path, "write"))
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
            advantage: None,
            tokens: Some(3),
            finish: None,
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

    #[test]
    fn a_prompt_is_kept_once_and_another_runs_file_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        let path = prompts_file(&run.samples(), SampleKind::Rollouts);
        let event = |lines: &[usize]| Event::Prompts {
            kind: SampleKind::Rollouts,
            prompts: lines.iter().map(|line| PromptRecord { line: *line, prompt: "log\n".into() }).collect(),
        };
        let mut files = SampleFiles::new(&run);
        files.emit(&event(&[3, 1])).unwrap();
        files.emit(&event(&[1, 2])).unwrap();
        drop(files);
        let other = root.path().join("linked");
        std::fs::hard_link(&path, &other).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"line\":9").unwrap();
        SampleFiles::new(&run).emit(&event(&[2, 4])).unwrap();
        let lines: Vec<usize> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<PromptRecord>(line).unwrap().line)
            .collect();
        assert_eq!(lines, [3, 1, 2, 4]);
        assert!(std::fs::read_to_string(other).unwrap().ends_with("{\"line\":9"));
    }
}
