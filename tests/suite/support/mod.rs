//! What several modules of tests share; they import nothing from each other.

pub mod adapters;
pub mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod entries;
pub mod fault_proxy;
pub mod golden;
pub mod hub_place;
pub mod hub_server;
pub mod judges;
pub mod losses;
pub mod made;
pub mod models;
pub mod parity_fixture;
pub mod preload;
pub mod ranks;
pub mod reward_server;
pub mod room;
pub mod runs;
pub mod s3_server;
pub mod seed;
pub mod shim;
pub mod small;
pub mod source;
pub mod tensors;
pub mod wire;

use std::path::Path;

/// The project's root.
pub fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
