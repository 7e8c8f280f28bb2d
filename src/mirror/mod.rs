//! A run's second home: an object store that has its checkpoints, metrics and samples when the machine is gone.
//!
//! ```text
//! PREFIX/NAME/
//!   lease.json                      which process may write here
//!   snapshots/STEP-GENERATION.json  which objects are the run at a checkpoint, written last
//!   objects/GENERATION/SHA-256      their bytes; the generation is the lease's: nobody writes into another's
//!   config.resolved.toml, metrics.jsonl, samples/, ...   the same to look at
//!   model/, adapter/, ...           once the run is over
//!   done.json                       after all of that
//! ```

mod copy;
mod faults;
mod fetch;
mod folder;
mod lease;
mod place;
mod snapshot;
mod store;
mod wire;
mod work;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::copy::{Copier, DONE, Desk};
use self::faults::Fault;
use self::fetch::{Unfit, bring, fetch, patiently};
use self::lease::Lease;
pub use self::place::Place;
use self::snapshot::{Name, SNAPSHOTS, Snapshot, key, name};
use self::store::Store;
use self::work::{Job, at_the_end};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::hub::RUN_CONFIG;
use crate::observe::{Event, Sink};
use crate::run::{Checkpoint, RunDirectory, condemned};
use crate::stop;

/// The end of a run waits for so many times `run.mirror_wait` while nothing moves.
const WAITS_AT_THE_END: u32 = 10;

/// What helps where nothing of a mirror is whole.
const AGAIN: &str = "Give the same command again; if it stays so, remove the run there to make it again, or give another run.name";

/// The mirror of one run, which no other process writes to as long as this lives.
pub struct Mirror {
    store: Store,
    lease: Arc<Lease>,
    desk: Arc<Desk>,
    /// Of one that cannot be read the name alone.
    snapshots: BTreeMap<Name, Option<Snapshot>>,
    damaged: Vec<String>,
    says_done: bool,
    keep: usize,
    wait: Duration,
    copies: bool,
}

/// A checkpoint that came out of the mirror.
pub struct Brought {
    pub step: u64,
    /// What is wrong with newer ones, which were passed over.
    pub warnings: Vec<String>,
}

impl Mirror {
    /// Takes the lease of the run that `config` names, where it has a `run.mirror`. `note` hears what is waited for.
    ///
    /// # Errors
    /// The store cannot be reached or used, or another process holds the lease.
    pub fn open(config: &Config, note: &mut dyn FnMut(String)) -> Result<Option<Self>> {
        let (Some(url), Some(run)) = (&config.run.mirror, &config.run.name) else { return Ok(None) };
        let place = Place::new(url, run);
        let lease = Arc::new(Lease::take(&place, note)?);
        let store = Store::open(&place)?;
        let asked = |fault: Fault| fault.at_start(&place);
        let mut snapshots = BTreeMap::new();
        let mut damaged = Vec::new();
        for name in patiently(|| store.list(SNAPSHOTS)).map_err(asked)?.iter().filter_map(|key| name(key)) {
            let read = match patiently(|| store.get(&key(name))) {
                Ok(found) => Snapshot::from_json(&found.bytes),
                Err(Fault::Missing) => continue,
                Err(fault) => return Err(asked(fault)),
            };
            if let Err(problem) = &read {
                damaged.push(format!("passed over a damaged snapshot: {place}/{} {problem}", key(name)));
            }
            snapshots.insert(name, read.ok());
        }
        let says_done = match patiently(|| store.head(DONE)) {
            Ok(_) => true,
            Err(Fault::Missing) => false,
            Err(fault) => return Err(asked(fault)),
        };
        let (keep, wait) = (config.checkpoint.kept(), Duration::from_secs_f64(config.run.mirror_wait));
        let desk = Arc::default();
        Ok(Some(Self { store, lease, desk, snapshots, damaged, says_done, keep, wait, copies: false }))
    }

    pub fn place(&self) -> &Place {
        self.store.place()
    }

