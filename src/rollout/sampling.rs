//! From logits to tokens: see [`crate::ops::sampling`].

pub use crate::ops::sampling::{Sampled, sample_row as sample};
