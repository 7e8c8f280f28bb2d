//! `rlvr bench step`: one GRPO step on random tokens, timed by phase.

mod report;

use anyhow::Result;
use candle_core::DType;

use super::on;
use crate::bench::step::StepShape;
use crate::cli::machine;
use crate::config::model::DtypeKind;
use crate::config::optim::{Bf16WeightsConfig, GradientsConfig, OptimConfig};
use crate::config::{ActivationMemory, DeviceKind};
use crate::error::Error;
use crate::model::decoder::Placement;
use crate::ops::cuda;
use crate::plan::work::Work;
use crate::train::place;

/// One GRPO step: rollout, update, optimiser. Tokens are random, so quality means nothing here.
#[derive(clap::Args)]
#[command(
    after_help = "Example: rlvr bench step --preset smollm2-135m --random-weights --groups 1 --steps 2"
)]
pub struct Args {
    /// Shape of the model: tiny, smollm2-135m, smollm2-360m; on a GPU also those of `rlvr bench ops`.
    #[arg(long, default_value = "smollm2-135m")]
    preset: String,
    /// Make weights from a seed, where they will live, instead of loading them (the only way so far).
    #[arg(long)]
    random_weights: bool,
    #[arg(long, value_parser = machine::device(&[DeviceKind::Cpu, DeviceKind::Cuda]), default_value = "cpu")]
    device: DeviceKind,
    /// Type of weights and activations. Default: bf16 on a GPU, f32 on the CPU.
    #[arg(long, value_parser = machine::dtype(&[DtypeKind::F32, DtypeKind::Bf16]))]
    dtype: Option<DtypeKind>,
    /// AdamW's moments: 8 bytes a weight, or 2.
    #[arg(long, value_parser = ["f32", "int8"], default_value = "f32")]
    moments: String,
    /// How bf16 weights keep small updates; auto is stochastic_rounding.
    #[arg(long, value_parser = ["auto", "masters", "stochastic_rounding"], default_value = "auto")]
    bf16_weights: String,
    /// Type that the gradients of matrices are summed in.
    #[arg(long, value_parser = ["f32", "bf16"], default_value = "f32")]
    gradients: String,
    /// Train an adapter of this rank beside frozen weights, on all linear layers; 0: all weights.
    #[arg(long, default_value_t = 0)]
    lora_rank: usize,
    #[arg(long, default_value_t = 1)]
    groups: usize,
    #[arg(long, default_value_t = 8)]
    group_size: usize,
    #[arg(long, default_value_t = 1024)]
    prompt_tokens: usize,
    /// Every completion has exactly this many tokens.
    #[arg(long, default_value_t = 48)]
    new_tokens: usize,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 2)]
    steps: usize,
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Tokens in one pack of the update.
    #[arg(long, default_value_t = 8192)]
    max_tokens_per_pack: usize,
    /// Tokens whose keys and values are alive at once in the rollout.
    #[arg(long, default_value_t = 32768)]
    max_rollout_tokens: usize,
    /// Tokens whose activations the rollout keeps for the update; 0: the update computes its own forward pass.
    #[arg(long, default_value_t = 8192)]
    max_reused_tokens: usize,
    /// Keep all activations instead of computing blocks again in the backward pass.
    #[arg(long)]
    keep_activations: bool,
    /// Rate of the device that MFU is a share of. Default: 989 in bf16 on compute capability 9.0 (dense, from the
    /// datasheet of H100 and H200), else none.
    #[arg(long, value_name = "TFLOP/S")]
    peak_tflops: Option<f64>,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// A line of JSON for every step as it ends, that which is not timed among them, and the object of --json last.
    #[arg(long, conflicts_with = "json")]
    json_lines: bool,
}

/// A flag's value, as the config key of the same name reads it.
fn value<T: serde::de::DeserializeOwned>(flag: &str, text: &str) -> Result<T> {
    let parsed = serde_json::from_value(serde_json::Value::String(text.into()));
    parsed.map_err(|e| Error::input(flag, e, "See rlvr bench step --help").into())
}

/// What the flags say of the device and the optimiser.
struct Setup {
    place: Placement,
    optim: OptimConfig,
}

impl Setup {
    fn new(args: &Args) -> Result<Self> {
        let place = place::open(args.device, args.dtype.unwrap_or(DtypeKind::Auto))?.place;
        let optim = OptimConfig {
            moments: value("--moments", &args.moments)?,
            bf16_weights: value("--bf16-weights", &args.bf16_weights)?,
            gradients: value("--gradients", &args.gradients)?,
            ..OptimConfig::default()
        };
        let why = "what is trained is f32";
        let dtype_trained = if args.lora_rank > 0 { DType::F32 } else { place.dtype };
        if dtype_trained == DType::F32 && optim.bf16_weights != Bf16WeightsConfig::Auto {
            return Err(Error::config("--bf16-weights", &args.bf16_weights, "auto", why).into());
        }
        if dtype_trained == DType::F32 && optim.gradients != GradientsConfig::F32 {
            return Err(Error::config("--gradients", &args.gradients, "f32", why).into());
        }
        Ok(Self { place, optim })
    }

    /// TFLOP/s that MFU is a share of.
    fn peak_tflops(&self, args: &Args) -> Option<f64> {
        let known = || {
            let hopper = cuda::describe(&self.place.device).is_ok_and(|d| d.compute_capability == (9, 0));
            (hopper && self.place.dtype == DType::BF16).then_some(989.0)
        };
        args.peak_tflops.or_else(known)
    }
}

pub fn run(args: &Args) -> Result<()> {
    if !args.random_weights {
        let fix = "Add --random-weights";
        return Err(Error::input("rlvr bench step", "has no weights to load", fix).into());
    }
    on::above_zero(&[
        ("--groups", args.groups),
        ("--group-size", args.group_size),
        ("--prompt-tokens", args.prompt_tokens),
        ("--new-tokens", args.new_tokens),
        ("--steps", args.steps),
        ("--max-tokens-per-pack", args.max_tokens_per_pack),
        ("--max-rollout-tokens", args.max_rollout_tokens),
    ])?;
    crate::cli::use_threads(args.threads)?;
    let config = on::shape(&args.preset, args.device)?;
    if args.peak_tflops.is_some_and(|peak| !(peak > 0.0 && peak.is_finite())) {
        return Err(Error::config("--peak-tflops", "no rate", "above 0", "MFU is a share of it").into());
    }
    let setup = Setup::new(args)?;
    let Setup { place, optim } = &setup;
    let activations =
        if args.keep_activations { ActivationMemory::Keep } else { ActivationMemory::Recompute };
    let shape = StepShape {
        groups: args.groups,
        group_size: args.group_size,
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        max_tokens_per_pack: args.max_tokens_per_pack,
        max_rollout_tokens: args.max_rollout_tokens,
        max_reused_tokens: args.max_reused_tokens,
        activations,
    };
    let mut learner = shape.learner(place, config, optim, args.lora_rank)?;
    let mut phases = Vec::new();
    let mut work = Work::default();
    for step in 0..=args.steps {
        let stepped = shape.run(&mut learner, step as u64)?;
        if args.json_lines {
            report::line(args, &setup, step, &stepped)?;
        }
        work = stepped.work;
        phases.extend((step > 0).then_some(stepped.phases));
    }
    report::print(args, &setup, &phases, work)
}
