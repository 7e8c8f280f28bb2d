//! Steps that `rlvr bench step` timed, and the share of the roofline that each reached.

use std::path::Path;

use candle_core::DType;
use serde::Deserialize;
use serde_json::Value;

use super::{Parts, Roofline};
use crate::config::lora::LoraConfig;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, MomentsConfig};
use crate::config::{ActivationMemory, Config, Stage, TokenBudget};
use crate::disk;
use crate::error::{Error, Result};
use crate::model::config::ModelConfig;
use crate::plan::cost::Rates;
use crate::plan::{Target, World, shapes};

/// A step, and the seconds it took.
#[derive(Clone, Debug)]
pub struct Measured {
    pub model: ModelConfig,
    /// Its `data`, `grpo`, `pack` and `lora` are those of the step.
    pub config: Config,
    pub target: Target,
    /// The driver's name of the card; `None` on the CPU.
    pub card: Option<String>,
    /// Of the CPU.
    pub threads: usize,
    pub seconds: Parts,
}

/// The object that `rlvr bench step --json` prints, as far as it is needed.
#[derive(Deserialize)]
struct Line {
    preset: String,
    dtype: String,
    device: String,
    device_name: Option<String>,
    threads: usize,
    groups: usize,
    group_size: usize,
    prompt_tokens: usize,
    new_tokens: usize,
    activations: ActivationMemory,
    moments: MomentsConfig,
    bf16_weights: Bf16WeightsConfig,
    gradients: GradientsConfig,
    /// Earlier versions had none.
    #[serde(default)]
    lora_rank: usize,
    max_tokens_per_pack: usize,
    max_rollout_tokens: usize,
    max_reused_tokens: usize,
    prefill_seconds: f64,
    decode_seconds: f64,
    update_seconds: f64,
    optimizer_seconds: f64,
}

impl Measured {
    /// The steps of a file of `rlvr bench step --json` or `--json-lines`, one or many; lines of other benches are passed
    /// over.
    ///
    /// # Errors
    /// It cannot be read, a line is no JSON or lacks something, or none is a step's.
    pub fn read(path: &Path) -> Result<Vec<Self>> {
        let fix = "Give what `rlvr bench step --json` prints";
        let mut found = Vec::new();
        for (index, text) in disk::read_text(path)?.lines().enumerate() {
            let place = format!("{}:{}", path.display(), index + 1);
            let wrong = |problem: String| Error::input(&place, problem, fix);
            if text.trim().is_empty() {
                continue;
            }
            let line: Value = serde_json::from_str(text).map_err(|e| wrong(format!("is not JSON: {e}")))?;
            if line["bench"] == "step" && line["mean_step_seconds"].is_number() {
                let line: Line = serde_json::from_value(line).map_err(|e| wrong(e.to_string()))?;
                found.push(Self::of(line).map_err(|e| wrong(e.to_string()))?);
            }
        }
        if found.is_empty() {
            return Err(Error::input(path.display(), "has no step that was timed", fix));
        }
        Ok(found)
    }

    fn of(line: Line) -> Result<Self> {
        let mut config = Config { stages: vec![Stage::Grpo], ..Config::default() };
        config.data.max_prompt_tokens = line.prompt_tokens;
        let grpo = &mut config.grpo;
        (grpo.prompts_per_step, grpo.group_size) = (line.groups, line.group_size);
        grpo.max_completion_tokens = line.new_tokens;
        (grpo.optim.moments, grpo.optim.gradients) = (line.moments, line.gradients);
        grpo.optim.bf16_weights = line.bf16_weights;
        let pack = &mut config.pack;
        (pack.activations, pack.max_tokens_per_pack) = (line.activations, line.max_tokens_per_pack);
        pack.max_rollout_tokens = TokenBudget::Tokens(line.max_rollout_tokens);
        pack.max_reused_tokens = TokenBudget::Tokens(line.max_reused_tokens);
        let adapter = || LoraConfig { rank: line.lora_rank, ..LoraConfig::default() };
        config.lora = (line.lora_rank > 0).then(adapter);
        let dtype = if line.dtype == DType::BF16.as_str() { DType::BF16 } else { DType::F32 };
        Ok(Self {
            model: shapes::find(&line.preset)?,
            config,
            target: Target { cuda: line.device == "cuda", dtype, answers: 0 },
            card: line.device_name,
            threads: line.threads,
            seconds: Parts {
                prefill: line.prefill_seconds,
                decode: line.decode_seconds,
                update: line.update_seconds,
                optimizer: line.optimizer_seconds,
            },
        })
    }

