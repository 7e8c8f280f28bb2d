//! Timed work: a GRPO step by phase, every op alone beside what the machine can do at best, weights from disk.

pub mod load;
pub mod ops;
pub mod step;
pub mod timing;
