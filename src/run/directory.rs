//! Where the files of a run are, and who may write them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::checkpoint::remove_leftovers;
use super::lock::Lock;
use super::replace_file;
use crate::disk;
use crate::error::{Error, Result};
use crate::hub::{RUN_CONFIG as CONFIG, RUN_MODEL};
use crate::observe::{EVENTS_FILE, MLFLOW_NOTE};

const LOCK: &str = "lock";

/// A run that this process writes to; locked until it and its clones are dropped.
///
/// ```text
/// config.resolved.toml   every key with its value
/// metrics.jsonl          a line for each step and each evaluation
/// events.out.tfevents.*  the same for TensorBoard
/// heartbeat.json         where it is, if run.heartbeat says so
/// samples/               judged completions, a growing file a stage for evaluations and for rollouts; their prompts
/// checkpoints/step-N/    after N optimiser steps of the run
/// best/                  while it trains: the best model so far, by eval.keep_best
/// model/                 the best weights in Hugging Face layout, or the last; best.json says which
/// model-last/            the last weights, where those are not the best
/// ranks/N/               of another rank: what it was at (log.txt), its tokenizer
/// lock
/// ```
#[derive(Clone, Debug)]
pub struct RunDirectory {
    path: PathBuf,
    is_new: bool,
    /// Steps of the checkpoint that is being written; 0: none is.
    writing: Arc<AtomicU64>,
    /// `None`: another process of the same run has it.
    _lock: Option<Arc<Lock>>,
}

impl RunDirectory {
    /// A new run `root/name`.
    ///
    /// # Errors
    /// A directory that holds anything already, or that cannot be written.
    pub fn create(root: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let path = root.join(name);
        std::fs::create_dir_all(&path).map_err(Error::io(&path, "create the run directory"))?;
        let run = Self::locked(path, true)?;
        check_empty(&run.path)?;
        run.make_folders()?;
        Ok(run)
    }

    fn locked(path: PathBuf, is_new: bool) -> Result<Self> {
        let _lock = Some(Arc::new(Lock::acquire(&path.join(LOCK))?));
        Ok(Self { path, is_new, writing: Arc::default(), _lock })
    }

    /// That of rank 0, for another rank: to read from.
    pub fn of_first_rank(path: PathBuf) -> Self {
        Self { path, is_new: false, writing: Arc::default(), _lock: None }
    }

