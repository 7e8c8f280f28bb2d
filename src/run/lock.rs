//! One process a run.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::Path;

use crate::error::{Error, Result};

/// Held as long as the value lives; the operating system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// `path`: the lock file, made if absent. It holds the id of the last process that had the lock.
    ///
    /// # Errors
    /// Another process has it, named by its id.
    pub fn acquire(path: &Path) -> Result<Self> {
        let mut options = File::options();
        let mut file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::io(path, "create the lock file"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Where locked files cannot be read the id stays unknown.
                let _ = file.read_to_string(&mut holder);
                let holder = holder
                    .trim()
                    .parse::<u32>()
                    .map_or("another process".into(), |id| format!("process {id}"));
                let run = path.parent().unwrap_or(path).display();
                return Err(Error::input(
                    run,
                    format!("{holder} is working in this run"),
                    "Wait for it or stop it, or choose another directory",
                ));
            }
            Err(TryLockError::Error(error)) => return Err(Error::io(path, "lock")(error)),
        }
        let mut write_id = || {
            file.set_len(0)?;
            file.rewind()?;
            writeln!(file, "{}", std::process::id())
        };
        write_id().map_err(Error::io(path, "write the lock file"))?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_and_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Lock::acquire(&path).unwrap();
        let error = Lock::acquire(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {} is working in this run", std::process::id())), "{error}");
        drop(first);
        assert!(Lock::acquire(&path).is_ok());
    }

    #[test]
    fn a_file_left_by_a_dead_process_does_not_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::fs::write(&path, "4194304999\n").unwrap();
        let _lock = Lock::acquire(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
    }
}
