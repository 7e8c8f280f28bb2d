//! The stages of a run: SFT, GRPO, and what holds them together.

pub mod enumerate;
pub mod grpo;
pub mod kl_reward;
pub mod lora;
pub mod materials;
pub mod place;
pub mod policy;
pub mod session;
pub mod sft;
pub mod state;
pub mod step;
pub mod watch;
