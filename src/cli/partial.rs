//! Output that grows line by line beside its name, gets the name when it is whole, and can be gone on with before.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::disk::{aside, create_aside};
use crate::error::{Error, Result};
use crate::run::replace_file;

/// Lines of a file, of a pipe or of stdout.
pub struct Lines {
    out: Box<dyn Write>,
    /// What errors call it.
    place: PathBuf,
    /// The name that it gets at the end; a device or stdout has its own.
    named: Option<PathBuf>,
}

const ACTION: &str = "write the predictions";

impl Lines {
    /// `path`: stdout where there is none. `of`: what the lines depend on, where those of an earlier try are to be kept; these are given
    /// back, whole chunks of `chunk` lines.
    ///
    /// # Errors
    /// An earlier try was of something else.
    pub fn open(path: Option<&Path>, of: Option<&Value>, chunk: usize) -> Result<(Self, Vec<Value>)> {
        let Some(path) = path else {
            let out = Box::new(std::io::stdout().lock());
            return Ok((Self { out, place: "stdout".into(), named: None }, Vec::new()));
        };
        if path.exists() && !path.is_file() {
            let file = File::options().write(true).open(path).map_err(Error::io(path, ACTION))?;
            return Ok((Self { out: Box::new(file), place: path.into(), named: None }, Vec::new()));
        }
        let kept = match of {
            Some(of) => earlier(path, of, chunk)?,
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
        Ok((Self { out, place: path.into(), named: Some(path.into()) }, kept))
    }

    pub fn write(&mut self, line: &impl serde::Serialize) -> Result<()> {
        let mut text = serde_json::to_vec(line).map_err(|e| Error::Compute(e.into()))?;
        text.push(b'\n');
        self.out.write_all(&text).map_err(Error::io(&self.place, ACTION))
    }

    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().map_err(Error::io(&self.place, ACTION))
    }

    /// The lines get their name.
    pub fn finish(mut self) -> Result<()> {
        self.flush()?;
        let Some(path) = &self.named else { return Ok(()) };
        let aside = aside(path);
        let sync = File::options().append(true).open(&aside).and_then(|file| file.sync_all());
        sync.and_then(|()| std::fs::rename(&aside, path)).map_err(Error::io(path, ACTION))?;
        // There is none unless the lines could have been gone on with.
        let _ = std::fs::remove_file(note(path));
        Ok(())
    }
}

/// Says what the lines so far depend on.
fn note(path: &Path) -> PathBuf {
    let mut name = aside(path).into_os_string();
    name.push(".json");
    name.into()
}

/// What an earlier try has of whole chunks; the rest is cut off.
fn earlier(path: &Path, of: &Value, chunk: usize) -> Result<Vec<Value>> {
    let (aside, note) = (aside(path), note(path));
    let (Ok(file), Ok(said)) = (File::open(&aside), std::fs::read(&note)) else { return Ok(Vec::new()) };
    if serde_json::from_slice::<Value>(&said).ok().as_ref() != Some(of) {
        let fix = "Remove it and start again, or give the same model, data and flags";
        return Err(Error::input(aside.display(), "is of another model, other data or other flags", fix));
    }
    let (mut reader, mut text) = (BufReader::new(file), Vec::new());
    let (mut lines, mut ends, mut end) = (Vec::new(), vec![0], 0);
    while reader.read_until(b'\n', &mut text).map_err(Error::io(&aside, "read"))? > 0 {
        let whole = text.ends_with(b"\n").then(|| serde_json::from_slice(&text).ok()).flatten();
        let Some(line) = whole else { break };
        lines.push(line);
        end += text.len() as u64;
        ends.push(end);
        text.clear();
    }
    lines.truncate(lines.len() / chunk * chunk);
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
        let (mut lines, kept) = Lines::open(Some(&path), Some(&of), 2).unwrap();
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
        let other = Lines::open(Some(&path), Some(&serde_json::json!({"data": "2"})), 2);
        assert!(other.err().unwrap().to_string().contains("is of another model"));
        let (mut lines, kept) = Lines::open(Some(&path), Some(&of), 2).unwrap();
        assert_eq!(kept, [1, 2]);
        lines.write(&3).unwrap();
        lines.finish().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "1\n2\n3\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn a_device_is_written_to_and_not_replaced() {
        let (mut lines, _) = Lines::open(Some(Path::new("/dev/null")), None, 2).unwrap();
        lines.write(&1).unwrap();
        lines.finish().unwrap();
        assert!(!Path::new("/dev/null").is_file());
    }
}
