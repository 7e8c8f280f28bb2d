//! What this process began last, for one who watches it from another thread: a name is left at the start of each op, and of each
//! tensor that is read or written.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

static LAST: Mutex<&str> = Mutex::new("nothing yet");
static COUNT: AtomicU64 = AtomicU64::new(0);
static TRAP: OnceLock<Trap> = OnceLock::new();

struct Trap {
    name: String,
    /// Beginnings of that name that are still let through.
    left: AtomicU64,
}

/// `name` begins now.
pub fn begin(name: &'static str) {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = name;
    COUNT.fetch_add(1, Ordering::Relaxed);
    if let Some(trap) = TRAP.get().filter(|trap| trap.name == name)
        && trap.left.fetch_sub(1, Ordering::Relaxed) == 0
    {
        loop {
            std::thread::park();
        }
    }
}

/// What began last.
pub fn last() -> &'static str {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Beginnings so far.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// For tests: whoever begins `name` for the `time`-th time, from 1, hangs for ever. The first trap that is set counts.
pub fn trap(name: &str, time: u64) {
    let _ = TRAP.set(Trap { name: name.into(), left: AtomicU64::new(time.saturating_sub(1)) });
}
