//! Checkpoints that survive a kill at any instant: written aside, synced, renamed, and verified when read.

use std::path::{Path, PathBuf};

use super::manifest::{self, Contents, Lengths, Manifest, sync_file};
use super::samples;
use super::{RunDirectory, sync_folder};
use crate::disk;
use crate::error::{Error, Result};
use crate::observe::EVENTS_FILE;
use crate::stop;

/// The run's config as it was when the checkpoint was written, inside it.
pub const CHECKPOINT_CONFIG: &str = "config.toml";
const CONDEMNED: &str = "diverged-step-";

/// A whole checkpoint: every file is there and has the content it was written with.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Optimiser steps of the run, over all its stages, before it was written.
    pub step: u64,
    pub path: PathBuf,
    /// Length of metrics.jsonl then; a resumed run cuts the file there. Bytes.
    pub metrics_bytes: u64,
    /// Lengths of the growing files of samples/ then, which are cut too.
    pub samples: Lengths,
}

/// The checkpoint to resume from.
#[derive(Debug)]
pub struct Latest {
    pub checkpoint: Checkpoint,
    /// What is wrong with newer ones, which were passed over.
    pub damaged: Vec<Error>,
}

impl Checkpoint {
    /// Writes `checkpoints/step-N`. `write_files` gets an empty directory to fill, folders included; nothing of
    /// it is seen under the checkpoint's name before everything is on the disk. `logs`: as they were after the checkpoint's step.
    ///
    /// # Errors
    /// Those of `write_files`, or of the disk; nothing is left behind then.
    pub fn write(
        run: &RunDirectory,
        step: u64,
        logs: &Logs,
        write_files: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<Self> {
        let folder = run.checkpoints();
        remove_leftovers(&folder)?;
        let aside = folder.join(format!(".step-{step}{PARTIAL}"));
        let path = folder.join(format!("step-{step}"));
        std::fs::create_dir(&aside).map_err(Error::io(&aside, "create the checkpoint"))?;
        let filled = logs.sync(run).and_then(|()| {
            let Logs { metrics_bytes, samples } = logs.clone();
            copy(&run.config(), &aside.join(CHECKPOINT_CONFIG))?;
            stop::visit();
            write_files(&aside)?;
            stop::visit();
            manifest::seal(&aside, step, metrics_bytes, samples.clone())?;
            stop::visit();
            // One of the same step is as good until the new one has its name.
            move_away(&path, REPLACED)?;
            stop::visit();
            std::fs::rename(&aside, &path).map_err(Error::io(&path, "write the checkpoint"))?;
            sync_folder(&folder)?;
            stop::visit();
            Ok(Self { step, path, metrics_bytes, samples })
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

    /// One that another rank has verified.
    ///
    /// # Errors
    /// It is not there.
    pub fn verified_elsewhere(path: &Path) -> Result<Self> {
        let Manifest { step, metrics_bytes, samples, .. } = Manifest::read(path)?;
        Ok(Self { step, path: path.to_path_buf(), metrics_bytes, samples })
    }

    /// Reads a checkpoint through.
    ///
    /// # Errors
    /// The first file that is missing, truncated or changed.
    pub fn verify(path: &Path) -> Result<Self> {
        let Manifest { step, metrics_bytes, samples, .. } = Manifest::verify(path)?;
        Ok(Self { step, path: path.to_path_buf(), metrics_bytes, samples })
    }

    /// What the checkpoint in a folder says that it holds; its files are not read.
    ///
    /// # Errors
    /// It has no manifest, or a damaged one.
    pub fn contents(path: &Path) -> Result<Contents> {
        Manifest::read(path).map(|manifest| manifest.contents(path))
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
        samples::hand_on(&from.samples(), &to.samples(), &self.samples)?;
        let folder = to.checkpoints();
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let aside = folder.join(format!(".{name}{PARTIAL}"));
        link_folder(&self.path, &aside)?;
        let path = folder.join(&*name);
        std::fs::rename(&aside, &path).map_err(Error::io(&path, "write the checkpoint"))?;
        sync_folder(&folder)
    }

    /// Takes the checkpoint of `step` out of those that a resume looks at: training broke at once on its weights. Returns where
    /// it is now; none where there is none.
    pub fn condemn(run: &RunDirectory, step: u64) -> Result<Option<PathBuf>> {
        let path = run.checkpoints().join(format!("step-{step}"));
        let aside = path.with_file_name(format!("{CONDEMNED}{step}"));
        if !path.is_dir() {
            return Ok(None);
        }
        if aside.is_dir() {
            std::fs::remove_dir_all(&aside).map_err(Error::io(&aside, "remove"))?;
        }
        std::fs::rename(&path, &aside).map_err(Error::io(&path, "move the checkpoint aside"))?;
        Ok(Some(aside))
    }

    /// Removes all but this checkpoint, just written, and the `keep - 1` before it. Later ones belong to a
    /// course that was left by resuming before them, and go as well.
    pub fn keep_last(&self, run: &RunDirectory, keep: usize) -> Result<()> {
        let folder = run.checkpoints();
        let (later, mine): (Vec<_>, Vec<_>) =
            newest_first(&folder)?.into_iter().partition(|(step, _)| *step > self.step);
        remove_condemned(run.path(), self.step)?;
        for (_, path) in later.iter().chain(mine.iter().skip(keep.max(1))) {
            move_away(path, REMOVED)?;
            stop::visit();
        }
        remove_leftovers(&folder)
    }

    /// The folder of the newest checkpoint, whole or not.
    pub fn newest(run: &RunDirectory) -> Result<Option<PathBuf>> {
        Ok(newest_first(&run.checkpoints())?.into_iter().next().map(|(_, path)| path))
    }

    /// Steps of a run's checkpoints, the newest first, and before them of the one that is being written.
    pub fn steps(run: &RunDirectory) -> Result<Vec<u64>> {
        let writing = run.writing().into_iter();
        Ok(writing.chain(newest_first(&run.checkpoints())?.into_iter().map(|(step, _)| step)).collect())
    }
}

/// Removes the condemned checkpoints up to a step that was reached on another way.
fn remove_condemned(run: &Path, step: u64) -> Result<()> {
    for of in condemned(run)?.into_iter().filter(|of| *of <= step) {
        let path = run.join(format!("checkpoints/{CONDEMNED}{of}"));
        std::fs::remove_dir_all(&path).map_err(Error::io(&path, "remove"))?;
    }
    Ok(())
}

/// Steps of a run's condemned checkpoints ([`Checkpoint::condemn`]).
pub fn condemned(run: &Path) -> Result<Vec<u64>> {
    let names = disk::entries(&run.join("checkpoints"))?.into_iter();
    let step = |path: PathBuf| path.file_name()?.to_str()?.strip_prefix(CONDEMNED)?.parse().ok();
    Ok(names.filter_map(step).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).map(|_| ()).map_err(Error::io(to, "write"))?;
    sync_file(to)
}

/// Copies a folder's files, and folders in it: linked where the disk can, for weights are large and nothing here is written in place.
pub fn link_folder(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).map_err(Error::io(to, "create the directory"))?;
    for source in disk::entries(from)? {
        let target = to.join(source.file_name().unwrap_or_default());
        if source.is_dir() {
            link_folder(&source, &target)?;
        } else {
            link_file(&source, &target)?;
        }
    }
    sync_folder(to)
}

/// A file of [`link_folder`].
pub fn link_file(from: &Path, to: &Path) -> Result<()> {
    std::fs::hard_link(from, to).or_else(|_| copy(from, to))
}

/// Removes what a killed write or removal left behind, and gives a checkpoint its name back whose successor has not come to it.
pub(super) fn remove_leftovers(checkpoints: &Path) -> Result<()> {
    for path in disk::entries(checkpoints)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let replaced = name.strip_prefix('.').and_then(|name| name.strip_suffix(REPLACED));
        let made = name.strip_prefix('.').and_then(|name| name.strip_suffix(PARTIAL));
        // A mounted bucket renames file by file: what was killed meanwhile is half there, and whole here.
        if let Some(half) =
            made.map(|name| checkpoints.join(name)).filter(|half| half.exists() && is_half(half, &path))
        {
            std::fs::remove_dir_all(&half).map_err(Error::io(&half, "remove an unfinished checkpoint"))?;
            std::fs::rename(&path, &half).map_err(Error::io(&half, "finish the checkpoint"))?;
        } else if let Some(whole) =
            replaced.map(|name| checkpoints.join(name)).filter(|whole| !whole.exists())
        {
            std::fs::rename(&path, &whole).map_err(Error::io(&whole, "restore the checkpoint"))?;
        } else if name.starts_with(".step-") {
            stop::visit();
            std::fs::remove_dir_all(&path).map_err(Error::io(&path, "remove an unfinished checkpoint"))?;
        }
    }
    Ok(())
}

fn is_half(half: &Path, whole: &Path) -> bool {
    Checkpoint::verify(half).is_err() && Checkpoint::verify(whole).is_ok()
}

const PARTIAL: &str = ".partial";
const REMOVED: &str = ".removed";
const REPLACED: &str = ".replaced";

/// Takes a checkpoint its name, so that a kill while it is removed leaves no half of one under it.
fn move_away(path: &Path, ending: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match std::fs::rename(path, path.with_file_name(format!(".{name}{ending}"))) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io(path, "remove the old checkpoint")(error))
        }
        _ => Ok(()),
    }
}

