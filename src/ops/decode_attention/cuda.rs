//! Attention of one new token per sequence on a CUDA device.
//!
//! A prompt's keys and values are read once per group and key/value head for up to 128 queries (rows times the
//! heads that share the head), split over blocks; a second kernel adds each sequence's own keys and merges.

use candle_core::{DType, Device, Tensor};

use super::{Cache, SharedPrefix};
use crate::error::Result;
use crate::ops::attention::Heads;
use crate::ops::attention::cuda::{Pass, Path};
use crate::ops::cuda::{Grid, Launch, multiprocessors, uninit, upload};
use crate::ops::fault::fault;

/// Keys of one tile of the kernels; splits are multiples of it.
const KEYS: usize = 64;
/// Key tiles that one block takes at least: below, writing partial results costs more than the idle device.
const LEAST_TILES: usize = 2;
/// Blocks of a launch, as a multiple of the device's multiprocessors: two run on each at once.
const BLOCKS_PER_MULTIPROCESSOR: usize = 4;

/// How the work over the prompts is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Splits {
    /// `[first row, first query, queries, first key, keys, slot]`: the queries of the rows from `first row` are
    /// counted over rows and, within a row, over the heads that share one key/value head.
    pub splits: Vec<[u32; 6]>,
    /// Partial results of each row, in slots 0.. . `[R]`
    pub slots: Vec<u32>,
    /// Queries of the largest split.
    pub queries: usize,
}

impl Splits {
    /// Cuts into about `blocks` blocks, all key/value heads together.
    pub fn new(heads: Heads, path: Path, prefixes: &[SharedPrefix], blocks: usize) -> Self {
        let tile = match path {
            Path::TensorCores(_) => 128,
            Path::Plain(_) => path.tile(),
        };
        let runs = |prefix: &SharedPrefix| (prefix.rows * heads.sharing()).div_ceil(tile);
        let tiles: usize = prefixes.iter().map(|p| runs(p) * p.len.div_ceil(KEYS)).sum();
        let tiles_per_block = (tiles * heads.key_value).div_ceil(blocks.max(1)).max(LEAST_TILES);
        let mut cut = Self { splits: Vec::new(), slots: Vec::new(), queries: 0 };
        let mut first_row = 0;
        for prefix in prefixes {
            let tiles = prefix.len.div_ceil(KEYS);
            let keys = tiles.div_ceil(tiles.div_ceil(tiles_per_block).max(1)) * KEYS;
            let queries = prefix.rows * heads.sharing();
            for (slot, key) in (0..prefix.len).step_by(keys.max(1)).enumerate() {
                for first in (0..queries).step_by(tile) {
                    let count = tile.min(queries - first);
                    cut.queries = cut.queries.max(count);
                    let split =
                        [first_row, first, count, prefix.start + key, keys.min(prefix.len - key), slot];
                    cut.splits.push(split.map(|v| v as u32));
                }
            }
            let slots = prefix.len.div_ceil(keys.max(1)) as u32;
            cut.slots.extend(std::iter::repeat_n(slots, prefix.rows));
            first_row += prefix.rows;
        }
        cut
    }

    /// The launch over the prompts.
    pub fn grid(&self, path: Path, key_value_heads: usize) -> Grid {
        let grid = path.grid(Pass::Forward, self.splits.len(), key_value_heads);
        match path {
            Path::TensorCores(_) if self.queries > 64 => Grid { threads: 256, ..grid },
            _ => grid,
        }
    }
}

/// Who reads which prompt and which own cache, in device memory: made once for all layers and steps, until rows
/// leave the batch.
#[derive(Clone, Debug)]
pub struct DecodeLayout {
    heads: Heads,
    dtype: DType,
    path: Path,
    grid: Grid,
    /// Rows of q.
    rows: usize,
    /// Slots of partial results.
    partials: usize,
    /// Tokens of `prefix_k` and sequences of `own_k` that are read.
    prefix_tokens: usize,
    own_sequences: usize,
    splits: Tensor,
    slots: Tensor,
    sequences: Tensor,
}

impl DecodeLayout {
    /// For q and caches of type `dtype`; `prefixes` and `sequences` as [`super::Readers`] takes them.
    ///
    /// # Errors
    /// When no kernel takes the type or head width, the prefixes' rows are not as many as `sequences`, or the
    /// device fails.
    pub fn new(
        heads: Heads,
        dtype: DType,
        prefixes: &[SharedPrefix],
        sequences: &[usize],
        device: &Device,
    ) -> Result<Self> {
        let path = Path::of(dtype, heads.dim)?;
        let rows: usize = prefixes.iter().map(|p| p.rows).sum();
        if rows != sequences.len() {
            return Err(fault(format!(
                "decode attention: the prefixes have {rows} rows and {} sequences were named",
                sequences.len()
            )));
        }
        let blocks = BLOCKS_PER_MULTIPROCESSOR * multiprocessors(device)?;
        let cut = Splits::new(heads, path, prefixes, blocks);
        let sequences_u32: Vec<u32> = sequences.iter().map(|s| *s as u32).collect();
        Ok(Self {
            heads,
            dtype,
            path,
            grid: cut.grid(path, heads.key_value),
            rows,
            partials: cut.slots.iter().copied().max().unwrap_or(0) as usize,
            prefix_tokens: prefixes.iter().map(|p| p.start + p.len).max().unwrap_or(0),
            own_sequences: sequences.iter().map(|s| s + 1).max().unwrap_or(0),
            splits: upload(cut.splits.as_flattened(), device)?,
            slots: upload(&cut.slots, device)?,
            sequences: upload(&sequences_u32, device)?,
        })
    }

