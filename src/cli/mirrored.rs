//! `run.mirror` around a run: who may write there, what comes from there, and what is still to go there at the end.

use std::path::PathBuf;

use anyhow::Result;

use crate::config::Config;
use crate::error::Error;
use crate::mirror::{Follower, Mirror};
use crate::run::{Checkpoint, RunDirectory};

fn say(text: String) {
    eprintln!("mirror: {text}");
}

/// The mirror of the run that a config names, and the lease of that run with it.
pub(super) fn open(config: &Config) -> Result<Option<Mirror>> {
    Ok(Mirror::open(config, &mut say)?)
}

/// [`open`] for a run that is to be new.
///
/// # Errors
/// One is there already.
pub(super) fn open_new(config: &Config) -> Result<Option<Mirror>> {
    let mirror = open(config)?;
    if let Some(there) = mirror.as_ref().filter(|mirror| !mirror.is_empty()) {
        let fix = "Go on with that run with --resume auto, or choose another run.name";
        return Err(Error::input(there.place(), "has a run already", fix).into());
    }
    Ok(mirror)
}

/// Brings what is further than this disk. The warnings that belong into the run's metrics.
pub(super) fn bring(mirror: &mut Option<Mirror>, run: &RunDirectory) -> Result<Vec<String>> {
    let Some(mirror) = mirror else { return Ok(Vec::new()) };
    let here = Checkpoint::steps(run)?.first().copied();
    let disk = here.map_or_else(|| "no checkpoint".into(), |step| format!("step {step}"));
    match mirror.bring(run)? {
        Some(brought) => {
            say(format!(
                "{} has step {}, this disk {disk}: goes on from there",
                mirror.place(),
                brought.step
            ));
            Ok(brought.warnings)
        }
        None => {
            if here.is_some() && mirror.step() != here {
                let there =
                    mirror.step().map_or_else(|| "no checkpoint".into(), |step| format!("step {step}"));
                say(format!("this disk has {disk}, {} {there}: goes on from this disk", mirror.place()));
            }
            Ok(Vec::new())
        }
    }
}

/// The config of a run that is in its mirror and not here.
pub(super) fn bring_config(mirror: &Option<Mirror>, run: &RunDirectory) -> Result<()> {
    Ok(mirror.as_ref().map_or(Ok(()), |mirror| mirror.bring_config(run))?)
}

/// Copies what the mirror lacks of a run that is done here.
pub(super) fn complete(mut mirror: Option<Mirror>, run: &RunDirectory) -> Result<()> {
    let newest = Checkpoint::latest(run.path())?.map(|latest| latest.checkpoint);
    let is_complete = |mirror: &Mirror| {
        mirror.model().is_some() && newest.as_ref().is_none_or(|newest| mirror.step() == Some(newest.step))
    };
    if mirror.as_ref().is_none_or(is_complete) {
        return Ok(());
    }
    follow(&mut mirror, run, newest.as_ref())?;
    close(mirror, run, Ok(run.model()))
}

/// Who copies while the run trains. `newest`: the checkpoint that it goes on from.
pub(super) fn follow(
    mirror: &mut Option<Mirror>,
    run: &RunDirectory,
    newest: Option<&Checkpoint>,
) -> Result<Option<Follower>> {
    Ok(mirror.as_mut().map(|mirror| mirror.follow(run, newest)).transpose()?)
}

/// Waits for what is still to be copied, and says what is not.
///
/// # Errors
/// The run's own; and that a run is done here and not there, which the same command mends.
pub(super) fn close(
    mirror: Option<Mirror>,
    run: &RunDirectory,
    ended: crate::error::Result<PathBuf>,
) -> Result<()> {
    let Some(mirror) = mirror else {
        ended?;
        return Ok(());
    };
    let place = mirror.place().to_string();
    let left = mirror.close(run, ended.is_ok(), &mut say);
    match (ended, left) {
        (Ok(_), Ok(None)) => {
            say(format!("{place} has all of the run"));
            Ok(())
        }
        (Ok(_), Ok(Some(problem))) => {
            let step = Checkpoint::steps(run)?.first().copied().unwrap_or_default();
            let problem = format!("the run is done, {problem}");
            let fix = "Give the same command again to copy the rest".into();
            Err(Error::Halted { step, problem, fix }.into())
        }
        (Ok(_), Err(error)) => Err(error.into()),
        (Err(error), left) => {
            if let Some(problem) = left.unwrap_or_else(|error| Some(error.to_string())) {
                eprintln!("warning: {problem}");
            }
            Err(error.into())
        }
    }
}
