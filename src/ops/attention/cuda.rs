//! Packed shared-prefix attention on a CUDA device.
//!
//! bf16 with head widths 64 and 128 runs on the tensor cores; f32, and other head widths that are multiples of 8
//! up to 256, run on plain arithmetic. Both are deterministic.

use std::cmp::Reverse;

use candle_core::{DType, Device, Tensor};

use super::{AttentionLayout, Gradients, Heads, Inputs, Upstream};
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, uninit, upload};
use crate::ops::fault::fault;
use crate::ops::indices::once;

/// Which kernels serve an element type and head width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// bf16 on `mma.sync`, for a head width the kernels are made for.
    TensorCores(usize),
    /// f32 arithmetic, for any head width.
    Plain(usize),
}

/// One of the kernels that work on tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    Forward,
    QueryGradient,
    KeyGradients,
}

impl Path {
    /// # Errors
    /// For other types than f32 and bf16, and head widths that no kernel takes.
    pub fn of(dtype: DType, dim: usize) -> Result<Self> {
        match (dtype, dim) {
            (DType::BF16, 64 | 128) => Ok(Self::TensorCores(dim)),
            (DType::BF16 | DType::F32, 8..=256) if dim.is_multiple_of(8) => Ok(Self::Plain(dim)),
            _ => Err(fault(format!(
                "attention on CUDA takes f32 or bf16 and a head width that is a multiple of 8 up to 256, got \
                 {dtype:?} and {dim}"
            ))),
        }
    }

    /// Keys of a key tile, and queries of a row tile.
    pub fn tile(self) -> usize {
        match self {
            Self::TensorCores(_) => 64,
            Self::Plain(_) => 32,
        }
    }

    /// The launch of one pass over `tiles` tiles of each key/value head.
    pub fn grid(self, pass: Pass, tiles: usize, key_value_heads: usize) -> Grid {
        let (threads, shared_bytes) = match self {
            Self::TensorCores(dim) => {
                let bytes = match pass {
                    Pass::Forward => 512 * dim,
                    Pass::QueryGradient => 32 << 10,
                    Pass::KeyGradients => 256 * dim + 2 * (16384 + 8 * (4096 / dim)),
                };
                (128, bytes)
            }
            Self::Plain(dim) => {
                let pitch = dim + 4;
                let floats = match pass {
                    Pass::Forward => 96 * pitch + 1056,
                    Pass::QueryGradient => 128 * pitch + 1056,
                    Pass::KeyGradients => 128 * pitch + 2176,
                };
                (256, 4 * floats)
            }
        };
        let blocks = [tiles as u32, key_value_heads as u32, 1];
        Grid { blocks, threads, shared_bytes: shared_bytes as u32 }
    }

    /// The kernel of a pass, and the file it is in.
    pub fn kernel(self, pass: Pass) -> (&'static str, String) {
        let name = match pass {
            Pass::Forward => "forward",
            Pass::QueryGradient => "query_gradient",
            Pass::KeyGradients => "key_gradients",
        };
        match self {
            Self::TensorCores(dim) => {
                let file = match pass {
                    Pass::Forward => "attention_forward",
                    _ => "attention_backward",
                };
                (file, format!("attention_{name}_{dim}"))
            }
            Self::Plain(_) => ("attention_plain", format!("attention_{name}_any")),
        }
    }
}

/// `[segment start, first query, queries, prefix start, prefix length]` of each run of up to `tile` queries of a
/// segment, most keys first. The queries of a segment are counted over rows and, within a row, over the `sharing`
/// heads that read one key/value head.
pub fn row_tiles(layout: &AttentionLayout, sharing: usize, tile: usize) -> Vec<[u32; 5]> {
    let mut tiles = Vec::new();
    for segment in layout.blocks().flat_map(|tree| tree.chunk_by(|a, b| a.own_start == b.own_start)) {
        let Some(block) = segment.last() else { continue };
        let queries = block.own_len * sharing;
        for first in (0..queries).step_by(tile) {
            let count = tile.min(queries - first);
            tiles.push([block.own_start, first, count, block.prefix_start, block.prefix_len]);
        }
    }
    tiles.sort_by_key(|[_, first, count, _, prefix]| Reverse(prefix + (first + count - 1) / sharing));
    tiles.into_iter().map(|tile| tile.map(|v| v as u32)).collect()
}

