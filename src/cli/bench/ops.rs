//! `rlvr bench ops`: every op alone, in the shapes of a model, against what the machine can do.

use anyhow::Result;
use serde_json::json;

use crate::bench::ops::{Case, Maker, all};
use crate::bench::timing::{Timing, ceilings, time};
use crate::cli::machine;
use crate::config::DeviceKind;
use crate::config::model::DtypeKind;
use crate::error::Error;
use crate::plan::cost::{GroupShape, Rates};
use crate::plan::shapes;
use crate::train::place;

/// Every op alone, in the shapes of one model and one GRPO group, beside the machine's ceilings.
///
/// `share` is the time that the roofline gives (FLOP at the rate of a large matrix product, or bytes at the rate of
/// a copy, whichever takes longer) divided by the time taken. An op that mostly reads can pass 1. The inputs
/// of a run are not those of the run before, so that they come from memory where they would in a step.
#[derive(clap::Args)]
pub struct Args {
    /// Shape of the model: smollm2-135m, smollm2-360m, llama-3.2-1b, llama-3.2-3b, llama-3.1-8b or qwen3-4b.
    #[arg(long, default_value = "smollm2-135m")]
    preset: String,
    #[arg(long, value_parser = machine::device(&[DeviceKind::Cpu, DeviceKind::Cuda]), default_value = "cpu")]
    device: DeviceKind,
    /// Type of weights and activations; the CPU computes in f32.
    #[arg(long, value_parser = machine::dtype(&[DtypeKind::F32, DtypeKind::Bf16]), default_value = "f32")]
    dtype: DtypeKind,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    #[arg(long, default_value_t = 1024)]
    prompt_tokens: usize,
    /// Completions of the prompt; also the rows of a decode step.
    #[arg(long, default_value_t = 8)]
    group_size: usize,
    #[arg(long, default_value_t = 48)]
    new_tokens: usize,
    /// Rows of linear layers, norms and the like; 0 takes the packed group's tokens.
    #[arg(long, default_value_t = 0)]
    rows: usize,
    /// Only ops whose name has this in it: `linear`, `attention.backward`, `few_rows.down`.
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
    /// Time for each op. At least five runs are timed, or as many as fit ten seconds.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

/// A timed op against the ceilings.
struct Line {
    case: Case,
    timing: Timing,
    ceilings: Rates,
}

impl Line {
    fn flops(&self) -> f64 {
        self.case.cost.flop / self.timing.median
    }

    fn bandwidth(&self) -> f64 {
        self.case.cost.bytes / self.timing.median
    }

    fn roofline_seconds(&self) -> f64 {
        self.case.cost.seconds(self.ceilings)
    }

    fn bound(&self) -> &'static str {
        self.case.cost.bound(self.ceilings)
    }

    fn share(&self) -> f64 {
        self.roofline_seconds() / self.timing.median
    }
}

pub fn run(args: &Args) -> Result<()> {
    check(args)?;
    crate::cli::use_threads(args.threads)?;
    let place = place::open(args.device, args.dtype)?.place;
    let maker = Maker::new(place.device, place.dtype);
    let mut group = GroupShape {
        config: shapes::find(&args.preset)?,
        prompt: args.prompt_tokens,
        completions: args.group_size,
        new_tokens: args.new_tokens,
        rows: args.rows,
        size: maker.dtype.size_in_bytes(),
    };
    if group.rows == 0 {
        group.rows = group.packed();
    }
    let mut chosen = all(&group)?;
    chosen.retain(|case| case.name.contains(&args.only));
    if chosen.is_empty() {
        let why = "no op has that in its name";
        return Err(Error::config("--only", &args.only, "part of an op's name", why).into());
    }
    let before = ceilings(&maker, args.seconds.max(1.0))?;
    let table = Table::new(&chosen);
    if !args.json {
        heading(args, &group, before);
        println!("{}", table.heading());
    }
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for case in chosen {
        // One op that cannot run here takes no other's time away.
        match time(&case, &maker, args.seconds) {
            Ok(timing) => {
                let line = Line { case, timing, ceilings: before };
                if !args.json {
                    println!("{}", table.row(&line));
                }
                lines.push(line);
            }
            Err(error) => failed.push(format!("{}: {error}", case.name)),
        }
    }
    // Other work on the machine shows in the difference.
    let after = ceilings(&maker, args.seconds.max(1.0))?;
    if args.json {
        println!("{}", object(args, &group, [before, after], &lines, &failed));
    } else {
        println!("\nceilings after: {}", describe(after));
    }
    match failed.as_slice() {
        [] => Ok(()),
        _ => anyhow::bail!("{} ops could not be timed: {}", failed.len(), failed.join("; ")),
    }
}

