//! The elements of CPU tensors as f32: lent where they are f32, widened copies where they are bf16, whose results are
//! rounded to nearest even.

use std::borrow::Cow;
use std::ops::{Deref, DerefMut, Range};

use candle_core::{CpuStorage, DType, Device, Layout, Storage, StorageRef, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use crate::error::Result;
use crate::ops::fault::fault;

/// Elements that one thread converts at a time.
const CHUNK: usize = 1 << 14;

pub(in crate::ops) fn cpu_range(layout: &Layout) -> candle_core::Result<Range<usize>> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(start..end),
        None => candle_core::bail!("rlvr ops need contiguous tensors, got strides {:?}", layout.stride()),
    }
}

const CPU_ONLY: &str = "rlvr ops on the CPU run on f32 and bf16 tensors there";

/// Columns of a wider row-major matrix.
#[derive(Clone, Copy)]
struct Columns {
    start: usize,
    stride: usize,
    rows: usize,
    width: usize,
}

impl Columns {
    /// # Errors
    /// For other layouts that are not contiguous.
    fn of(layout: &Layout) -> candle_core::Result<Self> {
        match (layout.dims(), layout.stride()) {
            (&[rows, width], &[stride, 1]) => Ok(Self { start: layout.start_offset(), stride, rows, width }),
            (_, strides) => candle_core::bail!("rlvr ops need contiguous rows, got strides {strides:?}"),
        }
    }

    fn range(self, row: usize) -> Range<usize> {
        let start = self.start + row * self.stride;
        start..start + self.width
    }

    /// Row by row, as f32.
    fn read<T>(self, values: &[T], widen: impl Fn(&[T], &mut [f32])) -> Vec<f32> {
        let mut all = vec![0f32; self.rows * self.width];
        for (row, to) in all.chunks_exact_mut(self.width.max(1)).enumerate() {
            widen(&values[self.range(row)], to);
        }
        all
    }

    fn write<T>(self, from: &[f32], values: &mut [T], round: impl Fn(&[f32], &mut [T])) {
        for (row, from) in from.chunks_exact(self.width.max(1)).enumerate() {
            round(from, &mut values[self.range(row)]);
        }
    }
}

/// As f32, row-major: lent where that is how they lie.
fn elements<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<Cow<'a, [f32]>> {
    let range = layout.contiguous_offsets().map(|(start, end)| start..end);
    Ok(match (storage, range) {
        (CpuStorage::F32(values), Some(range)) => Cow::Borrowed(&values[range]),
        (CpuStorage::BF16(values), Some(range)) => Cow::Owned(widen(&values[range])),
        (CpuStorage::F32(values), None) => {
            Cow::Owned(Columns::of(layout)?.read(values, |from, to| to.copy_from_slice(from)))
        }
        (CpuStorage::BF16(values), None) => {
            Cow::Owned(Columns::of(layout)?.read(values, |from, to| from.convert_to_f32_slice(to)))
        }
        _ => candle_core::bail!("{CPU_ONLY}"),
    })
}

fn widen(values: &[bf16]) -> Vec<f32> {
    let mut wide = vec![0f32; values.len()];
    wide.par_chunks_mut(CHUNK)
        .zip(values.par_chunks(CHUNK))
        .for_each(|(wide, values)| values.convert_to_f32_slice(wide));
    wide
}

fn round(values: &[f32], to: &mut [bf16]) {
    to.par_chunks_mut(CHUNK)
        .zip(values.par_chunks(CHUNK))
        .for_each(|(to, values)| to.convert_from_f32_slice(values));
}

/// The elements of a CPU tensor, f32 or bf16, row-major: of a contiguous one, or of columns of a wider matrix.
pub struct View<'a>(Elements<'a>);

enum Elements<'a> {
    Lent { guard: StorageRef<'a>, range: Range<usize> },
    Copied(Vec<f32>),
}

impl<'a> View<'a> {
    /// # Errors
    /// For other types and layouts, and tensors that are not on the CPU.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let copied = match (&*guard, layout.contiguous_offsets()) {
            (Storage::Cpu(CpuStorage::F32(_)), Some((start, end))) => {
                return Ok(Self(Elements::Lent { guard, range: start..end }));
            }
            (Storage::Cpu(storage), _) => elements(storage, layout)?.into_owned(),
            _ => return Err(fault(CPU_ONLY)),
        };
        Ok(Self(Elements::Copied(copied)))
    }
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Elements::Copied(values) => values,
            Elements::Lent { guard, range } => match &**guard {
                Storage::Cpu(CpuStorage::F32(values)) => &values[range.clone()],
                _ => &[], // `new` lends nothing else
            },
        }
    }
}

/// For in-place ops: the destination's elements. Where they are a copy (of bf16, or of columns) they go back, rounded,
/// when this is dropped.
pub(in crate::ops) struct SliceMut<'a>(Destination<'a>);

enum Destination<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16], Vec<f32>),
    Columns(&'a mut CpuStorage, Columns, Vec<f32>),
}

pub(in crate::ops) fn slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<SliceMut<'a>> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        let copy = elements(storage, layout)?.into_owned();
        return Ok(SliceMut(Destination::Columns(storage, Columns::of(layout)?, copy)));
    };
    match storage {
        CpuStorage::F32(values) => Ok(SliceMut(Destination::F32(&mut values[start..end]))),
        CpuStorage::BF16(values) => {
            let values = &mut values[start..end];
            let wide = widen(values);
            Ok(SliceMut(Destination::Bf16(values, wide)))
        }
        _ => candle_core::bail!("{CPU_ONLY}"),
    }
}

impl Deref for SliceMut<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Destination::F32(values) => values,
            Destination::Bf16(_, wide) | Destination::Columns(_, _, wide) => wide,
        }
    }
}

impl DerefMut for SliceMut<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Destination::F32(values) => values,
            Destination::Bf16(_, wide) | Destination::Columns(_, _, wide) => wide,
        }
    }
}

impl Drop for SliceMut<'_> {
    fn drop(&mut self) {
        match &mut self.0 {
            Destination::F32(_) => {}
            Destination::Bf16(to, wide) => round(wide, to),
            Destination::Columns(CpuStorage::F32(to), at, copy) => {
                at.write(copy, to, |from, to| to.copy_from_slice(from));
            }
            Destination::Columns(CpuStorage::BF16(to), at, copy) => {
                at.write(copy, to, |from, to| to.convert_from_f32_slice(from));
            }
            Destination::Columns(..) => {} // `slice_mut` takes no other type
        }
    }
}

/// For in-place ops: a source's elements.
pub(in crate::ops) fn slice<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<Cow<'a, [f32]>> {
    elements(storage, layout)
}

pub(in crate::ops) fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// An op's result, in f32 or rounded to bf16.
pub(in crate::ops) fn tensor_as(
    values: Vec<f32>,
    shape: impl Into<candle_core::Shape>,
    dtype: DType,
) -> Result<Tensor> {
    if dtype != DType::BF16 {
        return tensor(values, shape);
    }
    let mut rounded = vec![bf16::ZERO; values.len()];
    round(&values, &mut rounded);
    Ok(Tensor::from_vec(rounded, shape.into(), &Device::Cpu)?)
}
