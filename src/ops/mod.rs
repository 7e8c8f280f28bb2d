//! The operations a decoder is made of: each a forward and a backward function on tensors, one folder an op.
//!
//! `<op>/mod.rs` is the contract: shapes, types, errors, and the choice between `cpu.rs`, the loops, and `cuda.rs`,
//! the kernels' launches. What these are built of is in [`cpu`] and [`cuda`], which know no op.
//!
//! Ops know segments and rows, no language model and no config. Tensors are f32 or bf16. In bf16 on the CPU an op
//! widens what it reads, computes in f32 and rounds its result once. Operands are contiguous (views with an offset are
//! fine). Backward functions are explicit instead of candle's autograd: see `docs/design.md`.
//!
//! Shape suffixes: `n` tokens (rows), `h` hidden, `o` output features, `v` vocabulary, `r` target rows.

pub mod adamw;
pub mod attention;
pub mod cpu;
pub mod cuda;
pub mod decode_attention;
pub mod elementwise;
pub mod embedding;
mod fault;
pub mod indices;
pub mod linear;
pub mod memory;
pub mod rms_norm;
pub mod rope;
pub mod sampling;
pub mod swiglu;
pub mod token_logprob;
