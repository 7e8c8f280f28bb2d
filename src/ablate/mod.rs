//! Ablations: which runs an ablation needs, how far each is, and the table that compares its arms.

mod paired;
mod results;
mod table;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use self::results::Outcome;
use self::table::Row;
use crate::config::ablate::{AblationConfig, Arm};
use crate::config::enumerate::EnumerateConfig;
use crate::config::stages::GrpoConfig;
use crate::config::{Config, RunConfig, Stage};
use crate::error::{Error, Result};
use crate::formats::file::write_json;
use crate::run::{Checkpoint, Latest, replace_file};

/// A training run that serves one arm or several.
pub struct PlannedRun {
    pub arm: Arm,
    pub seed: u64,
    pub config: Config,
    /// The SFT stage that other runs have as well: made once, and gone on from.
    pub warm_up: Option<Rc<PlannedRun>>,
}

/// How far a run is.
pub enum Progress {
    /// It has its final model.
    Done,
    /// It has a checkpoint to go on from.
    Stopped(Latest),
    /// Its folder has nothing to go on from.
    NoCheckpoint,
    /// It has no folder.
    Absent,
}

impl PlannedRun {
    pub fn folder(&self) -> PathBuf {
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
    pub fn is_done(&self) -> bool {
        self.folder().join("model").is_dir()
    }

    /// `resolved`: the text of its config.resolved.toml.
    ///
    /// # Errors
    /// Its folder is of another config; a checkpoint cannot be read.
    pub fn progress(&self, resolved: &str) -> Result<Progress> {
        let folder = self.folder();
        let path = folder.join("config.resolved.toml");
        // A key that is newer than the folder has its default there.
        let earlier = if path.is_file() { Config::of_run(&path)?.to_toml()? } else { resolved.into() };
        if earlier != resolved {
            let lines = earlier.lines().zip(resolved.lines()).find(|(a, b)| a != b);
            let change = lines.map_or("other keys".into(), |(a, b)| format!("`{a}` there, `{b}` now"));
            let fix = "Give another --root, or remove the folder to make the run again";
            return Err(Error::input(path.display(), format!("is of another config: {change}"), fix));
        }
        if self.is_done() {
            return Ok(Progress::Done);
        }
        if path.is_file()
            && let Some(latest) = Checkpoint::latest(&folder)?
        {
            return Ok(Progress::Stopped(latest));
        }
        Ok(if folder.exists() { Progress::NoCheckpoint } else { Progress::Absent })
    }

    /// The checkpoint that other runs go on from.
    ///
    /// # Errors
    /// It has none; one cannot be read.
    pub fn last_checkpoint(&self) -> Result<Latest> {
        let folder = self.folder();
        let fix = "Remove the run's folder; it is then made again";
        let none = || Error::input(folder.display(), "has no checkpoint to go on from", fix);
        Checkpoint::latest(&folder)?.ok_or_else(none)
    }
}

/// The runs to make: an arm that another passes through needs none of its own. `root`: folder of the ablation.
///
/// # Errors
/// As [`AblationConfig::training`].
pub fn plan(ablation: &AblationConfig, arms: &[Arm], root: &Path) -> Result<Vec<PlannedRun>> {
    let mut planned = Vec::new();
    for &seed in &ablation.seeds {
        let training = |arm: &Arm| ablation.training(arm, seed, &root.join("runs"));
        let mut runs = Vec::new();
        for arm in arms.iter().filter(|arm| host(arms, arm) == *arm) {
            runs.push(PlannedRun { arm: arm.clone(), seed, config: training(arm)?, warm_up: None });
        }
        let arm = Arm::warm_up();
        let warm_up = PlannedRun { config: training(&arm)?, arm, seed, warm_up: None };
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

/// The arms of an ablation beside its baseline; those without a finished run are left out.
pub struct Comparison<'a> {
    ablation: &'a AblationConfig,
    rows: Vec<Row>,
    /// What flagging every log scores.
    base_rate: Option<f64>,
}

impl<'a> Comparison<'a> {
    /// # Errors
    /// The metrics or samples of a finished run are missing or damaged.
    pub fn read(ablation: &'a AblationConfig, arms: &[Arm], planned: &[PlannedRun]) -> Result<Self> {
        let outcomes = |arm: &Arm| -> Result<Vec<Outcome>> {
            let host = host(arms, arm);
            let runs = planned.iter().filter(|run| run.arm == *host && run.is_done());
            runs.map(|run| Outcome::read(&run.folder(), arm, &run.config)).collect()
        };
        let all = arms.iter().map(|arm| Ok((arm, outcomes(arm)?))).collect::<Result<Vec<_>>>()?;
        let baseline =
            all.iter().find(|(arm, _)| arm.name == ablation.baseline).map(|(_, seeds)| seeds.clone());
        let mut seeds = all.iter().flat_map(|(_, seeds)| seeds);
        let base_rate = seeds.find_map(|seed| seed.metrics.get("verdict/base_rate").copied());
        let finished = all.into_iter().filter(|(_, seeds)| !seeds.is_empty());
        let row = |(arm, seeds): (&Arm, Vec<Outcome>)| {
            let base = baseline.as_deref().filter(|_| arm.name != ablation.baseline);
            Row::new(arm.name.clone(), seeds, base)
        };
        let rows = finished.map(row).collect();
        Ok(Self { ablation, rows, base_rate })
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn legend(&self) -> String {
        table::legend(&self.ablation.baseline, self.base_rate)
    }

    pub fn text(&self) -> String {
        let (baseline, price) = (&self.ablation.baseline, self.ablation.price_per_hour);
        format!("{}\n{}", table::text(&self.rows, baseline, price), self.legend())
    }

    pub fn markdown(&self) -> String {
        let (baseline, price) = (&self.ablation.baseline, self.ablation.price_per_hour);
        format!("{}\n{}", table::markdown(&self.rows, baseline, price), self.legend())
    }

    /// Writes ablation.md and ablation.json to `root`; returns the path of the former.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn save(&self, root: &Path) -> Result<PathBuf> {
        let page = root.join("ablation.md");
        replace_file(&page, self.markdown().as_bytes())?;
        let json = serde_json::json!({ "config": self.ablation, "arms": self.rows });
        write_json(&root.join("ablation.json"), &json)?;
        Ok(page)
    }
}
