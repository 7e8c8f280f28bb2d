//! Files as the system has them: read whole, and made beside the one that they will replace.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The bytes of a file.
///
/// # Errors
/// It cannot be read, or is no file: a pipe that nobody writes to would never end.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let kind = std::fs::metadata(path).map_err(Error::io(path, "read"))?.file_type();
    if kind.is_dir() {
        return Err(Error::input(path.display(), "is a folder, not a file", "Name a file in it"));
    }
    if !kind.is_file() {
        return Err(Error::input(path.display(), "is a pipe or a device, not a file", "Give a file"));
    }
    std::fs::read(path).map_err(Error::io(path, "read"))
}

/// The text of a file.
///
/// # Errors
/// As [`read`], and for what is not UTF-8.
pub fn read_text(path: &Path) -> Result<String> {
    let not_text = |_| Error::input(path.display(), "is not UTF-8", "Save it as UTF-8, or fetch it again");
    String::from_utf8(read(path)?).map_err(not_text)
}

/// What a folder has, in order of the names.
pub fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        std::fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path())).collect()
    };
    let mut paths = list().map_err(Error::io(folder, "read"))?;
    paths.sort();
    Ok(paths)
}

/// The name of `path` until it is whole.
pub fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".partial");
    aside.into()
}

/// A new file beside `path` for what will get its name. What a killed command left there is removed first; a link is not
/// followed, so that nothing outside of the folder is written.
pub fn create_aside(path: &Path) -> io::Result<(PathBuf, File)> {
    let aside = aside(path);
    match std::fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&aside)?;
    Ok((aside, file))
}

/// Gives `fill` the path `<target>.partial` to write and then moves it to `target`, over what is there. If `fill`
/// fails, both are gone or as before.
///
/// # Errors
/// Those of `fill`, and of the disk.
pub fn named_when_done<T>(target: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let aside = aside(target);
    remove(&aside)?;
    if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(Error::io(parent, "create the folder"))?;
    }
    let done = fill(&aside).and_then(|done| {
        remove(target)?;
        std::fs::rename(&aside, target).map_err(Error::io(target, "give the finished files their name"))?;
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

/// Refuses what [`named_when_done`] should not replace: a folder that has something in it, or in which the user stands.
pub fn refuse_filled(folder: &Path) -> Result<()> {
    let filled = match std::fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => false,
        Err(e) => return Err(Error::io(folder, "list")(e)),
    };
    if folder.canonicalize().is_ok_and(|folder| std::env::current_dir().is_ok_and(|here| here == folder)) {
        return Err(Error::input(folder.display(), "is the current directory", "Name one in it"));
    }
    if filled {
        return Err(Error::input(
            folder.display(),
            "the output directory is not empty",
            "Name a new or an empty one",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_link_in_the_place_of_a_file_being_made_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let [victim, path] = ["victim", "report.html"].map(|name| dir.path().join(name));
        std::fs::write(&victim, "kept").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join("report.html.partial")).unwrap();
        let (aside, _) = create_aside(&path).unwrap();
        std::fs::write(&aside, "new").unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "kept");
        assert!(!aside.is_symlink());
    }

    #[test]
    fn what_is_no_text_is_refused_as_input() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, [0xE9]).unwrap();
        assert!(read_text(&path).unwrap_err().is_input());
        assert!(read(dir.path()).unwrap_err().to_string().contains("is a folder"));
        #[cfg(unix)]
        assert!(read(Path::new("/dev/null")).unwrap_err().to_string().contains("a pipe or a device"));
    }
}
