//! `rlvr train`: the stages of a config, or the rest of a run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::hub::folder;
use crate::config::{Config, keys_of};
use crate::error::Error;
use crate::hub::Parts;
use crate::observe::{JsonlSink, Progress, Sinks, TensorBoard};
use crate::run::{CHECKPOINT_CONFIG, Checkpoint, Latest, RunDirectory, SampleFiles};
use crate::train::session::Session;

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
        let edits = edits(&latest.checkpoint, &run)?;
        return resume(&fetched, &run, latest, edits);
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
    start(&fetched, &run)
}

/// Trains a new run to its end.
pub(super) fn start(Fetched { config, recorded }: &Fetched, run: &RunDirectory) -> Result<()> {
    run.write_config(&recorded.to_toml()?)?;
    let mut sinks = sinks(run);
    sinks.add(JsonlSink::create(run.metrics())?);
    if config.run.tensorboard {
        sinks.add(TensorBoard::create(run.path())?);
    }
    let session = Session::start(config, run, sinks).inspect_err(|_| {
        // The folder was empty and nothing was trained: the name is free again for the next try.
        let _ = std::fs::remove_dir_all(run.path());
    })?;
    session.run()?;
    Ok(())
}

/// A config whose hub names have become folders.
pub(super) struct Fetched {
    pub config: Config,
    /// Names the same models by hub name and commit, for ever and everywhere.
    pub recorded: Config,
}

pub(super) fn fetch(mut config: Config) -> Result<Fetched> {
    let mut recorded = config.clone();
    let model = &mut config.model;
    for (path, record, parts) in [
        (&mut model.path, &mut recorded.model.path, Parts::Model),
        (&mut model.tokenizer, &mut recorded.model.tokenizer, Parts::Text),
    ] {
        let Some(named) = path else { continue };
        let found = folder(named, parts)?;
        if let Some(pinned) = found.pinned {
            eprintln!("model: {pinned}");
            *record = Some(pinned.into());
            *path = Some(found.dir);
        }
    }
    Ok(Fetched { config, recorded })
}

fn sinks(run: &RunDirectory) -> Sinks {
    let mut sinks = Sinks::default();
    sinks.add(Progress::new());
    sinks.add(SampleFiles::new(run));
    sinks
}

/// What changed in a run's config since the checkpoint: allowed, and worth a line in its metrics.
fn edits(checkpoint: &Checkpoint, run: &RunDirectory) -> Result<Vec<String>> {
    let keys = |path: PathBuf| match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(keys_of(&path.to_string_lossy(), &text)?)),
        // Written by an rlvr that kept none.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(&path, "read")(error)),
    };
    let (Some(before), Some(now)) = (keys(checkpoint.path.join(CHECKPOINT_CONFIG))?, keys(run.config())?)
    else {
        return Ok(Vec::new());
    };
    let names: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
    let text = |value: Option<&String>| value.map_or("absent", String::as_str).to_string();
    let changed = names.into_iter().filter(|name| before.get(*name) != now.get(*name));
    Ok(changed
        .map(|name| {
            let (before, now) = (text(before.get(name)), text(now.get(name)));
            format!("the config was edited since the checkpoint: {name} was {before}, is {now}")
        })
        .collect())
}

/// Trains the rest of a run after `latest`, its last checkpoint. `warnings`: to be kept with the run.
pub(super) fn resume(
    Fetched { config, .. }: &Fetched,
    run: &RunDirectory,
    latest: Latest,
    mut warnings: Vec<String>,
) -> Result<()> {
    let mut sinks = sinks(run);
    warnings.extend(latest.damaged.iter().map(|d| format!("passed over a damaged checkpoint: {d}")));
    let (kept, whole) =
        (std::fs::metadata(run.metrics()).map_or(0, |found| found.len()), latest.checkpoint.metrics_bytes);
    if kept < whole {
        let lost = "metrics.jsonl has lost lines from before the checkpoint, which are not made again";
        warnings.push(format!("{lost}: it had {whole} bytes, it has {kept}"));
    }
    sinks.add(JsonlSink::resume(run.metrics(), latest.checkpoint.metrics_bytes)?);
    if config.run.tensorboard {
        let metrics = std::fs::read(run.metrics()).map_err(Error::io(run.metrics(), "read"))?;
        sinks.add(TensorBoard::resume(run.path(), TensorBoard::events_in(&metrics))?);
    }
    warnings.into_iter().for_each(|text| sinks.warn(text));
    Session::resume(config, run, sinks, &latest.checkpoint.path)?.run()?;
    Ok(())
}
