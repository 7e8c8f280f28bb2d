//! How a kernel is spread over a device.

use candle_core::DType;

use crate::error::Result;
use crate::ops::fault::fault;

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

/// Threads that read a row of `width` 16 bytes at a time in one round, where a block may be so large.
pub fn row_threads(width: usize, dtype: DType) -> u32 {
    let lanes = 16 / dtype.size_in_bytes();
    (width.div_ceil(lanes).next_multiple_of(32)).clamp(32, 1024) as u32
}
