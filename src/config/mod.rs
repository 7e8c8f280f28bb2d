//! One typed tree: defaults < preset < TOML file < `--set a.b=v`. Unknown keys are errors.

pub mod ablate;
pub mod data;
pub mod enumerate;
pub mod lora;
pub mod loss;
pub mod model;
pub mod optim;
pub mod pack;
pub mod sampling;
pub mod stages;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use toml::{Table, Value};

pub use self::pack::{ActivationMemory, PackConfig, ReusedTokens};
use crate::error::{Error, Result};

/// A training run, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keys every random draw of the run.
    pub seed: u64,
    /// Task file, or the name of a built-in one.
    pub task: String,
    /// Stages in order. Evaluation runs before the first and after each.
    pub stages: Vec<Stage>,
    /// "auto" takes the first CUDA device when the build and the machine have one, and else the CPU.
    pub device: DeviceKind,
    /// CPU threads; 0 takes all cores.
    pub threads: usize,
    pub run: RunConfig,
    pub model: model::ModelConfig,
    /// Absent: all weights are trained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<lora::LoraConfig>,
    pub data: data::DataConfig,
    pub pack: PackConfig,
    pub sft: stages::SftConfig,
    pub grpo: stages::GrpoConfig,
    pub enumerate: enumerate::EnumerateConfig,
    pub eval: stages::EvalConfig,
    pub checkpoint: CheckpointConfig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Sft,
    Grpo,
    Enumerate,
}

impl Stage {
    pub fn name(self) -> &'static str {
        match self {
            Self::Sft => "sft",
            Self::Grpo => "grpo",
            Self::Enumerate => "enumerate",
        }
    }
}

/// Where tensors live.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The first CUDA device when the build and the machine have one, and else the CPU.
    Auto,
    Cpu,
    Cuda,
}

impl DeviceKind {
    pub const ALL: [Self; 3] = [Self::Auto, Self::Cpu, Self::Cuda];

    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}

impl FromStr for DeviceKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        Self::ALL.into_iter().find(|kind| kind.name() == text).ok_or_else(|| unknown(text, &Self::ALL))
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What is wrong with a text that names none of `known`.
fn unknown(text: &str, known: &[impl ToString]) -> String {
    let known: Vec<String> = known.iter().map(ToString::to_string).collect();
    format!("`{text}` is none of {}", known.join(", "))
}

/// `[run]`: where the run's directory goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Folder that holds run directories.
    pub root: PathBuf,
    /// Name of this run's directory. Absent: the task's name and the first free number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Write a TensorBoard event file beside metrics.jsonl.
    pub tensorboard: bool,
    /// Steps of GRPO, from 1, that are written token by token to samples/: log-probs, advantage, slope.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dump_steps: Vec<u64>,
}

/// `[checkpoint]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Optimiser steps between two checkpoints. 0: only at the ends of stages.
    pub every_steps: usize,
    /// Older checkpoints are removed once a newer one is safe.
    pub keep_last: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            seed: 1,
            task: "riskcue".into(),
            stages: vec![Stage::Sft, Stage::Grpo],
            device: DeviceKind::Auto,
            threads: 0,
            run: RunConfig::default(),
            model: model::ModelConfig::default(),
            lora: None,
            data: data::DataConfig::default(),
            pack: PackConfig::default(),
            sft: stages::SftConfig::default(),
            grpo: stages::GrpoConfig::default(),
            enumerate: enumerate::EnumerateConfig::default(),
            eval: stages::EvalConfig::default(),
            checkpoint: CheckpointConfig::default(),
        }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self { root: "runs".into(), name: None, tensorboard: true, dump_steps: Vec::new() }
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, keep_last: 1 }
    }
}

/// Shipped configs by name; `preset = "NAME"` starts from one.
pub const PRESETS: [(&str, &str); 3] = [
    ("demo", include_str!("../../configs/demo.toml")),
    ("riskcue-smollm2-135m", include_str!("../../configs/riskcue-smollm2-135m.toml")),
    ("riskcue-llama3.1-8b", include_str!("../../configs/riskcue-llama3.1-8b.toml")),
];

impl Config {
    /// From a file, or a preset's name, with overrides `a.b=v` on top.
    pub fn load(source: &str, overrides: &[String]) -> Result<Self> {
        let (place, text) = read_source(source)?;
        Self::from_toml(&place, &text, overrides)
    }

