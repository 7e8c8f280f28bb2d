//! Checkpoints that survive a kill at any instant: written aside, synced, renamed, and verified when read.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{RunDirectory, sync_folder};
use crate::error::{Error, Result};
use crate::observe::EVENTS_FILE;

/// The run's config as it was when the checkpoint was written, inside it.
pub const CHECKPOINT_CONFIG: &str = "config.toml";
const MANIFEST: &str = "manifest.json";
const FORMAT: u32 = 1;

/// A whole checkpoint: every file is there and has the content it was written with.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Optimiser steps of the run, over all its stages, before it was written.
    pub step: u64,
    pub path: PathBuf,
    /// Length of metrics.jsonl then; a resumed run cuts the file there. Bytes.
    pub metrics_bytes: u64,
}

/// The checkpoint to resume from.
#[derive(Debug)]
pub struct Latest {
    pub checkpoint: Checkpoint,
    /// What is wrong with newer ones, which were passed over.
    pub damaged: Vec<Error>,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    format: u32,
    step: u64,
    metrics_bytes: u64,
    files: Vec<FileEntry>,
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    /// Inside the checkpoint, with `/`.
    path: String,
    bytes: u64,
    sha256: String,
}

impl Checkpoint {
    /// Writes `checkpoints/step-N`. `write_files` gets an empty directory to fill, folders included; nothing of
    /// it is seen under the checkpoint's name before everything is on the disk. Emit the step's events before:
    /// metrics.jsonl as it stands belongs to the checkpoint.
    ///
    /// # Errors
    /// Those of `write_files`, or of the disk; nothing is left behind then.
    pub fn write(
        run: &RunDirectory,
        step: u64,
        write_files: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let folder = run.checkpoints();
        remove_leftovers(&folder)?;
        let aside = folder.join(format!(".step-{step}.partial"));
        let path = folder.join(format!("step-{step}"));
        std::fs::create_dir(&aside).map_err(Error::io(&aside, "create the checkpoint"))?;
        let filled = metrics_bytes(run).and_then(|metrics_bytes| {
            copy(&run.config(), &aside.join(CHECKPOINT_CONFIG))?;
            write_files(&aside)?;
            seal(&aside, step, metrics_bytes)?;
            set_aside(&path)?;
            std::fs::rename(&aside, &path).map_err(Error::io(&path, "write the checkpoint"))?;
            sync_folder(&folder)?;
            Ok(Self { step, path, metrics_bytes })
        });
        // After a failure, too: half a checkpoint only takes room on a disk that may be full.
        let cleaned = remove_leftovers(&folder);
        filled.and_then(|checkpoint| cleaned.map(|()| checkpoint))
    }

    /// The newest whole checkpoint of a run, or `None` when the run has none at all.
    ///
    /// # Errors
    /// There are checkpoints and all are damaged.
    pub fn latest(run: &Path) -> Result<Option<Latest>> {
        let mut damaged = Vec::new();
        for (_, path) in newest_first(&run.join("checkpoints"))? {
            match Self::verify(&path) {
                Ok(checkpoint) => return Ok(Some(Latest { checkpoint, damaged })),
                Err(error) => damaged.push(error),
            }
        }
        if damaged.is_empty() { Ok(None) } else { Err(damaged.swap_remove(0)) }
    }

    /// Reads a checkpoint through.
    ///
    /// # Errors
    /// The first file that is missing, truncated or changed.
    pub fn verify(path: &Path) -> Result<Self> {
        let fix = "Remove this checkpoint and resume from an older one";
        let manifest_path = path.join(MANIFEST);
        let text = std::fs::read(&manifest_path).map_err(Error::io(&manifest_path, "read"))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|e| Error::input(manifest_path.display(), format!("is damaged ({e})"), fix))?;
        if manifest.format != FORMAT {
            return Err(Error::input(
                manifest_path.display(),
                format!("has format {}, this rlvr reads {FORMAT}", manifest.format),
                "Resume with the version of rlvr that wrote it",
            ));
        }
        for entry in &manifest.files {
            let file = path.join(&entry.path);
            let wrong = |problem: String| Err(Error::input(file.display(), problem, fix));
            match std::fs::metadata(&file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return wrong("is missing from the checkpoint".into());
                }
                Err(error) => return Err(Error::io(&file, "read")(error)),
                Ok(found) if found.len() < entry.bytes => {
                    return wrong(format!("is truncated: {} of {} bytes", found.len(), entry.bytes));
                }
                Ok(found) if found.len() > entry.bytes => {
                    return wrong(format!("has {} bytes, written were {}", found.len(), entry.bytes));
                }
                Ok(_) => {}
            }
            if sha256(&file)? != entry.sha256 {
                return wrong("has changed since it was written: its SHA-256 differs".into());
            }
        }
        Ok(Self { step: manifest.step, path: path.to_path_buf(), metrics_bytes: manifest.metrics_bytes })
    }

    /// Makes this checkpoint of the run `from` the start of another run, which has nothing yet: the metrics up to
    /// it and the samples go with it. The checkpoint comes last, so that a kill leaves a run without one.
    pub fn hand_on(&self, from: &RunDirectory, to: &RunDirectory) -> Result<()> {
        let metrics = std::fs::read(from.metrics()).map_err(Error::io(from.metrics(), "read"))?;
        let kept = &metrics[..metrics.len().min(self.metrics_bytes as usize)];
        super::replace_file(&to.metrics(), kept)?;
        let events = from.path().join(EVENTS_FILE);
        if events.is_file() {
            copy(&events, &to.path().join(EVENTS_FILE))?;
        }
        link_folder(&from.samples(), &to.samples())?;
        let folder = to.checkpoints();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let aside = folder.join(format!(".{name}.partial"));
        link_folder(&self.path, &aside)?;
        let path = folder.join(&*name);
        std::fs::rename(&aside, &path).map_err(Error::io(&path, "write the checkpoint"))?;
        sync_folder(&folder)
    }

    /// Removes all but this checkpoint, just written, and the `keep - 1` before it. Later ones belong to a
    /// course that was left by resuming before them, and go as well.
    pub fn keep_last(&self, run: &RunDirectory, keep: usize) -> Result<()> {
        let folder = run.checkpoints();
        let (later, mine): (Vec<_>, Vec<_>) =
            newest_first(&folder)?.into_iter().partition(|(step, _)| *step > self.step);
        for (_, path) in later.iter().chain(mine.iter().skip(keep.max(1))) {
            set_aside(path)?;
        }
        remove_leftovers(&folder)
    }
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(|_| ()).map_err(Error::io(to, "write"))?;
    sync_file(to)
}

