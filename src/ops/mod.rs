//! The operations a decoder is made of: each a forward and a backward function on tensors, one file an op.
//!
//! They know segments and rows, no language model. Tensors are f32 or bf16; on a CUDA device each function calls its
//! namesake in [`cuda`]. In bf16 on the CPU an op widens what it reads, computes in f32 and rounds its result once.
//! Tensors must be contiguous (views with an offset are fine). Backward functions are explicit instead of candle's
//! autograd: see `docs/design.md`.
//!
//! Shape suffixes: `n` tokens (rows), `h` hidden, `o` output features, `v` vocabulary, `r` target rows.

pub mod adamw;
pub mod attention;
pub mod blockwise;
pub mod cpu;
pub mod cuda;
pub mod decode_attention;
pub mod embedding;
pub mod gemm;
pub mod indices;
pub mod linear;
pub mod memory;
pub mod rms_norm;
pub mod rope;
pub mod sampling;
pub mod simd;
pub mod swiglu;
pub mod token_logprob;
mod widened;

use candle_core::{CpuStorage, Layout, Tensor};

pub use self::widened::View;
use self::widened::{cpu_range, slice, slice_mut, tensor, tensor_as};
use crate::error::{Error, Result};

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // candle appends a backtrace over many lines; the first says what happened.
        let text = error.to_string();
        Self::Compute(text.lines().next().unwrap_or("unknown candle error").to_string().into())
    }
}

/// Adds `term` to `sum` in place; same shape.
pub fn add_assign(sum: &Tensor, term: &Tensor) -> Result<()> {
    if cuda::on(sum) {
        return cuda::elementwise::add_assign(sum, term);
    }
    struct AddAssign;
    impl candle_core::InplaceOp2 for AddAssign {
        fn name(&self) -> &'static str {
            "add-assign"
        }
        fn cpu_fwd(
            &self,
            sum: &mut CpuStorage,
            l_sum: &Layout,
            term: &CpuStorage,
            l_term: &Layout,
        ) -> candle_core::Result<()> {
            use rayon::prelude::*;
            let (mut sum, term) = (slice_mut(sum, l_sum)?, slice(term, l_term)?);
            sum.par_chunks_mut(1 << 14).zip(term.par_chunks(1 << 14)).for_each(|(sum, term)| {
                sum.iter_mut().zip(term).for_each(|(s, t)| *s += t);
            });
            Ok(())
        }
    }
    Ok(sum.inplace_op2(term, &AddAssign)?)
}

/// Multiplies every element by `factor`, in place; f32.
pub fn scale(values: &Tensor, factor: f32) -> Result<()> {
    if cuda::on(values) {
        return cuda::elementwise::scale(values, factor);
    }
    struct Scale(f32);
    impl candle_core::InplaceOp1 for Scale {
        fn name(&self) -> &'static str {
            "scale"
        }
        fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            slice_mut(values, layout)?.iter_mut().for_each(|x| *x *= self.0);
            Ok(())
        }
    }
    Ok(values.inplace_op1(&Scale(factor))?)
}

/// Sets every element to zero, in place.
pub fn zero(values: &Tensor) -> Result<()> {
    if cuda::on(values) {
        return cuda::zero(values);
    }
    struct Zero;
    impl candle_core::InplaceOp1 for Zero {
        fn name(&self) -> &'static str {
            "zero"
        }
        fn cpu_fwd(&self, values: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            use rayon::prelude::*;
            slice_mut(values, layout)?.par_chunks_mut(1 << 16).for_each(|chunk| chunk.fill(0.0));
            Ok(())
        }
    }
    Ok(values.inplace_op1(&Zero)?)
}

/// Sum of the squares of all tensors together, in f64 and a fixed order; NaN or infinity in the input shows in the
/// result. A device is waited for once.
pub fn sum_squares(tensors: &[&Tensor]) -> Result<f64> {
    use rayon::prelude::*;
    if tensors.first().is_some_and(|first| cuda::on(first)) {
        return cuda::elementwise::sum_squares(tensors);
    }
    let mut sum = 0.0;
    for values in tensors {
        let view = View::new(values)?;
        let partial: Vec<f64> = view
            .par_chunks(1 << 14)
            .map(|chunk| f64::from(simd::vectorize!(simd::dot(chunk, chunk))))
            .collect();
        sum += partial.iter().sum::<f64>();
    }
    Ok(sum)
}
