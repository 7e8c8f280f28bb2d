//! Files that have their name only when they are whole, and why one cannot be read.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use serde_json::Value;

use crate::disk;
use crate::error::{Error, Result};

/// Writes pretty JSON aside, syncs it and renames it to `path`.
pub fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_aside(path, |out| {
        let text = format!("{value:#}\n");
        out.write_all(text.as_bytes()).map_err(Error::io(path, "write"))
    })
}

/// Runs `fill` on a temporary file beside `path`, syncs it and renames it; on an error nothing is left behind.
pub fn write_aside(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let (aside, file) = disk::create_aside(path).map_err(Error::io(path, "create"))?;
    let write = || {
        let mut out = BufWriter::with_capacity(1 << 20, file);
        fill(&mut out)?;
        let file = out.into_inner().map_err(|e| Error::io(&aside, "write")(e.into_error()))?;
        file.sync_all().map_err(Error::io(&aside, "sync"))?;
        std::fs::rename(&aside, path).map_err(Error::io(path, "move the finished file into place"))?;
        // The rename itself lasts through a power cut once the directory is synced.
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(Error::io(dir, "sync"))
    };
    write().inspect_err(|_| {
        let _ = std::fs::remove_file(&aside);
    })
}

/// The cause alone: candle wraps it in the path and, when asked for, a backtrace.
pub fn reason(error: &candle_core::Error) -> String {
    match error {
        candle_core::Error::WithPath { inner, .. } | candle_core::Error::WithBacktrace { inner, .. } => {
            reason(inner)
        }
        other => other.to_string(),
    }
}
