//! `rlvr train`: the stages of a config, or the rest of a run.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hub::Bars;
use crate::config::Config;
use crate::error::Error;
use crate::observe::{Progress, Sinks};
use crate::run::{Checkpoint, RunDirectory};
use crate::train::launch::{self, Fetched};

/// Run the stages of a config: SFT, GRPO, with evaluation before and after each.
#[derive(clap::Args)]
pub struct Args {
    /// Config file, or the name of a preset: demo, riskcue-smollm2-135m, riskcue-llama3.1-8b.
    #[arg(required_unless_present = "resume")]
    config: Option<String>,
    /// Override one key, as in --set grpo.steps=20. May be given many times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the config with every default filled in, and stop.
    #[arg(long)]
    dry_run: bool,
    /// Go on with a run after its last checkpoint; its own config counts.
    #[arg(long, value_name = "RUN_DIR", conflicts_with_all = ["config", "overrides", "dry_run"])]
    resume: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(path) = &args.resume {
        let run = RunDirectory::open_for_resume(path)?;
        let fetched = fetch(Config::load(&run.config().to_string_lossy(), &[])?)?;
        super::use_threads(fetched.config.threads)?;
        let Some(latest) = Checkpoint::latest(run.path())? else {
            let fix = "Start it again with the config in config.resolved.toml and another run.name";
            return Err(Error::input(run.path().display(), "has no checkpoint yet", fix).into());
        };
        let edits = launch::edits(&latest.checkpoint, &run)?;
        launch::resume(&fetched, &run, latest, edits, sinks())?;
        return Ok(());
    }
    let config = Config::load(args.config.as_deref().unwrap_or_default(), &args.overrides)?;
    if args.dry_run {
        print!("{}", config.to_toml()?);
        return Ok(());
    }
    let fetched = fetch(config)?;
    let config = &fetched.config;
    super::use_threads(config.threads)?;
    let run = match &config.run.name {
        Some(name) => RunDirectory::create(&config.run.root, name)?,
        None => {
            let stem = Path::new(&config.task).file_stem().unwrap_or_default();
            RunDirectory::create_numbered(&config.run.root, &stem.to_string_lossy())?
        }
    };
    launch::start(&fetched, &run, sinks())?;
    Ok(())
}

/// Who is told on the terminal.
pub(super) fn sinks() -> Sinks {
    let mut sinks = Sinks::default();
    sinks.add(Progress::new());
    sinks
}

/// Finds the models that a config names, and says which came from the hub.
pub(super) fn fetch(config: Config) -> Result<Fetched> {
    let fetched = launch::fetch(config, &mut Bars::default())?;
    fetched.pinned.iter().for_each(|pinned| eprintln!("model: {pinned}"));
    Ok(fetched)
}
