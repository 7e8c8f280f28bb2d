//! A run out of its mirror, onto a disk that has nothing of it or less.

use std::fs::File;
use std::path::Path;

use super::faults::Fault;
use super::snapshot::{Entry, Snapshot};
use super::store::Store;
use crate::disk;
use crate::error::{Error, Result};
use crate::run::{RunDirectory, sha256};
use crate::stop;

type Answer<T> = std::result::Result<T, Fault>;

/// Of a request, and of an answer that is not what it should be.
const TRIES: u32 = 4;

/// Why a snapshot is none to go on from.
pub(super) enum Unfit {
    /// An object is missing or is not what it was.
    Damaged(String),
    /// Nothing is said about it: the store or the disk failed.
    Failed(Error),
}

impl From<Error> for Unfit {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// Brings every file of a snapshot into the run, its checkpoint last: that is what makes the run one to go on with. A config
/// that is there stays.
pub(super) fn fetch(
    store: &Store,
    snapshot: &Snapshot,
    run: &RunDirectory,
) -> std::result::Result<(), Unfit> {
    let folder = format!("checkpoints/step-{}/", snapshot.step);
    let aside = run.checkpoints().join(format!(".step-{}.partial", snapshot.step));
    let target = run.checkpoints().join(format!("step-{}", snapshot.step));
    let config = |file: &&Entry| run.path().join(&file.path) == run.config();
    let (of_checkpoint, beside): (Vec<&Entry>, Vec<&Entry>) =
        snapshot.files.iter().partition(|file| file.path.starts_with(&folder));
    // With its config a run that is brought half is one without a checkpoint, and not a folder with something in it.
    for file in beside.iter().copied().filter(config).filter(|_| !run.config().is_file()) {
        bring(store, file, &run.config())?;
    }
    for file in beside.iter().copied().filter(|file| !config(file)) {
        bring(store, file, &run.path().join(&file.path))?;
    }
    remove(&aside)?;
    for file in of_checkpoint {
        bring(store, file, &aside.join(file.path.trim_start_matches(&folder)))?;
    }
    remove(&target)?;
    std::fs::rename(&aside, &target).map_err(Error::io(&target, "write the checkpoint"))?;
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "remove")(error)),
        _ => Ok(()),
    }
}

pub(super) fn bring(store: &Store, file: &Entry, path: &Path) -> std::result::Result<(), Unfit> {
    let is_there = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == file.bytes);
    if is_there && sha256(path)? == file.sha256 {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(Error::io(folder, "create the directory"))?;
    }
    let place = || format!("{}/{}", store.place(), file.object);
    let (aside, mut made) = disk::create_aside(path).map_err(Error::io(path, "create"))?;
    let mut once = || {
        made.set_len(0)
            .and_then(|()| std::io::Seek::rewind(&mut made))
            .map_err(|e| Fault::Here(e.to_string()))?;
        store.download(&file.object, file.bytes, &mut made, &|| {
            stop::look().map_err(|e| Fault::Here(e.to_string()))
        })
    };
    let mut got = patiently(&mut once);
    for _ in 1..TRIES {
        // What came may be wrong, and not what is there.
        if got.as_ref().is_ok_and(|digest| *digest != file.sha256) {
            got = patiently(&mut once);
        }
    }
    let done = match got {
        Ok(digest) if digest == file.sha256 => finish(&made, &aside, path).map_err(Unfit::Failed),
        Ok(_) => Err(Unfit::Damaged(format!(
            "{} ({}) is not what it was: its SHA-256 differs",
            place(),
            file.path
        ))),
        Err(Fault::Missing) => Err(Unfit::Damaged(format!("{} ({}) is missing", place(), file.path))),
        Err(_) if stop::is_asked() => Err(Unfit::Failed(Error::Stopped)),
        Err(Fault::Full) => {
            Err(Unfit::Failed(Error::io(path, "write")(std::io::ErrorKind::StorageFull.into())))
        }
        Err(Fault::Here(what)) => Err(Unfit::Failed(Error::io(path, "write")(std::io::Error::other(what)))),
        Err(fault) => Err(Unfit::Failed(fault.at_start(store.place()))),
    };
    done.inspect_err(|_| drop(std::fs::remove_file(&aside)))
}

fn finish(made: &File, aside: &Path, path: &Path) -> Result<()> {
    made.sync_all().and_then(|()| std::fs::rename(aside, path)).map_err(Error::io(path, "write"))
}

/// Asks again after a fault that may pass: a few times, for nothing goes on without the answer.
pub(super) fn patiently<T>(mut ask: impl FnMut() -> Answer<T>) -> Answer<T> {
    let mut pause = std::time::Duration::from_millis(250);
    for _ in 1..TRIES {
        match ask() {
            Err(Fault::Passing(_)) if !stop::is_asked() => std::thread::sleep(pause),
            other => return other,
        }
        pause *= 3;
    }
    ask()
}
