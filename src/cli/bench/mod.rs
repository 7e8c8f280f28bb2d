//! `rlvr bench`: how long the work takes, on this machine. `step` a whole GRPO step, `sft` one of SFT, `eval` answers to
//! prompts, `ops` every op alone, `load` weights from disk, `ranks` what several processes exchange.

mod eval;
mod load;
mod on;
mod ops;
mod ranks;
mod sft;
mod step;

use anyhow::Result;
use clap::Subcommand;

/// Time the work rlvr does, on this machine.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr bench step --preset smollm2-135m --random-weights")]
pub struct Args {
    #[command(subcommand)]
    command: Bench,
}

#[derive(Subcommand)]
enum Bench {
    Step(step::Args),
    Sft(sft::Args),
    Eval(eval::Args),
    Ops(ops::Args),
    Load(load::Args),
    Ranks(ranks::Args),
}

pub fn run(args: Args) -> Result<()> {
    match args.command {
        Bench::Step(args) => step::run(&args),
        Bench::Sft(args) => sft::run(&args),
        Bench::Eval(args) => eval::run(&args),
        Bench::Ops(args) => ops::run(&args),
        Bench::Load(args) => load::run(&args),
        Bench::Ranks(args) => ranks::run(&args),
    }
}
