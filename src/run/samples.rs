//! samples/: judged completions to read, a JSON object a line.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::manifest::{Lengths, sync_file};
use super::{RunDirectory, replace_file, sync_folder};
use crate::disk;
use crate::error::{Error, Result};
use crate::observe::{Event, GrowingFile, PromptRecord, SampleKind, Sink};

/// A file that has so many bytes gets no further step.
const FULL: u64 = 64 << 20;

/// Writes `samples/<stage>-<kind>.jsonl`, of each completion the `step` that it is of and what is known of it; where the file is
/// full, the next steps go into `<stage>-<kind>.2.jsonl`, and so on.
///
/// The prompts, which many completions share, are in `samples/prompts-of-evaluations.jsonl` and `-of-rollouts.jsonl`, each
/// once.
pub struct SampleFiles {
    folder: PathBuf,
    full: u64,
    /// The newest part of each, by `<stage>-<kind>`.
    growing: BTreeMap<String, (u32, GrowingFile)>,
    /// By kind.
    prompts: [Prompts; 2],
}

/// A file that grows, and the data lines whose prompts it has.
struct Prompts {
    file: GrowingFile,
    known: BTreeSet<usize>,
}

#[derive(Serialize)]
struct OfStep<'a, T> {
    step: u64,
    #[serde(flatten)]
    record: &'a T,
}

impl SampleFiles {
    pub fn new(run: &RunDirectory) -> Result<Self> {
        let folder = run.samples();
        let open = |kind| Prompts::open(prompts_file(&folder, kind));
        let prompts = [open(SampleKind::Evaluation)?, open(SampleKind::Rollouts)?];
        Ok(Self { folder, full: FULL, growing: BTreeMap::new(), prompts })
    }

    /// Goes on as the files were at a checkpoint: what they have gained since will be made again.
    pub fn resume(run: &RunDirectory, lengths: &Lengths) -> Result<Self> {
        let mut files = Self::new(run)?;
        for (part, path) in parts(&files.folder)? {
            match lengths.get(&part.file_name()) {
                Some(bytes) => {
                    let file = GrowingFile::open(&path, *bytes)?;
                    files.growing.insert(part.stem, (part.number, file));
                }
                None => std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?,
            }
        }
        Ok(files)
    }

    fn write(&mut self, stage: &str, step: u64, kind: &str, records: &[impl Serialize]) -> Result<()> {
        let mut lines = Vec::new();
        for record in records {
            serde_json::to_writer(&mut lines, &OfStep { step, record })
                .map_err(|e| Error::Compute(e.into()))?;
            lines.push(b'\n');
        }
        let stem = format!("{stage}-{kind}");
        let number = match self.growing.get(&stem) {
            Some((number, file)) if file.bytes() < self.full => *number,
            Some((number, _)) => number + 1,
            None => 1,
        };
        let part = Part { stem, number };
        let begin = || GrowingFile::begin(self.folder.join(part.file_name()));
        let (open, file) = self.growing.entry(part.stem.clone()).or_insert_with(|| (number, begin()));
        if *open != number {
            // A full one that waits for room keeps the next steps waiting as well.
            match file.flush() {
                Ok(()) => (*open, *file) = (number, begin()),
                Err(_) => return file.append(&lines),
            }
        }
        file.append(&lines)
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
                self.prompts[usize::from(*kind == SampleKind::Rollouts)].add(prompts)
            }
            Event::Tokens { stage, step, completions } => self.write(stage, *step, "tokens", completions),
            _ => Ok(()),
        }
    }

    fn waits(&self) -> bool {
        true
    }

    fn flush(&mut self) -> Result<()> {
        let growing = self.growing.values_mut().map(|(_, file)| file);
        growing.chain(self.prompts.iter_mut().map(|of| &mut of.file)).try_for_each(GrowingFile::flush)
    }
}

/// `grpo-rollouts.2.jsonl`
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Part {
    pub(super) stem: String,
    number: u32,
}

impl Part {
    fn of(name: &str) -> Option<Self> {
        let name = name.strip_suffix(".jsonl")?;
        let (stem, number) = match name.split_once('.') {
            None => (name, 1),
            Some((stem, number)) => (stem, number.parse().ok().filter(|number| *number > 1)?),
        };
        let (stage, kind) = stem.split_once('-')?;
        let known = ["rollouts", "evaluation", "tokens"].contains(&kind) && !stage.is_empty();
        known.then(|| Self { stem: stem.into(), number })
    }

