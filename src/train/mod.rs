//! The stages of a run.

pub mod step;
