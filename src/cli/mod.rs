//! The command line: one file a subcommand. Exit codes: 0 done, 1 failed, 2 bad input.

pub mod bench;

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
    Bench(bench::Args),
}

pub fn main() -> ExitCode {
    // clap exits with 2 on a bad command line by itself.
    let result = match Cli::parse().command {
        Command::Bench(args) => bench::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            let input = error.downcast_ref::<Error>().is_some_and(Error::is_input);
            ExitCode::from(if input { 2 } else { 1 })
        }
    }
}

/// Sizes the rayon pool; 0 takes all cores. Call once, before any tensor work.
pub fn use_threads(threads: usize) -> anyhow::Result<()> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}
