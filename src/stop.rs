//! The wish to stop, from a signal: long work looks for it between its parts.
//!
//! A command that looks says so with [`heed`]; of any other the first signal is the end. What was begun and must be whole is done under
//! a [`Hold`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::error::{Error, Result};

/// Exit code of a command that stopped and can go on: EX_TEMPFAIL of sysexits.h.
pub const EXIT_CODE: u8 = 75;

static HEEDED: AtomicBool = AtomicBool::new(false);
static ASKED: AtomicBool = AtomicBool::new(false);
static HOLDS: AtomicUsize = AtomicUsize::new(0);
static VISITS: AtomicU64 = AtomicU64::new(0);
static TRAP: OnceLock<Trap> = OnceLock::new();

struct Trap {
    visit: u64,
    spring: Box<dyn Fn() + Send + Sync>,
}

/// From now on this command looks, and ends by itself once it was asked.
pub fn heed() {
    HEEDED.store(true, Ordering::SeqCst);
}

pub fn is_heeded() -> bool {
    HEEDED.load(Ordering::SeqCst)
}

/// Asks to stop. Whether that is enough: the command looks, and was not asked before.
pub fn ask() -> bool {
    is_heeded() && !ASKED.swap(true, Ordering::SeqCst)
}

pub fn is_asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}

/// # Errors
/// [`Error::Stopped`] once it was asked for, unless somebody holds.
pub fn look() -> Result<()> {
    visit();
    match is_asked() && HOLDS.load(Ordering::Relaxed) == 0 {
        true => Err(Error::Stopped),
        false => Ok(()),
    }
}

/// While it lives, [`look`] finds nothing.
pub struct Hold(());

pub fn hold() -> Hold {
    HOLDS.fetch_add(1, Ordering::Relaxed);
    Hold(())
}

impl Drop for Hold {
    fn drop(&mut self) {
        HOLDS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place where a test may have the process stopped or killed, at a step of a write for instance. Every look is one.
pub fn visit() {
    let visit = VISITS.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(trap) = TRAP.get().filter(|trap| trap.visit == visit) {
        (trap.spring)();
    }
}

/// Visits so far.
pub fn visits() -> u64 {
    VISITS.load(Ordering::Relaxed)
}

/// How a process ends at once; see [`leave_by`].
static LEAVE: OnceLock<fn(i32) -> !> = OnceLock::new();

/// Sets what ends this process without waiting for any of its threads.
pub fn leave_by(leave: fn(i32) -> !) {
    let _ = LEAVE.set(leave);
}

/// Ends the process with [`EXIT_CODE`], whatever its other threads are at: one of them may hang in a driver.
pub fn leave() -> ! {
    leave_with(EXIT_CODE)
}

/// [`leave`] with another code.
pub fn leave_with(code: u8) -> ! {
    let code = i32::from(code);
    LEAVE.get().map_or_else(|| std::process::exit(code), |leave| leave(code))
}

/// For tests: what happens at a visit, the first being 1. The first trap that is set counts.
pub fn trap(visit: u64, spring: impl Fn() + Send + Sync + 'static) {
    let _ = TRAP.set(Trap { visit, spring: Box::new(spring) });
}
