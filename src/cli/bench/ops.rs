//! `rlvr bench ops`: every op alone, in the shapes of a model, against what the machine can do.

use std::io::Write;

use anyhow::Result;
use candle_core::DType;
use serde_json::{Value, json};

use crate::bench::ops::{Case, Maker, all};
use crate::bench::timing::{MOST_SETS, Timing, ceiling_size, ceilings, time};
use crate::cli::machine;
use crate::config::DeviceKind;
use crate::config::model::DtypeKind;
use crate::error::Error;
use crate::ops::token_logprob::{CPU_CHUNK_BYTES, CUDA_CHUNK_BYTES};
use crate::plan::cost::{GroupShape, Groups, Rates};
use crate::plan::shapes;
use crate::train::place;

/// Every op alone, in the shapes of one model and the packs of a GRPO step, beside the machine's ceilings.
///
/// `share` is the time that the roofline gives (FLOP at the rate of a large matrix product, or bytes at the rate of
/// a copy, whichever takes longer) divided by the time taken. An op that mostly reads can pass 1. The inputs
/// of a run are not those of the run before, so that they come from memory where they would in a step.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr bench ops --preset smollm2-135m")]
pub struct Args {
    /// Shape of the model: smollm2-135m, smollm2-360m, llama-3.2-1b, llama-3.2-3b, qwen3-4b, llama-3.1-8b,
    /// qwen3-14b, or tiny to try the command.
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
    /// Prompts of the step: how many come together in a pack says `[pack]`.
    #[arg(long, default_value_t = 1)]
    groups: usize,
    /// Completions of a prompt.
    #[arg(long, default_value_t = 8)]
    group_size: usize,
    #[arg(long, default_value_t = 48)]
    new_tokens: usize,
    /// Tokens in one pack of the update.
    #[arg(long, default_value_t = 8192)]
    max_tokens_per_pack: usize,
    /// Tokens whose keys and values are alive at once in the rollout: they say how many rows a decode step has.
    #[arg(long, default_value_t = 32768)]
    max_rollout_tokens: usize,
    /// Type that the gradients of matrices are summed in: f32, or that of the weights.
    #[arg(long, value_parser = ["f32", "bf16"], default_value = "f32")]
    gradients: String,
    /// Rows of linear layers, norms and the like; 0 takes the tokens of a pack of the update.
    #[arg(long, default_value_t = 0)]
    rows: usize,
    /// Only ops whose name has this in it: `linear`, `attention.backward`, `few_rows.down`.
    #[arg(long, default_value = "", hide_default_value = true)]
    only: String,
    /// Time for each op. At least five runs are timed, or as many as fit ten seconds.
    #[arg(long, default_value_t = 0.3)]
    seconds: f64,
    /// Rows and columns of the large product; 0 takes 8192 on CUDA, 2048 on the CPU.
    #[arg(long, default_value_t = 0)]
    ceiling_size: usize,
    /// At most so many sets of inputs that runs take turns on; few of a small shape stay in the caches.
    #[arg(long, default_value_t = MOST_SETS)]
    input_sets: usize,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// A line of JSON with the ceilings, one for every op as it is timed, and one with the ceilings after them.
    #[arg(long, conflicts_with = "json")]
    json_lines: bool,
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

    fn json(&self) -> Value {
        let Case { name, shape, sizes, cost, .. } = &self.case;
        let sizes = sizes.iter().map(|(name, size)| ((*name).into(), json!(size)));
        let sizes: serde_json::Map<_, _> = sizes.collect();
        json!({
            "op": name, "shape": shape, "sizes": sizes,
            "seconds": self.timing.median, "best_seconds": self.timing.best,
            "runs": self.timing.runs, "input_sets": self.timing.sets, "flop": cost.flop, "bytes": cost.bytes,
            "flop_per_second": self.flops(), "bytes_per_second": self.bandwidth(),
            "roofline_seconds": self.roofline_seconds(), "share": self.share(), "bound": self.bound(),
        })
    }
}

