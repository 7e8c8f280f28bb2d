//! The last words of a run that is interrupted: what of it is kept, and how to go on.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::observe::{Event, Sink};

/// Of the run that trains just now.
static RUNNING: Mutex<Option<Running>> = Mutex::new(None);

#[derive(Clone, Debug, PartialEq)]
struct Running {
    run: PathBuf,
    /// The last checkpoint and the optimiser steps of the run before it.
    kept: Option<(PathBuf, u64)>,
    /// Optimiser steps since.
    lost: u64,
}

/// Keeps [`last_words`] current. `kept`: the checkpoint that a resumed run goes on from.
pub struct LastWords;

impl LastWords {
    pub fn of(run: &Path, kept: Option<(PathBuf, u64)>) -> Self {
        set(Some(Running { run: run.into(), kept, lost: 0 }));
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
        let run = self.run.display();
        let steps = |count: u64| if count == 1 { "1 step".to_string() } else { format!("{count} steps") };
        let lost = match self.lost {
            0 => String::new(),
            count => format!(", {} since then are lost", steps(count)),
        };
        match &self.kept {
            Some((path, step)) => format!(
                "stopped: {} has the run after {}{lost}. Go on with: rlvr train --resume {run}",
                path.display(),
                steps(*step)
            ),
            None => format!(
                "stopped: {run} has no checkpoint yet{lost}. Set checkpoint.every_steps to keep more, and start again"
            ),
        }
    }
}

/// What a process says when it is interrupted: nothing, unless it trains.
pub fn last_words() -> Option<String> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(Running::words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_and_what_is_lost_is_said() {
        let mut running = Running { run: "runs/a-001".into(), kept: None, lost: 1 };
        let says = running.words();
        assert!(says.starts_with("stopped: runs/a-001 has no checkpoint yet, 1 step since"), "{says}");
        running.kept = Some(("runs/a-001/checkpoints/step-400".into(), 400));
        running.lost = 12;
        assert_eq!(
            running.words(),
            "stopped: runs/a-001/checkpoints/step-400 has the run after 400 steps, 12 steps since then are lost. \
             Go on with: rlvr train --resume runs/a-001"
        );
    }
}
