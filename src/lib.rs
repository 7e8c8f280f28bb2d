//! rlvr: GRPO/RLVR fine-tuning of LLM classifiers and detectors in one native binary.
//!
//! Rooms import downward only; see `docs/design.md` for the floors and `tests/suite/layering.rs` for the check.
#![deny(unsafe_code)]

pub mod config {
    pub mod sampling;
}
pub mod error;
pub mod model;
pub mod ops;
pub mod pack;
pub mod rng;
pub mod rollout;
pub mod task;
pub mod types;
pub mod cli {
    pub fn main() -> std::process::ExitCode {
        std::process::ExitCode::SUCCESS
    }
}
