//! `D = A B (+ C)` on a CUDA device through cuBLASLt: bf16 or f32 operands, f32 accumulation, the same bits every run.
//!
//! Split sums stay in f32 (the only reduction scheme that is allowed), f32 operands are multiplied as f32 (no TF32).
//! The library's choice of an algorithm is asked for once a shape and kept, so that two runs of a program take the same
//! algorithm in the same order. What is added, and a bias, are read by the product itself: no pass of their own.

use candle_core::Tensor;

use crate::error::Result;
pub use crate::ops::cpu::gemm::Write;

/// A row-major matrix, or its transpose, inside a 2-D tensor whose rows are contiguous: columns of a wider one too.
#[derive(Clone, Copy)]
pub struct Mat<'a> {
    tensor: &'a Tensor,
    transposed: bool,
}

impl<'a> Mat<'a> {
    pub fn of(tensor: &'a Tensor) -> Self {
        Self { tensor, transposed: false }
    }

    pub fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }

    /// Rows and columns of the matrix as it stands in the product.
    fn dims(self) -> Result<(usize, usize)> {
        let (rows, cols) = self.tensor.dims2()?;
        Ok(if self.transposed { (cols, rows) } else { (rows, cols) })
    }
}

/// What a product does to its sum before it is rounded.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// Multiplies the product alone.
    pub scale: f32,
    /// Of the result's shape and type; the result itself to add to it in place.
    pub matrix: Option<&'a Tensor>,
    /// To every row. `[columns]`, of the result's type.
    pub bias: Option<&'a Tensor>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { scale: 1.0, matrix: None, bias: None }
    }
}

/// `c = a b` or `c += a b`, `c: [rows of a, columns of b]`, in place. `a` and `b` are both bf16 or both f32; `c` is of
/// their type, or f32. Sums are in f32 and rounded once, when written.
///
/// # Errors
/// When shapes or types do not agree, rows are not contiguous or on another device, or cuBLASLt fails.
pub fn gemm(a: Mat, b: Mat, c: &Tensor, write: Write) -> Result<()> {
    let matrix = (write == Write::Accumulate).then_some(c);
    gemm_with(a, b, Epilogue { matrix, ..Epilogue::default() }, c)
}

/// `d = scale a b + matrix + bias`, as [`gemm()`].
///
/// # Errors
/// As there.
pub fn gemm_with(a: Mat, b: Mat, epilogue: Epilogue, d: &Tensor) -> Result<()> {
    backend::gemm(a, b, epilogue, d)
}

#[cfg(feature = "cuda")]
pub(super) use self::backend::{library_version, prepare};

#[cfg(not(feature = "cuda"))]
mod backend {
    use super::{Epilogue, Mat};
    use crate::error::Result;
    use candle_core::Tensor;

    pub fn gemm(a: Mat, b: Mat, epilogue: Epilogue, _: &Tensor) -> Result<()> {
        a.dims().and(b.dims())?;
        let _ = (epilogue.scale, epilogue.matrix, epilogue.bias);
        crate::ops::cuda::absent::absent()
    }
}

#[cfg(feature = "cuda")]
mod backend {
    use candle_core::{CudaDevice, DType, Tensor};

    use super::{Epilogue, Mat};
    use crate::error::Result;
    use crate::ops::cuda::blas::{self, Operand, Product};
    pub use crate::ops::cuda::blas::{library_version, prepare};
    use crate::ops::cuda::launch::{Rows, copy_into, cuda, zero};
    use crate::ops::fault::fault;

    pub fn gemm(a: Mat, b: Mat, epilogue: Epilogue, d: &Tensor) -> Result<()> {
        let ((m, k), (inner, n)) = (a.dims()?, b.dims()?);
        let types = [a.tensor.dtype(), b.tensor.dtype(), d.dtype()];
        let wrong = |what: &str| {
            fault(format!("gemm [{m}, {k}] x [{inner}, {n}] -> {:?} of {types:?}: {what}", d.shape().dims()))
        };
        if k != inner || d.dims2()? != (m, n) {
            return Err(wrong("the shapes do not fit together"));
        }
        if !matches!(
            types,
            [DType::BF16, DType::BF16, DType::BF16 | DType::F32] | [DType::F32, DType::F32, DType::F32]
        ) {
            return Err(wrong("operands must be both bf16 or both f32, the result of their type or f32"));
        }
        let Epilogue { scale, matrix, bias } = epilogue;
        if matrix.is_some_and(|c| c.dims() != d.dims() || c.dtype() != d.dtype())
            || bias.is_some_and(|bias| bias.dims() != [n] || bias.dtype() != d.dtype())
        {
            return Err(wrong("what is added is not of the result's shape and type"));
        }
        if m == 0 || n == 0 {
            return Ok(());
        }
        let device = cuda(d.device())?;
        if k == 0 {
            return match (matrix, bias) {
                (None, None) => zero(d),
                (Some(c), None) if same_memory(c, d, device)? => Ok(()),
                _ => Err(wrong("a sum over nothing")),
            };
        }
        let rows = |tensor: &Tensor| Rows::of(tensor, device);
        let operand = |matrix: Mat| -> Result<Operand> {
            Ok(Operand { rows: rows(matrix.tensor)?, transposed: matrix.transposed })
        };
        let product = Product {
            sizes: [m, n, k],
            scale,
            a: operand(a)?,
            b: operand(b)?,
            c: matrix.map(rows).transpose()?,
            bias: bias.map(|bias| rows(&bias.reshape((1, n))?)).transpose()?,
            d: rows(d)?,
            operands: types[0],
            result: types[2],
        };
        if blas::run(device, &product).map_err(|e| wrong(&e))? {
            return Ok(());
        }
        if bias.is_some() {
            return Err(wrong("cuBLASLt has no algorithm that adds a bias to it"));
        }
        if let Some(c) = matrix
            && !same_memory(c, d, device)?
        {
            copy_into(c, d)?;
        }
        blas::plain(device, &product).map_err(|e| wrong(&e))
    }

    fn same_memory(a: &Tensor, b: &Tensor, device: &CudaDevice) -> Result<bool> {
        Ok(Rows::of(a, device)?.address == Rows::of(b, device)?.address)
    }
}