    fn file_name(&self) -> String {
        match self.number {
            1 => format!("{}.jsonl", self.stem),
            number => format!("{}.{number}.jsonl", self.stem),
        }
    }
}

/// The growing files of a samples folder, those of a stem by their number.
pub(super) fn parts(samples: &Path) -> Result<Vec<(Part, PathBuf)>> {
    let paths = disk::entries(samples)?.into_iter();
    let name = |path: &PathBuf| Part::of(path.file_name()?.to_str()?);
    let mut parts: Vec<_> = paths.filter_map(|path| Some((name(&path)?, path))).collect();
    parts.sort();
    Ok(parts)
}

/// Of the growing files as they are now.
pub(super) fn lengths(samples: &Path) -> Result<Lengths> {
    let length = |(part, path): (Part, PathBuf)| {
        let bytes = std::fs::metadata(&path).map_err(Error::io(&path, "read"))?.len();
        Ok((part.file_name(), bytes))
    };
    parts(samples)?.into_iter().map(length).collect()
}

/// Makes the growing files durable.
pub(super) fn sync(samples: &Path) -> Result<()> {
    parts(samples)?.iter().try_for_each(|(_, path)| sync_file(path))
}

/// Copies a samples folder as it was at a checkpoint.
pub(super) fn hand_on(from: &Path, to: &Path, lengths: &Lengths) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::io(to, "create the directory"))?;
    for source in disk::entries(from)? {
        let name = source.file_name().unwrap_or_default();
        let target = to.join(name);
        let bytes = match name.to_str() {
            Some(name) if Part::of(name).is_some() => lengths.get(name).copied().unwrap_or(0),
            _ => u64::MAX,
        };
        if bytes == 0 {
            continue;
        }
        let copy = || {
            let mut part = File::open(&source)?.take(bytes);
            std::io::copy(&mut part, &mut File::create(&target)?)
        };
        copy().map_err(Error::io(&target, "write"))?;
        sync_file(&target)?;
    }
    sync_folder(to)
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
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self { file: GrowingFile::begin(path), known: BTreeSet::new() });
            }
            Err(error) => return Err(Error::io(&path, "read")(error)),
        };
        content.truncate(content.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1));
        replace_file(&path, &content)?;
        let lines = content.split(|byte| *byte == b'\n');
        let records = lines.filter_map(|line| serde_json::from_slice::<PromptRecord>(line).ok());
        let known = records.map(|record| record.line).collect();
        Ok(Self { file: GrowingFile::open(&path, content.len() as u64)?, known })
    }

    fn add(&mut self, prompts: &[PromptRecord]) -> Result<()> {
        let mut content = Vec::new();
        for prompt in prompts.iter().filter(|prompt| self.known.insert(prompt.line)) {
            serde_json::to_writer(&mut content, prompt).map_err(|e| Error::Compute(e.into()))?;
            content.push(b'\n');
        }
        self.file.append(&content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::{SampleSet, sample_sets};
    use super::*;
    use crate::observe::SampleRecord;

    fn sample(line: usize) -> SampleRecord {
        SampleRecord {
            line,
            gold: "Safe".into(),
            verdict: "malformed".into(),
            reason: None,
            reward: 0.0,
            rewards: Default::default(),
            advantage: None,
            tokens: Some(3),
            finish: None,
            completion: "two\nlines".into(),
        }
    }

    fn event(kind: SampleKind, step: u64, lines: &[usize]) -> Event {
        let samples = lines.iter().map(|line| sample(*line)).collect();
        Event::Samples { kind, stage: "grpo".into(), step, samples }
    }

    /// Steps and the data lines of each set, in order.
    fn found(samples: &Path) -> Vec<(SampleKind, u64, Vec<usize>)> {
        let lines = |set: &SampleSet| {
            let text = set.read().unwrap();
            text.lines().map(|line| serde_json::from_str::<SampleRecord>(line).unwrap().line).collect()
        };
        sample_sets(samples).unwrap().iter().map(|set| (set.kind, set.step, lines(set))).collect()
    }

    #[test]
    fn a_stage_is_a_file_and_a_completion_a_line() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        let mut files = SampleFiles::new(&run).unwrap();
        for (kind, step, lines) in [
            (SampleKind::Rollouts, 1, [3, 3]),
            (SampleKind::Rollouts, 2, [1, 4]),
            (SampleKind::Evaluation, 2, [7, 8]),
        ] {
            files.emit(&event(kind, step, &lines)).unwrap();
        }
        let text = std::fs::read_to_string(run.samples().join("grpo-rollouts.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 4);
        assert!(
            text.starts_with(r#"{"step":1,"line":3,"gold":"Safe","verdict":"malformed","reward":0.0,"#),
            "{text}"
        );
        let read: SampleRecord = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        assert_eq!(read, sample(3));
        // An earlier version's files, one of them of a step that was made again.
        for (step, line) in [(1, 9), (5, 6)] {
            let old = run.samples().join(format!("grpo-{step:06}-rollouts.jsonl"));
            std::fs::write(old, serde_json::to_string(&sample(line)).unwrap()).unwrap();
        }
        std::fs::write(run.samples().join("grpo-tokens.jsonl"), "{\"step\":1}").unwrap();
        let (rollouts, evaluation) = (SampleKind::Rollouts, SampleKind::Evaluation);
        let want = [
            (evaluation, 2, vec![7, 8]),
            (rollouts, 1, vec![3, 3]),
            (rollouts, 2, vec![1, 4]),
            (rollouts, 5, vec![6]),
        ];
        assert_eq!(found(&run.samples()), want);
    }

    #[test]
    fn a_full_file_is_followed_by_another_and_a_resume_cuts_all_back() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        let mut files = SampleFiles::new(&run).unwrap();
        files.full = 200;
        let step = |files: &mut SampleFiles, step| {
            files.emit(&event(SampleKind::Rollouts, step, &[1, 2])).unwrap();
        };
        (1..=2).for_each(|number| step(&mut files, number));
        let at_checkpoint = lengths(&run.samples()).unwrap();
        (3..=5).for_each(|number| step(&mut files, number));
        drop(files);
        let whole = || -> Vec<(String, Vec<u8>)> {
            let all = parts(&run.samples()).unwrap().into_iter();
            all.map(|(part, path)| (part.file_name(), std::fs::read(path).unwrap())).collect()
        };
        let names: Vec<String> = whole().into_iter().map(|(name, _)| name).collect();
        assert!(
            names.len() > 2 && names[0] == "grpo-rollouts.jsonl" && names[1] == "grpo-rollouts.2.jsonl",
            "{names:?}"
        );
        let unbroken = whole();
        let mut files = SampleFiles::resume(&run, &at_checkpoint).unwrap();
        assert_eq!(lengths(&run.samples()).unwrap(), at_checkpoint);
        files.full = 200;
        (3..=5).for_each(|number| step(&mut files, number));
        assert!(whole() == unbroken);
        assert_eq!(found(&run.samples()).len(), 5);
        // Of a checkpoint that knows none, all were written after it.
        SampleFiles::resume(&run, &Lengths::new()).unwrap();
        assert_eq!(whole(), []);
    }

    #[test]
    fn what_is_handed_on_is_as_it_was_at_the_checkpoint_and_grows_apart() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        let mut files = SampleFiles::new(&run).unwrap();
        files.emit(&event(SampleKind::Evaluation, 1, &[1])).unwrap();
        let at_checkpoint = lengths(&run.samples()).unwrap();
        files.emit(&event(SampleKind::Evaluation, 2, &[2])).unwrap();
        files.emit(&event(SampleKind::Rollouts, 2, &[2])).unwrap();
        let other = RunDirectory::create(root.path(), "b").unwrap();
        hand_on(&run.samples(), &other.samples(), &at_checkpoint).unwrap();
        assert_eq!(found(&other.samples()), [(SampleKind::Evaluation, 1, vec![1])]);
        let mut files = SampleFiles::resume(&other, &at_checkpoint).unwrap();
        files.emit(&event(SampleKind::Evaluation, 5, &[9])).unwrap();
        assert_eq!(found(&run.samples()).len(), 3);
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
        let mut files = SampleFiles::new(&run).unwrap();
        files.emit(&event(&[3, 1])).unwrap();
        files.emit(&event(&[1, 2])).unwrap();
        drop(files);
        let other = root.path().join("linked");
        std::fs::hard_link(&path, &other).unwrap();
        File::options().append(true).open(&path).unwrap().write_all(b"{\"line\":9").unwrap();
        SampleFiles::new(&run).unwrap().emit(&event(&[2, 4])).unwrap();
        let lines: Vec<usize> = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| serde_json::from_str::<PromptRecord>(line).unwrap().line)
            .collect();
        assert_eq!(lines, [3, 1, 2, 4]);
        assert!(std::fs::read_to_string(other).unwrap().ends_with("{\"line\":9"));
    }
}
