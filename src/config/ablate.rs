//! An ablation: one training config, several arms, several seeds.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::choice::LAST;
use super::layers::parse;
use super::{Config, Stage};
use crate::disk;
use crate::error::{Error, Result};

/// Shipped ablations by name.
pub const ABLATIONS: [(&str, &str); 3] = [
    ("ablate-demo", include_str!("../../configs/ablate-demo.toml")),
    ("ablate-riskcue-smollm2-135m", include_str!("../../configs/ablate-riskcue-smollm2-135m.toml")),
    ("ablate-riskcue-llama3.1-8b", include_str!("../../configs/ablate-riskcue-llama3.1-8b.toml")),
];

/// Arms that need no definition: name, stages, overrides.
const KNOWN_ARMS: [(&str, &[Stage], &[&str]); 6] = [
    ("vanilla", &[], &[]),
    ("sft", &[Stage::Sft], &[]),
    ("grpo", &[Stage::Grpo], &[]),
    ("sft+grpo", &[Stage::Sft, Stage::Grpo], &[]),
    ("enumerate", &[Stage::Enumerate], &[]),
    ("sft+enumerate", &[Stage::Sft, Stage::Enumerate], &[]),
];

/// Arms of training over seeds, compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AblationConfig {
    /// Training config, as `rlvr train` takes it: a preset's name or a file.
    pub config: String,
    /// Overrides of it for every arm, as `--set` takes them.
    pub set: Vec<String>,
    /// A run of every arm for each.
    #[schemars(inner(range(max = i64::MAX)))]
    pub seeds: Vec<u64>,
    /// In the order of the table.
    pub arms: Vec<String>,
    /// The arm that all others are compared with.
    pub baseline: String,
    /// What an hour of the machine costs, in any currency. 0 leaves the price out.
    #[schemars(range(min = 0, max = 1e12))]
    pub price_per_hour: f64,
    /// Folder of the ablation. Absent: `runs/` and the name of the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// Definitions of arms that are not built in.
    #[serde(rename = "arm", skip_serializing_if = "Vec::is_empty")]
    pub definitions: Vec<Arm>,
}

impl Default for AblationConfig {
    fn default() -> Self {
        Self {
            config: "demo".into(),
            set: Vec::new(),
            seeds: vec![1, 2, 3],
            arms: KNOWN_ARMS[..4].iter().map(|(name, _, _)| name.to_string()).collect(),
            baseline: "sft".into(),
            price_per_hour: 0.0,
            root: None,
            definitions: Vec::new(),
        }
    }
}

/// One way of training.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Arm {
    /// What `arms` calls it.
    pub name: String,
    /// Empty: the model as it is.
    pub stages: Vec<Stage>,
    /// Overrides beside the ablation's.
    #[serde(default)]
    pub set: Vec<String>,
}

impl Arm {
    /// SFT alone, as every arm begins that changes nothing before GRPO.
    pub fn warm_up() -> Self {
        Self { name: "sft".into(), stages: vec![Stage::Sft], set: Vec::new() }
    }

    /// Whether a run of `other` passes through this arm's final model: the same settings, and stages that begin
    /// with this arm's. A run is deterministic, so it need not be made twice.
    pub fn is_part_of(&self, other: &Self) -> bool {
        self.set == other.set && other.stages.starts_with(&self.stages)
    }

    /// The stage whose last evaluation is this arm's result.
    pub fn last_stage(&self) -> &'static str {
        self.stages.last().map_or("vanilla", |stage| stage.name())
    }

    /// `sft+grpo` becomes `sft-grpo`.
    pub fn folder(&self, seed: u64) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._".contains(c) { c } else { '-' };
        format!("{}-seed{seed}", self.name.chars().map(plain).collect::<String>())
    }
}

impl AblationConfig {
    /// A shipped name or a TOML file.
    pub fn load(source: &str) -> Result<Self> {
        let shipped = ABLATIONS.iter().find(|(name, _)| *name == source);
        let path = Path::new(source);
        let text = match shipped {
            Some((_, text)) => (*text).to_string(),
            None if !path.exists() && path.extension().is_none() => {
                let names = ABLATIONS.map(|(name, _)| name).join(", ");
                let fix = format!("Use one of: {names}; or give the path of a TOML file");
                return Err(Error::input(format!("ablation `{source}`"), "no such name", fix));
            }
            None => disk::read_text(path)?,
        };
        let config: Self = serde_path_to_error::deserialize(parse(source, &text)?).map_err(|error| {
            let place = format!("{source}: {}", error.path());
            Error::input(place, error.into_inner().message(), "docs/ablate.md lists the keys")
        })?;
        config.validate()?;
        Ok(config)
    }

    /// Where the ablation that was loaded from `source` goes when nothing says it: `runs/` and its name, in which a
    /// dot may stand (`ablate-riskcue-llama3.1-8b`).
    pub fn usual_root(source: &str) -> PathBuf {
        let name = Path::new(source).file_name().unwrap_or_default().to_string_lossy();
        Path::new("runs").join(name.strip_suffix(".toml").unwrap_or(&name))
    }

