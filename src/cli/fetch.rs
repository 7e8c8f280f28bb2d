//! `rlvr fetch`: a model or a data set from the hub into the cache.

use std::path::Path;

use crate::cli::hub::Bars;
use crate::error::Error;
use crate::hub::{self, DataName, Hub, Parts, RepoName};

/// Download a model or a data set from the Hugging Face hub, as every command does that is given its name. Of a model, link
/// to it from checkpoints/, so that the last part of its name is enough.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  rlvr fetch HuggingFaceTB/SmolLM2-135M-Instruct\n  rlvr fetch hf:some-org/some-rows:train"
)]
pub struct Args {
    /// A model: org/name, org/name@revision. Rows: hf:org/name, hf:org/name:split, hf:org/name:config/split.
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
    if let Some(name) = DataName::of(Path::new(&args.name))? {
        return rows(args, name);
    }
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

/// Every split of a data set, or the one that is named.
fn rows(args: &Args, mut name: DataName) -> anyhow::Result<()> {
    if args.without_weights {
        let fix = "Leave it out";
        return Err(Error::input("--without-weights", "has no effect on a data set", fix).into());
    }
    if let Some(revision) = &args.revision {
        name = name.at(revision)?;
    }
    let data = Hub::from_env().all_data(&name, &mut Bars::default())?;
    for split in &data.splits {
        eprintln!("{}: {} files", split.pinned, split.paths.len());
    }
    println!("{}", data.dir.display());
    Ok(())
}