/// `[first key, keys, end of the rows that see them]` of each run of up to `tile` keys of a segment, most rows
/// first. All rows from a key's own to that end see it: of a prompt's key, those of its completions too.
pub fn key_tiles(layout: &AttentionLayout, tile: usize) -> Vec<[u32; 3]> {
    let mut tiles = Vec::new();
    for tree in layout.blocks() {
        let tree_end = tree.last().map_or(0, |block| block.start + block.rows);
        for segment in tree.chunk_by(|a, b| a.own_start == b.own_start) {
            let (Some(first), Some(last)) = (segment.first(), segment.last()) else { continue };
            let end = last.start + last.rows;
            let rows_end = if first.prefix_len == 0 { tree_end } else { end };
            tiles.extend((first.start..end).step_by(tile).map(|k| [k, tile.min(end - k), rows_end]));
        }
    }
    tiles.sort_by_key(|[start, _, rows_end]| Reverse(rows_end - start));
    tiles.into_iter().map(|tile| tile.map(|v| v as u32)).collect()
}

/// An [`AttentionLayout`] as the kernels read it, in device memory: made once for all layers of a pass.
#[derive(Clone, Debug)]
pub struct DeviceLayout {
    heads: Heads,
    dtype: DType,
    path: Path,
    tokens: usize,
    row_tiles: Tensor,
    key_tiles: Tensor,
}

impl DeviceLayout {
    /// For q, k and v of type `dtype`.
    ///
    /// # Errors
    /// When no kernel takes the type or head width, the batch is beyond 32-bit numbers, or the device fails.
    pub fn new(layout: &AttentionLayout, heads: Heads, dtype: DType, device: &Device) -> Result<Self> {
        let path = Path::of(dtype, heads.dim)?;
        if heads.key_value == 0 || heads.query == 0 || !heads.query.is_multiple_of(heads.key_value) {
            return Err(fault(format!(
                "{} query heads cannot share {} key/value heads: the first must be a multiple of the second",
                heads.query, heads.key_value
            )));
        }
        let sharing = heads.sharing();
        if layout.tokens().saturating_mul(sharing * sharing) >= 1 << 32 {
            return Err(fault(format!(
                "{} packed tokens are too many: lower pack.max_tokens_per_pack",
                layout.tokens()
            )));
        }
        let rows = row_tiles(layout, sharing, path.tile());
        let keys = key_tiles(layout, path.tile());
        Ok(Self {
            heads,
            dtype,
            path,
            tokens: layout.tokens(),
            row_tiles: upload(rows.as_flattened(), device)?,
            key_tiles: upload(keys.as_flattened(), device)?,
        })
    }

    fn check(&self, name: &str, tensor: &Tensor, width: usize, dtype: DType) -> Result<()> {
        if tensor.dims() != [self.tokens, width] || tensor.dtype() != dtype {
            return Err(fault(format!(
                "attention: {name} must be {dtype:?} [{}, {width}], got {:?} {:?}",
                self.tokens,
                tensor.dtype(),
                tensor.dims()
            )));
        }
        if !tensor.layout().start_offset().is_multiple_of(8) {
            return Err(fault(format!("attention: {name} must start at a multiple of 16 bytes")));
        }
        Ok(())
    }

