//! Random inputs, and the device and dtype an op runs in.

use std::cell::Cell;

use candle_core::{DType, Device, Shape, Tensor};
use half::bf16;

use crate::error::Result;
use crate::ops::memory;
use crate::rng::{Purpose, Stream};

/// Random numbers of one seed; what is drawn later is different.
pub struct Draw {
    seed: u64,
    next: Cell<u32>,
    dtype: DType,
}

impl Draw {
    /// Values are rounded to `dtype`, so that converting them to it or to f32 changes nothing.
    pub fn new(seed: u64, dtype: DType) -> Self {
        Self { seed, next: Cell::new(0), dtype }
    }

    fn stream(&self) -> Stream {
        self.next.set(self.next.get() + 1);
        Stream::new(self.seed, Purpose::Check, [self.next.get(), 0, 0])
    }

    /// Normal, mean 0, deviation 1.
    pub fn normal(&self, n: usize) -> Vec<f64> {
        self.scaled(n, 1.0)
    }

    /// Normal, mean 0, deviation `size`.
    pub fn scaled(&self, n: usize, size: f64) -> Vec<f64> {
        let stream = self.stream();
        let value = |i: u32| {
            let value = f64::from(stream.normal(i)) * size;
            if self.dtype == DType::BF16 { bf16::from_f64(value).to_f64() } else { f64::from(value as f32) }
        };
        (0..n as u32).map(value).collect()
    }

    /// A number in `0..end`.
    pub fn below(&self, end: usize) -> usize {
        self.stream().sequential().below(end)
    }

    pub fn indices(&self, n: usize, end: usize) -> Vec<usize> {
        let mut stream = self.stream().sequential();
        (0..n).map(|_| stream.below(end)).collect()
    }
}

/// The device an op runs on, and the dtype of its weights and activations there.
pub struct Place {
    pub device: Device,
    pub dtype: DType,
}

impl Place {
    /// Weights and activations: in this place's dtype.
    pub fn tensor(&self, values: &[f64], shape: impl Into<Shape>) -> Result<Tensor> {
        memory::cast(&self.single(values, shape)?, self.dtype)
    }

    /// Gradients of weights, moments and log-sum-exps: f32 everywhere.
    pub fn single(&self, values: &[f64], shape: impl Into<Shape>) -> Result<Tensor> {
        let values: Vec<f32> = values.iter().map(|v| *v as f32).collect();
        Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?.to_device(&self.device)?)
    }

    /// What the op is to overwrite: NaN in this place's dtype.
    pub fn poison(&self, shape: impl Into<Shape>) -> Result<Tensor> {
        let shape = shape.into();
        self.tensor(&vec![f64::NAN; shape.elem_count()], shape)
    }

    /// Leaves NaN in freed memory of these sizes, which an op's new results are then likely to get.
    pub fn poison_freed(&self, sizes: &[usize]) -> Result<()> {
        let mut held = Vec::new();
        for &size in sizes {
            for _ in 0..2 {
                held.push((self.poison(size)?, memory::filled(&self.device, size, DType::F32, f32::NAN)?));
            }
        }
        Ok(())
    }

    pub fn read(&self, tensor: &Tensor) -> Result<Vec<f64>> {
        let values: Vec<f32> =
            tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
        Ok(values.into_iter().map(f64::from).collect())
    }
}

/// f32 results that an op returned on the host.
pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// f32 values, as an op on the CPU takes them.
pub fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}
