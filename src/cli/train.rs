//! `rlvr train`: the stages of a config, or the rest of a run.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::dry_run;
use super::hub::Bars;
use super::stop::LastWords;
use crate::config::{Config, Loaded};
use crate::error::Error;
use crate::observe::{Progress, Sinks};
use crate::run::{Checkpoint, RunDirectory};
use crate::task::Task;
use crate::train::launch::{self, Fetched};

/// Run the stages of a config: SFT, GRPO, with evaluation before and after each.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr train demo --set grpo.steps=20 --dry-run")]
pub struct Args {
    /// Config file, or the name of a preset: demo, riskcue-smollm2-135m, riskcue-llama3.1-8b.
    #[arg(required_unless_present = "resume")]
    config: Option<String>,
    /// Override one key, as in --set grpo.steps=20. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print every key with its value, its default and where the value is from; then check task, model, template, first rows
    /// and memory as a run would. What is printed is a config again.
    #[arg(long)]
    dry_run: bool,
    /// Go on with a run after its last checkpoint; its own config counts.
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = ["config", "overrides", "dry_run"])]
    resume: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.resume {
        let run = RunDirectory::open_for_resume(path)?;
        let fetched = fetch(Config::of_run(&run.config())?)?;
        super::use_threads(fetched.config.threads)?;
        let Some(latest) = Checkpoint::latest(run.path())? else {
            let fix = "Start it again with the config in config.resolved.toml and another run.name";
            return Err(Error::input(run.path().display(), "has no checkpoint yet", fix).into());
        };
        let edits = launch::edits(&latest.checkpoint, &run)?;
        let kept = (latest.checkpoint.path.clone(), latest.checkpoint.step);
        let sinks = sinks(run.path(), Some(kept));
        launch::resume(&fetched, &run, latest, edits, sinks)?;
        return Ok(());
    }
    let loaded = Loaded::read(args.config.as_deref().unwrap_or_default(), &args.overrides)?;
    loaded.notes.iter().for_each(|note| eprintln!("note: {note}"));
    if args.dry_run {
        return dry_run::run(loaded);
    }
    let fetched = fetch(loaded.config)?;
    let config = &fetched.config;
    super::use_threads(config.threads)?;
    let run = match &config.run.name {
        Some(name) => RunDirectory::create(&config.run.root, name)?,
        None => RunDirectory::create_numbered(&config.run.root, Task::load(&config.task)?.name())?,
    };
    launch::start(&fetched, &run, sinks(run.path(), None))?;
    Ok(())
}

/// Who is told on the terminal. `kept`: the checkpoint that the run goes on from, and its steps.
pub(super) fn sinks(run: &Path, kept: Option<(PathBuf, u64)>) -> Sinks {
    let mut sinks = Sinks::default();
    sinks.add(Progress::new());
    sinks.add(LastWords::of(run, kept));
    sinks
}

/// Finds the models that a config names, and says which came from the hub.
pub(super) fn fetch(config: Config) -> Result<Fetched> {
    let fetched = launch::fetch(config, &mut Bars::default())?;
    fetched.pinned.iter().for_each(|pinned| eprintln!("model: {pinned}"));
    Ok(fetched)
}
