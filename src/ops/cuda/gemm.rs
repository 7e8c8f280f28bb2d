//! `C (+)= A B` on a CUDA device through cuBLAS: bf16 or f32 operands, f32 accumulation, the same bits every run.
//!
//! Split sums stay in f32 (no reduced-precision reduction), f32 operands are multiplied as f32 (no TF32), and the
//! workspace is the handle's own, so that two runs of a program take the same algorithm in the same order.

use candle_core::Tensor;

use crate::error::Result;
pub use crate::ops::cpu::gemm::Write;

/// A row-major matrix, or its transpose, inside a contiguous 2-D tensor.
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

/// `c = a b` or `c += a b`, `c: [rows of a, columns of b]`, contiguous, in place. `a` and `b` are both bf16 or both
/// f32; `c` is of their type, or f32. Sums are in f32 and rounded once, when written.
///
/// # Errors
/// When shapes or types do not agree, a tensor is not contiguous or on another device, or cuBLAS fails.
pub fn gemm(a: Mat, b: Mat, c: &Tensor, write: Write) -> Result<()> {
    backend::gemm(a, b, c, write)
}

#[cfg(feature = "cuda")]
pub(super) use self::backend::{library_version, prepare};

#[cfg(not(feature = "cuda"))]
mod backend {
    use super::{Mat, Write};
    use crate::error::Result;
    use candle_core::Tensor;

    pub fn gemm(a: Mat, b: Mat, _: &Tensor, _: Write) -> Result<()> {
        a.dims().and(b.dims())?;
        crate::ops::cuda::absent::absent()
    }
}

#[cfg(feature = "cuda")]
#[allow(unsafe_code)]
mod backend {
    use std::collections::HashMap;
    use std::ffi::c_void;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use candle_core::cuda_backend::DeviceId;
    use candle_core::cuda_backend::cudarc::cublas::{result, sys};
    use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
    use candle_core::{CudaDevice, DType, Tensor};

    use super::{Mat, Write};
    use crate::error::Result;
    use crate::ops::cuda::launch::{address, cuda, zero};
    use crate::ops::fault::fault;

    /// What NVIDIA asks for on Hopper.
    const WORKSPACE_BYTES: usize = 32 << 20;

    pub fn gemm(a: Mat, b: Mat, c: &Tensor, write: Write) -> Result<()> {
        let ((m, k), (inner, n)) = (a.dims()?, b.dims()?);
        let types = [a.tensor.dtype(), b.tensor.dtype(), c.dtype()];
        let wrong = |what: &str| {
            fault(format!("gemm [{m}, {k}] x [{inner}, {n}] -> {:?} of {types:?}: {what}", c.shape().dims()))
        };
        if k != inner || c.dims2()? != (m, n) {
            return Err(wrong("the shapes do not fit together"));
        }
        let (operand, sum) = match types {
            [DType::BF16, DType::BF16, DType::BF16] => {
                (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_16BF)
            }
            [DType::BF16, DType::BF16, DType::F32] => {
                (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F)
            }
            [DType::F32, DType::F32, DType::F32] => {
                (sys::cudaDataType::CUDA_R_32F, sys::cudaDataType::CUDA_R_32F)
            }
            _ => {
                return Err(wrong("operands must be both bf16 or both f32, the result of their type or f32"));
            }
        };
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            return if write == Write::Overwrite { zero(c) } else { Ok(()) };
        }
        let device = cuda(c.device())?;
        let (at_a, at_b) = (address(a.tensor, device)?, address(b.tensor, device)?);
        let at_c = address(c, device)?;
        let int = |v: usize| i32::try_from(v).map_err(|_| wrong("a dimension is above 2^31 - 1"));
        let (m, n, k) = (int(m)?, int(n)?, int(k)?);
        let (stride_a, stride_b) = (int(a.tensor.dim(1)?)?, int(b.tensor.dim(1)?)?);
        let (alpha, beta) = (1f32, if write == Write::Accumulate { 1f32 } else { 0f32 });
        let blas = device.cublas_handle();
        device.cuda_stream().context().bind_to_thread().map_err(|e| fault(e.to_string()))?;
        // cuBLAS stores columns one after the other, so it sees each matrix transposed, and C^T = B^T A^T.
        // SAFETY: all three are contiguous tensors of this device, alive during the call, and freed behind the
        // product in the same stream; shapes, strides and types were checked above. With beta = 0 the old `c`
        // is not read. alpha and beta are host floats, as the handle's pointer mode (never changed) and the
        // compute type ask for.
        unsafe {
            result::gemm_ex(
                *blas.handle(),
                operation(b),
                operation(a),
                n,
                m,
                k,
                (&raw const alpha).cast(),
                at_b as *const c_void,
                operand,
                stride_b,
                at_a as *const c_void,
                operand,
                stride_a,
                (&raw const beta).cast(),
                at_c as *mut c_void,
                sum,
                n,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| wrong(&format!("cuBLAS: {e}")))
    }

    fn operation(matrix: Mat) -> sys::cublasOperation_t {
        if matrix.transposed {
            sys::cublasOperation_t::CUBLAS_OP_T
        } else {
            sys::cublasOperation_t::CUBLAS_OP_N
        }
    }

    /// Gives the device's handle its workspace and its precision, once.
    pub fn prepare(device: &CudaDevice) -> Result<()> {
        static WORKSPACES: OnceLock<Mutex<HashMap<DeviceId, CudaSlice<u8>>>> = OnceLock::new();
        let failed = |e: &dyn std::fmt::Display| fault(format!("cuBLAS cannot be set up: {e}"));
        let blas = device.cublas_handle();
        let stream = device.cuda_stream();
        let workspace = device.alloc_zeros::<u8>(WORKSPACE_BYTES).map_err(|e| failed(&e))?;
        let (at, _) = workspace.device_ptr(&stream);
        // SAFETY: the handle lives as long as the device. The workspace is kept for the life of the process, and
        // used in the stream that it was allocated in.
        unsafe {
            sys::cublasSetWorkspace_v2(*blas.handle(), at as *mut c_void, WORKSPACE_BYTES)
                .result()
                .map_err(|e| failed(&e))?;
            sys::cublasSetMathMode(
                *blas.handle(),
                sys::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION,
            )
            .result()
            .map_err(|e| failed(&e))?;
        }
        let workspaces = WORKSPACES.get_or_init(Mutex::default);
        workspaces.lock().unwrap_or_else(PoisonError::into_inner).insert(device.id(), workspace);
        Ok(())
    }

    /// 10,000 major + 100 minor + patch.
    pub fn library_version(device: &CudaDevice) -> Result<u32> {
        let mut version = 0;
        // SAFETY: a live handle; writes one int.
        unsafe { sys::cublasGetVersion_v2(*device.cublas_handle().handle(), &mut version) }
            .result()
            .map_err(|e| fault(format!("cuBLAS does not tell its version: {e}")))?;
        Ok(version as u32)
    }
}
