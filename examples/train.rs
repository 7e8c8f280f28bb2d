//! A run from Rust: the demo, cut to a few steps.
//!
//!     cargo run --release --example train

use rlvr::config::Config;
use rlvr::observe::{Progress, Sinks};
use rlvr::run::RunDirectory;
use rlvr::train::launch;

fn main() -> rlvr::error::Result<()> {
    let config = Config::load("demo", &["sft.steps=60".into(), "grpo.steps=5".into()])?;
    let run = RunDirectory::create_numbered(&config.run.root, "example")?;
    let mut sinks = Sinks::default();
    sinks.add(Progress::new());
    let model = launch::start(&config.into(), &run, sinks)?;
    println!("{}", model.display());
    Ok(())
}
