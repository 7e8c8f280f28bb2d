//! Model folders by path or by hub name, and what a download shows meanwhile.

use std::path::{Path, PathBuf};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

use crate::hub::{Hub, Parts, Progress, RepoName};

/// A model that a command was given.
pub struct Folder {
    pub dir: PathBuf,
    /// `org/name@commit` when it came from the hub.
    pub pinned: Option<String>,
}

/// The folder that `path` means: itself, or the cache's where it is a hub name (`org/name`, `org/name@revision`).
///
/// # Errors
/// As [`Hub::fetch`]. Whether a folder holds a model is left to whoever reads it.
pub fn folder(path: &Path, parts: Parts) -> Result<Folder> {
    let Some(name) = RepoName::of(path) else { return Ok(Folder { dir: path.into(), pinned: None }) };
    let snapshot = Hub::from_env().fetch(&name, parts, &mut Bars::default())?;
    Ok(Folder { pinned: Some(snapshot.pinned()), dir: snapshot.dir })
}

/// A bar for each file on a terminal, a line for each elsewhere.
#[derive(Default)]
pub struct Bars {
    bar: Option<ProgressBar>,
    file: String,
}

impl Progress for Bars {
    fn file(&mut self, name: &str, size: u64, have: u64) {
        let bar = ProgressBar::new(size).with_message(name.to_string());
        if let Ok(style) = ProgressStyle::with_template(
            "{msg:<34!} {bytes:>11} of {total_bytes:<11} {bar:24} {binary_bytes_per_sec:>12} {eta:>4}",
        ) {
            bar.set_style(style);
        }
        bar.set_position(have);
        bar.reset_eta();
        self.file = format!("{name} ({} bytes)", size);
        self.bar = Some(bar);
    }

    fn at(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
        }
    }

    fn done(&mut self) {
        let Some(bar) = self.bar.take() else { return };
        let hidden = bar.is_hidden();
        bar.finish();
        if hidden {
            eprintln!("fetched {}", self.file);
        }
    }

    fn note(&mut self, text: &str) {
        eprintln!("note: {text}");
    }
}