    /// Where a rank keeps what is its own.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn of_rank(&self, rank: usize) -> Result<PathBuf> {
        if rank == 0 {
            return Ok(self.path.clone());
        }
        let path = self.path.join("ranks").join(rank.to_string());
        std::fs::create_dir_all(&path).map_err(Error::io(&path, "create the directory"))?;
        Ok(path)
    }

    /// A checkpoint of so many steps is on its way: what it needs of the run's folder stays. None: it is there, or never will be.
    pub fn set_writing(&self, step: Option<u64>) {
        self.writing.store(step.unwrap_or(0), Ordering::SeqCst);
    }

    pub(super) fn writing(&self) -> Option<u64> {
        Some(self.writing.load(Ordering::SeqCst)).filter(|step| *step > 0)
    }

    /// Refuses what [`Self::create`] would refuse, and makes nothing.
    pub fn check_new(root: &Path, name: &str) -> Result<()> {
        check_name(name)?;
        let path = root.join(name);
        if path.exists() { check_empty(&path) } else { Ok(()) }
    }

    /// A new run `root/stem-001`, or with the first number that is free. What no run may be called becomes `-` in it.
    pub fn create_numbered(root: &Path, stem: &str) -> Result<Self> {
        let stem: String = stem.chars().map(|c| if may_be_in_a_name(c) { c } else { '-' }).collect();
        let stem = stem.trim_start_matches(['-', '.']);
        let stem = if stem.is_empty() { "run" } else { stem };
        std::fs::create_dir_all(root).map_err(Error::io(root, "create the directory of runs"))?;
        let mut number = 0u64;
        loop {
            number += 1;
            let name = format!("{stem}-{number:03}");
            let path = root.join(&name);
            // Making the directory claims the number, also against a process that looks at the same time.
            match std::fs::create_dir(&path) {
                Ok(()) => return Self::create(root, &name),
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(&path, "create the run directory")(error)),
            }
        }
    }

    /// A run made earlier, to go on with. What a killed write left behind is removed.
    pub fn open_for_resume(path: &Path) -> Result<Self> {
        // Looked at before the lock, which would leave a file in a directory that is no run.
        if !path.join(CONFIG).is_file() {
            return Err(Error::input(
                path.display(),
                format!("is not a run: it has no {CONFIG}"),
                "Name the directory that `rlvr train` printed as `run:`",
            ));
        }
        let run = Self::locked(path.to_path_buf(), false)?;
        run.make_folders()?;
        remove_leftovers(&run.checkpoints())?;
        Ok(run)
    }

    /// The run `root/name`: to go on with, or a new one where there is none, or one that was killed before it had its config.
    pub fn open_or_create(root: &Path, name: &str) -> Result<Self> {
        check_name(name)?;
        let path = root.join(name);
        if path.join(CONFIG).is_file() {
            return Self::open_for_resume(&path);
        }
        for folder in ["samples", "checkpoints"] {
            // One with something in it stays, and is refused.
            let _ = std::fs::remove_dir(path.join(folder));
        }
        let aside = path.join(format!("{CONFIG}.partial"));
        if aside.is_file() {
            std::fs::remove_file(&aside).map_err(Error::io(&aside, "remove"))?;
        }
        Self::create(root, name)
    }

    /// Whether this process made it.
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Takes away what a run that had no checkpoint came to. Its config stays, and so do files that are not the run's.
    pub fn start_over(&self) -> Result<()> {
        let folders = COMPANIONS.into_iter().chain(["checkpoints", "best", "adapter"]);
        for folder in folders.map(|name| self.path.join(name)) {
            match std::fs::remove_dir_all(&folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::io(&folder, "remove")(error));
                }
                _ => {}
            }
        }
        self.make_folders()
    }

    /// # Errors
    /// The directory was taken away.
    pub fn check_there(&self) -> Result<()> {
        let gone = |path: PathBuf| Error::Io {
            path,
            action: "write to the run's directory",
            source: std::io::ErrorKind::NotFound.into(),
            fix: "It was deleted or moved while the run worked in it: put it back and go on with --resume, or start again",
        };
        if self.config().is_file() { Ok(()) } else { Err(gone(self.path.clone())) }
    }

    fn make_folders(&self) -> Result<()> {
        for folder in [self.samples(), self.checkpoints()] {
            std::fs::create_dir_all(&folder).map_err(Error::io(&folder, "create the directory"))?;
        }
        Ok(())
    }

    /// `toml`: the config with all defaults filled in.
    pub fn write_config(&self, toml: &str) -> Result<()> {
        replace_file(&self.config(), toml.as_bytes())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn config(&self) -> PathBuf {
        self.path.join(CONFIG)
    }

    pub fn metrics(&self) -> PathBuf {
        metrics_file(&self.path)
    }

    pub fn samples(&self) -> PathBuf {
        self.path.join("samples")
    }

    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    pub fn model(&self) -> PathBuf {
        self.path.join(RUN_MODEL)
    }

    /// The last step's, where another one's is [`Self::model`].
    pub fn model_last(&self) -> PathBuf {
        self.path.join("model-last")
    }
}

/// Folders that a resume reads or goes on with, beside the checkpoints.
const COMPANIONS: [&str; 4] = ["samples", "tokenizer", "reference", "base"];

/// The files that a run has beside its checkpoints and goes on with: config, metrics, samples, reference and tokenizer.
pub fn companions(run: &Path) -> Result<Vec<PathBuf>> {
    let mut files = vec![run.join(CONFIG)];
    let metrics = metrics_file(run);
    files.extend(metrics.is_file().then_some(metrics));
    let beside = [EVENTS_FILE, MLFLOW_NOTE].map(|name| run.join(name));
    files.extend(beside.into_iter().filter(|path| path.is_file()));
    let mut folders: Vec<PathBuf> = COMPANIONS.map(|name| run.join(name)).into();
    while let Some(folder) = folders.pop() {
        if !folder.is_dir() {
            continue;
        }
        for path in disk::entries(&folder)? {
            match path.is_dir() {
                true => folders.push(path),
                false if path.extension().is_some_and(|ending| ending == "partial") => {}
                false => files.push(path),
            }
        }
    }
    Ok(files)
}

pub fn metrics_file(run: &Path) -> PathBuf {
    run.join("metrics.jsonl")
}

/// A name goes into commands, tables and file names of other programs: letters, digits and `. _ - + = @`.
fn may_be_in_a_name(c: char) -> bool {
    c.is_alphanumeric() || "._-+=@".contains(c)
}

