//! Sampling groups of completions and judging them: one prefill a prompt, all completions decoded together.

pub mod engine;
pub mod judge;
mod sampling;
pub mod tapes;
