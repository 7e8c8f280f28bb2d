//! What ops on the CPU are built of: loops for the processor at hand, matrix products, and the elements of tensors.

pub mod few_rows;
pub mod gemm;
pub mod simd;
pub(super) mod widened;
