//! From rewards to the gradient of the log-probabilities: numbers only, no tensors.

pub mod advantage;
pub mod enumerate;
pub mod gdpo;
pub mod importance;
pub mod kl;
pub mod leave_one_out;
pub mod loss;
pub mod overlong;
