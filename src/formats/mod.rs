//! Files of other programs, read and written: Hugging Face folders, GGUF, PEFT adapters, tiktoken ranks.

pub mod file;
pub mod gguf;
pub mod hf;
pub mod peft;
pub mod tiktoken;
mod written;

pub use written::Written;