fn newest_first(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let mut found = Vec::new();
    // What cannot be read is an error, not a run without checkpoints.
    if !checkpoints.try_exists().map_err(Error::io(checkpoints, "read"))? {
        return Ok(found);
    }
    for path in disk::entries(checkpoints)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let step = name.and_then(|name| name.strip_prefix("step-")).and_then(|n| n.parse().ok());
        found.extend(step.map(|step: u64| (step, path)));
    }
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// How far a run's own files go that a resume cuts back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Logs {
    metrics_bytes: u64,
    samples: Lengths,
}

impl Logs {
    /// As they are now; whoever writes them has written all.
    pub fn now(run: &RunDirectory) -> Result<Self> {
        let path = run.metrics();
        let metrics_bytes = match std::fs::metadata(&path) {
            Ok(found) => found.len(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
            Err(error) => return Err(Error::io(&path, "read")(error)),
        };
        Ok(Self { metrics_bytes, samples: samples::lengths(&run.samples())? })
    }

    /// Makes them durable.
    fn sync(&self, run: &RunDirectory) -> Result<()> {
        samples::sync(&run.samples())?;
        if self.metrics_bytes > 0 { sync_file(&run.metrics()) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::MANIFEST;
    use super::*;

    fn run() -> (tempfile::TempDir, RunDirectory) {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        run.write_config("").unwrap();
        (root, run)
    }

    fn write(run: &RunDirectory, step: u64) -> Checkpoint {
        Checkpoint::write(run, step, &Logs::now(run).unwrap(), |folder| {
            std::fs::create_dir(folder.join("model")).unwrap();
            std::fs::write(folder.join("model/weights"), [7; 1000]).unwrap();
            std::fs::write(folder.join("state.json"), format!("{{\"step\":{step}}}")).unwrap();
            Ok(())
        })
        .unwrap()
    }

    fn edit_manifest(checkpoint: &Path, from: &str, to: &str) {
        let path = checkpoint.join(MANIFEST);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
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
        let cases: [(&str, Damage); 7] = [
            ("manifest.json: is damaged (it has changed", |at| {
                edit_manifest(at, "\"metrics_bytes\": 0", "\"metrics_bytes\": 1")
            }),
            ("manifest.json: is damaged (it has changed", |at| {
                edit_manifest(at, "\"format\": 3", "\"format\": 1")
            }),
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
    fn a_checkpoint_whose_successor_of_the_same_step_never_came_gets_its_name_back() {
        let (root, run) = run();
        let written = write(&run, 1);
        move_away(&written.path, REPLACED).unwrap();
        std::fs::create_dir(run.checkpoints().join(".step-1.partial")).unwrap();
        drop(run);
        let run = RunDirectory::open_for_resume(&root.path().join("a")).unwrap();
        assert_eq!(names(&run), ["step-1"]);
        assert_eq!(latest(&run).checkpoint, written);
        // And goes where it has come.
        write(&run, 1);
        assert_eq!(names(&run), ["step-1"]);
    }

    #[test]
    fn a_manifest_of_before_the_seal_is_read() {
        let (_root, run) = run();
        let written = write(&run, 1);
        let path = written.path.join(MANIFEST);
        let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        manifest["format"] = 1.into();
        manifest.as_object_mut().unwrap().remove("seal");
        std::fs::write(&path, manifest.to_string()).unwrap();
        assert_eq!(Checkpoint::verify(&written.path).unwrap(), written);
    }

    #[test]
    fn what_is_being_written_is_among_a_runs_checkpoints() {
        let (_root, run) = run();
        assert!(Checkpoint::steps(&run).unwrap().is_empty());
        run.clone().set_writing(Some(3));
        assert_eq!(Checkpoint::steps(&run).unwrap(), [3]);
        write(&run, 2);
        run.set_writing(None);
        assert_eq!(Checkpoint::steps(&run).unwrap(), [2]);
    }

    #[test]
    fn a_failed_write_leaves_nothing_and_keeps_what_was_there() {
        let (_root, run) = run();
        write(&run, 1);
        let error = Checkpoint::write(&run, 2, &Logs::default(), |folder| {
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
