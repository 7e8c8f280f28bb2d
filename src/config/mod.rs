//! One typed tree: defaults < preset < TOML file < `--set a.b=v`. Unknown keys are errors.

pub mod ablate;
pub mod choice;
pub mod data;
pub mod distill;
pub mod entropy;
pub mod enumerate;
pub mod eval;
mod exclusive;
pub mod foreign;
pub mod keys;
mod layers;
mod load;
pub mod lora;
pub mod loss;
pub mod mix;
pub mod model;
pub mod optim;
pub mod pack;
pub mod range;
pub mod reference;
pub mod sampling;
pub mod schema;
pub mod stages;
mod suggest;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use exclusive::idle_because;
pub use layers::Origin;
pub use load::{Loaded, keys_of};

pub use self::pack::{ActivationMemory, PackConfig, TokenBudget};
use crate::error::{Error, Result};

/// A training run, whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Keys every random draw of the run.
    #[schemars(range(max = i64::MAX))]
    pub seed: u64,
    /// Task file, or the name of a built-in one.
    pub task: String,
    /// Stages in order. Evaluation runs before the first and after each.
    pub stages: Vec<Stage>,
    /// Where the run computes.
    pub device: DeviceKind,
    /// CPU threads; 0 takes all cores.
    #[schemars(range(max = 1024))]
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
    pub eval: eval::EvalConfig,
    pub checkpoint: CheckpointConfig,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The warm-up.
    Sft,
    /// Rollouts, rewards, advantages.
    Grpo,
    /// The exact gradient over all answers of a closed task, in the place of GRPO.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// The first CUDA device when the build and the machine have one, and else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA device.
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Folder that holds run directories.
    pub root: PathBuf,
    /// Name of this run's directory. Absent: the task's name and the first free number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// "auto": go on with the run of this name where there is one, as `rlvr train --resume auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
    /// An object store that is to have the run when this machine is gone: s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or
    /// file:///folder. Checkpoints, metrics, samples and the final model are copied there while it trains, and `--resume auto` goes on from there
    /// on an empty disk. Needs `name`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mirror: Option<String>,
    /// Seconds that a stop waits for what `mirror` still lacks.
    #[schemars(range(min = 0, max = 86400))]
    pub mirror_wait: f64,
    /// Write a TensorBoard event file beside metrics.jsonl.
    pub tensorboard: bool,
    /// End with exit code 75, to be resumed, where training diverges: a loss far above the stage's first, or a gradient or
    /// weight that is not finite. Else the former is warned of, and the latter ends with exit code 1.
    pub stop_on_divergence: bool,
    /// Minutes without a sign of life (no op begun, no tensor read or written, nothing told) after which the run ends with exit code
    /// 75, to be resumed from its last checkpoint. 0: it waits for ever.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub stall_minutes: f64,
    /// Steps of GRPO, from 1, that are written token by token to samples/: log-probs, advantage, slope.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(max = 1_000_000_000)))]
    pub dump_steps: Vec<u64>,
    /// Address that tells over HTTP where the run is: /healthz, and /metrics for Prometheus. "127.0.0.1:9100", for instance; with port 0
    /// one is chosen, and said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// Keep the same in the run's heartbeat.json, replaced every few seconds while something happens.
    pub heartbeat: bool,
    /// Address of an MLflow server that gets the config, the metrics and how the run ended; files stay here. Of who asks it knows
    /// what MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, say. A server that is away does not
    /// stop a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow: Option<String>,
    /// The experiment there, made where there is none. Absent: "rlvr".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mlflow_experiment: Option<String>,
    /// What an hour of this machine costs. With it a run shows and records what it has cost and what the stage still will.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1e12))]
    pub price_per_hour: Option<f64>,
    /// The run stops, to be gone on with, once it has cost so much, all its resumes together. Needs `price_per_hour`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1e12))]
    pub max_cost: Option<f64>,
    /// The run stops, to be gone on with, once it has taken so many hours, all its resumes together.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_hours: Option<f64>,
}

/// What becomes of a run that is there already. Without it, that is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// It is gone on with after its last checkpoint, started again where it has none, and left alone when it is done.
    Auto,
}

/// `[checkpoint]`: what a stop can cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Optimiser steps between two checkpoints, beside `every_minutes`. 0: steps are not counted.
    #[schemars(range(max = 1_000_000_000))]
    pub every_steps: usize,
    /// Minutes after which a step is followed by a checkpoint. 0: time does not count.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub every_minutes: f64,
    /// Older checkpoints are removed once a newer one is safe. One older than the newest stays in any case: that one may turn
    /// out to hold weights that training had broken.
    #[schemars(range(max = 1_000_000))]
    pub keep_last: usize,
    /// Copy what a checkpoint holds to host memory, and write it while the next steps run. Where there is no room for the copy the run waits
    /// until the checkpoint is written, and says so.
    pub background: bool,
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
            eval: eval::EvalConfig::default(),
            checkpoint: CheckpointConfig::default(),
        }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        Self {
            root: "runs".into(),
            name: None,
            resume: None,
            mirror: None,
            mirror_wait: 60.0,
            tensorboard: true,
            stop_on_divergence: false,
            stall_minutes: 60.0,
            dump_steps: Vec::new(),
            status: None,
            mlflow: None,
            mlflow_experiment: None,
            heartbeat: false,
            price_per_hour: None,
            max_cost: None,
            max_hours: None,
        }
    }
}

impl CheckpointConfig {
    /// Checkpoints that stay.
    pub fn kept(&self) -> usize {
        self.keep_last.max(2)
    }
}

/// What a `run.mirror` begins with.
pub const MIRRORS: [&str; 4] = ["s3://", "gs://", "az://", "file:///"];

