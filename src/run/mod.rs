//! A run is a directory: its config, its metrics, its samples and its checkpoints.

mod cadence;
mod checkpoint;
mod directory;
mod lock;
mod manifest;
mod sample_sets;
mod samples;

pub use cadence::Cadence;
pub use checkpoint::{CHECKPOINT_CONFIG, Checkpoint, Latest, Logs, condemned, link_file, link_folder};
pub use directory::{RunDirectory, companions, metrics_file};
pub use manifest::{Contents, Lengths, hex, sha256};
pub use sample_sets::{SampleSet, sample_sets};
pub use samples::{SampleFiles, prompts_file};

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::disk;
use crate::error::{Error, Result};

/// Writes a file so that after a kill or a crash either the old or the new content is there.
pub fn replace_file(path: &Path, content: &[u8]) -> Result<()> {
    let write = || {
        let (aside, mut file) = disk::create_aside(path)?;
        file.write_all(content)?;
        file.sync_all()?;
        std::fs::rename(&aside, path)
    };
    write().map_err(Error::io(path, "write"))?;
    match path.parent() {
        // A bare file name lies in the working directory.
        Some(folder) if folder.as_os_str().is_empty() => sync_folder(Path::new(".")),
        Some(folder) => sync_folder(folder),
        None => Ok(()),
    }
}

/// Makes the names in a folder as durable as the files behind them.
fn sync_folder(folder: &Path) -> Result<()> {
    // Windows opens no folders as files and keeps names durable by itself.
    if cfg!(unix) {
        File::open(folder).and_then(|f| f.sync_all()).map_err(Error::io(folder, "write"))?;
    }
    Ok(())
}