fn check(args: &Args) -> Result<()> {
    for (flag, value) in [
        ("--prompt-tokens", args.prompt_tokens),
        ("--group-size", args.group_size),
        ("--new-tokens", args.new_tokens),
    ] {
        if value == 0 {
            return Err(Error::config(flag, 0, "1 or more", "there would be nothing to time").into());
        }
    }
    if !(args.seconds >= 0.0 && args.seconds.is_finite()) {
        let why = "it is how long an op is timed";
        return Err(Error::config("--seconds", args.seconds, "0 or more", why).into());
    }
    Ok(())
}

/// Widths of the columns that hold text.
#[derive(Clone, Copy)]
struct Table {
    name: usize,
    shape: usize,
}

impl Table {
    fn new(cases: &[Case]) -> Self {
        let widest = |f: fn(&Case) -> &String| cases.iter().map(|case| f(case).len()).max().unwrap_or(0);
        Self { name: widest(|case| &case.name), shape: widest(|case| &case.shape) }
    }

    fn heading(self) -> String {
        let Self { name, shape } = self;
        format!(
            "{:<name$}  {:<shape$}  {:>9}  {:>8}  {:>6}  {:>5}  bound",
            "op", "shape", "ms", "GFLOP/s", "GB/s", "share"
        )
    }

    fn row(self, line: &Line) -> String {
        let Self { name, shape } = self;
        format!(
            "{:<name$}  {:<shape$}  {:>9.3}  {:>8.1}  {:>6.1}  {:>5.2}  {}",
            line.case.name,
            line.case.shape,
            line.timing.median * 1e3,
            line.flops() / 1e9,
            line.bandwidth() / 1e9,
            line.share(),
            line.bound()
        )
    }
}

fn describe(ceilings: Rates) -> String {
    let (flops, bandwidth) = (ceilings.flops / 1e9, ceilings.bandwidth / 1e9);
    format!("{flops:.1} GFLOP/s in a large product, {bandwidth:.1} GB/s in a copy")
}

fn heading(args: &Args, group: &GroupShape, ceilings: Rates) {
    let place = match args.device {
        DeviceKind::Cpu => format!("cpu, {} threads", rayon::current_num_threads()),
        other => other.to_string(),
    };
    let (p, g, r) = (group.prompt, group.completions, group.new_tokens);
    println!("{} {} on {place}: {g} completions of {r} tokens", args.preset, args.dtype.name());
    println!("after a prompt of {p}, {} rows", group.rows);
    println!("ceilings: {}", describe(ceilings));
    println!();
}

fn object(
    args: &Args,
    group: &GroupShape,
    [before, after]: [Rates; 2],
    lines: &[Line],
    failed: &[String],
) -> serde_json::Value {
    let ceiling = |c: Rates| json!({ "flop_per_second": c.flops, "copy_bytes_per_second": c.bandwidth });
    let op = |line: &Line| {
        json!({
            "op": line.case.name, "shape": line.case.shape,
            "seconds": line.timing.median, "best_seconds": line.timing.best,
            "runs": line.timing.runs, "input_sets": line.timing.sets,
            "flop": line.case.cost.flop, "bytes": line.case.cost.bytes,
            "flop_per_second": line.flops(), "bytes_per_second": line.bandwidth(),
            "roofline_seconds": line.roofline_seconds(), "share": line.share(), "bound": line.bound(),
        })
    };
    json!({
        "bench": "ops", "preset": args.preset, "device": args.device.name(), "dtype": args.dtype.name(),
        "threads": rayon::current_num_threads(), "prompt_tokens": group.prompt, "group_size": group.completions,
        "new_tokens": group.new_tokens, "rows": group.rows,
        "ceilings": ceiling(before), "ceilings_after": ceiling(after),
        "ops": lines.iter().map(op).collect::<Vec<_>>(), "failed": failed,
    })
}
