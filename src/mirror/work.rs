//! What is to be copied: the files of a run as they are at this moment, while it goes on.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::disk;
use crate::error::{Error, Result};
use crate::run::{Checkpoint, companions, metrics_file};

/// Files that are held open, so that they stay while they are copied; the rest is looked up again.
const MOST_OPEN: usize = 256;
/// What a run ends with.
const ENDS: [&str; 4] = ["model", "model-last", "adapter", "adapter-last"];

/// A whole checkpoint, and what else of the run belongs to it.
pub(super) struct Job {
    pub(super) step: u64,
    pub(super) pieces: Vec<Piece>,
}

/// The first `bytes` of a file.
pub(super) struct Piece {
    /// Within the run, with `/`.
    pub(super) path: String,
    source: Source,
    pub(super) bytes: u64,
    /// When it was written to last.
    pub(super) modified: Option<SystemTime>,
    /// Where it is known already.
    pub(super) sha256: Option<String>,
}

enum Source {
    Open(File),
    Named(PathBuf),
}

impl Piece {
    fn new(run: &Path, path: &Path, is_open: bool) -> Result<Self> {
        let found = std::fs::metadata(path).map_err(Error::io(path, "read"))?;
        let (bytes, modified) = (found.len(), found.modified().ok());
        let source = match is_open {
            true => Source::Open(File::open(path).map_err(Error::io(path, "open"))?),
            false => Source::Named(path.into()),
        };
        Ok(Self { path: within(run, path), source, bytes, modified, sha256: None })
    }

    pub(super) fn with_file<T>(&self, read: impl FnOnce(&File) -> T) -> std::io::Result<T> {
        match &self.source {
            Source::Open(file) => Ok(read(file)),
            Source::Named(path) => File::open(path).map(|file| read(&file)),
        }
    }

    /// What people look at while a run goes on: its config, metrics and samples.
    pub(super) fn is_to_be_seen(&self) -> bool {
        !self.path.contains('/') || self.path.starts_with("samples/")
    }
}

fn within(run: &Path, path: &Path) -> String {
    let inside = path.strip_prefix(run).unwrap_or(path);
    inside.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

impl Job {
    /// `run` and its checkpoint in `folder`, just written.
    pub(super) fn of(run: &Path, step: u64, folder: &Path) -> Result<Self> {
        let contents = Checkpoint::contents(folder)?;
        let mut pieces = Vec::new();
        for (name, _, sha256) in contents.files {
            let piece = Piece::new(run, &folder.join(name), pieces.len() < MOST_OPEN)?;
            pieces.push(Piece { sha256: Some(sha256), ..piece });
        }
        pieces.push(Piece::new(run, &contents.manifest, true)?);
        for path in companions(run)? {
            let mut piece = match Piece::new(run, &path, pieces.len() < MOST_OPEN) {
                // Gone since it was listed.
                Err(_) if !path.exists() && path != metrics_file(run) => continue,
                piece => piece?,
            };
            if path == metrics_file(run) {
                piece.bytes = piece.bytes.min(contents.metrics_bytes);
            }
            pieces.push(piece);
        }
        Ok(Self { step, pieces })
    }
}

/// What is copied once the run is over, beside its last checkpoint.
pub(super) fn at_the_end(run: &Path) -> Result<Vec<Piece>> {
    let mut files = Vec::new();
    for folder in ENDS.map(|name| run.join(name)) {
        if folder.is_dir() {
            files_of(&folder, &mut files)?;
        }
    }
    let ends = files.iter().map(|path| Piece::new(run, path, false));
    let seen = companions(run)?;
    let seen = seen.iter().map(|path| Piece::new(run, path, false));
    let seen = seen.filter(|piece| piece.as_ref().map_or(true, Piece::is_to_be_seen));
    seen.chain(ends).collect()
}

fn files_of(folder: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for path in disk::entries(folder)? {
        if path.is_dir() { files_of(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
