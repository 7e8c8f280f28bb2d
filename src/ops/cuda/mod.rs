//! The ops on a CUDA device: one file an op, with the names, arguments and results of the CPU twin in `src/ops/`.
//!
//! Everything here is compiled in every build, so that launch code is type-checked everywhere; what calls the
//! driver is behind the feature `cuda`, and without it `absent.rs` stands in its place and returns an error.
//!
//! All work goes to the device's one stream, in program order. No op waits for the device, except where a result
//! is read. Memory comes from the device's pool: a freed tensor's memory is reused in stream order.

pub mod gemm;
pub mod linear;

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod device;
#[cfg(feature = "cuda")]
mod launch;

use candle_core::{Device, Tensor};

#[cfg(not(feature = "cuda"))]
pub use absent::{
    Launch, Timer, describe, device, duplicate, memory_in_use, memory_peak, multiprocessors,
    reset_memory_peak, synchronize, uninit, zero,
};
#[cfg(feature = "cuda")]
pub use device::{
    Timer, describe, device, memory_in_use, memory_peak, multiprocessors, reset_memory_peak, synchronize,
};
#[cfg(feature = "cuda")]
pub use launch::{Launch, duplicate, uninit, zero};

use crate::error::{Error, Result};

/// Whether the tensor lives on a CUDA device.
pub fn on(tensor: &Tensor) -> bool {
    tensor.device().is_cuda()
}

/// `values` as a u32 tensor `[len]` on `device`.
///
/// # Errors
/// When the device has no memory left or is lost.
pub fn upload(values: &[u32], device: &Device) -> Result<Tensor> {
    if values.is_empty() && device.is_cuda() {
        return uninit(device, 0, candle_core::DType::U32); // a driver copies no empty arrays
    }
    Ok(Tensor::from_slice(values, values.len(), device)?)
}

/// How many blocks of how many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// `gridDim`: x up to 2^31 - 1, y and z up to 65,535. Any zero: nothing is launched.
    pub blocks: [u32; 3],
    /// `blockDim.x`, 1 to 1,024.
    pub threads: u32,
    /// Dynamic shared memory a block, bytes. Above 48 KiB the kernel's limit is raised first.
    pub shared_bytes: u32,
}

impl Grid {
    /// A row of blocks without dynamic shared memory.
    pub fn line(blocks: u32, threads: u32) -> Self {
        Self { blocks: [blocks, 1, 1], threads, shared_bytes: 0 }
    }

    /// Blocks enough for a thread an element; elements beyond 2^31 blocks do not fit.
    ///
    /// # Errors
    /// When that many blocks cannot be launched.
    pub fn cover(elements: usize, threads: u32) -> Result<Self> {
        let blocks = elements.div_ceil(threads.max(1) as usize);
        match u32::try_from(blocks) {
            Ok(blocks) if blocks < 1 << 31 => Ok(Self::line(blocks, threads)),
            _ => Err(fault(format!(
                "{elements} elements are more than one launch of {threads} threads covers"
            ))),
        }
    }
}

/// What `rlvr doctor` says about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    /// Major and minor: (8, 0) is A100, (9, 0) H100 and H200.
    pub compute_capability: (u32, u32),
    /// The newest CUDA version the installed driver serves, as `13.0`.
    pub driver: String,
    /// The CUDA version this program was built for.
    pub toolkit: String,
    pub cublas: String,
    /// Bytes. Free is what no program holds at this moment; memory kept by this program's pool is not free.
    pub memory_free: u64,
    pub memory_total: u64,
    pub multiprocessors: usize,
}

fn fault(what: impl Into<String>) -> Error {
    Error::Compute(what.into().into())
}
