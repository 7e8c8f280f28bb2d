//! `rlvr bench step`: one GRPO step on random tokens, timed by phase.

use std::ops::Range;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use super::shapes;
use crate::algo::advantage::advantages;
use crate::config::ActivationMemory;
use crate::config::loss::LossConfig;
use crate::config::optim::OptimConfig;
use crate::config::sampling::SamplingConfig;
use crate::config::stages::ScaleRewards;
use crate::error::Error;
use crate::model::config::ModelConfig;
use crate::model::decoder::Decoder;
use crate::model::tape::Tape;
use crate::observe::peak_memory_gib;
use crate::ops::attention::AttentionLayout;
use crate::optim::adamw::AdamW;
use crate::rng::{Purpose, Stream};
use crate::rollout::engine::{Engine, Request, Rollouts, TapePolicy};
use crate::text::StopTokens;
use crate::train::policy::PolicyUpdate;
use crate::train::step::Trainee;
use crate::types::{Group, PackedBatch, Prompt, ScoredGroup};

/// One GRPO step: rollout, update, optimiser. Tokens are random, so quality means nothing here.
#[derive(clap::Args)]
pub struct Args {
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
    /// Tokens whose activations the rollout keeps for the update; 0: the update computes its own forward pass.
    #[arg(long, default_value_t = 8192)]
    max_reused_tokens: usize,
    /// Keep all activations instead of computing blocks again in the backward pass.
    #[arg(long)]
    keep_activations: bool,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

/// The shape of a preset that a CPU step has the memory for.
fn shape(preset: &str) -> Result<ModelConfig> {
    if !preset.starts_with("smollm2-") || shapes::find(preset).is_err() {
        let want = "smollm2-135m or smollm2-360m";
        let why = "larger shapes do not fit a CPU step in f32; they come with the CUDA path";
        return Err(Error::config("--preset", preset, want, why).into());
    }
    shapes::find(preset)
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

pub fn run(args: &Args) -> Result<()> {
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
    crate::cli::use_threads(args.threads)?;
    let config = shape(&args.preset)?;
    let decoder = Decoder::random(config.clone(), 1, args.prompt_tokens + args.new_tokens)?;
    let mut gradients = decoder.zero_gradients();
    let mut optimizer = AdamW::new(&decoder)?;
    let activations =
        if args.keep_activations { ActivationMemory::Keep } else { ActivationMemory::Recompute };
    let mut phases = Vec::new();
    let mut work = Work::default();
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
            tape: TapePolicy { keep: activations.into(), max_tokens: args.max_reused_tokens },
            seed: 1,
            purpose: Purpose::Bench,
            step: step as u32,
        };
        let requests: Vec<Request> =
            prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
        let Rollouts { groups, tapes, timing } = engine.generate(&requests)?;
        let mut now =
            Phases { prefill: timing.prefill_seconds, decode: timing.decode_seconds, ..Phases::default() };
        let start = Instant::now();
        let trainee = Trainee { decoder: &decoder, gradients: &gradients, activations };
        work = update(trainee, groups, tapes, args)?;
        now.update = start.elapsed().as_secs_f64();
        let start = Instant::now();
        optimizer.step(&decoder, &gradients, &OptimConfig::default(), 1e-6)?;
        gradients.clear();
        now.optimizer = start.elapsed().as_secs_f64();
        if step > 0 {
            phases.push(now);
        }
    }
    report(args, &phases, work)
}

fn random_prompt(args: &Args, config: &ModelConfig, step: usize, group: usize) -> Prompt {
    let stream = Stream::new(1, Purpose::Bench, [step as u32, group as u32, 0]);
    let token = |i: u32| stream.block(i)[0] % config.vocab_size as u32;
    Prompt { token_ids: (0..args.prompt_tokens as u32).map(token).collect() }
}

/// What a step had to compute.
#[derive(Clone, Copy, Default)]
struct Work {
    /// Tokens pushed through the blocks in one forward pass of the update, the shared prompt counted once.
    packed_tokens: usize,
    /// FLOP of the backward pass.
    update_flop: f64,
    /// FLOP of the forward pass, which the rollout computes: prompts once, completions token by token.
    rollout_flop: f64,
}

