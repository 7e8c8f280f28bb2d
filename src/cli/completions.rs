//! `rlvr completions`: what a shell completes the command by.

use std::io::Write;

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

/// Print a script that teaches a shell to complete the command.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr completions bash > ~/.local/share/bash-completion/completions/rlvr")]
pub struct Args {
    shell: Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut super::Cli::command(), "rlvr", &mut script);
    std::io::stdout().lock().write_all(&script)?;
    Ok(())
}
