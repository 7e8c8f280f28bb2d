//! From gradients to new weights: global-norm clip, schedule, AdamW.

pub mod adamw;
pub mod schedule;
