//! `rlvr train`: the stages of a config, or the rest of a run.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::dry_run;
use super::hub::Bars;
use super::mirrored;
use super::ranks::{self, Role, Whereabouts};
use super::stop::{LastWords, last_words};
use crate::config::{Config, Loaded, Resume, RunConfig};
use crate::dist::Ranks;
use crate::error::Error;
use crate::mirror::Mirror;
use crate::observe::{Alarm, Progress, Sinks, Watchdog};
use crate::run::{Checkpoint, Latest, RunDirectory};
use crate::stop;
use crate::task::Task;
use crate::train::launch::{self, Fetched};
use crate::train::materials::Permits;

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
    /// Start although memory or disk have less than the run can take at its worst: rows that are shorter take less.
    #[arg(long)]
    allow_over_budget: bool,
    /// Start the programs, and send rows to the addresses, that the task's rewards name: a task file with one is code. Read it first.
    #[arg(long)]
    allow_programs: bool,
    /// Go on with a run after its last checkpoint; its own config counts. With auto, and a config that has a run.name: start that
    /// run or go on with it, whatever is there; one that is done ends with 0.
    #[arg(long, value_name = "RUN_DIR|auto")]
    resume: Option<PathBuf>,
    /// Go on although data, task, tokenizer, chat template or base model have changed since the checkpoint.
    #[arg(long)]
    allow_changed: bool,
    /// Start so many processes on this host that train together, one for each GPU. torchrun, srun and mpirun start their own:
    /// leave it out there.
    #[arg(long, visible_alias = "gpus", value_name = "N")]
    ranks: Option<usize>,
}

/// What rank 0 has found out and the others do not look for.
#[derive(Serialize, Deserialize)]
struct Order {
    /// The run's config, models and data by their commits.
    config: String,
    run: PathBuf,
    /// The checkpoint to go on from.
    from: Option<PathBuf>,
    /// There is nothing to do.
    done: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    stop::heed();
    if args.dry_run {
        return as_first(args, &Ranks::alone()).map(|()| ExitCode::SUCCESS);
    }
    let ranks = match ranks::role(args.ranks)? {
        Role::Started(code) => return Ok(code.into()),
        Role::Work(ranks) => ranks,
    };
    let ended = if ranks.is_first() { as_first(args, &ranks) } else { as_other(args, &ranks) };
    ranks::ended(&ranks, ended).map(|()| ExitCode::SUCCESS)
}

/// Does what rank 0 says.
fn as_other(args: &Args, ranks: &Ranks) -> Result<()> {
    let order: Order = ranks.given(None)?;
    if order.done {
        return Ok(());
    }
    let mut fetched =
        launch::fetch(Config::of_run_text("the config of rank 0", &order.config)?, &mut Bars::default())?;
    (fetched.may, fetched.allow_changed, fetched.ranks) = (args.may(), args.allow_changed, ranks.clone());
    use_threads(&fetched)?;
    let run = RunDirectory::of_first_rank(order.run);
    let mut sinks = Sinks::default();
    sinks.add(Whereabouts::new(ranks.clone(), &run.of_rank(ranks.rank())?)?);
    sinks.add(Watchdog::start(fetched.config.run.stall(), sound));
    match order.from {
        None => launch::start(&fetched, &run, sinks)?,
        Some(path) => {
            let checkpoint = Checkpoint::verified_elsewhere(&path).map_err(|error| {
                let fix = "Put run.root on a disk that all hosts share";
                Error::input(
                    path.display(),
                    format!("rank {} goes on from it: {error}", ranks.name(ranks.rank())),
                    fix,
                )
            })?;
            let latest = Latest { checkpoint, damaged: Vec::new() };
            launch::resume(&fetched, &run, latest, Vec::new(), sinks)?
        }
    };
    Ok(())
}

/// Threads of this process: what the config says, or its share of the host.
fn use_threads(fetched: &Fetched) -> Result<()> {
    let threads = match (fetched.config.threads, fetched.ranks.place()) {
        (0, Some(place)) => {
            let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            (all / place.local_size).max(1)
        }
        (threads, _) => threads,
    };
    super::use_threads(threads)
}

