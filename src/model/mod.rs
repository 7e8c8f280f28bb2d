//! The decoder: configuration, forward and backward, adapters, key/value cache.

pub mod adapter;
mod attach;
pub mod block;
pub mod config;
pub mod decoder;
pub mod forward;
pub mod gradients;
mod joined;
pub mod keep;
pub mod kv_cache;
pub mod projection;
pub mod rope_scaling;
pub mod tape;
