//! What a checkpoint's files are: their sizes and digests, in a file that has a digest of its own.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::sync_folder;
use crate::disk;
use crate::error::{Error, Result};
use crate::trail;

/// Lengths of the growing files of samples/ by name, as a checkpoint keeps them. Bytes.
pub type Lengths = BTreeMap<String, u64>;

pub(super) const MANIFEST: &str = "manifest.json";
/// 1 had no seal, 2 no `samples`.
const FORMAT: u32 = 3;

const FIX: &str = "Remove this checkpoint and resume from an older one";

/// What a checkpoint says that it holds.
pub struct Contents {
    /// Length of metrics.jsonl then.
    pub metrics_bytes: u64,
    pub manifest: PathBuf,
    /// The others: path within the checkpoint, with `/`; bytes; SHA-256.
    pub files: Vec<(String, u64, String)>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub(super) step: u64,
    pub(super) metrics_bytes: u64,
    /// Of the growing files of samples/; an earlier version had none.
    #[serde(default, skip_serializing_if = "Lengths::is_empty")]
    pub(super) samples: Lengths,
    files: Vec<FileEntry>,
    /// SHA-256 of this manifest without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seal: Option<String>,
}

impl Manifest {
    /// Of the checkpoint in the folder `path`.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let manifest_path = path.join(MANIFEST);
        let text = std::fs::read(&manifest_path).map_err(Error::io(&manifest_path, "read"))?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|e| Error::input(manifest_path.display(), format!("is damaged ({e})"), FIX))?;
        if !(1..=FORMAT).contains(&manifest.format) {
            return Err(Error::input(
                manifest_path.display(),
                format!("has format {}, this rlvr reads 1 to {FORMAT}", manifest.format),
                "Resume with the version of rlvr that wrote it",
            ));
        }
        if manifest.format == 1 && manifest.seal.is_none() {
            return Ok(manifest);
        }
        let seal = manifest.seal.clone();
        let manifest = manifest.sealed()?;
        match manifest.seal == seal {
            true => Ok(manifest),
            false => {
                let problem = "is damaged (it has changed since it was written)";
                Err(Error::input(manifest_path.display(), problem, FIX))
            }
        }
    }

    pub(super) fn contents(self, path: &Path) -> Contents {
        let files = self.files.into_iter().map(|file| (file.path, file.bytes, file.sha256)).collect();
        Contents { metrics_bytes: self.metrics_bytes, manifest: path.join(MANIFEST), files }
    }

    /// Reads the checkpoint in the folder `path` through.
    ///
    /// # Errors
    /// The first file that is missing, truncated or changed.
    pub(super) fn verify(path: &Path) -> Result<Self> {
        let manifest = Self::read(path)?;
        for entry in &manifest.files {
            let file = path.join(&entry.path);
            let wrong = |problem: String| Err(Error::input(file.display(), problem, FIX));
            let is_inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
            if !is_inside(Path::new(&entry.path)) {
                return wrong("is named by the manifest and lies elsewhere".into());
            }
            match std::fs::metadata(&file) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return wrong("is missing from the checkpoint".into());
                }
                Err(error) => return Err(Error::io(&file, "read")(error)),
                Ok(found) if !found.is_file() => return wrong("is no file".into()),
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
        Ok(manifest)
    }

    fn sealed(mut self) -> Result<Self> {
        self.seal = None;
        let text = serde_json::to_vec(&self).map_err(|e| Error::Compute(e.into()))?;
        self.seal = Some(hex(&Sha256::digest(&text)));
        Ok(self)
    }
}

#[derive(Serialize, Deserialize)]
struct FileEntry {
    /// Inside the checkpoint, with `/`.
    path: String,
    bytes: u64,
    sha256: String,
}

/// Syncs every file and folder below `aside` and adds the manifest.
pub(super) fn seal(aside: &Path, step: u64, metrics_bytes: u64, samples: Lengths) -> Result<()> {
    let mut files = Vec::new();
    seal_folder(aside, "", &mut files)?;
    files.sort_by(|a: &FileEntry, b| a.path.cmp(&b.path));
    let manifest = Manifest { format: FORMAT, step, metrics_bytes, samples, files, seal: None }.sealed()?;
    let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::Compute(e.into()))?;
    let path = aside.join(MANIFEST);
    std::fs::write(&path, text).map_err(Error::io(&path, "write"))?;
    sync_file(&path)?;
    sync_folder(aside)
}

fn seal_folder(folder: &Path, inside: &str, files: &mut Vec<FileEntry>) -> Result<()> {
    for path in disk::entries(folder)? {
        let name = format!("{inside}{}", path.file_name().unwrap_or_default().to_string_lossy());
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

pub(super) fn sync_file(path: &Path) -> Result<()> {
    let mut options = File::options();
    options.append(true).open(path).and_then(|file| file.sync_all()).map_err(Error::io(path, "write"))
}

/// In hexadecimal.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Of a file's content, in hexadecimal.
pub fn sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).map_err(Error::io(path, "read"))?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        trail::begin("hash a file");
        match file.read(&mut buffer) {
            Ok(0) => return Ok(hex(&hash.finalize())),
            Ok(read) => hash.update(&buffer[..read]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(path, "read")(error)),
        }
    }
}