fn as_first(args: &Args, ranks: &Ranks) -> Result<()> {
    let is_auto = args.resume.as_deref() == Some(Path::new("auto"));
    if let Some(path) = args.resume.as_deref().filter(|_| !is_auto) {
        if args.config.is_some() || !args.overrides.is_empty() || args.dry_run {
            let problem = "is gone on with by its own config: nothing else may be given";
            let fix = "Give --resume alone, or edit config.resolved.toml there";
            return Err(Error::input(path.display(), problem, fix).into());
        }
        let run = RunDirectory::open_for_resume(path)?;
        let mut mirror = mirrored::open(&Config::of_run(&run.config())?)?;
        let warnings = mirrored::bring(&mut mirror, &run)?;
        return go_on(&run, (args, ranks), mirror, warnings);
    }
    let Some(source) = &args.config else {
        let fix = "Write rlvr train CONFIG --resume auto, or --resume ./auto for a run of that name";
        return Err(Error::input("--resume auto", "needs a config", fix).into());
    };
    let mut loaded = Loaded::read(source, &args.overrides)?;
    loaded.notes.iter().for_each(|note| eprintln!("note: {note}"));
    let resume = loaded.config.run.resume.or(is_auto.then_some(Resume::Auto));
    if args.dry_run {
        loaded.config.run.resume = resume;
        return dry_run::run(loaded, args.may());
    }
    if resume.is_some() {
        return start_or_go_on(loaded.config, args, ranks);
    }
    if args.allow_changed {
        return Err(Error::input("--allow-changed", "has no effect without --resume", "Remove it").into());
    }
    let mut fetched = fetch(loaded.config)?;
    (fetched.may, fetched.ranks) = (args.may(), ranks.clone());
    let config = &fetched.config;
    use_threads(&fetched)?;
    let mirror = mirrored::open_new(config)?;
    let run = match &config.run.name {
        Some(name) => RunDirectory::create(&config.run.root, name)?,
        None => RunDirectory::create_numbered(&config.run.root, Task::load(&config.task)?.name())?,
    };
    begin(&fetched, &run, mirror, args.again(run.path()))
}

impl Args {
    fn may(&self) -> Permits {
        Permits { over_budget: self.allow_over_budget, programs: self.allow_programs }
    }

    /// What goes on with a run.
    fn again(&self, run: &Path) -> String {
        let programs = if self.allow_programs { " --allow-programs" } else { "" };
        format!("rlvr train --resume {}{programs}", run.display())
    }
}

/// `--resume auto`.
fn start_or_go_on(config: Config, args: &Args, ranks: &Ranks) -> Result<()> {
    let Some(name) = config.run.name.clone() else {
        let (want, why) = ("a name of your choice", "--resume auto finds the run by it");
        return Err(Error::config("run.name", "absent", want, why).into());
    };
    let run = RunDirectory::open_or_create(&config.run.root, &name)?;
    if run.is_new() {
        return start_or_bring(config, run, args, ranks);
    }
    let recorded = Config::of_run(&run.config())?;
    launch::check_same(&config, &run, &recorded, &mut Bars::default())?;
    let mut mirror = mirrored::open(&recorded)?;
    let warnings = mirrored::bring(&mut mirror, &run)?;
    if launch::is_done(&run, &recorded)? {
        eprintln!("done already: {}", run.model().display());
        nothing_to_do(ranks)?;
        return mirrored::complete(mirror, &run);
    }
    go_on(&run, (args, ranks), mirror, warnings)
}

/// Tells the other ranks so.
fn nothing_to_do(ranks: &Ranks) -> Result<()> {
    let order = Order { config: String::new(), run: PathBuf::new(), from: None, done: true };
    Ok(ranks.given(Some(order)).map(drop)?)
}

/// A run that this disk has nothing of: its mirror may.
fn start_or_bring(config: Config, run: RunDirectory, args: &Args, ranks: &Ranks) -> Result<()> {
    let path = run.path().to_path_buf();
    let give_back = |_: &_| drop(std::fs::remove_dir_all(&path));
    let mut mirror = mirrored::open(&config).inspect_err(give_back)?;
    if let Some(model) = mirror.as_ref().and_then(Mirror::model) {
        let same = mirrored::bring_config(&mirror, &run).and_then(|()| {
            let recorded = Config::of_run(&run.config())?;
            Ok(launch::check_same(&config, &run, &recorded, &mut Bars::default())?)
        });
        give_back(&anyhow::anyhow!("done"));
        same?;
        eprintln!("done already: {model}");
        return nothing_to_do(ranks);
    }
    let brought = mirrored::bring(&mut mirror, &run);
    if !run.config().is_file() {
        let mut fetched = brought.and_then(|_| fetch(config)).inspect_err(give_back)?;
        (fetched.may, fetched.ranks) = (args.may(), ranks.clone());
        use_threads(&fetched)?;
        return begin(&fetched, &run, mirror, args.again(run.path()));
    }
    let warnings = brought?;
    // What was made here is the run that was there.
    drop(run);
    let run = RunDirectory::open_for_resume(&path)?;
    let recorded = Config::of_run(&run.config())?;
    launch::check_same(&config, &run, &recorded, &mut Bars::default())?;
    go_on(&run, (args, ranks), mirror, warnings)
}

