//! All integration tests, in one binary: each module states facts about one contract of docs/design.md.

mod adamw;
mod bad_input;
mod configs;
mod doctor;
mod golden;
mod import;
mod kernels;
mod layering;
mod losses;
mod model_parity;
mod ops;
mod parity_fixture;
mod shared_prefix;
mod smollm2;
mod training;
mod weights;
