//! One node a run: a lease object of the store, renewed while its holder lives, and known by the store's clock alone.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::faults::Fault;
use super::place::Place;
use super::store::{Condition, Found, Store, Version, seconds_of};
use crate::error::{Error, Result};
use crate::stop;

const LEASE: &str = "lease.json";
/// Written to learn what time the store has.
const CLOCK: &str = "clock";
/// A holder that is not heard of for so long is gone.
const USUAL: Duration = Duration::from_secs(60);
/// Renewals in that time.
const RENEWALS: u32 = 4;
/// Tries at the start, and how far they lie apart.
const TRIES: u32 = 4;
/// How long giving it back may take.
const LAST_WORD: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(500);

/// What the object says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Record {
    /// Counts the holders, from 1.
    generation: u64,
    host: String,
    pid: u32,
    /// Of one process, wherever it runs.
    token: String,
    /// Seconds after which the lease ends unless it is renewed.
    seconds: u64,
    /// When it was taken, by the store's clock, seconds since 1970; known from the first renewal on.
    #[serde(default)]
    since: Option<i64>,
    renewals: u64,
    /// Given back.
    #[serde(default)]
    released: bool,
}

/// A lease that this process holds until it is dropped, or lost.
pub(super) struct Lease {
    pub(super) generation: u64,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    length: Duration,
}

