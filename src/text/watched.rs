//! Work on what came with a model and may be made to harm: on a stack of its own, under watch.
//!
//! A deep recursion has room, a panic becomes an error, and what takes too long or too much memory is given up. The
//! thread of such work cannot be stopped; the error that names it ends the command, and the thread with it.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::Builder;
use std::time::{Duration, Instant};

/// Name of the threads: what panics there is said by the error that comes back, not by the panic hook.
pub const THREAD: &str = "watched";

/// Address space; pages that nothing touches cost nothing.
const STACK_BYTES: usize = 512 << 20;
/// How often work is looked at.
const WATCH: Duration = Duration::from_millis(2);

/// What work may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Time of its own on a processor: a machine that is busy with other things holds nothing against it.
    pub time: Duration,
    /// By how much the process may grow meanwhile, once the work has computed for [`AT_WORK`].
    pub bytes: Option<u64>,
}

/// From here on growth is the work's own: other threads take memory too, and while this one waits theirs is not its fault. What
/// fills hundreds of MiB computes for longer.
const AT_WORK: Duration = Duration::from_millis(50);

impl Limits {
    /// One conversation.
    pub const TEMPLATE: Self = Self { time: Duration::from_secs(10), bytes: Some(256 << 20) };
    /// A file whose size bounds what it takes: Llama 3's takes 140 MiB and a second.
    pub const FILE: Self = Self { time: Duration::from_secs(120), bytes: None };
}

/// Why work was given up. It goes on and may grow, so that no other is begun beside it.
static GIVEN_UP: OnceLock<String> = OnceLock::new();

/// Set where such work asked for memory that is not there, or filled its stack.
static ENDED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IS_WATCHED: Cell<bool> = const { Cell::new(false) };
}

/// Whether the calling thread, which the system is about to end and the process with it, is one of this work; then the watch
/// knows. May be called in a signal's handler.
pub fn ends_here() -> bool {
    let is_watched = IS_WATCHED.get();
    if is_watched {
        ENDED.store(true, Ordering::Relaxed);
    }
    is_watched
}

/// What `work` gives, or why it gives nothing, as a clause.
pub(super) fn run<T: Send + 'static>(
    limits: Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    if let Some(why) = GIVEN_UP.get() {
        return Err(why.clone());
    }
    let given_up = |why: String| Err(GIVEN_UP.get_or_init(|| why).clone());
    let (send, receive) = sync_channel(1);
    let clock = Clock::default();
    let own = clock.clone();
    let guarded = move || {
        own.start();
        IS_WATCHED.set(true);
        // Nobody listens to work that was given up.
        let _ = send.send(catch_unwind(AssertUnwindSafe(work)));
    };
    let thread = Builder::new().name(THREAD.into()).stack_size(STACK_BYTES).spawn(guarded);
    let thread = thread.map_err(|e| format!("cannot be given a thread: {e}"))?;
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
                if ENDED.load(Ordering::Relaxed) {
                    return given_up("asks for more memory, or a deeper stack, than there is".into());
                }
                let now = resident_bytes();
                let grown = now.saturating_sub(*before.get_or_insert(now));
                let time = clock.time();
                if let Some(most) = limits.bytes.filter(|most| grown > *most && time > AT_WORK) {
                    return given_up(format!("takes more than {} MiB of memory", most >> 20));
                }
                if time > limits.time {
                    return given_up(format!("takes more than {} seconds", limits.time.as_secs()));
                }
            }
        }
    }
}

/// The time that a thread has computed.
#[derive(Clone, Default)]
struct Clock(Arc<OnceLock<(Instant, Option<PathBuf>)>>);

impl Clock {
    /// Called by the thread itself.
    fn start(&self) {
        let task = std::fs::read_link("/proc/thread-self").ok();
        let _ = self.0.set((Instant::now(), task.map(|task| Path::new("/proc").join(task).join("stat"))));
    }

    /// Since its start, where the system does not say.
    fn time(&self) -> Duration {
        let Some((start, file)) = self.0.get() else { return Duration::ZERO };
        let said = || -> Option<Duration> {
            let text = std::fs::read_to_string(file.as_ref()?).ok()?;
            // Behind the name in parentheses, from the third field on; the 14th and 15th are hundredths of a second.
            let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
            let [user, system]: [u64; 2] = [fields.next()?.parse().ok()?, fields.next()?.parse().ok()?];
            Some(Duration::from_millis(10 * (user + system)))
        };
        said().unwrap_or_else(|| start.elapsed())
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
        assert_eq!(run(Limits::FILE, || depth(1_000_000)), Ok(1_000_000));
        assert_eq!(run(Limits::TEMPLATE, || ()), Ok(()));
        let broken = run(Limits::FILE, || assert!(std::hint::black_box(false), "on purpose"));
        assert_eq!(broken, Err("breaks the program that reads it: on purpose".into()));
    }

    #[test]
    fn memory_that_others_take_meanwhile_is_not_held_against_work_that_waits() {
        let waits = || {
            let others =
                std::thread::spawn(|| vec![1u8; 300 << 20].iter().map(|byte| u64::from(*byte)).sum());
            let sum: u64 = others.join().unwrap_or_default();
            std::thread::sleep(Duration::from_millis(20));
            sum
        };
        assert_eq!(run(Limits::TEMPLATE, waits), Ok(300 << 20));
    }
}