    /// Shares of the roofline of a machine with these rates.
    ///
    /// # Errors
    /// None that a step has.
    pub fn shares(&self, rates: Rates) -> Result<Parts> {
        let Self { model, config, target, .. } = self;
        Ok(Roofline { model, config, target: *target, rates, world: World::ONE }.grpo()?.over(self.seconds))
    }

    /// How unlike a planned step is, 0 when it is the same.
    pub fn distance(&self, model: &ModelConfig, config: &Config) -> f64 {
        let sizes = |model: &ModelConfig, config: &Config| {
            let (data, grpo) = (&config.data, &config.grpo);
            let counts = [
                data.max_prompt_tokens,
                grpo.prompts_per_step,
                grpo.group_size,
                grpo.max_completion_tokens,
                model.parameter_count() as usize,
                if config.pack.activations == ActivationMemory::Keep { 2 } else { 1 },
                if config.lora.is_some() { 4 } else { 1 },
            ];
            counts.map(|count| (count.max(1) as f64).ln())
        };
        let (mine, planned) = (sizes(&self.model, &self.config), sizes(model, config));
        mine.iter().zip(planned).map(|(a, b)| (a - b).abs()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"bench":"step","preset":"smollm2-135m","dtype":"f32","device":"cpu","device_name":null,
        "threads":2,"groups":1,"group_size":8,"prompt_tokens":1024,"new_tokens":48,"activations":"keep","moments":"f32",
        "bf16_weights":"auto","gradients":"f32","lora_rank":0,"max_tokens_per_pack":8192,"max_rollout_tokens":32768,
        "max_reused_tokens":8192,"mean_step_seconds":9.0,"prefill_seconds":2.0,"decode_seconds":3.0,
        "update_seconds":3.5,"optimizer_seconds":0.5}"#;

    fn read(text: &str) -> Result<Vec<Measured>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("step.jsonl");
        std::fs::write(&path, text).unwrap();
        Measured::read(&path)
    }

    #[test]
    fn a_measured_step_planned_again_takes_what_it_took() {
        let line = LINE.replace('\n', " ");
        let other = r#"{"bench":"ops","op":"linear"}"#;
        let found = read(&format!("{other}\n\n{line}\n")).unwrap();
        let [step] = &found[..] else { panic!("{found:?}") };
        for rates in [(4e11, 2e10), (1e11, 4e10)] {
            let rates = Rates { flops: rates.0, bandwidth: rates.1 };
            let shares = step.shares(rates).unwrap();
            let Measured { model, config, target, seconds, .. } = step;
            let planned = Roofline { model, config, target: *target, rates, world: World::ONE }
                .grpo()
                .unwrap()
                .over(shares);
            for (planned, took) in planned.all().iter().zip(seconds.all()) {
                assert!((planned - took).abs() < 1e-9, "{planned} {took}");
            }
        }
        assert_eq!(step.distance(&step.model, &step.config), 0.0);
        let mut longer = step.config.clone();
        longer.data.max_prompt_tokens = 2048;
        assert!((step.distance(&step.model, &longer) - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn what_is_no_timed_step_is_refused_by_line() {
        for (text, part) in [
            ("{}\n", "has no step that was timed"),
            ("nonsense\n", "step.jsonl:1: is not JSON"),
            (r#"{"bench":"step","mean_step_seconds":1.0}"#, "missing field `preset`"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.is_input() && error.to_string().contains(part), "{error}");
        }
    }
}