fn check_name(name: &str) -> Result<()> {
    let plain = name.chars().all(may_be_in_a_name) && !name.starts_with(['-', '.']);
    if plain && (1..=200).contains(&name.len()) {
        return Ok(());
    }
    let want = "a plain directory name: letters, digits and . _ - + = @, the first a letter, a digit or one of _ + = @";
    Err(Error::config("run.name", format!("{name:?}"), want, "it becomes a directory of run.root"))
}

/// A lock may lie in it.
fn check_empty(path: &Path) -> Result<()> {
    let found = disk::entries(path)?;
    match found.iter().filter_map(|path| path.file_name()).find(|name| *name != LOCK) {
        None => Ok(()),
        Some(name) => Err(Error::input(
            path.display(),
            format!("is not empty (it has {})", name.display()),
            "Choose another run.name, or go on with that run with --resume",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_made_once_and_resumed_after() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        let path = run.path().to_path_buf();
        assert!(path.join("samples").is_dir() && path.join("checkpoints").is_dir());
        run.write_config("seed = 1\n").unwrap();
        assert_eq!(std::fs::read_to_string(path.join("config.resolved.toml")).unwrap(), "seed = 1\n");
        assert!(!path.join("config.resolved.toml.partial").exists());

        let busy = RunDirectory::open_for_resume(&path).unwrap_err().to_string();
        assert!(busy.contains("is working in this run"), "{busy}");
        drop(run);
        let used = RunDirectory::create(root.path(), "a").unwrap_err().to_string();
        assert!(used.contains("is not empty") && used.contains("--resume"), "{used}");
        assert_eq!(RunDirectory::open_for_resume(&path).unwrap().path(), path);
    }

    #[test]
    fn a_run_is_gone_on_with_or_made_and_what_is_no_run_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        let open = || RunDirectory::open_or_create(root.path(), "a");
        assert!(open().unwrap().is_new());
        // Killed before it had its config.
        std::fs::write(path.join("config.resolved.toml.partial"), "see").unwrap();
        let run = open().unwrap();
        assert!(run.is_new());
        run.write_config("seed = 1\n").unwrap();
        std::fs::write(run.samples().join("sft-000001-rollouts.jsonl"), "{}").unwrap();
        std::fs::write(path.join("notes.txt"), "mine").unwrap();
        drop(run);
        let run = open().unwrap();
        assert!(!run.is_new());
        run.start_over().unwrap();
        assert_eq!(std::fs::read_dir(run.samples()).unwrap().count(), 0);
        assert!(run.config().is_file() && path.join("notes.txt").is_file());
        drop(run);
        std::fs::remove_file(path.join("config.resolved.toml")).unwrap();
        let refused = open().unwrap_err().to_string();
        assert!(refused.contains("is not empty (it has notes.txt)"), "{refused}");
    }

    #[test]
    fn a_run_that_was_deleted_is_named() {
        let root = tempfile::tempdir().unwrap();
        let run = RunDirectory::create(root.path(), "a").unwrap();
        run.write_config("").unwrap();
        run.check_there().unwrap();
        std::fs::remove_dir_all(run.path()).unwrap();
        let error = run.check_there().unwrap_err();
        assert!(!error.is_input() && error.to_string().contains("a: cannot write to the run's directory"));
        assert!(error.to_string().contains("deleted or moved while the run worked in it"), "{error}");
    }

    #[test]
    fn runs_without_a_name_are_numbered() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("riskcue-002")).unwrap();
        let names: Vec<_> = (0..2)
            .map(|_| RunDirectory::create_numbered(root.path(), "riskcue").unwrap())
            .map(|run| run.path().file_name().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["riskcue-001", "riskcue-003"]);
    }

    #[test]
    fn what_is_no_run_is_not_resumed_and_not_touched() {
        let root = tempfile::tempdir().unwrap();
        let error = RunDirectory::open_for_resume(root.path()).unwrap_err().to_string();
        assert!(error.contains("has no config.resolved.toml"), "{error}");
        assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_path_that_cannot_be_written_is_named() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        for error in [
            RunDirectory::create(&file, "a").unwrap_err(),
            RunDirectory::create_numbered(&file, "a").unwrap_err(),
        ] {
            let text = error.to_string();
            assert!(text.contains("file") && text.contains("cannot create the"), "{text}");
        }
    }

    #[test]
    fn a_name_cannot_lead_out_of_the_root() {
        let root = tempfile::tempdir().unwrap();
        for name in ["..", "a/b", "/a", "", "."] {
            let error = RunDirectory::create(root.path(), name).unwrap_err().to_string();
            assert!(error.starts_with("run.name = "), "{error}");
        }
    }
}
