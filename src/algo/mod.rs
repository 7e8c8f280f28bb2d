//! From rewards to the gradient of the log-probabilities: numbers only, no tensors.

pub mod advantage;
pub mod distill;
pub mod entropy;
pub mod enumerate;
pub mod importance;
pub mod kl;
pub mod loss;
pub mod summary;