    /// `place` names the text in errors.
    pub fn from_toml(place: &str, text: &str, overrides: &[String]) -> Result<Self> {
        let mut table = parse(place, text)?;
        if let Some(preset) = table.remove("preset") {
            let name = preset.as_str().unwrap_or_default();
            let Some((_, base)) = PRESETS.iter().find(|(n, _)| *n == name) else {
                let names: Vec<&str> = PRESETS.iter().map(|(n, _)| *n).collect();
                let want = format!("one of {}", names.join(", "));
                return Err(Error::config("preset", preset, want, "no other preset is shipped"));
            };
            let mut base = parse(name, base)?;
            merge(&mut base, table);
            table = base;
        }
        for text in overrides {
            apply_override(&mut table, text)?;
        }
        retired(&mut table)?;
        // Defaults lie below by key, not by section: one key of a section leaves the rest of it as it was.
        let mut whole = parse("the defaults", &Self::default().to_toml()?)?;
        merge(&mut whole, table);
        let config: Self = serde_path_to_error::deserialize(whole).map_err(|error| {
            let key = error.path().to_string();
            let flag = |text: &&String| text.split_once('=').is_some_and(|(path, _)| path.trim() == key);
            let place = match overrides.iter().rev().find(flag) {
                Some(text) => format!("--set {text}"),
                None if key == "." => place.to_string(),
                None => format!("{place}: {key}"),
            };
            let problem = error.into_inner().message().replace("expected usize", "expected a whole number");
            Error::input(place, problem, "`rlvr train demo --dry-run` prints every key with a value")
        })?;
        config.validate()?;
        Ok(config)
    }

    /// The whole tree, defaults filled in.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Compute(e.to_string().into()))
    }

    /// Key and optimiser section of each stage that runs.
    pub fn optims(&self) -> impl Iterator<Item = (&'static str, &optim::OptimConfig)> {
        let of = |stage: &Stage| match stage {
            Stage::Sft => ("sft.optim", &self.sft.optim),
            Stage::Grpo => ("grpo.optim", &self.grpo.optim),
            Stage::Enumerate => ("enumerate.optim", &self.enumerate.optim),
        };
        self.stages.iter().map(of)
    }

    pub fn validate(&self) -> Result<()> {
        if self.stages.is_empty() {
            let why = "a run without a stage trains nothing; use `rlvr eval` to evaluate only";
            return Err(Error::config("stages", "[]", "a list such as [\"sft\", \"grpo\"]", why));
        }
        if self.stages.iter().enumerate().any(|(i, s)| self.stages[..i].contains(s)) {
            let got = self.stages.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ");
            return Err(Error::config("stages", got, "without repeats", "results are named by stage"));
        }
        self.model.validate()?;
        self.data.validate()?;
        if self.model.random.is_some() && self.data.synthetic.is_none() {
            return Err(Error::input(
                "model.random",
                "builds its tokenizer from the synthetic logs, but [data.synthetic] is not set",
                "Add [data.synthetic], or name a model with model.path",
            ));
        }
        if self.stages.contains(&Stage::Sft) {
            self.sft.validate()?;
        }
        if self.stages.contains(&Stage::Grpo) {
            self.grpo.validate()?;
        }
        if self.stages.contains(&Stage::Enumerate) {
            self.enumerate.validate()?;
        }
        if let Some(lora) = &self.lora {
            lora.validate(&self.stages)?;
            let why = "an adapter is f32, whatever the weights beside it are";
            self.optims().try_for_each(|(prefix, optim)| optim.validate_for_f32(prefix, why))?;
        }
        self.eval.validate()?;
        let positive = [
            ("pack.max_tokens_per_pack", self.pack.max_tokens_per_pack),
            ("pack.max_rollout_tokens", self.pack.max_rollout_tokens),
            ("checkpoint.keep_last", self.checkpoint.keep_last),
            ("model.max_positions", self.model.max_positions),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Error::config(key, value, "1 or more", "nothing fits into 0"));
            }
        }
        let bounded = [
            ("threads", self.threads, 1024),
            ("model.max_positions", self.model.max_positions, 1 << 24),
            ("sft.rows_per_step", self.sft.rows_per_step, 1 << 20),
            ("grpo.prompts_per_step", self.grpo.prompts_per_step, 1 << 20),
            ("grpo.group_size", self.grpo.group_size, 1 << 16),
            ("enumerate.prompts_per_step", self.enumerate.prompts_per_step, 1 << 20),
            ("eval.samples_per_prompt", self.eval.samples_per_prompt, 1 << 16),
        ];
        for (key, value, most) in bounded {
            if value > most {
                let why = "more asks for memory that no machine has";
                return Err(Error::config(key, value, format!("at most {most}"), why));
            }
        }
        let paths = [
            ("run.root", Some(&self.run.root)),
            ("model.path", self.model.path.as_ref()),
            ("model.tokenizer", self.model.tokenizer.as_ref()),
            ("model.chat_template", self.model.chat_template.as_ref()),
            ("data.train", self.data.train.as_ref()),
            ("data.valid", self.data.valid.as_ref()),
        ];
        if let Some((key, _)) = paths.iter().find(|(_, path)| path.is_some_and(|p| p.as_os_str().is_empty()))
        {
            return Err(Error::config(key, "\"\"", "a path", "an empty one names nothing"));
        }
        let rollouts = if self.stages.contains(&Stage::Grpo) { self.grpo.max_completion_tokens } else { 0 };
        let budget = self.eval.max_completion_tokens.max(rollouts);
        if self.data.max_prompt_tokens.saturating_add(budget) > self.model.max_positions {
            return Err(Error::config(
                "model.max_positions",
                self.model.max_positions,
                format!("at least {}", self.data.max_prompt_tokens.saturating_add(budget)),
                "data.max_prompt_tokens plus the completion budget has to fit",
            ));
        }
        Ok(())
    }
}