    fn check_inputs(&self, inputs: &Inputs) -> Result<()> {
        if inputs.heads != self.heads || inputs.layout.tokens() != self.tokens {
            return Err(fault("attention: the device layout was made for other heads or another batch"));
        }
        for (name, tensor, width) in [
            ("q", inputs.q, self.heads.query_width()),
            ("k", inputs.k, self.heads.key_value_width()),
            ("v", inputs.v, self.heads.key_value_width()),
        ] {
            self.check(name, tensor, width, self.dtype)?;
        }
        Ok(())
    }

    fn launch(&self, pass: Pass, tensors: &[&Tensor]) -> Result<()> {
        let (file, kernel) = self.path.kernel(pass);
        let (tiles, numbers) = match pass {
            Pass::KeyGradients => (&self.key_tiles, 3),
            _ => (&self.row_tiles, 5),
        };
        let mut launch = Launch::typed(tiles.device(), file, &kernel, self.dtype)?;
        for tensor in tensors {
            launch = launch.tensor(tensor)?;
        }
        launch = launch.tensor(tiles)?.u32(self.heads.key_value as u32).u32(self.heads.sharing() as u32);
        if let Path::Plain(dim) = self.path {
            launch = launch.u32(dim as u32);
        }
        let count = tiles.elem_count() / numbers;
        launch.f32(self.heads.scale()).run(self.path.grid(pass, count, self.heads.key_value))
    }
}

/// The layout's copy on the device of q, made the first time it is asked for.
///
/// # Errors
/// As [`DeviceLayout::new`].
pub fn layout_of(inputs: Inputs<'_>) -> Result<&DeviceLayout> {
    let make = || DeviceLayout::new(inputs.layout, inputs.heads, inputs.q.dtype(), inputs.q.device());
    once(&inputs.layout.there, make)
}

/// Output `[T, query heads * dim]` in the type of q, and log-sum-exp of the scaled scores `[T, query heads]` f32.
///
/// # Errors
/// When shapes or types are not those of `layout`, or the device fails.
pub fn forward(layout: &DeviceLayout, inputs: Inputs) -> Result<(Tensor, Tensor)> {
    layout.check_inputs(&inputs)?;
    let Inputs { heads, q, k, v, .. } = inputs;
    let out = uninit(q.device(), (layout.tokens, heads.query_width()), layout.dtype)?;
    let lse = uninit(q.device(), (layout.tokens, heads.query), DType::F32)?;
    layout.launch(Pass::Forward, &[q, k, v, &out, &lse])?;
    Ok((out, lse))
}

/// Gradients of q, k and v in their type, shaped like them.
///
/// # Errors
/// As [`forward`].
pub fn backward(layout: &DeviceLayout, inputs: Inputs, upstream: Upstream) -> Result<Gradients> {
    layout.check_inputs(&inputs)?;
    let Inputs { heads, q, k, v, .. } = inputs;
    let Upstream { out, lse, dout } = upstream;
    layout.check("out", out, heads.query_width(), layout.dtype)?;
    layout.check("dout", dout, heads.query_width(), layout.dtype)?;
    layout.check("lse", lse, heads.query, DType::F32)?;
    let vectors = layout.tokens * heads.query;
    let delta = uninit(q.device(), (layout.tokens, heads.query), DType::F32)?;
    Launch::typed(q.device(), "attention_backward", "attention_delta", layout.dtype)?
        .tensor(out)?
        .tensor(dout)?
        .tensor(&delta)?
        .u32(vectors as u32)
        .u32(heads.dim as u32)
        .run(Grid::line(vectors.div_ceil(32) as u32, 256))?;
    let [dq, dk, dv] = [q, k, v].map(|t| uninit(t.device(), t.shape(), layout.dtype));
    let (dq, dk, dv) = (dq?, dk?, dv?);
    layout.launch(Pass::QueryGradient, &[q, k, v, dout, lse, &delta, &dq])?;
    layout.launch(Pass::KeyGradients, &[q, k, v, dout, lse, &delta, &dk, &dv])?;
    Ok(Gradients { dq, dk, dv })
}
