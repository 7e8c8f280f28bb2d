//! A disk that is full just now: whatever a run writes waits for room before the run gives up.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::observe::Sinks;
use crate::{stop, trail};

/// Before each further try: room is made by a person, or by another run that ends.
const WAITS: [Duration; 4] =
    [Duration::from_secs(10), Duration::from_secs(30), Duration::from_secs(60), Duration::from_secs(120)];

/// Tries `write` again for as long as the disk is full, a few times; `say` hears of the first failure, `wait` passes the
/// time.
///
/// # Errors
/// Its last error, and any that room would not mend.
pub fn until_there_is_room<T>(
    mut say: impl FnMut(String),
    mut wait: impl FnMut(Duration),
    mut write: impl FnMut() -> Result<T>,
) -> Result<T> {
    for (tries, time) in WAITS.into_iter().enumerate() {
        match write() {
            Err(error) if error.is_full_disk() => {
                if tries == 0 {
                    let all: u64 = WAITS.iter().map(Duration::as_secs).sum();
                    say(format!("{error}. The run waits for room, {all} s at most, and tries again"));
                }
                wait(time);
            }
            other => return other,
        }
    }
    write()
}

/// How a run writes what has to be whole before it goes on: checkpoints, references, the best model, the final one.
///
/// # Errors
/// As [`until_there_is_room`].
pub fn patiently<T>(sinks: &mut Sinks, write: impl FnMut() -> Result<T>) -> Result<T> {
    until_there_is_room(|text| sinks.warn(text), pass_unless_stopped, write)
}

/// Writes what a full disk made the run's own files wait for.
pub fn flush(sinks: &mut Sinks) -> Result<()> {
    let told = RefCell::new(sinks);
    let say = |text| told.borrow_mut().warn(text);
    until_there_is_room(say, pass_unless_stopped, || told.borrow_mut().flush())
}

/// Passes the time; a wish to stop ends it.
pub fn pass_unless_stopped(time: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < time && !stop::is_asked() {
        std::thread::sleep(Duration::from_millis(200));
        // It is no standstill.
        trail::begin("wait for room on the disk");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error as IoError, ErrorKind};

    use super::*;
    use crate::error::Error;

    fn full() -> Error {
        Error::io("runs/a/checkpoints/.step-9.partial", "write")(ErrorKind::StorageFull.into())
    }

    /// What was said, the seconds that passed, and what came of it after `failures`.
    fn run(failures: usize, error: impl Fn() -> Error) -> (Vec<String>, u64, Result<u32>) {
        let (mut said, mut passed, mut tries) = (Vec::new(), 0, 0);
        let result = until_there_is_room(
            |text| said.push(text),
            |time| passed += time.as_secs(),
            || {
                tries += 1;
                if tries > failures { Ok(7) } else { Err(error()) }
            },
        );
        (said, passed, result)
    }

    #[test]
    fn a_full_disk_is_said_once_and_tried_again() {
        let (said, passed, result) = run(2, full);
        assert_eq!((said.len(), passed, result.unwrap()), (1, 40, 7));
        assert!(said[0].contains(".step-9.partial") && said[0].contains("220 s at most"), "{said:?}");
        let (said, passed, result) = run(0, full);
        assert_eq!((said.len(), passed, result.unwrap()), (0, 0, 7));
    }

    #[test]
    fn it_is_given_up_after_a_while_and_other_errors_at_once() {
        let (said, passed, result) = run(5, full);
        assert_eq!((said.len(), passed), (1, 220));
        assert!(result.unwrap_err().to_string().contains("Free some disk space"));
        let by_text = || Error::io("a", "write")(IoError::other("No space left on device (os error 28)"));
        assert_eq!(run(1, by_text).1, 10);
        let denied = || Error::io("a", "write")(ErrorKind::PermissionDenied.into());
        let (said, passed, result) = run(1, denied);
        assert_eq!((said.len(), passed, result.is_err()), (0, 0, true));
    }
}
