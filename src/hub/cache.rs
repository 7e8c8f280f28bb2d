//! One repository in the cache folder: blobs by ETag, snapshots of links to them, refs that name commits.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::Value;

use super::faults::disk;
use super::name::{RepoKind, is_commit};
use super::{ADAPTER, INDEX, Parts, RepoName, SINGLE};
use crate::disk::create_aside;
use crate::error::{Error, Result};

pub(super) struct RepoCache {
    repo: CacheRepo,
    name: RepoName,
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(cache: &Cache, name: &RepoName) -> Self {
        let kind = match name.kind() {
            RepoKind::Model => RepoType::Model,
            RepoKind::Dataset => RepoType::Dataset,
        };
        let repo = Repo::with_revision(name.id().into(), kind, name.revision().into());
        let folder = repo.folder_name();
        let locks = cache.path().join(".locks").join(&folder);
        let path = cache.path().join(folder);
        Self { repo: cache.repo(repo), name: name.clone(), folder: path, locks }
    }

    /// The commit that the cache knows for the name's revision.
    pub(super) fn commit(&self) -> Result<Option<String>> {
        if self.name.is_commit() {
            return Ok(Some(self.name.revision().into()));
        }
        let path = self.folder.join("refs").join(self.name.revision());
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(disk(&path, "read")(error)),
        };
        Ok(Some(text.trim().to_string()).filter(|commit| is_commit(commit)))
    }

    /// Notes the commit of the name's branch or tag.
    pub(super) fn remember(&self, commit: &str) -> Result<()> {
        if self.name.is_commit() {
            return Ok(());
        }
        self.repo.create_ref(commit).map_err(disk(&self.folder.join("refs"), "write"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo.pointer_path(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// What no use of `parts` can do without, and the snapshot has not got.
    pub(super) fn missing(&self, commit: &str, parts: Parts) -> Result<Vec<String>> {
        let dir = self.snapshot(commit);
        let has = |file: &str| dir.join(file).is_file();
        let mut wanted = vec!["config.json".to_string()];
        match parts {
            Parts::Config => {}
            Parts::Text => wanted = vec!["tokenizer.json".into()],
            Parts::Model if has(ADAPTER) => wanted = vec!["adapter_config.json".into()],
            Parts::Model if has(SINGLE) => {}
            Parts::Model if has(INDEX) => wanted.extend(shards(&dir.join(INDEX))?),
            Parts::Model => wanted.push(SINGLE.into()),
        }
        wanted.retain(|file| !has(file));
        Ok(wanted)
    }

    /// Whether the tokenizer is there: someone else may have cached the weights alone.
    pub(super) fn has_text(&self, commit: &str, parts: Parts) -> bool {
        parts == Parts::Config || self.snapshot(commit).join("tokenizer.json").is_file()
    }

    /// The names of all files of a commit, where the hub was asked for them once.
    pub(super) fn listing(&self, commit: &str) -> Option<Vec<String>> {
        let text = std::fs::read_to_string(self.record(commit)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Notes the names of all files of a commit: a snapshot holds those that were asked for, and does not say which are
    /// missing.
    pub(super) fn keep_listing(&self, commit: &str, files: &[String]) -> Result<()> {
        let path = self.record(commit);
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(disk(dir, "make the folder"))?;
        let (aside, mut file) = create_aside(&path).map_err(disk(&path, "create"))?;
        let text = serde_json::to_string(files).unwrap_or_default();
        file.write_all(text.as_bytes()).map_err(disk(&aside, "write"))?;
        std::fs::rename(&aside, &path).map_err(disk(&path, "move the finished file into place"))
    }

    /// Beside what the Python client knows, and looked at by nobody else.
    fn record(&self, commit: &str) -> PathBuf {
        self.folder.join(".rlvr").join(format!("{commit}.json"))
    }

    /// Names of the files that a snapshot holds.
    pub(super) fn held(&self, commit: &str) -> Vec<String> {
        let root = self.snapshot(commit);
        let (mut folders, mut files) = (vec![root.clone()], Vec::new());
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    folders.push(path);
                } else if let Some(name) = path.strip_prefix(&root).ok().and_then(Path::to_str) {
                    files.push(name.replace('\\', "/"));
                }
            }
        }
        files
    }

    /// Held while a blob is written; the Python client waits for the same lock.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        std::fs::create_dir_all(&self.locks).map_err(disk(&self.locks, "make the folder"))?;
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::create(&path).map_err(disk(&path, "create"))?;
        file.lock().map_err(disk(&path, "lock"))?;
        Ok(file)
    }

    /// Gives a whole blob its file name in the snapshot.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(file);
        let dir = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(disk(dir, "make the folder"))?;
        if path.is_file() {
            return Ok(path);
        }
        let _ = std::fs::remove_file(&path);
        #[cfg(unix)]
        let up = "../".repeat(2 + file.matches('/').count());
        #[cfg(unix)]
        let made = std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), &path);
        #[cfg(not(unix))]
        let made = std::fs::hard_link(self.blob(etag), &path);
        match made {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(disk(&path, "link")(error))
            }
            _ => Ok(path),
        }
    }
}

/// The files that an index names, each once.
pub(super) fn shards(index: &Path) -> Result<Vec<String>> {
    let broken = |problem: String| {
        Error::input(index.display(), problem, "Delete it and fetch it again, or tell the repository's owner")
    };
    let text = std::fs::read_to_string(index).map_err(Error::io(index, "read"))?;
    let json: Value = serde_json::from_str(&text).map_err(|e| broken(format!("not valid JSON ({e})")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| broken("no weight_map object".into()))?;
    let mut files = Vec::new();
    for (tensor, file) in map {
        let plain = |file: &&str| !file.contains(['/', '\\']) && file.ends_with(".safetensors");
        let Some(file) = file.as_str().filter(plain) else {
            return Err(broken(format!("gives {tensor} a file that is not a .safetensors beside it")));
        };
        files.push(file.to_string());
    }
    files.sort();
    files.dedup();
    Ok(files)
}
