//! cuBLASLt: descriptors, the library's choice of an algorithm for each shape, and its workspace.
//!
//! # Why this is sound
//! Addresses come from live tensors of the device (`launch::Rows`), whose shapes, strides and types `gemm` has checked;
//! memory is freed behind the product in the same stream. Descriptors live as long as the process. alpha and beta are
//! host floats, as the descriptor's default pointer mode and its f32 scale type ask for; with beta = 0 `c` is not read.
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::cublas::{result as cublas_result, sys as cublas};
use candle_core::cuda_backend::cudarc::cublaslt::result::{self, CublasError};
use candle_core::cuda_backend::cudarc::cublaslt::sys;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, DevicePtr};
use candle_core::{CudaDevice, DType};

use super::launch::Rows;
use crate::error::Result;
use crate::ops::fault::fault;

/// What NVIDIA asks for on Hopper.
const WORKSPACE_BYTES: usize = 32 << 20;
/// Alignment beyond which no algorithm asks for more.
const ALIGNMENT: u64 = 256;

/// A row-major matrix as it lies in memory, and whether the product reads its transpose.
#[derive(Clone, Copy)]
pub struct Operand {
    pub rows: Rows,
    pub transposed: bool,
}

/// `d [m, n] = scale a [m, k] b [k, n] + c + bias`, all checked.
pub struct Product {
    /// m, n, k
    pub sizes: [usize; 3],
    pub scale: f32,
    pub a: Operand,
    pub b: Operand,
    pub c: Option<Rows>,
    pub bias: Option<Rows>,
    pub d: Rows,
    pub operands: DType,
    pub result: DType,
}

/// All that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: DeviceId,
    sizes: [usize; 3],
    strides: [usize; 4],
    transposed: [bool; 2],
    /// Of a, b, c, d, in bytes.
    aligned: [u32; 4],
    adds: bool,
    bias: bool,
    bf16: [bool; 2],
}

/// Descriptors of one shape, and the algorithm.
struct Plan {
    description: sys::cublasLtMatmulDesc_t,
    /// Of a, b, c and d as the library sees them.
    layouts: [sys::cublasLtMatrixLayout_t; 4],
    algorithm: sys::cublasLtMatmulAlgo_t,
}

struct Library {
    handle: sys::cublasLtHandle_t,
    workspaces: HashMap<DeviceId, CudaSlice<u8>>,
    /// `None` of a shape that the library has no algorithm for.
    plans: HashMap<Key, Option<Plan>>,
}

// SAFETY: handle and descriptors are host structures of the library, which allows their use from any thread; the
// mutex around the one `Library` keeps it to one at a time.
unsafe impl Send for Library {}

