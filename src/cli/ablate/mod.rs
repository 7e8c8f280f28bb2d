//! `rlvr ablate`: the arms of an ablation over its seeds, and the table that compares them.

mod results;
mod table;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Result, bail};

use self::results::Outcome;
use self::table::Row;
use super::train;
use crate::config::ablate::{AblationConfig, Arm};
use crate::config::enumerate::EnumerateConfig;
use crate::config::stages::GrpoConfig;
use crate::config::{Config, RunConfig, Stage};
use crate::error::Error;
use crate::formats::file::write_json;
use crate::run::{Checkpoint, RunDirectory, replace_file};
use crate::train::launch;

/// Train every arm of an ablation over its seeds and compare them. Run it again to go on after a stop.
#[derive(clap::Args)]
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
    /// List the runs, and which are done, and stop.
    #[arg(long)]
    dry_run: bool,
}

/// A training run that serves one arm or several.
struct Planned {
    arm: Arm,
    seed: u64,
    config: Config,
    /// The SFT stage that other runs have as well: made once, and gone on from.
    warm_up: Option<Rc<Planned>>,
}

impl Planned {
    fn folder(&self) -> PathBuf {
        self.config.run.root.join(self.arm.folder(self.seed))
    }

    /// Whether its first stage is exactly the SFT of `warm_up` and others follow: what the later stages are told has no
    /// part in that.
    fn begins_as(&self, warm_up: &Config) -> bool {
        let sft_alone = |config: &Config| Config {
            stages: vec![Stage::Sft],
            grpo: GrpoConfig::default(),
            enumerate: EnumerateConfig::default(),
            run: RunConfig::default(),
            ..config.clone()
        };
        let stages = &self.config.stages;
        stages.len() > 1 && stages[0] == Stage::Sft && sft_alone(&self.config) == sft_alone(warm_up)
    }

    /// The final model gets its name last of all.
    fn is_done(&self) -> bool {
        self.folder().join("model").is_dir()
    }
}

pub fn run(args: &Args) -> Result<()> {
    let mut ablation = AblationConfig::load(&args.ablation)?;
    ablation.set.extend(args.overrides.iter().cloned());
    ablation.price_per_hour = args.price_per_hour.unwrap_or(ablation.price_per_hour);
    if !(ablation.price_per_hour >= 0.0 && ablation.price_per_hour.is_finite()) {
        bail!(Error::config("--price-per-hour", ablation.price_per_hour, "0 or more", "it is a price"));
    }
    let name = Path::new(&args.ablation).file_stem().unwrap_or_default();
    let root = args.root.clone().or(ablation.root.clone()).unwrap_or_else(|| Path::new("runs").join(name));
    let arms = ablation.arms()?;
    let planned = plan(&ablation, &arms, &root)?;
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
        println!("\n== run {} of {}: {}, seed {}", i + 1, planned.len(), run.arm.name, run.seed);
        if let Err(error) = finish(run) {
            // The other arms still have something to say; the table leaves this one out.
            eprintln!("error: {error:#}");
            failures.push(format!("{}, seed {}", run.arm.name, run.seed));
        }
    }
    report(&ablation, &arms, &planned, &root)?;
    if !failures.is_empty() {
        bail!("{} of {} runs failed: {}", failures.len(), planned.len(), failures.join("; "));
    }
    Ok(())
}

/// The runs to make: an arm that another passes through needs none of its own.
fn plan(ablation: &AblationConfig, arms: &[Arm], root: &Path) -> Result<Vec<Planned>> {
    let mut planned = Vec::new();
    for &seed in &ablation.seeds {
        let training = |arm: &Arm| ablation.training(arm, seed, &root.join("runs"));
        let mut runs = Vec::new();
        for arm in arms.iter().filter(|arm| host(arms, arm) == *arm) {
            runs.push(Planned { arm: arm.clone(), seed, config: training(arm)?, warm_up: None });
        }
        let arm = Arm::warm_up();
        let warm_up = Planned { config: training(&arm)?, arm, seed, warm_up: None };
        let mut sharing: Vec<_> = runs.iter_mut().filter(|run| run.begins_as(&warm_up.config)).collect();
        if sharing.len() > 1 {
            let warm_up = Rc::new(warm_up);
            sharing.iter_mut().for_each(|run| run.warm_up = Some(Rc::clone(&warm_up)));
        }
        planned.extend(runs);
    }
    Ok(planned)
}

