//! What several modules of tests share.

pub mod seed;
