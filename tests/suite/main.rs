//! All integration tests, in one binary: each module states facts about one contract of docs/design.md.

mod golden;
mod model_parity;
mod ops;
mod shared_prefix;
