//! The thread that copies: object by object, then the snapshot that names them, then what is too old goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::faults::Fault;
use super::lease::Lease;
use super::snapshot::{Entry, Name, OBJECTS, Snapshot, key};
use super::store::Store;
use super::work::{Job, Piece};
use crate::run::hex;
use crate::stop;

type Answer<T> = std::result::Result<T, Fault>;

/// After everything of a finished run.
pub(super) const DONE: &str = "done.json";
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What the run's thread and the copying one share.
#[derive(Default)]
pub(super) struct Desk {
    papers: Mutex<Papers>,
    changed: Condvar,
    /// Parts that were copied.
    pub(super) moved: Arc<AtomicU64>,
    /// There is no time left.
    cancelled: AtomicBool,
}

#[derive(Default)]
pub(super) struct Papers {
    /// The newest checkpoint that is not copied; one that waited longer gives way.
    pub(super) job: Option<Job>,
    /// Steps whose weights training broke on.
    pub(super) condemned: Vec<u64>,
    /// The run is over, after so many steps.
    pub(super) end: Option<(u64, Vec<Piece>)>,
    /// What the thread has in hand, and the step of its checkpoint.
    pub(super) works: bool,
    pub(super) works_on: Option<u64>,
    pub(super) closes: bool,
    /// The newest step that is copied whole.
    pub(super) copied: Option<u64>,
    pub(super) is_ended: bool,
    /// Of the last try.
    pub(super) fault: Option<String>,
    pub(super) is_told: bool,
}

impl Papers {
    pub(super) fn is_empty(&self) -> bool {
        self.job.is_none() && self.condemned.is_empty() && self.end.is_none() && !self.works
    }
}

impl Desk {
    pub(super) fn papers(&self) -> MutexGuard<'_, Papers> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Papers) -> T) -> T {
        let changed = change(&mut self.papers());
        self.changed.notify_all();
        changed
    }

    pub(super) fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Waits for a change, for so long at most.
    pub(super) fn wait(&self, most: Duration, is_enough: impl Fn(&Papers) -> bool) {
        let papers = self.papers();
        drop(self.changed.wait_timeout_while(papers, most, |papers| !is_enough(papers)));
    }
}

pub(super) struct Copier {
    pub(super) store: Store,
    pub(super) lease: Arc<Lease>,
    pub(super) desk: Arc<Desk>,
    /// Checkpoints that stay.
    pub(super) keep: usize,
    /// What the store has; of one that could not be read its name alone.
    pub(super) snapshots: BTreeMap<Name, Option<Snapshot>>,
    /// Whether the store says that the run is over.
    pub(super) says_done: bool,
    /// Objects by what they hold, where that was read or written by this process.
    pub(super) objects: BTreeMap<String, String>,
    /// Digests of what lies under its own name.
    pub(super) plain: BTreeMap<String, String>,
    /// Of files, by length and time.
    pub(super) digests: BTreeMap<String, ((u64, Option<SystemTime>), String)>,
}

impl Copier {
    /// Until the desk closes and nothing is left, or there is no time left.
    pub(super) fn work(mut self) {
        let mut pause = FIRST_PAUSE;
        loop {
            self.desk.wait(Duration::from_secs(3600), |papers| {
                papers.closes || papers.job.is_some() || !papers.condemned.is_empty() || papers.end.is_some()
            });
            if self.desk.papers().is_empty() {
                if self.desk.papers().closes { return } else { continue }
            }
            let (mut job, mut condemned, mut end) = self.desk.change(|papers| {
                papers.works = true;
                papers.works_on = papers.job.as_ref().map(|job| job.step);
                (papers.job.take(), std::mem::take(&mut papers.condemned), papers.end.take())
            });
            let done = self.everything(&mut job, &mut condemned, &mut end);
            let failed = done.is_err();
            self.desk.change(|papers| {
                papers.works = false;
                papers.works_on = None;
                papers.fault = done.err().map(|fault| fault.to_string());
                if papers.job.is_none() {
                    papers.job = job;
                }
                papers.condemned.extend(condemned);
                if papers.end.is_none() {
                    papers.end = end;
                }
            });
            if self.lease.lost().is_some() || self.desk.cancelled.load(Ordering::SeqCst) {
                return;
            }
            if failed {
                let longest = if self.desk.papers().closes { FIRST_PAUSE } else { LONGEST_PAUSE };
                let newest = self.desk.papers().job.as_ref().map(|job| job.step);
                self.desk.wait(pause.min(longest), |papers| {
                    papers.job.as_ref().map(|job| job.step) != newest
                        || self.desk.cancelled.load(Ordering::SeqCst)
                });
                pause = (2 * pause).min(LONGEST_PAUSE);
            } else {
                pause = FIRST_PAUSE;
            }
        }
    }

    /// Takes away what is done.
    fn everything(
        &mut self,
        job: &mut Option<Job>,
        condemned: &mut Vec<u64>,
        end: &mut Option<(u64, Vec<Piece>)>,
    ) -> Answer<()> {
        job.take_if(|job| condemned.contains(&job.step));
        if let Some(work) = job {
            let step = work.step;
            self.checkpoint(work)?;
            *job = None;
            self.desk.change(|papers| papers.copied = Some(step));
        }
        while let Some(step) = condemned.last() {
            self.forget(|(of, _)| of == *step)?;
            condemned.pop();
        }
        if let Some((step, pieces)) = end {
            self.plain(&*pieces)?;
            self.may()?;
            self.store.put(DONE, serde_json::json!({ "step": step, "model": "model" }).to_string().into())?;
            *end = None;
            self.desk.change(|papers| papers.is_ended = true);
        }
        Ok(())
    }

