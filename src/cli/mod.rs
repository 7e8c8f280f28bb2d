//! The command line: one file a subcommand. Exit codes: 0 done, 1 failed, 2 bad input, 3 `predict --gate` lets
//! nothing through, 75 stopped and to be gone on with.

#[macro_use]
mod out;

mod ablate;
pub mod bench;
mod bounds;
mod completions;
pub mod data;
mod data_audit;
mod data_convert;
mod data_preview;
mod data_split;
mod data_synth;
pub mod doctor;
mod dry_run;
pub mod eval;
pub mod export;
pub mod fetch;
mod hub;
pub mod import;
mod init;
mod machine;
mod man;
mod mirrored;
mod of_run;
mod partial;
pub mod plan;
pub mod predict;
pub mod ranks;
mod report;
mod schema;
mod stop;
mod text;
pub mod train;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::Error;
use crate::text::watched;

/// What this binary was built from, by build.rs.
const LONG_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit    ",
    env!("RLVR_COMMIT"),
    "\nfeatures  ",
    env!("RLVR_FEATURES"),
    "\ncuda      ",
    env!("RLVR_CUDA"),
);

#[derive(Parser)]
#[command(name = "rlvr", version, long_version = LONG_VERSION, about, max_term_width = 110)]
#[command(
    after_help = "Examples:\n  rlvr train demo                  the whole line, no download\n  rlvr init data/mine.jsonl        \
    a task and a config of your own\n  rlvr train mine/config.toml\n  rlvr eval runs/mine-001/model data/test.jsonl --task \
    mine/task.toml"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Args),
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
    Completions(completions::Args),
    Man(man::Args),
}

pub fn main() -> ExitCode {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(watched::THREAD) {
            usual(panic);
        }
    }));
    // clap exits with 2 on a bad command line by itself.
    let matches = bounds::bounded(Cli::command()).get_matches();
    let command = match Cli::from_arg_matches(&matches) {
        Ok(cli) => cli.command,
        Err(error) => error.exit(),
    };
    // Whose reader goes away has let nothing through.
    let gate = matches!(&command, Command::Predict(args) if args.gate);
    let result = match command {
        Command::Init(args) => init::run(&args),
        Command::Train(args) => match train::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
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
        Command::Predict(args) => match predict::run(&args) {
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Schema(args) => schema::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Man(args) => man::run(&args),
    };
    let Err(error) = result else { return ExitCode::SUCCESS };
    if out::is_unread(&error) && !gate {
        return ExitCode::SUCCESS;
    }
    match error.downcast_ref::<Error>() {
        Some(Error::Stopped) => {
            eprintln!("{}", last_words().unwrap_or_else(|| stop::NOTHING_KEPT.into()));
            ExitCode::from(crate::stop::EXIT_CODE)
        }
        // Ours say all in one line; anyhow would repeat the cause.
        Some(ours) => {
            eprintln!("error: {}", ours.to_string().replace('\n', "\\n"));
            // A run goes on once there is room, another device, or a program that answers.
            let resumable = ours.is_full_disk()
                || ours.is_lost_device()
                || matches!(ours, Error::Unrewarded { .. } | Error::RankLost { .. });
            let words = last_words().filter(|_| resumable);
            words.iter().for_each(|words| eprintln!("{words}"));
            if ours.is_lost_device() {
                // What libraries do at the end of a process may wait for the device for ever.
                crate::stop::leave();
            }
            ExitCode::from(match ours {
                Error::Halted { .. } | Error::Unrewarded { .. } | Error::RankLost { .. } => {
                    crate::stop::EXIT_CODE
                }
                _ if words.is_some() => crate::stop::EXIT_CODE,
                ours if ours.is_input() => 2,
                _ => 1,
            })
        }
        None => {
            // What the operating system says without a place is of standard output: errors of files name theirs.
            let place =
                if error.downcast_ref::<std::io::Error>().is_some() { "stdout: cannot write: " } else { "" };
            eprintln!("error: {place}{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the process says last when it is interrupted.
pub fn last_words() -> Option<String> {
    stop::last_words()
}

/// Sizes the rayon pool; 0 takes all cores. Call once, before any tensor work.
pub fn use_threads(threads: usize) -> anyhow::Result<()> {
    Ok(rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?)
}
