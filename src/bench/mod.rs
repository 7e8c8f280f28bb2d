//! Timed work: every op alone beside what the machine can do at best, and weights from disk.

pub mod load;
pub mod ops;
pub mod timing;
