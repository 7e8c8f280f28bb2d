//! What lies in samples/, step by step, whatever version wrote it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::samples::parts;
use crate::disk;
use crate::error::{Error, Result};
use crate::observe::SampleKind;

/// The completions of one evaluation, or of one step's rollouts, where they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSet {
    pub kind: SampleKind,
    pub stage: String,
    /// Of the stage.
    pub step: u64,
    path: PathBuf,
    /// `None`: the whole file.
    bytes: Option<Range<u64>>,
}

impl SampleSet {
    /// Where the set is, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A `SampleRecord` a line; one may be cut.
    pub fn read(&self) -> Result<String> {
        let read = || {
            let mut file = File::open(&self.path)?;
            let mut bytes = Vec::new();
            match &self.bytes {
                None => file.read_to_end(&mut bytes)?,
                Some(range) => {
                    file.seek(SeekFrom::Start(range.start))?;
                    file.take(range.end - range.start).read_to_end(&mut bytes)?
                }
            };
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        read().map_err(Error::io(&self.path, "read"))
    }

    /// Of the file `<stage>-<step>-<kind>.jsonl` that an earlier version wrote; `None` of any other.
    fn of_old(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.strip_suffix(".jsonl")?;
        let mut words = name.rsplitn(3, '-');
        let (kind, step, stage) = (kind_of(words.next()?)?, words.next()?.parse().ok()?, words.next()?);
        Some(Self { kind, stage: stage.into(), step, path: path.into(), bytes: None })
    }
}

fn kind_of(word: &str) -> Option<SampleKind> {
    match word {
        "evaluation" => Some(SampleKind::Evaluation),
        "rollouts" => Some(SampleKind::Rollouts),
        _ => None,
    }
}

/// All sets of a samples folder, in no order. A step that was made again where an earlier version's file has it is there once.
pub fn sample_sets(samples: &Path) -> Result<Vec<SampleSet>> {
    let mut sets = BTreeMap::new();
    let key = |set: &SampleSet| (set.kind == SampleKind::Rollouts, set.stage.clone(), set.step);
    let paths = disk::entries(samples)?;
    sets.extend(paths.iter().filter_map(|path| SampleSet::of_old(path)).map(|set| (key(&set), set)));
    for (part, path) in parts(samples)? {
        let Some((stage, kind)) = part.stem.split_once('-') else { continue };
        let Some(kind) = kind_of(kind) else { continue };
        for (step, bytes) in steps_of(&path)? {
            let set = SampleSet { kind, stage: stage.into(), step, path: path.clone(), bytes: Some(bytes) };
            sets.insert(key(&set), set);
        }
    }
    Ok(sets.into_values().collect())
}

/// Where the lines of each step are in a growing file. A line that says no step belongs to those before it.
fn steps_of(path: &Path) -> Result<Vec<(u64, Range<u64>)>> {
    let mut file = BufReader::new(File::open(path).map_err(Error::io(path, "open"))?);
    let (mut found, mut at, mut line) = (Vec::<(u64, Range<u64>)>::new(), 0, Vec::new());
    loop {
        line.clear();
        let read = file.read_until(b'\n', &mut line).map_err(Error::io(path, "read"))? as u64;
        if read == 0 {
            return Ok(found);
        }
        let digits = line.strip_prefix(br#"{"step":"#).unwrap_or_default();
        let digits: String = digits.iter().map_while(|b| b.is_ascii_digit().then_some(*b as char)).collect();
        match (digits.parse::<u64>(), found.last_mut()) {
            (Ok(step), Some((of, bytes))) if *of == step => bytes.end = at + read,
            (Ok(step), _) => found.push((step, at..at + read)),
            (Err(_), Some((_, bytes))) => bytes.end = at + read,
            (Err(_), None) => {}
        }
        at += read;
    }
}