    fn validate(&self) -> Result<()> {
        let twice =
            |values: &[String]| values.iter().enumerate().find(|(i, v)| values[..*i].contains(v)).is_some();
        if self.seeds.is_empty() || self.arms.is_empty() {
            let key = if self.arms.is_empty() { "arms" } else { "seeds" };
            return Err(Error::config(key, "[]", "at least one", "there is nothing to run"));
        }
        if twice(&self.arms) || twice(&self.seeds.iter().map(u64::to_string).collect::<Vec<_>>()) {
            return Err(Error::config(
                "arms, seeds",
                "repeats",
                "each once",
                "a table row stands for one arm",
            ));
        }
        if !self.arms.contains(&self.baseline) {
            let want = format!("one of {}", self.arms.join(", "));
            return Err(Error::config("baseline", &self.baseline, want, "the others are compared with it"));
        }
        if !(0.0..=1e12).contains(&self.price_per_hour) {
            return Err(Error::config("price_per_hour", self.price_per_hour, "0 to 1e12", "it is a price"));
        }
        for definition in &self.definitions {
            let known = KNOWN_ARMS.iter().any(|(name, _, _)| *name == definition.name);
            if known || !self.arms.contains(&definition.name) {
                let why = if known { "this name is built in" } else { "arms does not list it" };
                return Err(Error::config("arm.name", &definition.name, "a name of your own in arms", why));
            }
        }
        let arms = self.arms()?;
        if arms.iter().all(|arm| arm.stages.is_empty()) {
            let why = "it is evaluated on the way of an arm that trains; use `rlvr eval` for it alone";
            return Err(Error::config("arms", "vanilla", "an arm that trains", why));
        }
        for arm in arms.iter().filter(|arm| arm.stages.is_empty()) {
            if !arms.iter().any(|other| !other.stages.is_empty() && arm.is_part_of(other)) {
                let why = "an untrained arm is evaluated on the way of one that trains with the same `set`";
                return Err(Error::config("arms", &arm.name, "beside such an arm", why));
            }
        }
        Ok(())
    }

    /// In the order of the table.
    pub fn arms(&self) -> Result<Vec<Arm>> {
        self.arms.iter().map(|name| self.arm(name)).collect()
    }

    fn arm(&self, name: &str) -> Result<Arm> {
        if let Some(definition) = self.definitions.iter().find(|definition| definition.name == name) {
            return Ok(definition.clone());
        }
        let known = KNOWN_ARMS.iter().find(|(known, _, _)| *known == name);
        let Some((_, stages, set)) = known else {
            let names: Vec<&str> = KNOWN_ARMS.iter().map(|(name, _, _)| *name).collect();
            let want = format!("one of {}, or the name of an [[arm]]", names.join(", "));
            return Err(Error::config("arms", name, want, "it says what is trained"));
        };
        let set = set.iter().map(|text| text.to_string()).collect();
        Ok(Arm { name: name.into(), stages: stages.to_vec(), set })
    }

    /// The training config of one arm and seed, whose run directory is `root` / [`Arm::folder`].
    pub fn training(&self, arm: &Arm, seed: u64, root: &Path) -> Result<Config> {
        let stages: Vec<String> = arm.stages.iter().map(|stage| format!("\"{}\"", stage.name())).collect();
        // Arms with more evaluations would have more to choose from.
        let mut set = vec![format!("eval.keep_best=\"{LAST}\"")];
        set.extend(self.set.iter().cloned());
        set.extend(arm.set.iter().cloned());
        set.push(format!("stages=[{}]", stages.join(", ")));
        set.push(format!("seed={seed}"));
        set.push(format!("run.name=\"{}\"", arm.folder(seed)));
        let mut config = Config::load(&self.config, &set)?;
        config.run.root = root.into();
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arms(names: &[&str]) -> AblationConfig {
        AblationConfig { arms: names.iter().map(|n| n.to_string()).collect(), ..Default::default() }
    }

    #[test]
    fn shipped_ablations_resolve_to_training_configs() {
        for (name, _) in ABLATIONS {
            let ablation = AblationConfig::load(name).unwrap();
            for arm in ablation.arms().unwrap().iter().filter(|arm| !arm.stages.is_empty()) {
                let config = ablation.training(arm, 7, Path::new("runs/x")).unwrap();
                assert_eq!((config.seed, &config.stages), (7, &arm.stages), "{name} {}", arm.name);
            }
        }
    }

    #[test]
    fn an_ablation_goes_where_its_whole_name_says() {
        let root = |source| AblationConfig::usual_root(source);
        assert_eq!(root("ablate-riskcue-llama3.1-8b"), Path::new("runs/ablate-riskcue-llama3.1-8b"));
        assert_eq!(root("configs/my.v2.toml"), Path::new("runs/my.v2"));
    }

    #[test]
    fn an_arm_on_the_way_of_another_is_its_part() {
        let config = arms(&["vanilla", "sft", "grpo", "sft+grpo"]);
        let [vanilla, sft, grpo, both] = config.arms().unwrap().try_into().unwrap();
        assert!(vanilla.is_part_of(&sft) && sft.is_part_of(&both) && vanilla.is_part_of(&both));
        assert!(!grpo.is_part_of(&both) && !both.is_part_of(&sft));
        let other = Arm { set: vec!["sft.epochs=2".into()], ..both };
        assert!(!sft.is_part_of(&other));
        assert_eq!(other.folder(3), "sft-grpo-seed3");
    }

    #[test]
    fn what_cannot_be_compared_is_refused_by_its_key() {
        let refused = |config: AblationConfig, key: &str| {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(key), "{error}");
        };
        refused(arms(&["sft", "sft"]), "arms, seeds");
        refused(arms(&["grpo"]), "baseline");
        refused(arms(&["sft", "sftgrpo"]), "arms = sftgrpo");
        refused(AblationConfig { seeds: vec![], ..arms(&["sft"]) }, "seeds");
        refused(AblationConfig { baseline: "vanilla".into(), ..arms(&["vanilla"]) }, "arms = vanilla");
        refused(AblationConfig { price_per_hour: -1.0, ..arms(&["sft"]) }, "price_per_hour");
        let own = Arm { name: "sft".into(), stages: vec![], set: vec![] };
        refused(AblationConfig { definitions: vec![own], ..arms(&["sft"]) }, "arm.name");
    }
}
