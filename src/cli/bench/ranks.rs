//! `rlvr bench ranks`: how fast ranks exchange gradients and weights, with nothing else going on.

use std::io::Write;
use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use serde_json::json;

use crate::cli::ranks::{self, Role};
use crate::dist::{Engine, Ranks};
use crate::error::Error;

const MIB: f64 = (1u64 << 20) as f64;

/// Exchange gradients and weights among ranks, and nothing else: seconds and GB/s.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr bench ranks --ranks 2")]
pub struct Args {
    /// Start so many processes on this host. torchrun, srun and mpirun start their own: leave it out there.
    #[arg(long, visible_alias = "gpus", value_name = "N")]
    ranks: Option<usize>,
    /// Sizes of what is exchanged, f32, in MiB.
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    mib: Vec<f64>,
    /// Times that each is exchanged; the median counts.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// A JSON object for each size instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let ranks = match ranks::role(args.ranks)? {
        Role::Work(ranks) => ranks,
        Role::Started(0) => return Ok(()),
        Role::Started(code) => std::process::exit(i32::from(code)),
    };
    ranks::ended(&ranks, measure(args, &ranks))
}

fn measure(args: &Args, ranks: &Ranks) -> Result<()> {
    let Some(engine) = ranks.engine() else {
        let fix = "Add --ranks 2, or start it with torchrun, srun or mpirun";
        return Err(Error::input("rlvr bench ranks", "is alone, and exchanges nothing", fix).into());
    };
    for mib in &args.mib {
        let count = (mib * MIB / 4.0) as usize;
        let tensor = Tensor::zeros(count, DType::F32, &Device::Cpu)?;
        for op in [Op::ReduceScatter, Op::AllGather] {
            let seconds = median(op, engine, ranks, &tensor, args.rounds)?;
            // Of a ring and of direct exchange alike.
            let sent = 4.0 * count as f64 * (ranks.size() - 1) as f64 / ranks.size() as f64;
            if ranks.is_first() {
                tell(args, (engine.name(), ranks.size()), (op, *mib), (seconds, sent))?;
            }
        }
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Op {
    ReduceScatter,
    AllGather,
}

impl Op {
    fn name(self) -> &'static str {
        match self {
            Self::ReduceScatter => "reduce-scatter",
            Self::AllGather => "all-gather",
        }
    }
}

/// Seconds from when all are there to when all have it. The first exchange does not count.
fn median(op: Op, engine: &dyn Engine, ranks: &Ranks, tensor: &Tensor, rounds: usize) -> Result<f64> {
    let mut all = Vec::with_capacity(rounds);
    for round in 0..=rounds {
        ranks.gather(())?;
        let start = Instant::now();
        match op {
            Op::ReduceScatter => drop(engine.reduce_scatter(std::slice::from_ref(tensor))?),
            Op::AllGather => engine.all_gather(std::slice::from_ref(tensor))?,
        }
        ranks.gather(())?;
        if round > 0 {
            all.push(start.elapsed().as_secs_f64());
        }
    }
    all.sort_by(f64::total_cmp);
    Ok(all.get(all.len() / 2).copied().unwrap_or_default())
}

fn tell(
    args: &Args,
    (engine, size): (&str, usize),
    (op, mib): (Op, f64),
    (seconds, sent): (f64, f64),
) -> Result<()> {
    let rate = sent / seconds / 1e9;
    let mut out = std::io::stdout();
    match args.json {
        true => writeln!(
            out,
            "{}",
            json!({"bench": "ranks", "engine": engine, "ranks": size, "op": op.name(), "mib": mib, "seconds": seconds, "gb_per_s": rate})
        )?,
        false => writeln!(
            out,
            "{size} ranks, {engine}: {:<14} of {mib:>6} MiB  {:>9.4} s  {rate:>7.3} GB/s sent by each",
            op.name(),
            seconds
        )?,
    }
    Ok(())
}
