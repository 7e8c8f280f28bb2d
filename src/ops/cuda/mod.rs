//! What ops on a CUDA device are built of: the device, its memory, kernel launches and products. No op is known here.
//!
//! Everything is compiled in every build, so that launch code is type-checked everywhere; what calls the driver is
//! behind the feature `cuda`, and without it `absent.rs` stands in its place and returns an error.
//!
//! All work goes to the device's one stream, in program order. No op waits for the device, except where a result
//! is read. Memory comes from the device's pool: a freed tensor's memory is reused in stream order.

#[cfg(not(feature = "cuda"))]
mod absent;
#[cfg(feature = "cuda")]
mod blas;
mod description;
#[cfg(feature = "cuda")]
mod device;
pub mod gemm;
mod grid;
#[cfg(feature = "cuda")]
mod host;
#[cfg(feature = "cuda")]
mod launch;
#[cfg(feature = "cuda")]
mod nccl;

use candle_core::{DType, Device, Tensor};

#[cfg(not(feature = "cuda"))]
pub use self::absent::{
    Communicator, Launch, Timer, bus_id, concatenate, describe, device, duplicate, memory_in_use,
    memory_peak, multiprocessors, nccl_id, nccl_version, of_local_rank, overwrite, read, reset_memory_peak,
    synchronize, to_host, uninit, zero,
};
pub use self::description::Description;
#[cfg(feature = "cuda")]
pub use self::device::{
    Timer, bus_id, describe, device, memory_in_use, memory_peak, multiprocessors, of_local_rank,
    reset_memory_peak, synchronize,
};
pub use self::grid::{Grid, row_threads};
#[cfg(feature = "cuda")]
pub use self::host::{read, to_host};
#[cfg(feature = "cuda")]
pub use self::launch::{Launch, concatenate, duplicate, overwrite, uninit, zero};
#[cfg(feature = "cuda")]
pub use self::nccl::{Communicator, nccl_id, nccl_version};
use crate::error::Result;

/// `values` as a u32 tensor `[len]` on `device`.
///
/// # Errors
/// When the device has no memory left or is lost.
pub fn upload(values: &[u32], device: &Device) -> Result<Tensor> {
    if values.is_empty() && device.is_cuda() {
        return uninit(device, 0, DType::U32); // a driver copies no empty arrays
    }
    Ok(Tensor::from_slice(values, values.len(), device)?)
}

/// A grid for a kernel whose threads step over all elements: at most what keeps the device busy.
///
/// # Errors
/// When `tensor` is on no CUDA device or the device is lost.
pub fn spread(tensor: &Tensor) -> Result<Grid> {
    let lanes = 16 / tensor.dtype().size_in_bytes();
    let blocks = tensor.elem_count().div_ceil(256 * lanes);
    Ok(Grid::line(blocks.min(16 * multiprocessors(tensor.device())?) as u32, 256))
}
