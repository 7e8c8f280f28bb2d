//! `rlvr fetch`: a model from the hub into the cache.

use crate::cli::hub::Bars;
use crate::hub::{self, Hub, Parts, RepoName};

/// Download a model from the Hugging Face hub, as every command does that is given its name, and link to it from
/// checkpoints/, so that the last part of its name is enough.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr fetch HuggingFaceTB/SmolLM2-135M-Instruct")]
pub struct Args {
    /// org/name, or org/name@revision.
    #[arg(value_name = "ORG/NAME")]
    pub name: String,
    /// Branch, tag or commit. Default: main.
    #[arg(long)]
    pub revision: Option<String>,
    /// Tokenizer, chat template and configs only.
    #[arg(long)]
    pub without_weights: bool,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut name = RepoName::parse(&args.name)?;
    if let Some(revision) = &args.revision {
        name = name.at(revision)?;
    }
    let parts = if args.without_weights { Parts::Text } else { Parts::Model };
    let snapshot = Hub::from_env().fetch(&name, parts, &mut Bars::default())?;
    eprintln!("{}", snapshot.pinned());
    println!("{}", snapshot.dir.display());
    if parts == Parts::Model {
        match hub::keep(&snapshot) {
            Ok(link) => eprintln!("kept as {}", link.display()),
            Err(error) => eprintln!("note: {error}"),
        }
    }
    Ok(())
}
