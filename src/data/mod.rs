//! Data rows: reading, checking, ordering, and making synthetic ones.

pub mod account;
pub mod check;
pub mod coverage;
pub mod difficulty;
pub mod held_out;
pub mod jsonl;
mod judged;
pub mod limits;
pub mod lines;
pub mod near;
pub mod order;
pub mod overlap;
pub mod predictions;
pub mod preview;
pub mod raw;
mod recorded;
pub mod split;
mod surrogates;
pub mod synthetic;
pub mod told;
pub mod unlabelled;

pub use jsonl::{Dataset, EncodedRow, Source};
pub use limits::{Limits, Targets};
