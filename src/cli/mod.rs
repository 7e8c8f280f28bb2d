//! The command line: one file a subcommand. Exit codes: 0 done, 1 failed, 2 bad input.

mod ablate;
pub mod bench;
pub mod data;
mod data_audit;
mod data_preview;
mod data_synth;
pub mod doctor;
mod dry_run;
pub mod eval;
pub mod export;
pub mod fetch;
mod hub;
pub mod import;
mod machine;
pub mod plan;
pub mod predict;
pub mod report;
mod schema;
mod text;
pub mod train;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;

#[derive(Parser)]
#[command(name = "rlvr", version, about, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Train(train::Args),
    Ablate(ablate::Args),
    Eval(eval::Args),
    Data(data::Args),
    Import(import::Args),
    Export(export::Args),
    Fetch(fetch::Args),
    Plan(plan::Args),
    Bench(bench::Args),
    Doctor(doctor::Args),
    Report(report::Args),
    Predict(predict::Args),
    Schema(schema::Args),
}

pub fn main() -> ExitCode {
    // clap exits with 2 on a bad command line by itself.
    let result = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Ablate(args) => ablate::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Data(args) => data::run(&args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Fetch(args) => fetch::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Bench(args) => bench::run(args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Report(args) => report::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Schema(args) => schema::run(&args),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    match error.downcast_ref::<Error>() {
        // Ours say all in one line; anyhow would repeat the cause.
        Some(ours) => {
            eprintln!("error: {ours}");
            ExitCode::from(if ours.is_input() { 2 } else { 1 })
        }
        None => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sizes the rayon pool; 0 takes all cores. Call once, before any tensor work.
pub fn use_threads(threads: usize) -> anyhow::Result<()> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}