/// A GRPO update on made-up rewards: half of each group right.
fn update(
    trainee: Trainee,
    groups: Vec<Group>,
    tapes: Vec<(Range<usize>, Tape)>,
    args: &Args,
) -> Result<Work> {
    let rewards: Vec<f32> = (0..args.group_size).map(|i| (i % 2) as f32).collect();
    let of_groups: Vec<&[f32]> = groups.iter().map(|_| rewards.as_slice()).collect();
    let advantages = advantages(&of_groups, ScaleRewards::Group, 1e-6);
    let work = Work::of(&trainee.decoder.config, &groups)?;
    let groups: Vec<ScoredGroup> = groups
        .into_iter()
        .zip(advantages)
        .map(|(group, advantages)| ScoredGroup { group, rewards: rewards.clone(), advantages })
        .collect();
    let update = PolicyUpdate {
        loss: &LossConfig::default(),
        kl_coef: 0.0,
        temperature: 1.0,
        max_completion_tokens: args.new_tokens,
        max_tokens_per_pack: args.max_tokens_per_pack,
        reference: None,
    };
    update.accumulate(trainee, &groups, tapes, &mut Vec::new())?;
    Ok(work)
}

impl Work {
    /// Every packed token costs each block weight 2 FLOP forward and 4 backward; so do target rows the head.
    fn of(config: &ModelConfig, groups: &[Group]) -> Result<Self> {
        let head = (config.vocab_size * config.hidden_size) as f64;
        let blocks = config.matmul_parameter_count() as f64 - head;
        let pair = 4.0 * (config.num_hidden_layers * config.num_attention_heads * config.head_dim) as f64;
        let mut batch = PackedBatch::default();
        for group in groups {
            let completions = group.rollouts.iter().map(|r| r.token_ids.as_slice());
            batch.push_group(&group.prompt.token_ids, completions);
        }
        let pairs = pair * AttentionLayout::new(&batch.segments)?.pairs() as f64;
        let products = blocks * batch.tokens.len() as f64;
        let head = head * batch.targets.len() as f64;
        // Once forward, in the rollout, with a head row per token; then backward, with the head's rows once more.
        Ok(Self {
            packed_tokens: batch.tokens.len(),
            rollout_flop: 2.0 * (products + head) + pairs,
            update_flop: 4.0 * (products + head) + 2.0 * pairs,
        })
    }
}

fn report(args: &Args, phases: &[Phases], work: Work) -> Result<()> {
    let mean = |f: fn(&Phases) -> f64| phases.iter().map(f).sum::<f64>() / phases.len() as f64;
    let (prefill, decode) = (mean(|p| p.prefill), mean(|p| p.decode));
    let (update, optimizer) = (mean(|p| p.update), mean(|p| p.optimizer));
    let total = mean(Phases::total);
    let flops = (work.update_flop + work.rollout_flop) / total;
    let peak = peak_memory_gib();
    let seconds: Vec<f64> = phases.iter().map(Phases::total).collect();
    if args.json {
        let json = json!({
            "bench": "step", "preset": args.preset, "dtype": "f32", "device": "cpu",
            "threads": rayon::current_num_threads(), "groups": args.groups, "group_size": args.group_size,
            "prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens,
            "activations": if args.keep_activations { "keep" } else { "recompute" },
            "seconds_per_step": seconds, "mean_step_seconds": total,
            "rollout_seconds": prefill + decode, "prefill_seconds": prefill, "decode_seconds": decode,
            "update_seconds": update, "optimizer_seconds": optimizer,
            "packed_tokens": work.packed_tokens, "tokens_per_second": work.packed_tokens as f64 / total,
            "flop_per_step": work.update_flop + work.rollout_flop, "flop_per_second": flops,
            "update_flop_per_second": work.update_flop / update, "peak_memory_gib": peak,
        });
        println!("{json}");
        return Ok(());
    }
    let (g, size, p, r) = (args.groups, args.group_size, args.prompt_tokens, args.new_tokens);
    println!("{} f32, {} threads: {g} x {size} completions", args.preset, rayon::current_num_threads());
    println!("of {r} tokens after {p} prompt tokens, mean of {} steps", phases.len());
    for (name, value) in [
        ("prefill", prefill),
        ("decode", decode),
        ("update", update),
        ("optimizer", optimizer),
        ("step", total),
    ] {
        println!("{name:<10} {value:8.2} s");
    }
    println!("{:<10} {:8.1} GFLOP/s on what had to be computed", "rate", flops / 1e9);
    println!("{:<10} {:8.1} packed tokens/s", "", work.packed_tokens as f64 / total);
    if let Some(peak) = peak {
        println!("{:<10} {peak:8.2} GiB peak", "memory");
    }
    Ok(())
}