    /// Whether nothing of a run is there.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && !self.says_done
    }

    /// Where the model is, of a run that is done and copied.
    pub fn model(&self) -> Option<String> {
        self.says_done.then(|| format!("{}/model", self.place()))
    }

    /// Brings the run's own config, as its newest snapshot has it.
    pub fn bring_config(&self, run: &RunDirectory) -> Result<()> {
        let newest = self.snapshots.values().rev().flatten().next();
        let named = newest.and_then(|newest| newest.files.iter().find(|file| file.path == RUN_CONFIG));
        match named.map(|file| bring(&self.store, file, &run.config())) {
            None | Some(Ok(())) => Ok(()),
            Some(Err(Unfit::Failed(error))) => Err(error),
            Some(Err(Unfit::Damaged(problem))) => Err(Error::input(self.place(), problem, AGAIN)),
        }
    }

    /// Brings the newest whole checkpoint that is further than those on this disk, and what the run has beside it.
    ///
    /// # Errors
    /// The store or the disk fail; or what there is of the run, here and there, is damaged.
    pub fn bring(&mut self, run: &RunDirectory) -> Result<Option<Brought>> {
        let mut warnings = self.damaged.clone();
        if self.snapshots.is_empty() {
            return Ok(None);
        }
        let here = match Checkpoint::latest(run.path()) {
            Ok(latest) => latest.map(|latest| latest.checkpoint.step),
            // The mirror may have a whole one.
            Err(error) => {
                warnings.push(format!("passed over a damaged checkpoint: {error}"));
                None
            }
        };
        let newest_first = self.snapshots.values().rev().flatten();
        for snapshot in newest_first.filter(|snapshot| here.is_none_or(|here| snapshot.step > here)) {
            match fetch(&self.store, snapshot, run) {
                Ok(()) => {
                    Checkpoint::verify(&run.checkpoints().join(format!("step-{}", snapshot.step)))?;
                    return Ok(Some(Brought { step: snapshot.step, warnings }));
                }
                Err(Unfit::Failed(error)) => return Err(error),
                Err(Unfit::Damaged(problem)) => {
                    let step = snapshot.step;
                    warnings.push(format!(
                        "passed over the mirror's damaged checkpoint of step {step}: {problem}"
                    ));
                }
            }
        }
        if here.is_none() {
            let problem = warnings.pop().unwrap_or_default();
            return Err(Error::input(self.place(), problem, AGAIN));
        }
        Ok(None)
    }

    /// The newest step of the mirror.
    pub fn step(&self) -> Option<u64> {
        self.snapshots.values().rev().flatten().next().map(|snapshot| snapshot.step)
    }

    /// Copies from now on what the sink hears of. `newest`: the checkpoint that the run goes on from, which the mirror may lack.
    ///
    /// # Errors
    /// No thread can be had, or the checkpoint cannot be read.
    pub fn follow(&mut self, run: &RunDirectory, newest: Option<&Checkpoint>) -> Result<Follower> {
        let objects = self.snapshots.values().flatten().flat_map(|snapshot| &snapshot.files);
        let copier = Copier {
            store: Store::open(self.place())?.counted(&self.desk.moved),
            lease: Arc::clone(&self.lease),
            desk: Arc::clone(&self.desk),
            keep: self.keep,
            objects: objects.map(|file| (file.sha256.clone(), file.object.clone())).collect(),
            snapshots: self.snapshots.clone(),
            says_done: self.says_done,
            plain: BTreeMap::new(),
            digests: BTreeMap::new(),
        };
        let (desk, lease) = (Arc::clone(&self.desk), Arc::clone(&self.lease));
        let follower = Follower { desk, lease, run: run.path().into(), name: self.place().to_string() };
        self.desk.change(|papers| papers.copied = self.step());
        if let Some(newest) = newest.filter(|newest| self.step().is_none_or(|step| step < newest.step)) {
            follower.copy(newest.step, &newest.path)?;
        }
        let thread = std::thread::Builder::new().name("mirror".into()).spawn(move || copier.work());
        thread.map_err(Error::io("the mirror", "start a thread"))?;
        self.copies = true;
        Ok(follower)
    }

    /// Waits for what is still to be copied: of a run that is over for as long as something moves, else for `run.mirror_wait`. `say` hears
    /// of the wait. What is not copied then, or why nothing more was written.
    pub fn close(
        self,
        run: &RunDirectory,
        is_over: bool,
        say: &mut dyn FnMut(String),
    ) -> Result<Option<String>> {
        if !self.copies {
            return Ok(None);
        }
        let condemned = condemned(run.path())?;
        let end = if is_over {
            let step = Checkpoint::steps(run)?.first().copied().unwrap_or_default();
            Some((step, at_the_end(run.path())?))
        } else {
            None
        };
        self.desk.change(|papers| {
            papers.condemned = condemned;
            papers.end = end;
            papers.closes = true;
        });
        self.wait(is_over, say);
        self.desk.cancel();
        let left = self.left(is_over);
        self.lease.give_back();
        Ok(left)
    }

    fn wait(&self, is_over: bool, say: &mut dyn FnMut(String)) {
        let (mut since, mut moved, mut is_said) = (Instant::now(), 0, false);
        loop {
            self.desk.wait(Duration::from_millis(250), |papers| papers.is_empty());
            if self.desk.papers().is_empty() || self.lease.lost().is_some() {
                return;
            }
            let patient = is_over && !stop::is_asked();
            let most = if patient { WAITS_AT_THE_END * self.wait } else { self.wait };
            if !is_said {
                is_said = true;
                let (place, seconds) = (self.place(), most.as_secs_f64());
                let bound = if patient { "and gives up after" } else { "for at most" };
                let of = if patient { " without progress" } else { "" };
                say(format!("{place}: copies what is left, {bound} {seconds:.0} s{of}"));
            }
            let now = self.desk.moved.load(Ordering::Relaxed);
            if patient && now != moved {
                (since, moved) = (Instant::now(), now);
            }
            if since.elapsed() >= most {
                return;
            }
        }
    }

    fn left(&self, is_over: bool) -> Option<String> {
        let place = self.place();
        if let Some(who) = self.lease.lost() {
            return Some(format!("{who}: nothing more was written to {place}"));
        }
        let papers = self.desk.papers();
        let step = papers.job.as_ref().map(|job| job.step).or(papers.works_on);
        let lacks = step.map(|step| format!("the checkpoint of step {step}"));
        let lacks = lacks.or_else(|| (is_over && !papers.is_ended).then(|| "all of the finished run".into()));
        let lacks = lacks.or_else(|| (!papers.is_empty()).then(|| "the last changes".into()))?;
        let has = papers.copied.map_or_else(|| "no checkpoint".into(), |step| format!("that of step {step}"));
        let why = papers.fault.as_ref().map(|fault| format!(": {fault}")).unwrap_or_default();
        Some(format!("{place} lacks {lacks} and has {has}{why}"))
    }
}

/// Hears of a run's checkpoints and has them copied.
pub struct Follower {
    desk: Arc<Desk>,
    lease: Arc<Lease>,
    run: PathBuf,
    name: String,
}

impl Follower {
    fn copy(&self, step: u64, checkpoint: &Path) -> Result<()> {
        let job = Job::of(&self.run, step, checkpoint)?;
        self.desk.change(|papers| papers.job = Some(job));
        Ok(())
    }
}

impl Sink for Follower {
    fn name(&self) -> &str {
        &self.name
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        if let Event::Checkpoint { step, path } = event {
            self.copy(*step, path)?;
        }
        let fault = self.desk.change(|papers| {
            // A lease that is lost ends the run, which says so.
            let fault = papers.fault.clone().filter(|_| !papers.is_told && self.lease.lost().is_none());
            papers.is_told |= fault.is_some();
            fault
        });
        match fault {
            Some(fault) => Err(Error::Io {
                path: self.name.clone().into(),
                action: "copy the run there",
                source: std::io::Error::other(fault),
                fix: "It is tried again as long as the run goes on",
            }),
            None => Ok(()),
        }
    }
}
