//! Output that grows line by line beside its name, gets the name when it is whole, and can be gone on with before.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::iter;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;

use super::stop::keeps;
use crate::disk::{self, aside, create_aside};
use crate::error::{Error, Result};
use crate::run::{replace_file, sha256};

/// Lines of a file, of a pipe or of stdout.
pub struct Lines {
    out: Box<dyn Write>,
    /// What errors call it.
    place: PathBuf,
    /// The name that it gets at the end; a device or stdout has its own.
    named: Option<PathBuf>,
    /// Those of an earlier try included.
    written: usize,
    can_go_on: bool,
}

const ACTION: &str = "write the answers";

impl Lines {
    /// `path`: stdout where there is none. `of`: what the lines depend on, where those of an earlier try are to be kept; these are given
    /// back, as many as `whole` says of their number.
    ///
    /// # Errors
    /// An earlier try was of something else.
    pub fn open(
        path: Option<&Path>,
        of: Option<&Value>,
        whole: impl Fn(usize) -> usize,
    ) -> Result<(Self, Vec<Value>)> {
        let Some(path) = path else {
            let out = Box::new(std::io::stdout().lock());
            return Ok((
                Self { out, place: "stdout".into(), named: None, written: 0, can_go_on: false },
                Vec::new(),
            ));
        };
        if path.exists() && !path.is_file() {
            let file = File::options().write(true).open(path).map_err(Error::io(path, ACTION))?;
            let out = Box::new(file);
            return Ok((
                Self { out, place: path.into(), named: None, written: 0, can_go_on: false },
                Vec::new(),
            ));
        }
        let kept = match of {
            Some(of) => earlier(path, of, whole)?,
            None => Vec::new(),
        };
        let (aside, mut file) = match kept.is_empty() {
            true => create_aside(path).map_err(Error::io(path, ACTION))?,
            false => {
                let aside = aside(path);
                let file = File::options().append(true).open(&aside).map_err(Error::io(&aside, ACTION))?;
                (aside, file)
            }
        };
        if let Some(of) = of.filter(|_| kept.is_empty()) {
            file.flush().map_err(Error::io(&aside, ACTION))?;
            replace_file(&note(path), of.to_string().as_bytes())?;
        }
        let out = Box::new(BufWriter::new(file));
        let (named, written) = (Some(path.into()), kept.len());
        Ok((Self { out, place: path.into(), named, written, can_go_on: of.is_some() }, kept))
    }

    pub fn write(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|e| Error::Compute(e.into()))?;
        text.push(b'\n');
        self.out.write_all(&text).map_err(Error::io(&self.place, ACTION))?;
        self.written += 1;
        Ok(())
    }

    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(Error::io(&self.place, ACTION))?;
        let again = match (self.can_go_on, &self.named) {
            (true, _) => ": the same command goes on",
            (false, Some(_)) => "; only --resume auto would go on with them",
            (false, None) => "",
        };
        keeps(Some(format!("stopped: {} answers are written{again}", self.written)));
        Ok(())
    }

    /// The lines get their name.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        keeps(None);
        let Some(path) = &self.named else { return Ok(()) };
        let aside = aside(path);
        let sync = File::options().append(true).open(&aside).and_then(|file| file.sync_all());
        sync.and_then(|()| std::fs::rename(&aside, path)).map_err(Error::io(path, ACTION))?;
        // There is none unless the lines could have been gone on with.
        let _ = std::fs::remove_file(note(path));
        Ok(())
    }
}

/// What the lines depend on: the contents of the data, of all files of `folders` and of `files`, and `flags`.
///
/// # Errors
/// The data is no file, so that it cannot be read twice; a file cannot be read.
pub fn identity(data: &Path, folders: &[&Path], files: Vec<PathBuf>, flags: Value) -> Result<Value> {
    if !data.is_file() {
        let fix = "Write the rows to a file, or leave --resume out";
        return Err(Error::input(data.display(), "is no file, so it is not read twice", fix));
    }
    let mut others = files;
    for folder in folders {
        others.extend(disk::entries(folder)?.into_iter().filter(|path| path.is_file()));
    }
    others.sort();
    let all: Vec<&Path> = iter::once(data).chain(others.iter().map(PathBuf::as_path)).collect();
    let digests = all.par_iter().map(|path| sha256(path)).collect::<Result<Vec<_>>>()?;
    Ok(serde_json::json!({"files": digests, "flags": flags}))
}

/// Says what the lines so far depend on.
fn note(path: &Path) -> PathBuf {
    let mut name = aside(path).into_os_string();
    name.push(".json");
    name.into()
}

/// What an earlier try has that is whole; the rest is cut off.
fn earlier(path: &Path, of: &Value, whole: impl Fn(usize) -> usize) -> Result<Vec<Value>> {
    let (aside, note) = (aside(path), note(path));
    let (Ok(file), Ok(said)) = (File::open(&aside), std::fs::read(&note)) else { return Ok(Vec::new()) };
    if serde_json::from_slice::<Value>(&said).ok().as_ref() != Some(of) {
        let fix = "Remove it and start again, or give the same model, data and flags";
        return Err(Error::input(aside.display(), "is of another model, other data or other flags", fix));
    }
    let (mut reader, mut text) = (BufReader::new(file), Vec::new());
    let (mut lines, mut ends, mut end) = (Vec::new(), vec![0], 0);
    while reader.read_until(b'\n', &mut text).map_err(Error::io(&aside, "read"))? > 0 {
        let parsed = text.ends_with(b"\n").then(|| serde_json::from_slice(&text).ok()).flatten();
        let Some(line) = parsed else { break };
        lines.push(line);
        end += text.len() as u64;
        ends.push(end);
        text.clear();
    }
    lines.truncate(whole(lines.len()));
    let kept = File::options().write(true).open(&aside).and_then(|file| file.set_len(ends[lines.len()]));
    kept.map_err(Error::io(&aside, ACTION))?;
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_chunks_of_an_earlier_try_are_kept_and_half_a_line_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.jsonl");
        std::fs::write(&path, "old\n").unwrap();
        let of = serde_json::json!({"data": "1"});
        let pairs = |count| count / 2 * 2;
        let (mut lines, kept) = Lines::open(Some(&path), Some(&of), pairs).unwrap();
        assert!(kept.is_empty());
        (1..=3).for_each(|line| lines.write(&line).unwrap());
        lines.flush().unwrap();
        drop(lines);
        File::options().append(true).open(aside(&path)).unwrap().write_all(b"4").unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "old\n",
            "the old file stays until the new one is whole"
        );
        let other = Lines::open(Some(&path), Some(&serde_json::json!({"data": "2"})), pairs);
        assert!(other.err().unwrap().to_string().contains("is of another model"));
        let (mut lines, kept) = Lines::open(Some(&path), Some(&of), pairs).unwrap();
        assert_eq!(kept, [1, 2]);
        lines.write(&3).unwrap();
        lines.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let (mut lines, _) = Lines::open(Some(Path::new("/dev/null")), None, |count| count).unwrap();
        lines.write(&1).unwrap();
        lines.finish().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
