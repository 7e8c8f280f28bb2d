//! A model as files for other programs: Hugging Face folder, GGUF, PEFT adapter. What is written is read back and held
//! against the weights in memory before it gets its name.

pub mod check;
pub mod probe;
pub mod rounding;
mod source;

use std::path::Path;

use serde::Serialize;

pub use source::{Format, Source};

use crate::disk::named_when_done;
use crate::error::{Error, Result};
use crate::formats::hf::folder;
use crate::formats::{Written, gguf, peft};
use check::Findings;

/// What [`export`] wrote and found.
#[derive(Debug, Serialize)]
pub struct ExportReport {
    #[serde(flatten)]
    pub written: Written,
    #[serde(flatten)]
    pub findings: Findings,
}

/// Writes `target`, reads it back and compares; on any error there is no `target`.
///
/// # Errors
/// `target` exists, the format cannot hold the model, the disk does not take it, or a weight that was read back lies
/// further from that in memory than its type rounds.
pub fn export(source: Source, format: Format, target: &Path) -> Result<ExportReport> {
    refuse_present(target)?;
    named_when_done(target, |aside| {
        let Source { decoder, companions, name, .. } = &source;
        let written = match format {
            Format::Folder(options) => folder::write(aside, decoder, companions, options)?,
            Format::Gguf(quantisation) => gguf::write(aside, decoder, companions, name, quantisation)?,
            Format::Adapter => peft::write(aside, decoder, name)?,
        };
        let findings = check::read_back(source, format, &written, aside)?;
        Ok(ExportReport { written, findings })
    })
}

/// # Errors
/// When there is something of that name already, but for an empty folder.
pub fn refuse_present(target: &Path) -> Result<()> {
    let empty_folder = std::fs::read_dir(target).is_ok_and(|mut entries| entries.next().is_none());
    if target.symlink_metadata().is_err() || empty_folder {
        return Ok(());
    }
    Err(Error::input(target.display(), "exists already", "Name a new file or folder"))
}