pub fn run(args: &Args) -> Result<()> {
    check(args)?;
    crate::cli::use_threads(args.threads)?;
    let place = place::open(args.device, args.dtype)?.place;
    let gradients = if args.gradients == "bf16" { DType::BF16 } else { DType::F32 };
    if gradients == DType::BF16 && place.dtype == DType::F32 {
        let why = "the weights are f32";
        return Err(Error::config("--gradients", &args.gradients, "f32", why).into());
    }
    let maker = Maker::new(place.device, place.dtype, gradients);
    let group = shape(args, &maker)?;
    let mut chosen = all(&group)?;
    chosen.retain(|case| case.name.contains(&args.only));
    if chosen.is_empty() {
        let why = "no op has that in its name";
        return Err(Error::config("--only", &args.only, "part of an op's name", why).into());
    }
    let size = if args.ceiling_size == 0 { ceiling_size(&maker.device) } else { args.ceiling_size };
    let ceiling_seconds = args.seconds.max(1.0);
    let before = ceilings(&maker, size, ceiling_seconds)?;
    let table = Table::new(&chosen);
    if args.json_lines {
        line(&about(args, &group, before))?;
    } else if !args.json {
        heading(args, &group, before);
        println!("{}", table.heading());
    }
    let (mut lines, mut failed) = (Vec::new(), Vec::new());
    for case in chosen {
        // One op that cannot run here takes no other's time away.
        match time(&case, &maker, args.seconds, args.input_sets) {
            Ok(timing) => {
                let timed = Line { case, timing, ceilings: before };
                if args.json_lines {
                    line(&timed.json())?;
                } else if !args.json {
                    println!("{}", table.row(&timed));
                }
                lines.push(timed);
            }
            Err(error) => failed.push(format!("{}: {error}", case.name)),
        }
    }
    // Other work on the machine shows in the difference.
    let after = ceilings(&maker, size, ceiling_seconds)?;
    if args.json_lines {
        line(&json!({ "ceilings_after": ceiling(after), "ops": lines.len(), "failed": failed }))?;
    } else if args.json {
        let mut all = about(args, &group, before);
        all["ceilings_after"] = ceiling(after);
        all["ops"] = lines.iter().map(Line::json).collect();
        all["failed"] = json!(failed);
        println!("{all}");
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
        ("--groups", args.groups),
        ("--group-size", args.group_size),
        ("--new-tokens", args.new_tokens),
        ("--max-tokens-per-pack", args.max_tokens_per_pack),
        ("--max-rollout-tokens", args.max_rollout_tokens),
        ("--input-sets", args.input_sets),
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

/// The packs that the flags make of a step.
fn shape(args: &Args, maker: &Maker) -> Result<GroupShape> {
    let (prompt, completions, new_tokens) = (args.prompt_tokens, args.group_size, args.new_tokens);
    // A rollout has room for whole completions, whose last tokens are no inputs.
    let [rows, size] = [new_tokens - 1, new_tokens].map(|tokens| prompt + completions * tokens);
    let mut group = GroupShape {
        config: shapes::find(&args.preset)?,
        prompt,
        completions,
        new_tokens,
        groups: Groups::new(args.groups, [rows, args.max_tokens_per_pack], [size, args.max_rollout_tokens]),
        rows: args.rows,
        size: maker.dtype.size_in_bytes(),
        gradient_size: maker.gradients.size_in_bytes(),
        chunk_bytes: if maker.device.is_cuda() { CUDA_CHUNK_BYTES } else { CPU_CHUNK_BYTES },
    };
    if group.rows == 0 {
        group.rows = group.packed();
    }
    Ok(group)
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
    let Groups { packed, sampled, all } = group.groups;
    println!("{} {} on {place}: {all} x {g} completions of {r} tokens", args.preset, args.dtype.name());
    println!(
        "after prompts of {p}; {packed} groups in a pack are {} rows, {sampled} in a rollout",
        group.rows
    );
    println!("ceilings: {}", describe(ceilings));
    println!();
}

fn ceiling(rates: Rates) -> Value {
    json!({ "flop_per_second": rates.flops, "copy_bytes_per_second": rates.bandwidth })
}

/// What was asked for, and the ceilings before it.
fn about(args: &Args, group: &GroupShape, before: Rates) -> Value {
    json!({
        "bench": "ops", "preset": args.preset, "device": args.device.name(), "dtype": args.dtype.name(),
        "gradients": args.gradients, "threads": rayon::current_num_threads(), "groups": group.groups.all,
        "prompt_tokens": group.prompt, "group_size": group.completions, "new_tokens": group.new_tokens,
        "groups_in_pack": group.groups.packed, "rows": group.rows, "decode_rows": group.decode_rows(),
        "head_rows": group.head_rows(), "ceilings": ceiling(before),
    })
}

/// On disk even if the next line never comes.
fn line(json: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{json}")?;
    Ok(out.flush()?)
}
