//! The decoder and its files: configuration, weights, GGUF, forward and backward, key/value cache.

pub mod adapter;
pub mod block;
pub mod config;
mod config_json;
pub mod decoder;
pub mod gguf;
pub mod gguf_header;
pub mod gguf_tokenizer;
pub mod gguf_writer;
pub mod gradients;
pub mod kv_cache;
pub mod peft;
pub mod projection;
pub mod rope_scaling;
mod shards;
pub mod tape;
pub mod weights;
