//! A store that is a folder of this system: a volume, or a share between machines.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::faults::Fault;
use crate::disk;

type Answer<T> = std::result::Result<T, Fault>;

pub(super) struct Folder(pub(super) PathBuf);

/// What an object is known by: seconds since 1970, and what changes with every write.
pub(super) type Seen = (i64, String);

fn fault(path: &Path) -> impl FnOnce(std::io::Error) -> Fault {
    move |error| match error.kind() {
        ErrorKind::NotFound => Fault::Missing,
        _ => Fault::Passing(format!("{}: {error}", path.display())),
    }
}

impl Folder {
    fn path(&self, key: &str) -> PathBuf {
        self.0.join(key)
    }

    pub(super) fn get(&self, key: &str) -> Answer<(Vec<u8>, Seen)> {
        let path = self.path(key);
        let bytes = std::fs::read(&path).map_err(fault(&path))?;
        Ok((bytes, self.head(key)?))
    }

    pub(super) fn open(&self, key: &str) -> Answer<File> {
        let path = self.path(key);
        File::open(&path).map_err(fault(&path))
    }

    pub(super) fn head(&self, key: &str) -> Answer<Seen> {
        let path = self.path(key);
        let found = std::fs::metadata(&path).map_err(fault(&path))?;
        let modified = found.modified().map_err(fault(&path))?;
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok((since.as_secs() as i64, format!("{}-{}-{}", since.as_nanos(), found.len(), inode(&found))))
    }

    /// `write` fills the file, which then gets its name.
    pub(super) fn put(&self, key: &str, write: impl FnOnce(&mut File) -> Answer<()>) -> Answer<()> {
        let path = self.path(key);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(fault(folder))?;
        }
        let (aside, mut file) = disk::create_aside(&path).map_err(fault(&path))?;
        let done = write(&mut file).and_then(|()| {
            file.sync_all().and_then(|()| std::fs::rename(&aside, &path)).map_err(fault(&path))
        });
        done.inspect_err(|_| drop(std::fs::remove_file(&aside)))
    }

    /// Writes where there is nothing (`None`), or what `is` says. Who writes so takes turns: a file system has no such write.
    pub(super) fn put_if(&self, key: &str, bytes: &[u8], is: Option<&str>) -> Answer<Seen> {
        let turns = self.path(".turns");
        let locked = File::options()
            .create(true)
            .append(true)
            .open(&turns)
            .and_then(|file| file.lock().map(|()| file));
        let _locked = locked.map_err(fault(&turns))?;
        let now = match self.head(key) {
            Ok((_, now)) => Some(now),
            Err(Fault::Missing) => None,
            Err(fault) => return Err(fault),
        };
        if now.as_deref() != is {
            return Err(Fault::Changed);
        }
        self.put(key, |file| file.write_all(bytes).map_err(fault(&self.path(key))))?;
        self.head(key)
    }

    /// Keys of a folder, and of folders there.
    pub(super) fn list(&self, folder: &str) -> Answer<Vec<String>> {
        let path = self.path(folder);
        let mut keys = Vec::new();
        let entries = match std::fs::read_dir(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(keys),
            entries => entries.map_err(fault(&path))?,
        };
        for entry in entries {
            let entry = entry.map_err(fault(&path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let key = format!("{folder}/{name}");
            if entry.path().is_dir() {
                keys.extend(self.list(&key)?);
            } else if !name.ends_with(".partial") {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    pub(super) fn delete(&self, key: &str) -> Answer<()> {
        let path = self.path(key);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(fault(&path)(error)),
            _ => Ok(()),
        }
    }
}

#[cfg(unix)]
fn inode(found: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(found)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_on_a_condition_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().into());
        let (_, first) = folder.put_if("a/lease", b"1", None).unwrap();
        assert_eq!(folder.put_if("a/lease", b"2", None), Err(Fault::Changed));
        let (_, second) = folder.put_if("a/lease", b"2", Some(&first)).unwrap();
        assert_eq!(folder.put_if("a/lease", b"3", Some(&first)), Err(Fault::Changed));
        assert!(first != second && folder.get("a/lease").unwrap().0 == b"2");
        std::fs::write(dir.path().join("a/other.partial"), "half").unwrap();
        assert_eq!(folder.list("a").unwrap(), ["a/lease"]);
        folder.delete("a/lease").unwrap();
        folder.delete("a/lease").unwrap();
        assert_eq!(folder.head("a/lease"), Err(Fault::Missing));
        assert_eq!(folder.put_if("a/lease", b"3", Some(&second)), Err(Fault::Changed));
    }
}