/// Keys of configs and runs of before: one that says what is so anyway is dropped, another is named with its heir.
fn retired(table: &mut Table) -> Result<()> {
    let Some(Value::Table(grpo)) = table.get_mut("grpo") else { return Ok(()) };
    match grpo.remove("estimator") {
        Some(Value::String(sampled)) if sampled == "sampled" => Ok(()),
        None => Ok(()),
        Some(other) => {
            let problem = format!("= {other}: enumeration is a stage of its own now");
            let fix =
                "Write \"enumerate\" in the place of \"grpo\" in stages, and its keys under [enumerate]";
            Err(Error::input("grpo.estimator", problem, fix))
        }
    }
}

fn read_source(source: &str) -> Result<(String, String)> {
    if let Some((name, text)) = PRESETS.iter().find(|(name, _)| *name == source) {
        return Ok(((*name).into(), (*text).into()));
    }
    let path = Path::new(source);
    // The presets are embedded: `configs/demo.toml` works wherever the binary is run from.
    let shipped = PRESETS.iter().find(|(name, _)| path == Path::new("configs").join(format!("{name}.toml")));
    match (std::fs::read_to_string(path), shipped) {
        (Ok(text), _) => Ok((source.into(), text)),
        (Err(_), None) if path.is_dir() => {
            Err(Error::input(source, "is a folder, not a config", "Name a TOML file in it"))
        }
        (Err(e), None) if e.kind() == std::io::ErrorKind::InvalidData => {
            Err(Error::input(source, "is not UTF-8", "Save the config as UTF-8"))
        }
        (Err(e), None) if e.kind() == std::io::ErrorKind::NotFound && path.extension().is_none() => {
            let names = PRESETS.map(|(name, _)| name).join(", ");
            let fix = format!("Use one of: {names}; or give the path of a TOML file");
            Err(Error::input(format!("config `{source}`"), "no preset has this name", fix))
        }
        (Err(e), Some((_, text))) if e.kind() == std::io::ErrorKind::NotFound => {
            Ok((source.into(), (*text).into()))
        }
        (Err(e), _) => Err(Error::io(path, "read the config")(e)),
    }
}

/// Every key of a TOML text as `section.key`, with its value as TOML writes it.
pub fn keys_of(place: &str, text: &str) -> Result<BTreeMap<String, String>> {
    fn flatten(prefix: &str, table: &Table, out: &mut BTreeMap<String, String>) {
        for (key, value) in table {
            let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
            match value {
                Value::Table(table) => flatten(&key, table, out),
                other => drop(out.insert(key, other.to_string())),
            }
        }
    }
    let mut keys = BTreeMap::new();
    flatten("", &parse(place, text)?, &mut keys);
    Ok(keys)
}

fn parse(place: &str, text: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|error| {
        let line = error.span().and_then(|span| text.get(..span.start));
        let line = line.map_or(1, |before| before.matches('\n').count() + 1);
        Error::input(format!("{place}:{line}"), error.message(), "Correct the TOML on that line")
    })
}

/// `over` wins; tables merge key by key, except that a table with another `type` replaces the whole.
fn merge(base: &mut Table, over: Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Table(b)), Value::Table(o))
                if o.get("type").is_none() || o.get("type") == b.get("type") =>
            {
                merge(b, o);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// `a.b=v`: v is TOML, or a bare string when it is not.
fn apply_override(table: &mut Table, text: &str) -> Result<()> {
    let fix = "Write --set section.key=value";
    let Some((path, value)) = text.split_once('=') else {
        return Err(Error::input(format!("--set {text}"), "has no `=`", fix));
    };
    let value = match format!("v = {value}").parse::<Table>() {
        Ok(mut parsed) => parsed.remove("v").unwrap_or(Value::String(value.into())),
        Err(_) => Value::String(value.into()),
    };
    let mut over = value;
    for key in path.trim().rsplit('.') {
        if key.is_empty() {
            return Err(Error::input(format!("--set {text}"), "has an empty key", fix));
        }
        over = Value::Table(Table::from_iter([(key.to_string(), over)]));
    }
    if let Value::Table(over) = over {
        merge(table, over);
    }
    Ok(())
}
