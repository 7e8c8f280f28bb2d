//! Packed shared-prefix attention on a CUDA device.
//!
//! bf16 with head widths 64 and 128 runs on the tensor cores; f32, and other head widths that are multiples of 8
//! up to 256, run on plain arithmetic. Both are deterministic.
//!
//! On tensor cores the backward pass works out scores and their gradients once: `key_gradients` keeps the latter in
//! bf16 for `query_sums`, for as many key/value heads at a time as [`KEPT_BYTES`] hold. Where they do not hold one
//! head of the batch, and on plain arithmetic, `query_gradient` works them out again.

use candle_core::{DType, Device, Tensor};

use super::tiles::{KeyTiles, STRIP, row_tiles};
use super::{AttentionLayout, Gradients, Heads, Inputs, Upstream};
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, uninit, upload};
use crate::ops::fault::fault;
use crate::ops::indices::once;

/// Score gradients that the backward pass keeps at a time, bytes.
pub const KEPT_BYTES: usize = 256 << 20;

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
    QuerySums,
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

    /// Queries that the key tiles' kernel takes at a time.
    pub fn queries_at_once(self) -> usize {
        match self {
            Self::TensorCores(dim) => 4096 / dim,
            Self::Plain(_) => 32,
        }
    }

    /// Bytes of the score gradients of a strip and one key tile.
    pub fn strip_bytes(self) -> usize {
        2 * STRIP * self.tile()
    }

    /// The launch of one pass over `tiles` tiles of each key/value head.
    pub fn grid(self, pass: Pass, tiles: usize, key_value_heads: usize) -> Grid {
        let (threads, shared_bytes) = match self {
            Self::TensorCores(dim) => {
                let bytes = match pass {
                    Pass::Forward => 512 * dim,
                    Pass::QueryGradient => 32 << 10,
                    Pass::KeyGradients => 256 * dim + 2 * (16384 + 8 * (4096 / dim)),
                    Pass::QuerySums => 2 * (128 * dim + 16384),
                };
                (128, bytes)
            }
            Self::Plain(dim) => {
                let pitch = dim + 4;
                let floats = match pass {
                    Pass::Forward => 96 * pitch + 1056,
                    Pass::QueryGradient => 128 * pitch + 1056,
                    Pass::KeyGradients => 128 * pitch + 2176,
                    Pass::QuerySums => 0, // nothing is kept here
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
            Pass::QuerySums => "query_sums",
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

/// An [`AttentionLayout`] as the kernels read it, in device memory: made once for all layers of a pass.
#[derive(Clone, Debug)]
pub struct DeviceLayout {
    heads: Heads,
    dtype: DType,
    path: Path,
    tokens: usize,
    row_tiles: Tensor,
    key_tiles: Tensor,
    kept: Option<Kept>,
}

/// How score gradients are kept.
#[derive(Clone, Debug)]
struct Kept {
    /// Of one key/value head.
    strips: usize,
    /// Key/value heads at a time.
    heads: usize,
    key_tiles_in_order: Tensor,
    sum_tiles: Tensor,
}

/// Key/value heads whose score gradients are kept at a time, none where `bytes` do not hold those of one: as even
/// as can be, in as few launches.
fn heads_at_once(heads: usize, head_bytes: usize, bytes: usize) -> usize {
    match bytes / head_bytes.max(1) {
        0 => 0,
        most => heads.div_ceil(heads.div_ceil(most)),
    }
}

impl DeviceLayout {
    /// For q, k and v of type `dtype`.
    ///
    /// # Errors
    /// When no kernel takes the type or head width, the batch is beyond 32-bit numbers, or the device fails.
    pub fn new(layout: &AttentionLayout, heads: Heads, dtype: DType, device: &Device) -> Result<Self> {
        Self::keeping(KEPT_BYTES, layout, heads, dtype, device)
    }

    /// The same, with `bytes` for score gradients.
    ///
    /// # Errors
    /// As [`DeviceLayout::new`].
    pub fn keeping(
        bytes: usize,
        layout: &AttentionLayout,
        heads: Heads,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
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
        let keys = KeyTiles::new(layout, sharing, path.tile(), path.queries_at_once());
        let at_once = match path {
            Path::TensorCores(_) => heads_at_once(heads.key_value, keys.strips * path.strip_bytes(), bytes),
            Path::Plain(_) => 0,
        };
        let kept = match at_once {
            0 => None,
            heads => Some(Kept {
                strips: keys.strips,
                heads,
                key_tiles_in_order: upload(keys.in_order().as_flattened(), device)?,
                sum_tiles: upload(keys.sum_tiles().as_flattened(), device)?,
            }),
        };
        Ok(Self {
            heads,
            dtype,
            path,
            tokens: layout.tokens(),
            row_tiles: upload(rows.as_flattened(), device)?,
            key_tiles: upload(keys.longest_first().as_flattened(), device)?,
            kept,
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

    /// A launch of `pass` with its tensors, up to where the passes differ.
    fn begin(&self, pass: Pass, device: &Device, tensors: &[&Tensor]) -> Result<Launch> {
        let (file, kernel) = self.path.kernel(pass);
        let launch = Launch::typed(device, file, &kernel, self.dtype)?;
        tensors.iter().try_fold(launch, |launch, tensor| launch.tensor(tensor))
    }

    /// The end of one over `heads` key/value heads.
    fn run(&self, pass: Pass, launch: Launch, heads: usize) -> Result<()> {
        let tiles = match (pass, &self.kept) {
            (Pass::QuerySums, Some(kept)) => kept.sum_tiles.elem_count() / 7,
            (Pass::KeyGradients, _) => self.key_tiles.elem_count() / 5,
            _ => self.row_tiles.elem_count() / 5,
        };
        let mut launch = launch.u32(self.heads.key_value as u32).u32(self.heads.sharing() as u32);
        if let Path::Plain(dim) = self.path {
            launch = launch.u32(dim as u32);
        }
        launch.f32(self.heads.scale()).run(self.path.grid(pass, tiles, heads))
    }

    /// A pass over row tiles.
    fn over_rows(&self, pass: Pass, tensors: &[&Tensor]) -> Result<()> {
        let launch = self.begin(pass, self.row_tiles.device(), tensors)?.tensor(&self.row_tiles)?;
        self.run(pass, launch, self.heads.key_value)
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
    layout.over_rows(Pass::Forward, &[q, k, v, &out, &lse])?;
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
    let of_keys = [q, k, v, dout, lse, &delta, &dk, &dv];
    let Some(kept) = &layout.kept else {
        layout.over_rows(Pass::QueryGradient, &[q, k, v, dout, lse, &delta, &dq])?;
        let mut launch = layout.begin(Pass::KeyGradients, q.device(), &of_keys)?.tensor(&layout.key_tiles)?;
        if let Path::TensorCores(_) = layout.path {
            launch = launch.null().u32(0).u32(0);
        }
        layout.run(Pass::KeyGradients, launch, heads.key_value)?;
        return Ok(Gradients { dq, dk, dv });
    };
    let bytes = kept.heads * kept.strips * layout.path.strip_bytes();
    let scores = uninit(q.device(), bytes, DType::U8)?;
    for first in (0..heads.key_value).step_by(kept.heads) {
        let count = kept.heads.min(heads.key_value - first);
        let (strips, first) = (kept.strips as u32, first as u32);
        let launch = layout.begin(Pass::KeyGradients, q.device(), &of_keys)?.tensor(&layout.key_tiles)?;
        layout.run(Pass::KeyGradients, launch.tensor(&scores)?.u32(strips).u32(first), count)?;
        let launch = layout.begin(Pass::QuerySums, q.device(), &[k, &scores, &dq])?;
        let launch = launch.tensor(&kept.sum_tiles)?.tensor(&kept.key_tiles_in_order)?;
        layout.run(Pass::QuerySums, launch.u32(strips).u32(first), count)?;
    }
    Ok(Gradients { dq, dk, dv })
}
