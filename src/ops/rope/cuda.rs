//! RoPE on a CUDA device.

use candle_core::{DType, Device, Tensor};

use super::Direction;
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, uninit};
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

    /// `qkv_nd: [N, (heads + 2 kv heads) * head_dim]` apart, queries and keys rotated where there are positions: q, k
    /// and v, `widths` those of q and of k. With `cache` keys and values go to its rows, and are not returned.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub fn split(
        &self,
        qkv_nd: &Tensor,
        widths: [usize; 2],
        positions_n: Option<&Tensor>,
        cache: Option<CacheRows>,
    ) -> Result<(Tensor, Option<[Tensor; 2]>)> {
        let (device, dtype, n) = (qkv_nd.device(), qkv_nd.dtype(), qkv_nd.dim(0)?);
        let [query, key] = widths;
        let q = uninit(device, (n, query), dtype)?;
        match cache {
            Some(rows) => {
                if rows.k.dim(1)? != key || rows.slots_n.dims() != [n] || rows.slots_n.dtype() != DType::U32 {
                    return Err(fault(format!("rope: rows of {key} into a cache of {:?}", rows.k.shape())));
                }
                self.between(
                    "qkv_split",
                    qkv_nd,
                    [&q, rows.k, rows.v],
                    widths,
                    positions_n,
                    Some(rows.slots_n),
                )?;
                Ok((q, None))
            }
            None => {
                let (k, v) = (uninit(device, (n, key), dtype)?, uninit(device, (n, key), dtype)?);
                self.between("qkv_split", qkv_nd, [&q, &k, &v], widths, positions_n, None)?;
                Ok((q, Some([k, v])))
            }
        }
    }

    /// The inverse of [`Self::split`]: gradients side by side, those of rotated queries and keys rotated back.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub fn join(&self, [q, k, v]: [&Tensor; 3], positions_n: Option<&Tensor>) -> Result<Tensor> {
        let ((n, query), key) = (q.dims2()?, k.dim(1)?);
        let qkv = uninit(q.device(), (n, query + 2 * key), q.dtype())?;
        self.between("qkv_join", &qkv, [q, k, v], [query, key], positions_n, None)?;
        Ok(qkv)
    }

    fn between(
        &self,
        kernel: &str,
        qkv: &Tensor,
        [q, k, v]: [&Tensor; 3],
        [query, key]: [usize; 2],
        positions_n: Option<&Tensor>,
        slots_n: Option<&Tensor>,
    ) -> Result<()> {
        let ((n, width), half) = (qkv.dims2()?, self.cos.dim(1)?);
        let dim = 2 * half;
        let same = [q, k, v].iter().all(|x| x.dtype() == qkv.dtype());
        if half == 0
            || query % dim != 0
            || key % dim != 0
            || width != query + 2 * key
            || !same
            || positions_n.is_some_and(|p| p.dims() != [n] || p.dtype() != DType::U32)
        {
            return Err(fault(format!("rope: {n} rows of {width} for queries of {query} and keys of {key}")));
        }
        let lanes = 16 / qkv.dtype().size_in_bytes();
        let threads = (width / dim * half.div_ceil(lanes)).next_multiple_of(32).min(256) as u32;
        let launch = Launch::typed(qkv.device(), "rope", kernel, qkv.dtype())?.tensor(qkv)?;
        let launch = match positions_n {
            Some(positions) => launch.tensor(&self.cos)?.tensor(&self.sin)?.tensor(positions)?,
            None => launch.null().null().null(),
        };
        let launch = match slots_n {
            Some(slots) => launch.tensor(slots)?,
            None => launch.null(),
        };
        launch
            .tensor(q)?
            .tensor(k)?
            .tensor(v)?
            .u32((query / dim) as u32)
            .u32((key / dim) as u32)
            .u32(half as u32)
            .run(Grid::line(n as u32, threads))
    }
}

/// Rows of a cache that a decode step's keys and values become.
#[derive(Clone, Copy)]
pub struct CacheRows<'a> {
    /// `[rows, key/value width]`
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    /// `[N]` u32 on the device, each within the rows: the host checks them.
    pub slots_n: &'a Tensor,
}
