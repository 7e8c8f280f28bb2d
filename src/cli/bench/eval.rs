//! `rlvr bench eval`: answers to random prompts, as an evaluation makes them.

use anyhow::Result;
use serde_json::json;

use super::on::{On, above_zero};
use crate::bench::eval::EvalShape;

/// Greedy answers to random prompts, one each, every one of full length.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr bench eval --preset smollm2-135m --prompts 16")]
pub struct Args {
    #[command(flatten)]
    on: On,
    #[arg(long, default_value_t = 16)]
    prompts: usize,
    #[arg(long, default_value_t = 512)]
    prompt_tokens: usize,
    /// Every answer has exactly this many tokens.
    #[arg(long, default_value_t = 12)]
    new_tokens: usize,
    /// Timed rounds, after one that is not.
    #[arg(long, default_value_t = 2)]
    rounds: usize,
    /// Tokens whose keys and values are alive at once.
    #[arg(long, default_value_t = 32768)]
    max_rollout_tokens: usize,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    above_zero(&[
        ("--prompts", args.prompts),
        ("--prompt-tokens", args.prompt_tokens),
        ("--new-tokens", args.new_tokens),
        ("--rounds", args.rounds),
        ("--max-rollout-tokens", args.max_rollout_tokens),
    ])?;
    let place = args.on.place()?;
    let decoder = args.on.decoder(&place, args.prompt_tokens + args.new_tokens)?;
    let shape = EvalShape {
        prompts: args.prompts,
        prompt_tokens: args.prompt_tokens,
        new_tokens: args.new_tokens,
        max_rollout_tokens: args.max_rollout_tokens,
    };
    let mut rounds = Vec::new();
    for round in 0..=args.rounds as u32 {
        let answered = shape.run(&decoder, round)?;
        rounds.extend((round > 0).then_some(answered));
    }
    let count = rounds.len() as f64;
    let total = rounds.iter().map(|round| round.total).sum::<f64>() / count;
    let prefill = rounds.iter().map(|round| round.prefill).sum::<f64>() / count;
    let decode = rounds.iter().map(|round| round.decode).sum::<f64>() / count;
    let rate = args.prompts as f64 / total;
    let mut all = args.on.json("eval", &place)?;
    if args.json {
        let more = json!({
            "prompts": args.prompts, "prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens,
            "max_rollout_tokens": args.max_rollout_tokens, "tokens": args.prompts * (args.prompt_tokens + args.new_tokens),
            "seconds_per_round": rounds.iter().map(|round| round.total).collect::<Vec<_>>(), "mean_seconds": total,
            "prefill_seconds": prefill, "decode_seconds": decode, "prompts_per_second": rate,
        });
        all.as_object_mut()
            .into_iter()
            .for_each(|all| all.extend(more.as_object().cloned().unwrap_or_default()));
        println!("{all}");
        return Ok(());
    }
    let (n, p, r) = (args.prompts, args.prompt_tokens, args.new_tokens);
    println!("{}: {n} prompts of {p} tokens, {r} new ones each", args.on.describe(&place)?);
    println!("{:<10} {total:8.3} s, mean of {} rounds", "round", rounds.len());
    println!("{:<10} {prefill:8.3} s prefill, {decode:.3} s decode", "");
    println!("{:<10} {rate:8.2} prompts/s", "");
    if let Some(peak) = all["peak_memory_gib"].take().as_f64() {
        println!("{:<10} {peak:8.2} GiB peak", "memory");
    }
    Ok(())
}
