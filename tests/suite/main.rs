//! All integration tests, in one binary: each module states facts about one contract of docs/design.md.

mod adamw;
mod bad_input;
mod configs;
#[cfg(feature = "cuda")]
mod cuda_attention;
#[cfg(feature = "cuda")]
mod cuda_twin;
mod golden;
mod import;
mod kernels;
mod kernels_attention;
mod kernels_decode;
mod layering;
mod losses;
mod model_parity;
mod ops;
mod parity_fixture;
mod shared_prefix;
mod shim;
mod smollm2;
mod training;
mod weights;
