//! Model folders and data files by name, and what a download shows meanwhile.

use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

use crate::error::Result;
use crate::hub::{self, Folder, Parts, Progress};

/// The folder that a command was given by path, short name or hub name.
///
/// # Errors
/// As [`hub::find`].
pub fn folder(named: &Path, parts: Parts) -> Result<Folder> {
    hub::find(named, parts, &mut Bars::default())
}

/// The adapter's folder that a command was given, or the run's that it was given.
///
/// # Errors
/// A run without an adapter.
pub fn adapter(named: &Path) -> Result<PathBuf> {
    Ok(hub::in_run(named, hub::RUN_ADAPTER)?.unwrap_or_else(|| named.into()))
}

/// The name that means the rows of a data file for ever: a path as it is; of a data set of the hub, which is downloaded where
/// it is not in the cache, its commit and split.
///
/// # Errors
/// As [`hub::pinned_data`].
pub fn rows(named: &Path) -> Result<PathBuf> {
    hub::pinned_data(named, &mut Bars::default())
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