/// Copies a folder's files, and folders in it: linked where the disk can, for weights are large and nothing here is written in place.
pub fn link_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::io(to, "create the directory"))?;
    for entry in std::fs::read_dir(from).map_err(Error::io(from, "read"))? {
        let source = entry.map_err(Error::io(from, "read"))?.path();
        let target = to.join(source.file_name().unwrap_or_default());
        if source.is_dir() {
            link_folder(&source, &target)?;
        } else if std::fs::hard_link(&source, &target).is_err() {
            copy(&source, &target)?;
        }
    }
    sync_folder(to)
}

/// Removes what a killed write or removal left behind.
pub(super) fn remove_leftovers(checkpoints: &Path) -> Result<()> {
    for entry in std::fs::read_dir(checkpoints).map_err(Error::io(checkpoints, "read"))? {
        let path = entry.map_err(Error::io(checkpoints, "read"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".step-") {
            std::fs::remove_dir_all(&path).map_err(Error::io(&path, "remove an unfinished checkpoint"))?;
        }
    }
    Ok(())
}

/// Takes a checkpoint its name, so that a kill while it is removed leaves no half of one under it.
fn set_aside(path: &Path) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match std::fs::rename(path, path.with_file_name(format!(".{name}.removed"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path, "remove the old checkpoint")(error))
        }
        _ => Ok(()),
    }
}

fn newest_first(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(checkpoints) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(Error::io(checkpoints, "read"))?,
    };
    for entry in entries {
        let entry = entry.map_err(Error::io(checkpoints, "read"))?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")).and_then(|n| n.parse().ok());
        found.extend(step.map(|step: u64| (step, entry.path())));
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// Length of metrics.jsonl, made durable; 0 when there is none.
fn metrics_bytes(run: &RunDirectory) -> Result<u64> {
    let path = run.metrics();
    let measure = || -> std::io::Result<u64> {
        let file = File::options().append(true).open(&path)?;
        file.sync_all()?;
        Ok(file.metadata()?.len())
    };
    match measure() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        measured => measured.map_err(Error::io(&path, "read")),
    }
}

/// Syncs every file and folder below `aside` and adds the manifest.
fn seal(aside: &Path, step: u64, metrics_bytes: u64) -> Result<()> {
    let mut files = Vec::new();
    seal_folder(aside, "", &mut files)?;
    files.sort_by(|a: &FileEntry, b| a.path.cmp(&b.path));
    let manifest = Manifest { format: FORMAT, step, metrics_bytes, files };
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Compute(e.into()))?;
    let path = aside.join(MANIFEST);
    std::fs::write(&path, text).map_err(Error::io(&path, "write"))?;
    sync_file(&path)?;
    sync_folder(aside)
}

fn seal_folder(folder: &Path, inside: &str, files: &mut Vec<FileEntry>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder, "read"))? {
        let entry = entry.map_err(Error::io(folder, "read"))?;
        let path = entry.path();
        let name = format!("{inside}{}", entry.file_name().to_string_lossy());
        let metadata = std::fs::metadata(&path).map_err(Error::io(&path, "read"))?;
        if metadata.is_dir() {
            seal_folder(&path, &format!("{name}/"), files)?;
            continue;
        }
        sync_file(&path)?;
        files.push(FileEntry { path: name, bytes: metadata.len(), sha256: sha256(&path)? });
    }
    sync_folder(folder)
}

fn sync_file(path: &Path) -> Result<()> {
    let mut options = File::options();
    options.append(true).open(path).and_then(|file| file.sync_all()).map_err(Error::io(path, "write"))
}

fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()),
            Ok(read) => hash.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, "read")(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run() -> (tempfile::TempDir, RunDirectory) {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        run.write_config("").unwrap();
        (root, run)
    }

    fn write(run: &RunDirectory, step: u64) -> Checkpoint {
        Checkpoint::write(run, step, |folder| {
            std::fs::create_dir(folder.join("model")).unwrap();
            std::fs::write(folder.join("model/weights"), [7; 1000]).unwrap();
            std::fs::write(folder.join("state.json"), format!("{{\"step\":{step}}}")).unwrap();
            Ok(())
        })
        .unwrap()
    }

    fn names(run: &RunDirectory) -> Vec<String> {
        let entries = std::fs::read_dir(run.checkpoints()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn latest(run: &RunDirectory) -> Latest {
        Checkpoint::latest(run.path()).unwrap().unwrap()
    }

    #[test]
    fn what_is_written_is_found_and_whole() {
        let (_root, run) = run();
        assert!(Checkpoint::latest(run.path()).unwrap().is_none());
        std::fs::write(run.metrics(), "{}\n").unwrap();
        let written = write(&run, 9);
        assert_eq!((written.step, written.metrics_bytes), (9, 3));
        write(&run, 10);
        let found = latest(&run);
        assert!(found.damaged.is_empty());
        assert_eq!(found.checkpoint.step, 10);
        assert_eq!(Checkpoint::verify(&written.path).unwrap(), written);
        let manifest = std::fs::read_to_string(written.path.join("manifest.json")).unwrap();
        let manifest: serde_json::Value = serde_json::from_str(&manifest).unwrap();
        assert_eq!(manifest["files"][0]["path"], "config.toml");
        assert_eq!(manifest["files"][1]["path"], "model/weights");
        // printf '{"step":9}' | sha256sum
        assert_eq!(
            manifest["files"][2]["sha256"],
            "8f99f2c1e4f1c2bcbf9234600b6199875fb1ef3f1a457ac5db5d5395d481487b"
        );
    }

    #[test]
    fn a_write_killed_in_the_middle_is_ignored_and_removed() {
        let (root, run) = run();
        write(&run, 1);
        let killed = run.checkpoints().join(".step-2.partial");
        std::fs::create_dir(&killed).unwrap();
        std::fs::write(killed.join("weights"), [7; 10]).unwrap();
        assert_eq!(latest(&run).checkpoint.step, 1);
        drop(run);
        let run = RunDirectory::open_for_resume(&root.path().join("a")).unwrap();
        assert_eq!(names(&run), ["step-1"]);
    }

    #[test]
    fn a_damaged_checkpoint_is_named_and_passed_over() {
        type Damage = fn(&Path);
        let cases: [(&str, Damage); 5] = [
            ("model/weights: is truncated: 999 of 1000 bytes", |at| {
                std::fs::write(at.join("model/weights"), [7; 999]).unwrap();
            }),
            ("model/weights: is missing", |at| std::fs::remove_file(at.join("model/weights")).unwrap()),
            ("model/weights: has changed", |at| {
                std::fs::write(at.join("model/weights"), [8; 1000]).unwrap();
            }),
            ("manifest.json: is damaged", |at| std::fs::write(at.join("manifest.json"), "{").unwrap()),
            ("manifest.json: cannot read", |at| std::fs::remove_file(at.join("manifest.json")).unwrap()),
        ];
        for (want, damage) in cases {
            let (_root, run) = run();
            write(&run, 1);
            let newer = write(&run, 2);
            damage(&newer.path);
            let found = latest(&run);
            assert_eq!(found.checkpoint.step, 1);
            let text = found.damaged[0].to_string();
            assert!(found.damaged.len() == 1 && text.contains(want), "{text}");
            damage(&run.checkpoints().join("step-1"));
            let text = Checkpoint::latest(run.path()).unwrap_err().to_string();
            assert!(text.contains("step-2") && text.contains(want), "{text}");
        }
    }

    #[test]
    fn a_failed_write_leaves_nothing_and_keeps_what_was_there() {
        let (_root, run) = run();
        write(&run, 1);
        let error = Checkpoint::write(&run, 2, |folder| {
            std::fs::write(folder.join("weights"), [7; 10]).unwrap();
            Err(Error::input("weights", "the disk is full", "Free some space"))
        });
        assert!(error.unwrap_err().to_string().contains("the disk is full"));
        assert_eq!(names(&run), ["step-1"]);
    }

    #[test]
    fn old_checkpoints_go_once_the_new_one_is_safe() {
        let (_root, run) = run();
        for step in [8, 9, 10] {
            write(&run, step).keep_last(&run, 2).unwrap();
        }
        assert_eq!(names(&run), ["step-10", "step-9"]);
        // Resumed from step 9: 10 belongs to the course that was left.
        let again = write(&run, 9);
        again.keep_last(&run, 2).unwrap();
        assert_eq!(names(&run), ["step-9"]);
        assert_eq!(latest(&run).checkpoint, again);
    }
}
