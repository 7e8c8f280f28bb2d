//! One file of a repository into the cache: resumed where it broke off, checked, and only then named.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::Progress;
use super::cache::RepoCache;
use super::client::{Client, FileInfo};
use super::faults::{Fault, disk};
use crate::error::{Error, Result};
use crate::stop;

const BUFFER: usize = 1 << 20;

pub(super) struct Download<'a> {
    pub(super) client: &'a Client<'a>,
    pub(super) cache: &'a RepoCache,
    pub(super) commit: &'a str,
}

/// Why a finished download is not the file.
struct Damage(String);

impl Download<'_> {
    /// The path of `file` in the snapshot.
    pub(super) fn file(&self, file: &str, progress: &mut dyn Progress) -> Result<PathBuf> {
        let path = self.cache.snapshot(self.commit).join(file);
        if path.is_file() {
            return Ok(path);
        }
        let info = self.client.file_info(self.commit, file)?;
        let blob = self.cache.blob(&info.etag);
        let folder = blob.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(disk(folder, "make the folder"))?;
        let _lock = self.cache.lock(&info.etag)?;
        if !blob.is_file() {
            let partial = folder.join(format!("{}.incomplete", info.etag));
            let have = std::fs::metadata(&partial).map_or(0, |m| m.len());
            progress.file(file, info.size, have.min(info.size));
            let mut found = self.bring(&info, &partial, progress)?;
            if found.is_err() && have > 0 {
                // What an earlier, broken download left may be what is wrong.
                remove(&partial)?;
                found = self.bring(&info, &partial, progress)?;
            }
            if let Err(Damage(problem)) = found {
                remove(&partial)?;
                let fix = "Fetch again; if it stays so, a proxy or the mirror in HF_ENDPOINT changes files";
                return Err(Error::input(format!("{} of {}", file, self.client.name), problem, fix));
            }
            std::fs::rename(&partial, &blob).map_err(disk(&blob, "move the finished file into place"))?;
            progress.done();
        }
        self.cache.link(self.commit, file, &info.etag)
    }

    /// Completes `partial` and compares it with what the hub says of it.
    fn bring(
        &self,
        info: &FileInfo,
        partial: &Path,
        progress: &mut dyn Progress,
    ) -> Result<std::result::Result<(), Damage>> {
        let (mut tries, mut furthest) = (0, 0);
        loop {
            let (file, hash, length) = match self.pull(info, partial, progress) {
                Ok(pulled) => pulled,
                Err(fault @ Fault::Final(_)) => return Err(fault.into()),
                Err(fault) => {
                    let length = std::fs::metadata(partial).map_or(0, |m| m.len());
                    tries = if length > furthest { 1 } else { tries + 1 };
                    furthest = furthest.max(length);
                    if tries >= self.client.hub.tries {
                        return Err(fault.into());
                    }
                    self.client.pause(tries);
                    continue;
                }
            };
            if length != info.size {
                return Ok(Err(Damage(format!("has {length} bytes, and the hub says {}", info.size))));
            }
            let stated = info.etag.to_ascii_lowercase();
            let computed: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
            if stated.len() == 64 && stated != computed {
                return Ok(Err(Damage(format!("has the SHA-256 {computed}, and the hub says {stated}"))));
            }
            file.sync_all().map_err(disk(partial, "write"))?;
            return Ok(Ok(()));
        }
    }

    /// One request for what is missing. A body that ends too early is a passing fault; what came of it stays.
    fn pull(
        &self,
        info: &FileInfo,
        partial: &Path,
        progress: &mut dyn Progress,
    ) -> std::result::Result<(File, Sha256, u64), Fault> {
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(partial).map_err(disk(partial, "create"))?;
        let (mut hash, mut length) = (Sha256::new(), 0u64);
        let mut buffer = vec![0; BUFFER];
        loop {
            let read = file.read(&mut buffer).map_err(disk(partial, "read"))?;
            if read == 0 {
                break;
            }
            hash.update(&buffer[..read]);
            length += read as u64;
        }
        if length > info.size {
            length = start_over(&mut file, &mut hash).map_err(disk(partial, "write"))?;
        }
        if length == info.size {
            return Ok((file, hash, length));
        }
        let (response, resumed) = self.client.bytes(info, length)?;
        if length > 0 && !resumed {
            length = start_over(&mut file, &mut hash).map_err(disk(partial, "write"))?;
        }
        let mut body = response.into_body().into_reader();
        loop {
            stop::look()?;
            progress.at(length);
            let read = match body.read(&mut buffer) {
                Ok(0) if length < info.size => {
                    let what = format!("closed the connection after {length} of {} bytes", info.size);
                    return Err(self.client.passing(what));
                }
                Ok(0) => return Ok((file, hash, length)),
                Ok(read) => read,
                Err(error) => {
                    let what = format!("broke off after {length} of {} bytes ({error})", info.size);
                    return Err(self.client.passing(what));
                }
            };
            file.write_all(&buffer[..read]).map_err(disk(partial, "write"))?;
            hash.update(&buffer[..read]);
            length += read as u64;
            if length > info.size {
                return Ok((file, hash, length));
            }
        }
    }
}

fn start_over(file: &mut File, hash: &mut Sha256) -> std::io::Result<u64> {
    file.set_len(0)?;
    file.seek(SeekFrom::Start(0))?;
    *hash = Sha256::new();
    Ok(0)
}

fn remove(partial: &Path) -> Result<()> {
    std::fs::remove_file(partial).map_err(disk(partial, "remove"))
}