/// A run from its first step.
fn begin(fetched: &Fetched, run: &RunDirectory, mut mirror: Option<Mirror>, again: String) -> Result<()> {
    order(fetched, run, None)?;
    let mut sinks = sinks(&fetched.config.run, run.path(), None, again);
    sinks.add(Whereabouts::new(fetched.ranks.clone(), run.path())?);
    if let Some(follower) = mirrored::follow(&mut mirror, run, None)? {
        sinks.add(follower);
    }
    let ended = launch::start(fetched, run, sinks);
    mirrored::close(mirror, run, ended)
}

/// Tells the other ranks what is to be done.
fn order(fetched: &Fetched, run: &RunDirectory, from: Option<&Path>) -> Result<()> {
    if fetched.ranks.is_alone() {
        return Ok(());
    }
    let absolute = |path: &Path| std::path::absolute(path).map_err(Error::io(path, "find"));
    let order = Order {
        config: fetched.recorded.to_toml()?,
        run: absolute(run.path())?,
        from: from.map(absolute).transpose()?,
        done: false,
    };
    Ok(fetched.ranks.given(Some(order)).map(drop)?)
}

/// The rest of a run. `warnings`: of what was passed over in its mirror.
fn go_on(
    run: &RunDirectory,
    (args, ranks): (&Args, &Ranks),
    mut mirror: Option<Mirror>,
    mut warnings: Vec<String>,
) -> Result<()> {
    let mut fetched = fetch(Config::of_run(&run.config())?)?;
    (fetched.may, fetched.allow_changed, fetched.ranks) = (args.may(), args.allow_changed, ranks.clone());
    use_threads(&fetched)?;
    let Some(latest) = Checkpoint::latest(run.path())? else {
        if run.model().exists() {
            let fix = "Remove the run to make it again, or give another run.name";
            let problem = "has its model and no checkpoint to go on from";
            return Err(Error::input(run.path().display(), problem, fix).into());
        }
        eprintln!("{} has no checkpoint yet: it starts at step 0", run.path().display());
        run.start_over()?;
        return begin(&fetched, run, mirror, args.again(run.path()));
    };
    warnings.extend(launch::edits(&latest.checkpoint, run)?);
    order(&fetched, run, Some(&latest.checkpoint.path))?;
    let kept = (latest.checkpoint.path.clone(), latest.checkpoint.step);
    let mut sinks = sinks(&fetched.config.run, run.path(), Some(kept), args.again(run.path()));
    sinks.add(Whereabouts::new(ranks.clone(), run.path())?);
    if let Some(follower) = mirrored::follow(&mut mirror, run, Some(&latest.checkpoint))? {
        sinks.add(follower);
    }
    let ended = launch::resume(&fetched, run, latest, warnings, sinks);
    mirrored::close(mirror, run, ended)
}

/// Who is told on the terminal, and who watches. `kept`: the checkpoint that the run goes on from, and its steps; `again`: the command that goes on
/// with the run once more.
pub(super) fn sinks(config: &RunConfig, run: &Path, kept: Option<(PathBuf, u64)>, again: String) -> Sinks {
    let mut sinks = Sinks::default();
    sinks.add(Progress::new());
    sinks.add(LastWords::of(run, kept, again));
    sinks.add(Watchdog::start(config.stall(), sound));
    sinks
}

/// On the watchdog's thread. The run's own may hang, and could neither stop nor write a checkpoint.
fn sound(alarm: Alarm) {
    let mut out = std::io::stderr();
    // Behind a bar that is drawn again and again; a terminal that is gone hears nothing.
    let _ = match &alarm {
        Alarm::Slow(text) => writeln!(out, "\nwarning: {text}"),
        Alarm::Stalled(text) => writeln!(out, "\nerror: {text}\n{}", last_words().unwrap_or_default()),
    };
    if let Alarm::Stalled(_) = alarm {
        stop::leave();
    }
}

/// Finds the models and data that a config names, and says which came from the hub.
pub(super) fn fetch(config: Config) -> Result<Fetched> {
    let fetched = launch::fetch(config, &mut Bars::default())?;
    fetched.pinned.iter().for_each(|pinned| eprintln!("model: {pinned}"));
    fetched.data.iter().for_each(|pinned| eprintln!("data: {pinned}"));
    Ok(fetched)
}
