//! Sampling groups of completions: one prefill a prompt, all completions decoded together.

pub mod engine;
mod sampling;
