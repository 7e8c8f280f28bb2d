//! What `rlvr bench step` prints.

use std::io::Write;

use anyhow::Result;
use serde_json::json;

use super::{Args, Setup};
use crate::bench::step::Stepped;
use crate::cli::bench::on::peak_gib;
use crate::ops::cuda;
use crate::plan::time::Parts;
use crate::plan::work::Work;

/// One step as it ends. `flop` are those that had to be computed, `flop_done` with the blocks that were computed again.
pub fn line(args: &Args, setup: &Setup, step: usize, stepped: &Stepped) -> Result<()> {
    let Stepped { phases, work, metrics } = stepped;
    let done = work.flop() + work.recompute_flop;
    let mfu = |flop: f64| setup.peak_tflops(args).map(|peak| flop / phases.total() / (peak * 1e12));
    let json = json!({
        "bench": "step", "step": step, "timed": step > 0, "seconds": phases.total(),
        "prefill_seconds": phases.prefill, "decode_seconds": phases.decode, "update_seconds": phases.update,
        "optimizer_seconds": phases.optimizer, "packed_tokens": work.packed_tokens,
        "flop": work.flop(), "flop_done": done, "mfu": mfu(work.flop()), "mfu_done": mfu(done),
        "peak_memory_gib": peak_gib(&setup.place.device)?, "metrics": metrics,
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{json}")?;
    Ok(out.flush()?)
}

pub fn print(args: &Args, setup: &Setup, phases: &[Parts], work: Work) -> Result<()> {
    let mean = |f: fn(&Parts) -> f64| phases.iter().map(f).sum::<f64>() / phases.len() as f64;
    let (prefill, decode) = (mean(|p| p.prefill), mean(|p| p.decode));
    let (update, optimizer) = (mean(|p| p.update), mean(|p| p.optimizer));
    let total = mean(|parts| parts.total());
    let (step_rate, update_rate) = (work.flop() / total, work.update_flop / update);
    let device = &setup.place.device;
    let peak_gib = peak_gib(device)?;
    let peak_tflops = setup.peak_tflops(args);
    let mfu = |rate: f64| peak_tflops.map(|peak| rate / (peak * 1e12));
    let seconds: Vec<f64> = phases.iter().map(|parts| parts.total()).collect();
    let dtype = setup.place.dtype.as_str();
    if args.json || args.json_lines {
        let name = device.is_cuda().then(|| cuda::describe(device).map(|d| d.name)).transpose()?;
        let json = json!({
            "bench": "step", "preset": args.preset, "dtype": dtype, "device": args.device.name(),
            "device_name": name, "threads": rayon::current_num_threads(), "groups": args.groups,
            "group_size": args.group_size, "prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens,
            "activations": if args.keep_activations { "keep" } else { "recompute" },
            "moments": args.moments, "bf16_weights": args.bf16_weights, "gradients": args.gradients,
            "lora_rank": args.lora_rank, "max_tokens_per_pack": args.max_tokens_per_pack, "max_rollout_tokens": args.max_rollout_tokens,
            "max_reused_tokens": args.max_reused_tokens,
            "seconds_per_step": seconds, "mean_step_seconds": total,
            "rollout_seconds": prefill + decode, "prefill_seconds": prefill, "decode_seconds": decode,
            "update_seconds": update, "optimizer_seconds": optimizer,
            "packed_tokens": work.packed_tokens, "tokens_per_second": work.packed_tokens as f64 / total,
            "flop_per_step": work.flop(), "flop_per_second": step_rate,
            "update_flop": work.update_flop, "update_flop_per_second": update_rate,
            "peak_tflops": peak_tflops, "mfu_step": mfu(step_rate), "mfu_update": mfu(update_rate),
            "peak_memory_gib": peak_gib,
        });
        println!("{json}");
        return Ok(());
    }
    let (g, size, p, r) = (args.groups, args.group_size, args.prompt_tokens, args.new_tokens);
    let place = match device.is_cuda() {
        true => cuda::describe(device)?.name,
        false => format!("{} threads", rayon::current_num_threads()),
    };
    println!("{} {dtype}, {place}: {g} x {size} completions", args.preset);
    println!("of {r} tokens after {p} prompt tokens, mean of {} steps", phases.len());
    for (name, value) in [
        ("prefill", prefill),
        ("decode", decode),
        ("update", update),
        ("optimizer", optimizer),
        ("step", total),
    ] {
        println!("{name:<10} {value:8.3} s");
    }
    println!("{:<10} {:8.1} GFLOP/s on what had to be computed", "rate", step_rate / 1e9);
    println!("{:<10} {:8.1} GFLOP/s in the update", "", update_rate / 1e9);
    if let (Some(peak), Some(step), Some(update)) = (peak_tflops, mfu(step_rate), mfu(update_rate)) {
        let (step, update) = (100.0 * step, 100.0 * update);
        println!("{:<10} {step:8.2} % of {peak} TFLOP/s; the update {update:.2} %", "MFU");
    }
    println!("{:<10} {:8.1} packed tokens/s", "", work.packed_tokens as f64 / total);
    if let Some(peak) = peak_gib {
        println!("{:<10} {peak:8.2} GiB peak", "memory");
    }
    Ok(())
}
