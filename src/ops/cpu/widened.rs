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

/// The elements of a contiguous CPU tensor, f32 or bf16, row-major.
pub struct View<'a>(Elements<'a>);

enum Elements<'a> {
    Lent { guard: StorageRef<'a>, range: Range<usize> },
    Widened(Vec<f32>),
}

impl<'a> View<'a> {
    /// # Errors
    /// For other types, and tensors that are not contiguous or not on the CPU.
    pub fn new(tensor: &'a Tensor) -> Result<Self> {
        let (guard, layout) = tensor.storage_and_layout();
        let range = cpu_range(layout)?;
        match &*guard {
            Storage::Cpu(CpuStorage::F32(_)) => Ok(Self(Elements::Lent { guard, range })),
            Storage::Cpu(CpuStorage::BF16(values)) => Ok(Self(Elements::Widened(widen(&values[range])))),
            _ => Err(fault(CPU_ONLY)),
        }
    }
}

impl Deref for View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            Elements::Widened(values) => values,
            Elements::Lent { guard, range } => match &**guard {
                Storage::Cpu(CpuStorage::F32(values)) => &values[range.clone()],
                _ => &[], // `new` lends nothing else
            },
        }
    }
}

/// For in-place ops: the destination's elements. Those of a bf16 tensor are rounded into it when this is dropped.
pub(in crate::ops) struct SliceMut<'a>(Destination<'a>);

enum Destination<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16], Vec<f32>),
}

pub(in crate::ops) fn slice_mut<'a>(
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> candle_core::Result<SliceMut<'a>> {
    let range = cpu_range(layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(SliceMut(Destination::F32(&mut values[range]))),
        CpuStorage::BF16(values) => {
            let values = &mut values[range];
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
            Destination::Bf16(_, wide) => wide,
        }
    }
}

impl DerefMut for SliceMut<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        match &mut self.0 {
            Destination::F32(values) => values,
            Destination::Bf16(_, wide) => wide,
        }
    }
}

impl Drop for SliceMut<'_> {
    fn drop(&mut self) {
        if let Destination::Bf16(to, wide) = &mut self.0 {
            round(wide, to);
        }
    }
}

/// For in-place ops: a source's elements.
pub(in crate::ops) fn slice<'a>(
    storage: &'a CpuStorage,
    layout: &Layout,
) -> candle_core::Result<Cow<'a, [f32]>> {
    let range = cpu_range(layout)?;
    match storage {
        CpuStorage::F32(values) => Ok(Cow::Borrowed(&values[range])),
        CpuStorage::BF16(values) => Ok(Cow::Owned(widen(&values[range]))),
        _ => candle_core::bail!("{CPU_ONLY}"),
    }
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
