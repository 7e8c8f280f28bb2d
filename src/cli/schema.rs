//! `rlvr schema`: what editors complete and check TOML by.

use std::io::Write;

use anyhow::Result;
use clap::ValueEnum;
use serde_json::Value;

use crate::config::schema;
use crate::task::Task;

/// Print the JSON schema of configs, task files or ablations. Editors that know `#:schema` in a file's first line complete
/// by it.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr schema config > config.schema.json")]
pub struct Args {
    /// What kind of file.
    kind: Kind,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    /// What `rlvr train` takes.
    Config,
    /// What `--task` and the key `task` name.
    Task,
    /// What `rlvr ablate` takes.
    Ablation,
}

pub fn run(args: &Args) -> Result<()> {
    let schema: Value = match args.kind {
        Kind::Config => schema::config(),
        Kind::Task => Task::schema(),
        Kind::Ablation => schema::ablation(),
    };
    writeln!(std::io::stdout().lock(), "{schema:#}")?;
    Ok(())
}
