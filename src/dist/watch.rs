//! Signs of life between rank 0 and the others: one that dies, hangs or fails ends all, and a wish to stop reaches all.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::mesh::{receive, send};
use crate::stop;

/// Between two signs of life; a rank that gives none for [`SILENCE`] is taken for dead.
const BEAT: Duration = Duration::from_millis(500);
const SILENCE: Duration = Duration::from_secs(20);

/// What a rank says of itself.
#[derive(Serialize, Deserialize)]
enum Sign {
    /// Where it is, and whether it was asked to stop.
    Alive { at: String, asked: bool },
    /// It ends, for this reason, with this exit code; and so must all.
    Ends { rank: usize, why: String, code: u8 },
    /// It has done its work.
    Done,
}

/// Why this process has to end.
#[derive(Clone, Debug)]
pub struct Loss {
    pub text: String,
    /// Exit code.
    pub code: u8,
}

/// What all threads of a watch share.
struct Shared {
    rank: usize,
    hosts: Vec<String>,
    /// What this rank is at.
    at: Mutex<String>,
    /// To those that signs are sent to.
    peers: Mutex<Vec<(usize, TcpStream)>>,
    done: AtomicBool,
    /// Peers that are heard no more: they have done their work, or are gone.
    silent: Mutex<usize>,
    fell_silent: Condvar,
    on_loss: fn(&Loss) -> !,
}

pub struct Watch {
    shared: Arc<Shared>,
    beats: Option<JoinHandle<()>>,
}

impl Watch {
    /// `control`: as [`super::mesh::Joined`] has it. `on_loss` is called on a thread of the watch: the run's own may hang.
    pub fn start(
        rank: usize,
        hosts: Vec<String>,
        control: Vec<(usize, TcpStream)>,
        on_loss: fn(&Loss) -> !,
    ) -> std::io::Result<Self> {
        let mut peers = Vec::with_capacity(control.len());
        for (peer, stream) in &control {
            stream.set_write_timeout(Some(SILENCE))?;
            peers.push((*peer, stream.try_clone()?));
        }
        let shared = Arc::new(Shared {
            rank,
            hosts,
            at: Mutex::new("starting".into()),
            peers: Mutex::new(peers),
            done: AtomicBool::new(false),
            silent: Mutex::new(0),
            fell_silent: Condvar::new(),
            on_loss,
        });
        for (peer, stream) in control {
            stream.set_read_timeout(Some(SILENCE))?;
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                shared.listen(peer, stream);
                *lock(&shared.silent) += 1;
                shared.fell_silent.notify_all();
            });
        }
        let beating = Arc::clone(&shared);
        let beats = std::thread::spawn(move || beating.beat());
        Ok(Self { shared, beats: Some(beats) })
    }

    /// What this rank is at from now on, for the others' last words.
    pub fn at(&self, what: &str) {
        *lock(&self.shared.at) = what.into();
    }

    /// Tells the others that this rank ends for `why`.
    pub fn end_all(&self, why: &str, code: u8) {
        self.shared.tell(&Sign::Ends { rank: self.shared.rank, why: why.into(), code }, None);
        self.shared.done.store(true, Ordering::SeqCst);
    }

    pub fn host(&self, rank: usize) -> &str {
        self.shared.host(rank)
    }
}

impl Drop for Watch {
    /// Its work is done; that of the others may not be. Rank 0 writes to the end, and a launcher that sees any rank leave with another
    /// code than 0 ends the rest: so it leaves first.
    fn drop(&mut self) {
        if !self.shared.done.swap(true, Ordering::SeqCst) {
            self.shared.tell(&Sign::Done, None);
            if self.shared.rank > 0 {
                let silent = lock(&self.shared.silent);
                let wait = self.shared.fell_silent.wait_while(silent, |silent| *silent == 0);
                drop(wait.unwrap_or_else(PoisonError::into_inner));
            }
        }
        if let Some(beats) = self.beats.take() {
            let _ = beats.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn host(&self, rank: usize) -> &str {
        self.hosts.get(rank).map_or("an unknown host", String::as_str)
    }

    /// A peer that cannot be told is found out by whoever listens to it.
    fn tell(&self, sign: &Sign, but: Option<usize>) {
        for (_, stream) in lock(&self.peers).iter_mut().filter(|(peer, _)| Some(*peer) != but) {
            let _ = send(stream, sign);
        }
    }

    fn beat(&self) {
        let mut last = Instant::now();
        let mut asked = false;
        while !self.done.load(Ordering::SeqCst) {
            let now = stop::is_asked();
            // A wish to stop is passed on at once.
            if now != asked || last.elapsed() >= BEAT {
                self.tell(&Sign::Alive { at: lock(&self.at).clone(), asked: now }, None);
                (asked, last) = (now, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn listen(&self, peer: usize, mut stream: TcpStream) {
        let mut at = "starting".to_string();
        loop {
            match receive(&mut stream) {
                Ok(Sign::Alive { at: now, asked }) => {
                    at = now;
                    if asked {
                        stop::ask();
                    }
                }
                Ok(Sign::Done) => return,
                Ok(Sign::Ends { rank, why, code }) => {
                    self.tell(&Sign::Ends { rank, why: why.clone(), code }, Some(peer));
                    let text = format!("rank {rank} on {} ended: {why}", self.host(rank));
                    return self.lose(Loss { text, code });
                }
                Err(error) => {
                    let silent = matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut);
                    let how = if silent {
                        format!("gave no sign of life for {} s", SILENCE.as_secs())
                    } else {
                        "is gone".into()
                    };
                    let text = format!("rank {peer} on {} {how}; it was at: {at}", self.host(peer));
                    self.tell(
                        &Sign::Ends { rank: self.rank, why: text.clone(), code: stop::EXIT_CODE },
                        Some(peer),
                    );
                    return self.lose(Loss { text, code: stop::EXIT_CODE });
                }
            }
        }
    }

    /// Ends this process, unless it ends already.
    fn lose(&self, loss: Loss) {
        if !self.done.swap(true, Ordering::SeqCst) {
            (self.on_loss)(&loss);
        }
    }
}
