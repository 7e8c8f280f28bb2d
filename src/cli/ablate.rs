//! `rlvr ablate`: the arms of an ablation over its seeds, and the table that compares them.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::train;
use crate::ablate::{Comparison, PlannedRun, Progress, plan};
use crate::config::Loaded;
use crate::config::ablate::AblationConfig;
use crate::error::Error;
use crate::hub::RUN_CONFIG;
use crate::run::RunDirectory;
use crate::stop;
use crate::train::launch;
use crate::train::materials::Permits;

/// Train every arm of an ablation over its seeds and compare them. Run it again to go on after a stop.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr ablate ablate-demo --root runs/ablate-demo")]
pub struct Args {
    /// A shipped ablation (ablate-demo, ablate-riskcue-smollm2-135m, ablate-riskcue-llama3.1-8b) or a TOML file.
    ablation: String,
    /// Override a key of the training config in every arm, as in --set data.train=train.jsonl.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Folder of the ablation's runs and tables. Default: runs/NAME.
    #[arg(long)]
    root: Option<PathBuf>,
    /// Cost of an hour of this machine; 0 leaves the price out.
    #[arg(long)]
    price_per_hour: Option<f64>,
    /// Start runs although memory or disk have less than they can take at their worst.
    #[arg(long)]
    allow_over_budget: bool,
    /// Start the programs, and send rows to the addresses, that the tasks' rewards name.
    #[arg(long)]
    allow_programs: bool,
    /// List the runs, and which are done, and stop.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args) -> Result<()> {
    stop::heed();
    super::ranks::refuse("ablate")?;
    let mut ablation = AblationConfig::load(&args.ablation)?;
    ablation.set.extend(args.overrides.iter().cloned());
    ablation.price_per_hour = args.price_per_hour.unwrap_or(ablation.price_per_hour);
    // An arm may set what the others lack: then there is nothing to say of all.
    if let Ok(loaded) = Loaded::read(&ablation.config, &ablation.set) {
        loaded.notes.iter().for_each(|note| eprintln!("note: {note}"));
    }
    let usual = || AblationConfig::usual_root(&args.ablation);
    let root = args.root.clone().or(ablation.root.clone()).unwrap_or_else(usual);
    let arms = ablation.arms()?;
    let planned = plan(&ablation, &arms, &root)?;
    if let Some(mirror) = planned.iter().find_map(|run| run.config.run.mirror.as_ref()) {
        let why = "the runs of an ablation are not copied; put its --root on a volume that stays";
        return Err(Error::config("run.mirror", mirror, "absent", why).into());
    }
    if args.dry_run {
        let mut folders = Vec::new();
        for run in planned.iter().flat_map(|run| run.warm_up.as_deref().into_iter().chain([run])) {
            if !folders.contains(&run.folder()) {
                let state = if run.is_done() { "done" } else { "to do" };
                println!("{:<6} {}", state, run.folder().display());
                folders.push(run.folder());
            }
        }
        return Ok(());
    }
    super::use_threads(planned.first().map_or(0, |run| run.config.threads))?;
    let mut failures = Vec::new();
    for (i, run) in planned.iter().enumerate() {
        tell!("\n== run {} of {}: {}, seed {}", i + 1, planned.len(), run.arm.name, run.seed);
        let may = Permits { over_budget: args.allow_over_budget, programs: args.allow_programs };
        if let Err(error) = finish(run, may) {
            if matches!(error.downcast_ref(), Some(Error::Stopped)) {
                return Err(error);
            }
            // The other arms still have something to say; the table leaves this one out.
            eprintln!("error: {error:#}");
            failures.push(format!("{}, seed {}", run.arm.name, run.seed));
        }
    }
    let compared = Comparison::read(&ablation, &arms, &planned)?;
    if compared.is_empty() {
        bail!("no run has finished, so there is nothing to compare");
    }
    // Whoever still reads or not.
    let saved = compared.save(&root)?;
    println!("\n{}", compared.text());
    println!("{}", saved.display());
    if !failures.is_empty() {
        bail!("{} of {} runs failed: {}", failures.len(), planned.len(), failures.join("; "));
    }
    Ok(())
}

fn again() -> String {
    "the same command".into()
}

/// Makes the run, or the rest of it, or nothing when it is done.
fn finish(run: &PlannedRun, may: Permits) -> Result<()> {
    let folder = run.folder();
    if folder.join(RUN_CONFIG).is_file() {
        // A checkpoint that a kill left without its name gets it back.
        RunDirectory::open_for_resume(&folder)?;
    }
    let mut fetched = train::fetch(run.config.clone())?;
    fetched.may = may;
    let resolved = fetched.recorded.to_toml()?;
    match run.progress(&resolved)? {
        Progress::Done => {
            tell!("done already: {}", folder.display());
            return Ok(());
        }
        Progress::Stopped(latest) => {
            let directory = RunDirectory::open_for_resume(&folder)?;
            let kept = (latest.checkpoint.path.clone(), latest.checkpoint.step);
            launch::resume(
                &fetched,
                &directory,
                latest,
                Vec::new(),
                train::sinks(&fetched.config.run, &folder, Some(kept), again()),
            )?;
            return Ok(());
        }
        Progress::NoCheckpoint => {
            tell!("{} stopped before its first checkpoint and starts again", folder.display());
            std::fs::remove_dir_all(&folder).map_err(Error::io(&folder, "remove the stopped run"))?;
        }
        Progress::Absent => {}
    }
    let create = || RunDirectory::create(&run.config.run.root, &run.arm.folder(run.seed));
    let Some(warm_up) = &run.warm_up else {
        launch::start(&fetched, &create()?, train::sinks(&fetched.config.run, &folder, None, again()))?;
        return Ok(());
    };
    finish(warm_up, may)?;
    let (trained, latest) = (warm_up.folder(), warm_up.last_checkpoint()?);
    tell!("after the SFT of {}", trained.display());
    let directory = create()?;
    directory.write_config(&resolved)?;
    latest.checkpoint.hand_on(&RunDirectory::open_for_resume(&trained)?, &directory)?;
    launch::resume(
        &fetched,
        &directory,
        latest,
        Vec::new(),
        train::sinks(&fetched.config.run, &folder, None, again()),
    )?;
    Ok(())
}
