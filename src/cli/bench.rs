//! `rlvr bench step`: one GRPO step on random tokens, timed by phase.

use std::time::Instant;

use anyhow::Result;
use clap::Subcommand;
use serde_json::json;

use crate::config::ActivationMemory;
use crate::config::sampling::SamplingConfig;
use crate::error::Error;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::ops::attention::AttentionLayout;
use crate::optim::adamw::AdamW;
use crate::rng::{Purpose, Stream};
use crate::rollout::engine::{Engine, Request};
use crate::train::step::Trainee;
use crate::types::{Group, PackedBatch, Prompt};

/// Time the work rlvr does, on this machine.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Subcommand)]
enum Bench {
    Step(StepArgs),
}

/// One GRPO step: rollout, update, optimiser. Tokens are random, so quality means nothing here.
#[derive(clap::Args)]
struct StepArgs {
    /// Shape of the model: smollm2-135m or smollm2-360m.
    #[arg(long, default_value = "smollm2-135m")]
    preset: String,
    /// Make weights from a seed instead of loading them (the only way so far).
    #[arg(long)]
    random_weights: bool,
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
    #[arg(long, default_value_t = 8192)]
    max_tokens_per_pack: usize,
    /// Keep all activations instead of computing blocks again in the backward pass.
    #[arg(long)]
    keep_activations: bool,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Bench::Step(args) => step(&args),
    }
}

fn shape(preset: &str) -> Result<ModelConfig> {
    let [hidden, inner, layers, heads, kv] = match preset {
        "smollm2-135m" => [576, 1536, 30, 9, 3],
        "smollm2-360m" => [960, 2560, 32, 15, 5],
        _ => {
            let want = "smollm2-135m or smollm2-360m";
            let why = "larger shapes do not fit a CPU step in f32; they come with the CUDA path";
            return Err(Error::config("--preset", preset, want, why).into());
        }
    };
    let json = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": 49152,
        "rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": true,
        "max_position_embeddings": 8192,
    });
    Ok(ModelConfig::from_json(&json, preset)?)
}

/// Seconds of one step's phases.
#[derive(Clone, Copy, Default)]
struct Phases {
    prefill: f64,
    decode: f64,
    update: f64,
    optimizer: f64,
}

impl Phases {
    fn total(&self) -> f64 {
        self.prefill + self.decode + self.update + self.optimizer
    }
}

fn step(args: &StepArgs) -> Result<()> {
    if !args.random_weights {
        let fix = "Add --random-weights";
        return Err(Error::input("rlvr bench step", "has no weights to load", fix).into());
    }
    for (flag, value) in [
        ("--groups", args.groups),
        ("--group-size", args.group_size),
        ("--prompt-tokens", args.prompt_tokens),
        ("--new-tokens", args.new_tokens),
        ("--steps", args.steps),
    ] {
        if value == 0 {
            return Err(Error::config(flag, 0, "1 or more", "there would be nothing to time").into());
        }
    }
    super::use_threads(args.threads)?;
    let config = shape(&args.preset)?;
    let decoder = Decoder::random(config.clone(), 1, args.prompt_tokens + args.new_tokens)?;
    let gradients = decoder.zero_gradients()?;
    let mut optimizer = AdamW::new(&decoder)?;
    let activations =
        if args.keep_activations { ActivationMemory::Keep } else { ActivationMemory::Recompute };
    let trainee = Trainee { decoder: &decoder, gradients: &gradients, activations };
    let mut phases = Vec::new();
    let mut packed_tokens = 0;
    let mut flop = 0.0;
    for step in 0..=args.steps {
        let prompts: Vec<Prompt> = (0..args.groups).map(|g| random_prompt(args, &config, step, g)).collect();
        let none = StopTokens::new(Vec::new());
        let engine = Engine {
            decoder: &decoder,
            stop_tokens: &none,
            sampling: SamplingConfig::default(),
            group_size: args.group_size,
            max_completion_tokens: args.new_tokens,
            max_tokens_per_pack: args.max_tokens_per_pack,
            seed: 1,
            purpose: Purpose::Bench,
            step: step as u32,
        };
        let requests: Vec<Request> = prompts
            .iter()
            .enumerate()
            .map(|(i, prompt)| Request { prompt, sample_id: i as u32 })
            .collect();
        let (groups, timing) = engine.generate(&requests)?;
        let mut now = Phases {
            prefill: timing.prefill_seconds,
            decode: timing.decode_seconds,
            ..Phases::default()
        };
        let start = Instant::now();
        gradients.clear()?;
        (packed_tokens, flop) = update(&trainee, &groups, args)?;
        now.update = start.elapsed().as_secs_f64();
        let start = Instant::now();
        optimizer.step(&decoder, &gradients, &crate::config::optim::OptimConfig::default(), 1e-6)?;
        now.optimizer = start.elapsed().as_secs_f64();
        if step > 0 {
            phases.push(now);
        }
    }
    report(args, &config, &phases, packed_tokens, flop)
}