impl RunConfig {
    /// [`Self::stall_minutes`], where they count.
    pub fn stall(&self) -> Option<Duration> {
        (self.stall_minutes > 0.0).then(|| Duration::from_secs_f64(60.0 * self.stall_minutes))
    }

    fn validate(&self) -> Result<()> {
        if let Some(mirror) = &self.mirror {
            let rest = MIRRORS.iter().find_map(|scheme| mirror.strip_prefix(scheme));
            let parts = rest.map(|rest| rest.strip_suffix('/').unwrap_or(rest).split('/'));
            let plain = |c: char| c.is_alphanumeric() || "._-+=,".contains(c);
            let is_plain =
                |part: &str| !part.is_empty() && part.chars().all(plain) && part.chars().any(|c| c != '.');
            if !parts.is_some_and(|mut parts| parts.all(is_plain)) {
                let want = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix or file:///folder";
                let why =
                    "a mirror is a folder of an object store; who may write there is said by the environment";
                return Err(Error::config("run.mirror", mirror, want, why));
            }
            if self.name.is_none() {
                let why = "a machine with an empty disk finds the run in the mirror by it";
                return Err(Error::config("run.name", "absent", "a name of your choice", why));
            }
        } else if self.mirror_wait != Self::default().mirror_wait {
            let why = "without run.mirror there is nothing to wait for";
            return Err(Error::config("run.mirror_wait", self.mirror_wait, "left out", why));
        }
        for (key, value) in [
            ("run.price_per_hour", self.price_per_hour),
            ("run.max_cost", self.max_cost),
            ("run.max_hours", self.max_hours),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                return Err(Error::config(
                    key,
                    value,
                    "above 0",
                    "without the key there is no price or bound",
                ));
            }
        }
        if self.max_cost.is_some() && self.price_per_hour.is_none() {
            let fix = "Set run.price_per_hour too, or bound the time with run.max_hours";
            return Err(Error::input("run.max_cost", "has no effect: run.price_per_hour is not set", fix));
        }
        if self.mlflow_experiment.is_some() && self.mlflow.is_none() {
            let fix = "Set run.mlflow to the server's address";
            return Err(Error::input("run.mlflow_experiment", "has no effect: run.mlflow is not set", fix));
        }
        if let Some(address) = &self.mlflow {
            let rest = address.strip_prefix("http://").or_else(|| address.strip_prefix("https://"));
            let host = rest.map(|rest| rest.split('/').next().unwrap_or_default());
            if host.is_none_or(|host| {
                host.is_empty() || host.contains('@') || host.contains(char::is_whitespace)
            }) {
                let got = if address.contains('@') { "an address with a password" } else { address };
                let why = "config.resolved.toml keeps it; passwords go into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD";
                return Err(Error::config("run.mlflow", got, "such as \"http://127.0.0.1:5000\"", why));
            }
        }
        Ok(())
    }
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 0, every_minutes: 10.0, keep_last: 1, background: true }
    }
}

/// Shipped configs by name; `preset = "NAME"` starts from one.
pub const PRESETS: [(&str, &str); 3] = [
    ("demo", include_str!("../../configs/demo.toml")),
    ("riskcue-smollm2-135m", include_str!("../../configs/riskcue-smollm2-135m.toml")),
    ("riskcue-llama3.1-8b", include_str!("../../configs/riskcue-llama3.1-8b.toml")),
];

impl Config {
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

    /// The weights of `data.mix` say which rows a step sees: nothing else can.
    fn validate_mix(&self) -> Result<()> {
        let runs = |stage| self.stages.contains(&stage) && !self.data.mix.is_empty();
        let balances = |balance| balance != stages::Balance::None;
        let orders = [
            ("grpo.balance", "label_sign", runs(Stage::Grpo) && balances(self.grpo.balance)),
            (
                "grpo.order",
                "difficulty",
                runs(Stage::Grpo) && self.grpo.order == stages::PromptOrder::Difficulty,
            ),
            ("enumerate.balance", "label_sign", runs(Stage::Enumerate) && balances(self.enumerate.balance)),
        ];
        match orders.into_iter().find(|(.., both)| *both) {
            Some((key, got, _)) => {
                let why = "the weights of data.mix order the rows already; a file a label sign can have a weight each";
                Err(Error::config(key, got, "left out beside data.mix", why))
            }
            None => Ok(()),
        }
    }

    /// Whether a stage packs every answer of a closed task behind its prompt.
    pub fn packs_answers(&self) -> bool {
        let of = |stage: &Stage| match stage {
            Stage::Sft => self.sft.distill.is_some(),
            Stage::Grpo => false,
            Stage::Enumerate => true,
        };
        self.stages.iter().any(of)
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
        if self.stages.contains(&Stage::Sft) {
            self.sft.validate()?;
        }
        if self.stages.contains(&Stage::Grpo) {
            self.grpo.validate()?;
        }
        if self.stages.contains(&Stage::Enumerate) {
            self.enumerate.validate()?;
        }
        self.validate_mix()?;
        if let Some(lora) = &self.lora {
            lora.validate(&self.stages)?;
            let why = "an adapter is f32, whatever the weights beside it are";
            self.optims().try_for_each(|(prefix, optim)| optim.validate_for_f32(prefix, why))?;
        }
        self.eval.validate()?;
        self.run.validate()?;
        let positive = [
            ("pack.max_tokens_per_pack", self.pack.max_tokens_per_pack),
            ("pack.max_rollout_tokens", self.pack.rollout_tokens()),
            ("checkpoint.keep_last", self.checkpoint.keep_last),
            ("model.max_positions", self.model.max_positions),
        ];
        for (key, value) in positive {
            if value == 0 {
                return Err(Error::config(key, value, "1 or more", "nothing fits into 0"));
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
