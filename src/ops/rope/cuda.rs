//! RoPE on a CUDA device.

use candle_core::{DType, Device, Tensor};

use super::Direction;
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch};
use crate::ops::fault::fault;

/// The tables on the device.
#[derive(Clone, Debug)]
pub struct DeviceTable {
    /// `[positions, half]` f32
    cos: Tensor,
    sin: Tensor,
}

impl DeviceTable {
    /// `cos`, `sin`: `[positions, half]`, row-major.
    ///
    /// # Errors
    /// When the tables are no rows of `half`, or the device fails.
    pub fn new(cos: &[f32], sin: &[f32], half: usize, device: &Device) -> Result<Self> {
        let shape = (cos.len() / half.max(1), half);
        let upload = |values: &[f32]| Tensor::from_slice(values, shape, device);
        Ok(Self { cos: upload(cos)?, sin: upload(sin)? })
    }

    /// Rotates every head of `x_nd: [N, heads * head_dim]`, f32 or bf16, in place by its row's position.
    /// `positions_n`: `[N]` u32 on the device, each within the table: the host checks them, the kernel does not.
    ///
    /// # Errors
    /// When shapes do not agree, or the device fails.
    pub fn rotate(&self, x_nd: &Tensor, positions_n: &Tensor, direction: Direction) -> Result<()> {
        let ((n, width), half) = (x_nd.dims2()?, self.cos.dim(1)?);
        if half == 0
            || width % (2 * half) != 0
            || positions_n.dims() != [n]
            || positions_n.dtype() != DType::U32
        {
            return Err(fault(format!("rope: {n} rows of {width} for positions {:?}", positions_n.shape())));
        }
        let heads = width / (2 * half);
        let lanes = 16 / x_nd.dtype().size_in_bytes();
        let threads = (heads * half.div_ceil(lanes)).next_multiple_of(32).min(256) as u32;
        Launch::typed(x_nd.device(), "rope", "rope", x_nd.dtype())?
            .tensor(x_nd)?
            .tensor(&self.cos)?
            .tensor(&self.sin)?
            .tensor(positions_n)?
            .u32(heads as u32)
            .u32(half as u32)
            .f32(if direction == Direction::Forward { 1.0 } else { -1.0 })
            .run(Grid::line(n as u32, threads))
    }
}