    fn check(&self, q: &Tensor, cache: &Cache, own_len: usize) -> Result<usize> {
        let refuse = |what: String| Err(fault(format!("decode attention: {what}")));
        let width = self.heads.key_value_width();
        if q.dims() != [self.rows, self.heads.query_width()] {
            let want = [self.rows, self.heads.query_width()];
            return refuse(format!("q must be {want:?}, got {:?}", q.dims()));
        }
        for (name, prefix) in [("prefix_k", cache.prefix_k), ("prefix_v", cache.prefix_v)] {
            let (tokens, got) = prefix.dims2()?;
            if tokens < self.prefix_tokens || got != width {
                let want = format!("at least {} rows of {width}", self.prefix_tokens);
                return refuse(format!("{name} must have {want}, got {:?}", prefix.dims()));
            }
        }
        let (sequences, capacity, got) = cache.own_k.dims3()?;
        if sequences < self.own_sequences || got != width || cache.own_v.dims() != cache.own_k.dims() {
            return refuse(format!(
                "own_k and own_v must be [{} or more, capacity, {width}], got {:?} and {:?}",
                self.own_sequences,
                cache.own_k.dims(),
                cache.own_v.dims()
            ));
        }
        if own_len == 0 || own_len > capacity {
            return refuse(format!("the own cache holds {capacity} positions, {own_len} were asked for"));
        }
        for tensor in [q, cache.prefix_k, cache.prefix_v, cache.own_k, cache.own_v] {
            if tensor.dtype() != self.dtype {
                return refuse(format!(
                    "q and caches must all be {:?}, got {:?}",
                    self.dtype,
                    tensor.dtype()
                ));
            }
            if !tensor.layout().start_offset().is_multiple_of(8) {
                return refuse("q and caches must start at multiples of 16 bytes".into());
            }
        }
        Ok(capacity)
    }
}

/// `q: [R, query heads * dim]` -> same shape and type, and the log-sum-exp of the scaled scores `[R, query heads]`
/// f32. Row `r` sees its prompt and the first `own_len` positions of its sequence in the own cache.
///
/// # Errors
/// When shapes or types are not those of `layout`, or the device fails.
pub fn forward(layout: &DecodeLayout, q: &Tensor, cache: Cache, own_len: usize) -> Result<(Tensor, Tensor)> {
    let capacity = layout.check(q, &cache, own_len)?;
    let DecodeLayout { heads, rows, path, .. } = *layout;
    let device = q.device();
    let partial = uninit(device, (layout.partials, rows, heads.query_width()), DType::F32)?;
    let partial_lse = uninit(device, (layout.partials, rows, heads.query), DType::F32)?;
    let (kernel, dim) = match path {
        Path::TensorCores(64) => ("decode_attention_prefix_64", None),
        Path::TensorCores(_) => ("decode_attention_prefix_128", None),
        Path::Plain(dim) => ("decode_attention_prefix_any", Some(dim)),
    };
    let sizes =
        |launch: Launch| launch.u32(rows as u32).u32(heads.key_value as u32).u32(heads.sharing() as u32);
    let launch = Launch::typed(device, FILE, kernel, layout.dtype)?
        .tensor(q)?
        .tensor(cache.prefix_k)?
        .tensor(cache.prefix_v)?
        .tensor(&partial)?
        .tensor(&partial_lse)?
        .tensor(&layout.splits)?;
    let launch = match dim {
        Some(dim) => sizes(launch).u32(dim as u32),
        None => sizes(launch),
    };
    launch.f32(heads.scale()).run(layout.grid)?;

    let out = uninit(device, q.shape(), layout.dtype)?;
    let lse = uninit(device, (rows, heads.query), DType::F32)?;
    let launch = Launch::typed(device, FILE, merge_kernel(heads.dim), layout.dtype)?
        .tensor(q)?
        .tensor(cache.own_k)?
        .tensor(cache.own_v)?
        .tensor(&layout.sequences)?
        .tensor(&partial)?
        .tensor(&partial_lse)?
        .tensor(&layout.slots)?
        .tensor(&out)?
        .tensor(&lse)?;
    sizes(launch)
        .u32(heads.dim as u32)
        .u32(own_len as u32)
        .u32(capacity as u32)
        .f32(heads.scale())
        .run(merge_grid(rows * heads.query))?;
    Ok((out, lse))
}

const FILE: &str = "decode_attention";

/// The second kernel for a head width.
pub fn merge_kernel(dim: usize) -> &'static str {
    if dim <= 128 { "decode_attention_merge" } else { "decode_attention_merge_wide" }
}

/// The launch of the second kernel for that many query vectors.
pub fn merge_grid(queries: usize) -> Grid {
    Grid::line(queries.div_ceil(4) as u32, 128)
}
