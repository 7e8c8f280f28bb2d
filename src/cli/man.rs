//! `rlvr man`: the manual pages.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::CommandFactory;

use crate::error::Error;

/// Print the manual page, or write a page for every command into a folder.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr man --into ~/.local/share/man/man1")]
pub struct Args {
    /// Folder for rlvr.1, rlvr-train.1 and the others; made if it is missing.
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    let command = super::Cli::command();
    let Some(dir) = &args.into else {
        let mut page = Vec::new();
        clap_mangen::Man::new(command).render(&mut page)?;
        std::io::stdout().lock().write_all(&page)?;
        return Ok(());
    };
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the folder"))?;
    clap_mangen::generate_to(command, dir).map_err(Error::io(dir, "write the pages"))?;
    Ok(())
}
