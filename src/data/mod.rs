//! Data rows: reading, checking, ordering, and making synthetic ones.

pub mod check;
pub mod jsonl;
pub mod order;
pub mod predictions;
mod recorded;
pub mod synthetic;

pub use jsonl::{Dataset, EncodedRow, Limits, Source, Targets};