/// The arm whose run has this arm's result: the longest that passes through it.
fn host<'a>(arms: &'a [Arm], arm: &'a Arm) -> &'a Arm {
    arms.iter().filter(|other| arm.is_part_of(other)).max_by_key(|other| other.stages.len()).unwrap_or(arm)
}

/// Makes the run, or the rest of it, or nothing when it is done.
fn finish(run: &Planned) -> Result<()> {
    let folder = run.folder();
    let fetched = train::fetch(run.config.clone())?;
    let text = fetched.recorded.to_toml()?;
    let resolved = folder.join("config.resolved.toml");
    if let Ok(earlier) = std::fs::read_to_string(&resolved)
        && earlier != text
    {
        let lines = earlier.lines().zip(text.lines()).find(|(a, b)| a != b);
        let change = lines.map_or("other keys".into(), |(a, b)| format!("`{a}` there, `{b}` now"));
        let fix = "Give another --root, or remove the folder to make the run again";
        bail!(Error::input(resolved.display(), format!("is of another config: {change}"), fix));
    }
    if run.is_done() {
        println!("done already: {}", folder.display());
        return Ok(());
    }
    if resolved.is_file()
        && let Some(latest) = Checkpoint::latest(&folder)?
    {
        let directory = RunDirectory::open_for_resume(&folder)?;
        launch::resume(&fetched, &directory, latest, Vec::new(), train::sinks())?;
        return Ok(());
    }
    if folder.exists() {
        println!("{} stopped before its first checkpoint and starts again", folder.display());
        std::fs::remove_dir_all(&folder).map_err(Error::io(&folder, "remove the stopped run"))?;
    }
    let create = || RunDirectory::create(&run.config.run.root, &run.arm.folder(run.seed));
    let Some(warm_up) = &run.warm_up else {
        launch::start(&fetched, &create()?, train::sinks())?;
        return Ok(());
    };
    finish(warm_up)?;
    let trained = warm_up.folder();
    let Some(latest) = Checkpoint::latest(&trained)? else {
        let fix = "Remove the run's folder; it is then made again";
        bail!(Error::input(trained.display(), "has no checkpoint to go on from", fix));
    };
    println!("after the SFT of {}", trained.display());
    let directory = create()?;
    directory.write_config(&text)?;
    latest.checkpoint.hand_on(&RunDirectory::open_for_resume(&trained)?, &directory)?;
    launch::resume(&fetched, &directory, latest, Vec::new(), train::sinks())?;
    Ok(())
}

fn report(ablation: &AblationConfig, arms: &[Arm], planned: &[Planned], root: &Path) -> Result<()> {
    let outcomes = |arm: &Arm| -> Result<Vec<Outcome>> {
        let host = host(arms, arm);
        let runs = planned.iter().filter(|run| run.arm == *host && run.is_done());
        Ok(runs
            .map(|run| Outcome::read(&run.folder(), arm, &run.config))
            .collect::<crate::error::Result<_>>()?)
    };
    let all = arms.iter().map(|arm| Ok((arm, outcomes(arm)?))).collect::<Result<Vec<_>>>()?;
    let baseline = all.iter().find(|(arm, _)| arm.name == ablation.baseline).map(|(_, seeds)| seeds.clone());
    let base_rate =
        all.iter().flat_map(|(_, seeds)| seeds).find_map(|s| s.metrics.get("verdict/base_rate").copied());
    let rows: Vec<Row> = all
        .into_iter()
        .filter(|(_, seeds)| !seeds.is_empty())
        .map(|(arm, seeds)| {
            let base = baseline.as_deref().filter(|_| arm.name != ablation.baseline);
            Row::new(arm.name.clone(), seeds, base)
        })
        .collect();
    if rows.is_empty() {
        bail!("no run has finished, so there is nothing to compare");
    }
    let price = ablation.price_per_hour;
    let legend = table::legend(&ablation.baseline, base_rate);
    println!("\n{}\n{legend}", table::text(&rows, &ablation.baseline, price));
    let markdown = format!("{}\n{legend}", table::markdown(&rows, &ablation.baseline, price));
    replace_file(&root.join("ablation.md"), markdown.as_bytes())?;
    write_json(&root.join("ablation.json"), &serde_json::json!({ "config": ablation, "arms": rows }))?;
    println!("{}", root.join("ablation.md").display());
    Ok(())
}
