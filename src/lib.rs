//! rlvr: GRPO/RLVR fine-tuning of LLM classifiers and detectors in one native binary.
//!
//! The command `rlvr` is the usual way in. From Rust a run is a config, a directory and who is told:
//!
//! ```no_run
//! # fn main() -> rlvr::error::Result<()> {
//! use rlvr::{config::Config, observe::{Progress, Sinks}, run::RunDirectory, train::launch};
//!
//! let config = Config::load("demo", &["grpo.steps=20".into()])?;
//! let run = RunDirectory::create_numbered(&config.run.root, "mine")?;
//! let mut sinks = Sinks::default();
//! sinks.add(Progress::new());
//! let model = launch::start(&config.into(), &run, sinks)?; // the folder of the final model
//! # Ok(())
//! # }
//! ```
//!
//! A step is `train::grpo`, what is trained `train::learner::Learner`; `examples/train.rs` is this program.
//!
//! Rooms import downward only; see `docs/design.md` for the floors and `tests/suite/layering.rs` for the check.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable, clippy::todo)
)]

pub mod ablate;
pub mod algo;
pub mod bench;
pub mod check;
pub mod cli;
pub mod config;
pub mod data;
pub mod disk;
pub mod dist;
pub mod error;
pub mod eval;
pub mod export;
pub mod formats;
pub mod hub;
pub mod init;
pub mod mirror;
pub mod model;
pub mod net;
pub mod observe;
pub mod ops;
pub mod optim;
pub mod pack;
pub mod plan;
pub mod report;
pub mod reward;
pub mod rng;
pub mod rollout;
pub mod run;
pub mod stop;
pub mod task;
pub mod text;
pub mod trail;
pub mod train;
pub mod types;

/// Seeds of tests, as in the integration tests.
#[cfg(test)]
#[path = "../tests/suite/support/seed.rs"]
mod seed;
