//! A file or folder that has its name only when it is whole.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Gives `fill` the path `<target>.partial` to write and then moves it to `target`, over what is there. If `fill`
/// fails, both are gone or as before.
///
/// # Errors
/// Those of `fill`, and of the disk.
pub fn named_when_done<T>(target: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let mut aside = target.as_os_str().to_owned();
    aside.push(".partial");
    let aside = PathBuf::from(aside);
    remove(&aside)?;
    if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
    }
    let done = fill(&aside).and_then(|done| {
        remove(target)?;
        std::fs::rename(&aside, target).map_err(Error::io(target, "move the finished export into place"))?;
        Ok(done)
    });
    done.inspect_err(|_| {
        let _ = remove(&aside);
    })
}

fn remove(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Err(_) => return Ok(()),
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    removed.map_err(Error::io(path, "remove what was there"))
}
