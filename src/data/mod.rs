//! Data rows: reading, checking, ordering, and making synthetic ones.

pub mod check;
pub mod difficulty;
pub mod jsonl;
pub mod order;
pub mod predictions;
pub mod preview;
pub mod raw;
mod recorded;
pub mod synthetic;
pub mod unlabelled;

pub use jsonl::{Dataset, EncodedRow, Limits, Source, Targets};
