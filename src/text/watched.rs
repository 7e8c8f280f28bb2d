//! Work on what came with a model and may be made to harm: on a stack of its own, under watch.
//!
//! A deep recursion has room, a panic becomes an error, and what takes too long or too much memory is given up. The
//! thread of such work cannot be stopped; the error that names it ends the command, and the thread with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Name of the threads: what panics there is said by the error that comes back, not by the panic hook.
pub const THREAD: &str = "watched";

/// Address space; pages that nothing touches cost nothing.
const STACK_BYTES: usize = 512 << 20;
const MOST_TIME: Duration = Duration::from_secs(10);
/// By how much the process may grow meanwhile.
const MOST_BYTES: u64 = 256 << 20;
/// How often that is looked at.
const WATCH: Duration = Duration::from_millis(2);

/// Why work was given up. It goes on and may grow, so that no other is begun beside it.
static GIVEN_UP: OnceLock<String> = OnceLock::new();

/// What `work` gives, or why it gives nothing, as a clause.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    if let Some(why) = GIVEN_UP.get() {
        return Err(why.clone());
    }
    let given_up = |why: String| Err(GIVEN_UP.get_or_init(|| why).clone());
    let (send, receive) = sync_channel(1);
    let guarded = move || {
        // Nobody listens to work that was given up.
        let _ = send.send(catch_unwind(AssertUnwindSafe(work)));
    };
    let thread = Builder::new().name(THREAD.into()).stack_size(STACK_BYTES).spawn(guarded);
    let thread = thread.map_err(|e| format!("cannot be given a thread: {e}"))?;
    let start = Instant::now();
    let mut before = None;
    loop {
        match receive.recv_timeout(WATCH) {
            Ok(done) => {
                // It has said all it has to say.
                let _ = thread.join();
                return done.map_err(|panic| format!("breaks the program that reads it: {}", words(&*panic)));
            }
            Err(RecvTimeoutError::Disconnected) => return Err("ended without a word".into()),
            Err(RecvTimeoutError::Timeout) => {
                let now = resident_bytes();
                let grown = now.saturating_sub(*before.get_or_insert(now));
                if grown > MOST_BYTES {
                    return given_up(format!("takes more than {} MiB of memory", MOST_BYTES >> 20));
                }
                if start.elapsed() > MOST_TIME {
                    return given_up(format!("takes more than {} seconds", MOST_TIME.as_secs()));
                }
            }
        }
    }
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_else(|| "a panic".into())
}

/// 0 where the system does not say.
fn resident_bytes() -> u64 {
    let pages = || -> Option<u64> {
        let text = std::fs::read_to_string("/proc/self/statm").ok()?;
        text.split(' ').nth(1)?.parse().ok()
    };
    pages().unwrap_or(0) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_and_a_deep_recursion_come_back() {
        fn depth(n: u64) -> u64 {
            std::hint::black_box(if n == 0 { 0 } else { 1 + depth(n - 1) })
        }
        assert_eq!(run(|| depth(1_000_000)), Ok(1_000_000));
        assert_eq!(run(|| ()), Ok(()));
        let broken = run(|| assert!(std::hint::black_box(false), "on purpose"));
        assert_eq!(broken, Err("breaks the program that reads it: on purpose".into()));
    }
}
