//! The last words of a command that is stopped: what is kept, and how to go on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::observe::{Event, Sink};

/// Of the run that trains just now.
static RUNNING: Mutex<Option<Running>> = Mutex::new(None);
static KEPT: Mutex<Option<String>> = Mutex::new(None);

#[derive(Clone, Debug, PartialEq)]
struct Running {
    run: PathBuf,
    /// What goes on with it.
    again: String,
    /// The last checkpoint and the optimiser steps of the run before it.
    kept: Option<(PathBuf, u64)>,
    /// Optimiser steps since.
    lost: u64,
}

/// Keeps [`last_words`] current. `kept`: the checkpoint that a resumed run goes on from.
pub struct LastWords;

impl LastWords {
    /// `again`: the command that goes on with the run.
    pub fn of(run: &Path, kept: Option<(PathBuf, u64)>, again: String) -> Self {
        set(Some(Running { run: run.into(), again, kept, lost: 0 }));
        Self
    }
}

impl Sink for LastWords {
    fn name(&self) -> &str {
        "the last words"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(now) = running.as_mut() else { return Ok(()) };
        match event {
            Event::Step { .. } => now.lost += 1,
            Event::Checkpoint { step, path } => (now.kept, now.lost) = (Some((path.clone(), *step)), 0),
            Event::Finished { .. } => *running = None,
            _ => {}
        }
        Ok(())
    }
}

fn set(running: Option<Running>) {
    *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) = running;
}

impl Running {
    fn words(&self) -> String {
        let (run, again) = (self.run.display(), &self.again);
        let steps = |count: u64| if count == 1 { "1 step".to_string() } else { format!("{count} steps") };
        let lost = match self.lost {
            0 => String::new(),
            1 => ", 1 step since then is lost".into(),
            count => format!(", {} since then are lost", steps(count)),
        };
        match &self.kept {
            Some((path, step)) => format!(
                "stopped: {} has the run after {}{lost}. Go on with: {again}",
                path.display(),
                steps(*step)
            ),
            None => format!("stopped: {run} has no checkpoint yet{lost}. Start it again with: {again}"),
        }
    }
}

/// What is kept of a command that is no run; nothing of it once it is whole.
pub fn keeps(words: Option<String>) {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = words;
}

/// What a command says that keeps nothing of its work.
pub const NOTHING_KEPT: &str = "stopped: nothing was written. Start again with the same command";

/// What a process says when it is interrupted: nothing, unless it keeps something.
pub fn last_words() -> Option<String> {
    let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    running
        .as_ref()
        .map(Running::words)
        .or_else(|| KEPT.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_and_what_is_lost_is_said() {
        let again = "rlvr train --resume runs/a-001".into();
        let mut running = Running { run: "runs/a-001".into(), again, kept: None, lost: 1 };
        let says = running.words();
        assert!(
            says.starts_with("stopped: runs/a-001 has no checkpoint yet, 1 step since then is lost"),
            "{says}"
        );
        running.kept = Some(("runs/a-001/checkpoints/step-400".into(), 400));
        running.lost = 12;
        assert_eq!(
            running.words(),
            "stopped: runs/a-001/checkpoints/step-400 has the run after 400 steps, 12 steps since then are lost. \
             Go on with: rlvr train --resume runs/a-001"
        );
    }
}
