//! rlvr: GRPO/RLVR fine-tuning of LLM classifiers and detectors in one native binary.
//!
//! Rooms import downward only; see `docs/design.md` for the floors and `tests/suite/layering.rs` for the check.
#![deny(unsafe_code)]

pub mod algo;
pub mod check;
pub mod cli;
pub mod config;
pub mod data;
pub mod error;
pub mod eval;
pub mod export;
pub mod formats;
pub mod hub;
pub mod model;
pub mod observe;
pub mod ops;
pub mod optim;
pub mod pack;
pub mod plan;
pub mod report;
pub mod rng;
pub mod rollout;
pub mod run;
pub mod task;
pub mod text;
pub mod train;
pub mod types;
