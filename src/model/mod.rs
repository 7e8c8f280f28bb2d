//! The decoder and its files: configuration, weights, forward and backward, key/value cache.

pub mod block;
pub mod config;
mod config_json;
pub mod decoder;
pub mod kv_cache;
pub mod weights;