struct State {
    /// Until when nobody else can have it, by this process's own clock.
    until: Instant,
    /// Who has it now.
    lost: Option<String>,
    ends: bool,
    /// The thread has ended.
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lease {
    /// Takes the lease of a run: where nobody has it, where it was given back, or once its holder was not heard of for as long as it
    /// had said. `note` hears what is waited for.
    ///
    /// # Errors
    /// Another holds it: who, since when and until when. The store cannot be reached.
    pub(super) fn take(place: &Place, note: &mut dyn FnMut(String)) -> Result<Self> {
        let store = Store::open(place)?;
        let length = seconds_of("RLVR_MIRROR_LEASE", USUAL);
        let mut mine = Record {
            generation: 1,
            host: host(),
            pid: std::process::id(),
            token: token()?,
            seconds: length.as_secs().max(1),
            since: None,
            renewals: 0,
            released: false,
        };
        let (version, asked) = take(&store, &mut mine, note)?;
        let generation = mine.generation;
        let state = State { until: asked + safe(length), lost: None, ends: false, ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), length });
        let keeper = Keeper { store, mine, version, shared: Arc::clone(&shared) };
        let ended = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("lease".into()).spawn(move || {
            keeper.keep();
            ended.state().ended = true;
            ended.changed.notify_all();
        });
        thread.map_err(Error::io("the mirror", "start a thread"))?;
        Ok(Self { generation, shared })
    }

    /// Waits until the lease is known to be held.
    pub(super) fn confirm(&self) -> std::result::Result<(), Fault> {
        let mut state = self.shared.state();
        loop {
            if let Some(lost) = &state.lost {
                return Err(Fault::Here(lost.clone()));
            }
            if state.ends {
                return Err(Fault::Here("the run's lease was given back".into()));
            }
            if Instant::now() < state.until {
                return Ok(());
            }
            let waited = self.shared.changed.wait_timeout(state, Duration::from_millis(100));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// So that the next need not wait until it ends.
    pub(super) fn give_back(&self) {
        self.shared.state().ends = true;
        self.shared.changed.notify_all();
        // A store that does not answer is not waited for: the lease ends by itself.
        let state = self.shared.state();
        drop(self.shared.changed.wait_timeout_while(state, LAST_WORD, |state| !state.ended));
    }

    /// Who took it from this process.
    pub(super) fn lost(&self) -> Option<String> {
        self.shared.state().lost.clone()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Of a lease's time, what its holder takes for its own: the rest is for requests under way.
fn safe(length: Duration) -> Duration {
    length * 3 / 4
}

fn take(store: &Store, mine: &mut Record, note: &mut dyn FnMut(String)) -> Result<(Version, Instant)> {
    let place = store.place();
    let (mut first, mut failures, begun): (Option<Version>, u32, Instant) = (None, 0, Instant::now());
    loop {
        stop::look()?;
        let asked = Instant::now();
        let answer = match store.get(LEASE) {
            Err(Fault::Missing) => {
                mine.generation = 1;
                write(store, mine, Condition::Absent).map(Some)
            }
            Err(fault) => Err(fault),
            Ok(found) => attempt(store, mine, found, &mut first, begun, note)?,
        };
        match answer {
            Ok(Some(version)) => return Ok((version, asked)),
            // Another was faster, or is to be waited for.
            Ok(None) | Err(Fault::Changed) => {}
            Err(fault @ Fault::Refused { .. }) => return Err(fault.at_start(place)),
            Err(fault) => {
                failures += 1;
                if failures >= TRIES {
                    return Err(fault.at_start(place));
                }
            }
        }
        std::thread::sleep(PAUSE);
    }
}

/// Takes a lease that was found, where it is free. `first`: what was found the first time; one that is renewed in between has a
/// holder that lives.
fn attempt(
    store: &Store,
    mine: &mut Record,
    found: Found,
    first: &mut Option<Version>,
    begun: Instant,
    note: &mut dyn FnMut(String),
) -> Result<std::result::Result<Option<Version>, Fault>> {
    let place = store.place();
    let damaged = |e| Error::input(format!("{place}/{LEASE}"), format!("is damaged ({e})"), "Remove it");
    let theirs: Record = serde_json::from_slice(&found.bytes).map_err(damaged)?;
    // Written by this process, with an answer that got lost.
    if theirs.token == mine.token {
        mine.generation = theirs.generation;
        return Ok(Ok(Some(found.at.version)));
    }
    let free = if theirs.released {
        true
    } else {
        let now = match store.put(CLOCK, Vec::new()).and_then(|()| store.head(CLOCK)) {
            Ok(clock) => clock.modified,
            Err(fault) => return Ok(Err(fault)),
        };
        let seconds = theirs.seconds as i64;
        // Stores keep whole seconds.
        let is_over = now - found.at.modified > seconds;
        let lives = first.as_ref().is_some_and(|first| *first != found.at.version);
        if !is_over && (lives || begun.elapsed() > Duration::from_secs(2 * theirs.seconds + 10)) {
            return Err(held(place, &theirs, found.at.modified));
        }
        if !is_over && first.is_none() {
            let until = time(found.at.modified + seconds);
            let who = theirs.who();
            note(format!(
                "{place} is held by {who} until {until} by the store's clock: waits whether it renews that"
            ));
        }
        is_over
    };
    if !free {
        first.get_or_insert(found.at.version);
        return Ok(Ok(None));
    }
    mine.generation = theirs.generation + 1;
    Ok(write(store, mine, Condition::Is(found.at.version)).map(Some))
}

fn write(store: &Store, record: &Record, condition: Condition) -> std::result::Result<Version, Fault> {
    let text = serde_json::to_vec(record).map_err(|error| Fault::Here(error.to_string()))?;
    store.put_if(LEASE, text, condition)
}

fn held(place: &Place, theirs: &Record, modified: i64) -> Error {
    let since = theirs.since.unwrap_or(modified);
    let until = time(modified + theirs.seconds as i64);
    let problem = format!(
        "{} is working in this run, since {}, and has it until {until} unless it renews that",
        theirs.who(),
        time(since)
    );
    Error::input(place, problem, "Wait for it or stop it, or give another run.name")
}

impl Record {
    fn who(&self) -> String {
        format!("process {} of {}", self.pid, self.host)
    }
}

fn time(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn host() -> String {
    let known = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let known = known.or_else(|| std::env::var("HOSTNAME").or_else(|_| std::env::var("COMPUTERNAME")).ok());
    known.map_or_else(|| "a machine without a name".into(), |name| name.trim().to_string())
}

fn token() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|e| Error::io("the mirror", "draw a name")(std::io::Error::other(e)))?;
    Ok(crate::run::hex(&bytes))
}

/// Renews a lease, on a thread of its own.
struct Keeper {
    store: Store,
    mine: Record,
    version: Version,
    shared: Arc<Shared>,
}

impl Keeper {
    fn keep(mut self) {
        let interval = self.shared.length / RENEWALS;
        let mut pause = interval;
        loop {
            let state = self.shared.state();
            let waited = self.shared.changed.wait_timeout_while(state, pause, |state| !state.ends);
            let ends = waited.unwrap_or_else(PoisonError::into_inner).0.ends;
            let asked = Instant::now();
            self.mine.released = ends;
            match self.renew() {
                Ok(()) if ends => return,
                Ok(()) => {
                    self.shared.state().until = asked + safe(self.shared.length);
                    pause = interval;
                }
                // It ends by itself, a little later.
                Err(_) if ends => return,
                Err(Some(who)) => {
                    self.shared.state().lost = Some(format!("{who} has taken this run over"));
                    self.shared.changed.notify_all();
                    stop::ask();
                    return;
                }
                // The store is out of reach: asked again soon. Nothing is written meanwhile (`Lease::confirm`).
                Err(None) => pause = (interval / 4).max(Duration::from_millis(50)),
            }
            self.shared.changed.notify_all();
        }
    }

    /// # Errors
    /// Who has it now; `None` where that is not known.
    fn renew(&mut self) -> std::result::Result<(), Option<String>> {
        if self.mine.since.is_none() {
            self.mine.since = self.store.head(LEASE).ok().map(|lease| lease.modified);
        }
        self.mine.renewals += 1;
        let fault = match write(&self.store, &self.mine, Condition::Is(self.version.clone())) {
            Ok(version) => {
                self.version = version;
                return Ok(());
            }
            Err(fault) => fault,
        };
        if !matches!(fault, Fault::Changed | Fault::Missing | Fault::Passing(_)) {
            return Err(None);
        }
        // It may have been written, with an answer that got lost.
        match self.store.get(LEASE) {
            Ok(found) => match serde_json::from_slice::<Record>(&found.bytes) {
                Ok(record) if record.token == self.mine.token => {
                    self.version = found.at.version;
                    if record.renewals == self.mine.renewals { Ok(()) } else { Err(None) }
                }
                Ok(record) => Err(Some(record.who())),
                Err(_) => Err(None),
            },
            Err(Fault::Missing) => match write(&self.store, &self.mine, Condition::Absent) {
                Ok(version) => {
                    self.version = version;
                    Ok(())
                }
                Err(_) => Err(None),
            },
            Err(_) => Err(None),
        }
    }
}
