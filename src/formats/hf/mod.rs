//! A model as a folder in Hugging Face layout: config.json, safetensors, and the files that travel with them.

mod companions;
pub mod config_json;
mod fields;
pub mod folder;
mod rope_json;
mod shards;
pub mod tokenizer_json;
pub mod weights;

pub use companions::{Companions, generation_config};
pub use folder::load_decoder;