fn library() -> Result<MutexGuard<'static, Library>> {
    static LIBRARY: OnceLock<std::result::Result<Mutex<Library>, CublasError>> = OnceLock::new();
    let made = LIBRARY.get_or_init(|| {
        let handle = result::create_handle()?;
        Ok(Mutex::new(Library { handle, workspaces: HashMap::new(), plans: HashMap::new() }))
    });
    let library = made.as_ref().map_err(|e| fault(format!("cuBLASLt cannot be set up: {e}")))?;
    // A panic elsewhere leaves the maps whole: each insert is the last step.
    Ok(library.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Gives the device its workspace, and cuBLAS its precision, once.
pub fn prepare(device: &CudaDevice) -> Result<()> {
    let exact = cublas::cublasMath_t::CUBLAS_MATH_DISALLOW_REDUCED_PRECISION_REDUCTION;
    // SAFETY: the handle lives as long as the device.
    unsafe { cublas::cublasSetMathMode(*device.cublas_handle().handle(), exact) }
        .result()
        .map_err(|e| fault(format!("cuBLAS cannot be set up: {e}")))?;
    let workspace = device.alloc_zeros::<u8>(WORKSPACE_BYTES);
    let workspace = workspace.map_err(|e| fault(format!("cuBLASLt's workspace: {e}")))?;
    library()?.workspaces.entry(device.id()).or_insert(workspace);
    Ok(())
}

/// 10,000 major + 100 minor + patch.
pub fn library_version(_: &CudaDevice) -> Result<u32> {
    // SAFETY: no argument and no state.
    Ok(unsafe { sys::cublasLtGetVersion() } as u32)
}

/// Puts the product into the device's stream; false where the library has no algorithm for it.
///
/// # Errors
/// What the library says.
pub fn run(device: &CudaDevice, product: &Product) -> std::result::Result<bool, String> {
    let said = |e: CublasError| format!("cuBLASLt: {e}");
    let mut library = library().map_err(|e| e.to_string())?;
    let key = product.key(device.id());
    if !library.plans.contains_key(&key) {
        let plan = match Plan::new(library.handle, product, &key) {
            Err(CublasError(sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED)) => None,
            made => Some(made.map_err(said)?),
        };
        library.plans.insert(key, plan);
    }
    let Library { handle, workspaces, plans } = &*library;
    let Some(plan) = plans.get(&key).and_then(Option::as_ref) else { return Ok(false) };
    let Some(workspace) = workspaces.get(&device.id()) else {
        return Err("the device was not opened by ops::cuda::device".into());
    };
    let stream = device.cuda_stream();
    stream.context().bind_to_thread().map_err(|e| e.to_string())?;
    let (workspace, _) = workspace.device_ptr(&stream);
    let (alpha, beta) = (product.scale, if product.c.is_some() { 1f32 } else { 0f32 });
    let c = product.c.unwrap_or(product.d);
    let [a_layout, b_layout, c_layout, d_layout] = plan.layouts;
    // SAFETY: see the head of this file.
    unsafe {
        if let Some(bias) = &product.bias {
            set(
                plan.description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                &bias.address,
            )
            .map_err(said)?;
        }
        result::matmul(
            *handle,
            plan.description,
            (&raw const alpha).cast(),
            (&raw const beta).cast(),
            // The library stores columns one after the other, so it sees each matrix transposed, and D^T = B^T A^T.
            product.b.rows.address as *const c_void,
            a_layout,
            product.a.rows.address as *const c_void,
            b_layout,
            c.address as *const c_void,
            c_layout,
            product.d.address as *mut c_void,
            d_layout,
            &raw const plan.algorithm,
            workspace as *mut c_void,
            WORKSPACE_BYTES,
            stream.cu_stream().cast(),
        )
    }
    .map_err(said)?;
    Ok(true)
}

/// The product by cuBLAS, which has a kernel for matrices of any alignment: `d = scale a b`, or added to `d` where there
/// is a `c`.
///
/// # Errors
/// What the library says.
pub fn plain(device: &CudaDevice, product: &Product) -> std::result::Result<(), String> {
    let int = |v: usize| i32::try_from(v).map_err(|_| "a dimension is above 2^31 - 1".to_string());
    let [m, n, k] = product.sizes;
    let (m, n, k) = (int(m)?, int(n)?, int(k)?);
    let (alpha, beta) = (product.scale, if product.c.is_some() { 1f32 } else { 0f32 });
    let kind = |dtype: DType| match dtype {
        DType::BF16 => cublas::cudaDataType::CUDA_R_16BF,
        _ => cublas::cudaDataType::CUDA_R_32F,
    };
    let operation = |transposed: bool| match transposed {
        true => cublas::cublasOperation_t::CUBLAS_OP_T,
        false => cublas::cublasOperation_t::CUBLAS_OP_N,
    };
    device.cuda_stream().context().bind_to_thread().map_err(|e| e.to_string())?;
    // SAFETY: see the head of this file; the handle's pointer mode is never changed.
    unsafe {
        cublas_result::gemm_ex(
            *device.cublas_handle().handle(),
            operation(product.b.transposed),
            operation(product.a.transposed),
            n,
            m,
            k,
            (&raw const alpha).cast(),
            product.b.rows.address as *const c_void,
            kind(product.operands),
            int(product.b.rows.stride)?,
            product.a.rows.address as *const c_void,
            kind(product.operands),
            int(product.a.rows.stride)?,
            (&raw const beta).cast(),
            product.d.address as *mut c_void,
            kind(product.result),
            int(product.d.stride)?,
            cublas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| format!("cuBLAS: {e}"))
}

impl Product {
    fn key(&self, device: DeviceId) -> Key {
        let c = self.c.unwrap_or(self.d);
        let aligned = |rows: &Rows| (1u64 << rows.address.trailing_zeros().min(8)).min(ALIGNMENT) as u32;
        Key {
            device,
            sizes: self.sizes,
            strides: [self.a.rows.stride, self.b.rows.stride, c.stride, self.d.stride],
            transposed: [self.a.transposed, self.b.transposed],
            aligned: [aligned(&self.a.rows), aligned(&self.b.rows), aligned(&c), aligned(&self.d)],
            adds: self.c.is_some(),
            bias: self.bias.is_some(),
            bf16: [self.operands == DType::BF16, self.result == DType::BF16],
        }
    }
}

fn kind(bf16: bool) -> sys::cudaDataType {
    if bf16 { sys::cudaDataType::CUDA_R_16BF } else { sys::cudaDataType::CUDA_R_32F }
}

/// # Safety
/// `value` is of the type that the attribute has.
unsafe fn set<T>(
    description: sys::cublasLtMatmulDesc_t,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: &T,
) -> std::result::Result<(), CublasError> {
    // SAFETY: a live descriptor; the size is the value's.
    unsafe {
        result::set_matmul_desc_attribute(description, attribute, (&raw const *value).cast(), size_of::<T>())
    }
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        product: &Product,
        key: &Key,
    ) -> std::result::Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Description;
        use sys::cublasLtMatmulPreferenceAttributes_t as Preference;
        let ([m, n, k], [operands, result_type]) = (product.sizes, key.bf16.map(kind));
        let f32_sums = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
        let description = result::create_matmul_desc(f32_sums, sys::cudaDataType::CUDA_R_32F)?;
        let operation = |transposed: bool| match transposed {
            true => cublas::cublasOperation_t::CUBLAS_OP_T,
            false => cublas::cublasOperation_t::CUBLAS_OP_N,
        };
        // SAFETY: a live descriptor, and values of the attributes' types.
        unsafe {
            set(description, Description::CUBLASLT_MATMUL_DESC_TRANSA, &operation(product.b.transposed))?;
            set(description, Description::CUBLASLT_MATMUL_DESC_TRANSB, &operation(product.a.transposed))?;
            if key.bias {
                let epilogue = sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS;
                set(description, Description::CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue)?;
            }
            if let Some(bias) = &product.bias {
                set(description, Description::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias.address)?;
            }
        }
        // A row-major [rows, columns] is the library's [columns, rows].
        let stored = |operand: &Operand, rows: usize, columns: usize| {
            let (rows, columns) = if operand.transposed { (columns, rows) } else { (rows, columns) };
            result::create_matrix_layout(operands, columns as u64, rows as u64, operand.rows.stride as i64)
        };
        let written =
            |rows: &Rows| result::create_matrix_layout(result_type, n as u64, m as u64, rows.stride as i64);
        let layouts = [
            stored(&product.b, k, n)?,
            stored(&product.a, m, k)?,
            written(&product.c.unwrap_or(product.d))?,
            written(&product.d)?,
        ];
        let preference = result::create_matmul_pref()?;
        let [a, b, c, d] = key.aligned;
        let reduction = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        // SAFETY: live descriptors; the workspace is a u64, the others are u32.
        let found = unsafe {
            let prefer = |attribute, value: *const c_void, bytes| {
                result::set_matmul_pref_attribute(preference, attribute, value, bytes)
            };
            let workspace = WORKSPACE_BYTES;
            prefer(Preference::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (&raw const workspace).cast(), 8)?;
            for (attribute, value) in [
                (Preference::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, reduction),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
                (Preference::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
            ] {
                prefer(attribute, (&raw const value).cast(), 4)?;
            }
            let [a, b, c, d] = layouts;
            let found = result::get_matmul_algo_heuristic(handle, description, a, b, c, d, preference);
            result::destroy_matmul_pref(preference)?;
            found?
        };
        Ok(Self { description, layouts, algorithm: found.algo })
    }
}
