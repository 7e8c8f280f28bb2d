//! Training: the loop over stages, what each does in a step, and what holds a run together.

mod best;
pub mod corpus;
mod divergence;
mod dump;
pub mod enumerate;
pub mod full_disk;
pub mod grpo;
mod inputs;
pub mod launch;
pub mod learner;
pub mod lora;
pub mod materials;
mod meter;
pub mod objective;
mod penalties;
pub mod place;
pub mod policy;
pub mod preflight;
mod prompts;
pub mod reference;
mod rolled;
mod room;
pub mod rows;
pub mod sft;
pub mod stages;
pub mod state;
pub mod watch;
