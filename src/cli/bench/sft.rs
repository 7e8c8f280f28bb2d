//! `rlvr bench sft`: SFT steps on random rows.

use anyhow::Result;
use serde_json::json;

use super::on::{On, above_zero};
use crate::bench::sft::SftShape;
use crate::config::ActivationMemory;
use crate::config::optim::OptimConfig;
use crate::train::learner::Learner;

/// One SFT step: packed rows, loss on the answers, AdamW on all weights. Tokens and weights are random.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr bench sft --preset smollm2-135m --rows 8")]
pub struct Args {
    #[command(flatten)]
    on: On,
    /// Rows of a step.
    #[arg(long, default_value_t = 8)]
    rows: usize,
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Tokens of each answer, the end token among them: the loss is on these.
    #[arg(long, default_value_t = 32)]
    target_tokens: usize,
    /// Timed steps, after one that is not.
    #[arg(long, default_value_t = 2)]
    steps: usize,
    /// Tokens in one pack.
    #[arg(long, default_value_t = 8192)]
    max_tokens_per_pack: usize,
    /// Keep all activations instead of computing blocks again in the backward pass.
    #[arg(long)]
    keep_activations: bool,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    above_zero(&[
        ("--rows", args.rows),
        ("--prompt-tokens", args.prompt_tokens),
        ("--target-tokens", args.target_tokens),
        ("--steps", args.steps),
        ("--max-tokens-per-pack", args.max_tokens_per_pack),
    ])?;
    let place = args.on.place()?;
    let length = args.prompt_tokens + args.target_tokens;
    let (activations, name) = match args.keep_activations {
        true => (ActivationMemory::Keep, "keep"),
        false => (ActivationMemory::Recompute, "recompute"),
    };
    let decoder = args.on.decoder(&place, length)?;
    let mut learner = Learner::new(decoder, &OptimConfig::default(), activations, 1)?;
    let shape = SftShape {
        rows: args.rows,
        prompt_tokens: args.prompt_tokens,
        target_tokens: args.target_tokens,
        max_tokens_per_pack: args.max_tokens_per_pack,
    };
    let mut seconds = Vec::new();
    let mut last = Default::default();
    for step in 0..=args.steps as u32 {
        let (took, metrics) = shape.run(&mut learner, step)?;
        seconds.extend((step > 0).then_some(took));
        last = metrics;
    }
    let mean = seconds.iter().sum::<f64>() / seconds.len() as f64;
    // A row's last token is predicted and no input, but it is a token of the row.
    let tokens = args.rows * length;
    let mut all = args.on.json("sft", &place)?;
    if args.json {
        let more = json!({
            "rows": args.rows, "prompt_tokens": args.prompt_tokens, "target_tokens": args.target_tokens,
            "max_tokens_per_pack": args.max_tokens_per_pack, "activations": name, "tokens": tokens,
            "seconds_per_step": seconds, "mean_step_seconds": mean, "tokens_per_second": tokens as f64 / mean,
            "metrics": last,
        });
        all.as_object_mut()
            .into_iter()
            .for_each(|all| all.extend(more.as_object().cloned().unwrap_or_default()));
        println!("{all}");
        return Ok(());
    }
    println!(
        "{}: {} rows of {} + {} tokens",
        args.on.describe(&place)?,
        args.rows,
        args.prompt_tokens,
        args.target_tokens
    );
    println!("{:<10} {mean:8.3} s, mean of {} steps, activations {name}", "step", seconds.len());
    println!("{:<10} {:8.1} tokens/s", "", tokens as f64 / mean);
    if let Some(peak) = all["peak_memory_gib"].take().as_f64() {
        println!("{:<10} {peak:8.2} GiB peak", "memory");
    }
    Ok(())
}