    fn may(&self) -> Answer<()> {
        stop::visit();
        if self.desk.cancelled.load(Ordering::SeqCst) {
            return Err(Fault::Here("there was no time left".into()));
        }
        self.lease.confirm()
    }

    fn checkpoint(&mut self, job: &Job) -> Answer<()> {
        if self.says_done {
            self.may()?;
            self.store.delete(DONE)?;
            self.says_done = false;
        }
        let files = job.pieces.iter().map(|piece| self.object(piece)).collect::<Answer<Vec<_>>>()?;
        let snapshot = Snapshot::new(job.step, self.lease.generation, files);
        self.may()?;
        self.store.put(&key(snapshot.name()), snapshot.to_json())?;
        let name = snapshot.name();
        self.snapshots.insert(name, Some(snapshot));
        self.prune(name)?;
        self.plain(job.pieces.iter().filter(|piece| piece.is_to_be_seen()))
    }

    /// Copies a file's bytes where the store has not got them.
    fn object(&mut self, piece: &Piece) -> Answer<Entry> {
        let sha256 = self.digest(piece)?;
        let object = match self.objects.get(&sha256) {
            Some(there) => there.clone(),
            None => {
                let object = format!("{OBJECTS}/{}/{sha256}", self.lease.generation);
                self.upload(&object, piece, &sha256)?;
                self.objects.insert(sha256.clone(), object.clone());
                object
            }
        };
        Ok(Entry { path: piece.path.clone(), object, bytes: piece.bytes, sha256 })
    }

    /// Read once for as long as the file is left alone.
    fn digest(&mut self, piece: &Piece) -> Answer<String> {
        if let Some(known) = &piece.sha256 {
            return Ok(known.clone());
        }
        let written = (piece.bytes, piece.modified);
        if let Some((_, known)) = self.digests.get(&piece.path).filter(|(of, _)| *of == written) {
            return Ok(known.clone());
        }
        let read = piece.with_file(|file| hash(file, piece.bytes)).and_then(|digest| digest);
        let read = read.map_err(|error| Fault::Here(format!("cannot read {}: {error}", piece.path)))?;
        self.digests.insert(piece.path.clone(), (written, read.clone()));
        Ok(read)
    }

    fn upload(&self, object: &str, piece: &Piece, sha256: &str) -> Answer<()> {
        let copied = piece.with_file(|file| self.store.upload(object, file, piece.bytes, &|| self.may()));
        let read = copied.map_err(|error| Fault::Here(format!("cannot read {}: {error}", piece.path)))??;
        match read == sha256 {
            true => Ok(()),
            false => Err(Fault::Here(format!("{} is not what it was when it was written", piece.path))),
        }
    }

    /// Copies what people look at, under its own name.
    fn plain<'a>(&mut self, pieces: impl IntoIterator<Item = &'a Piece>) -> Answer<()> {
        for piece in pieces {
            let sha256 = self.digest(piece)?;
            if self.plain.get(&piece.path) != Some(&sha256) {
                self.upload(&piece.path, piece, &sha256)?;
                self.plain.insert(piece.path.clone(), sha256);
            }
        }
        Ok(())
    }

    /// Removes the snapshots that are too old beside `newest`, those of a course that was left, and the objects that none names.
    fn prune(&mut self, newest: Name) -> Answer<()> {
        let older: Vec<Name> = self.snapshots.range(..newest).rev().map(|(name, _)| *name).collect();
        let step = newest.0;
        // Of the same step, the older says the same.
        let kept: BTreeSet<Name> = older
            .into_iter()
            .filter(|(of, _)| *of != step)
            .take(self.keep.saturating_sub(1))
            .chain([newest])
            .collect();
        self.forget(|name| !kept.contains(&name))?;
        let Some(named) = self.snapshots.values().map(Option::as_ref).collect::<Option<Vec<_>>>() else {
            // One that cannot be read may name any.
            return Ok(());
        };
        let named: BTreeSet<&str> =
            named.iter().flat_map(|snapshot| &snapshot.files).map(|file| file.object.as_str()).collect();
        self.may()?;
        let left: Vec<String> =
            self.store.list(OBJECTS)?.into_iter().filter(|key| !named.contains(key.as_str())).collect();
        for object in left {
            self.may()?;
            self.objects.retain(|_, known| *known != object);
            self.store.delete(&object)?;
        }
        Ok(())
    }

    fn forget(&mut self, which: impl Fn(Name) -> bool) -> Answer<()> {
        let names: Vec<Name> = self.snapshots.keys().copied().filter(|name| which(*name)).collect();
        for name in names {
            self.may()?;
            self.store.delete(&key(name))?;
            self.snapshots.remove(&name);
        }
        Ok(())
    }
}

fn hash(mut file: &File, bytes: u64) -> std::io::Result<String> {
    std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(0))?;
    let (mut hash, mut part, mut file) = (Sha256::new(), vec![0; 1 << 20], file.take(bytes));
    loop {
        match file.read(&mut part)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&part[..read]),
        }
    }
}
