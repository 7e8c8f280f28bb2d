//! What the CUDA entry points are in a build without the feature `cuda`: errors that say so.

use std::convert::Infallible;

use candle_core::{DType, Device, Shape, Tensor, WithDType};

use super::description::Description;
use super::grid::Grid;
use crate::error::{Error, Result};

pub(super) fn absent<T>() -> Result<T> {
    Err(Error::input(
        "device cuda",
        "this rlvr was built without CUDA",
        "Run scripts/cuda/setup-cuda.sh and build with --features cuda, or choose the device cpu",
    ))
}

/// A kernel launch; without the feature there is none.
pub struct Launch(Infallible);

impl Launch {
    pub fn new(_: &Device, _: &'static str, _: &str) -> Result<Self> {
        absent()
    }
    pub fn typed(_: &Device, _: &'static str, _: &str, _: DType) -> Result<Self> {
        absent()
    }
    pub fn tensor(self, _: &Tensor) -> Result<Self> {
        match self.0 {}
    }
    pub fn null(self) -> Self {
        match self.0 {}
    }
    pub fn u32(self, _: u32) -> Self {
        match self.0 {}
    }
    pub fn u64(self, _: u64) -> Self {
        match self.0 {}
    }
    pub fn f32(self, _: f32) -> Self {
        match self.0 {}
    }
    pub fn run(self, _: Grid) -> Result<()> {
        match self.0 {}
    }
}

/// Time on a device; without the feature there is none.
pub struct Timer(Infallible);

impl Timer {
    pub fn start(_: &Device) -> Result<Self> {
        absent()
    }
    pub fn stop(&mut self) -> Result<()> {
        match self.0 {}
    }
    pub fn seconds(&self) -> Result<f64> {
        match self.0 {}
    }
}

/// GPUs of several processes; without the feature there are none.
pub struct Communicator(Infallible);

impl Communicator {
    pub fn new(_: &Device, _: usize, _: usize, _: &[u8]) -> Result<Self> {
        absent()
    }
    pub fn reduce(&self, _: &[(Tensor, Option<Tensor>, usize)]) -> Result<()> {
        match self.0 {}
    }
    pub fn broadcast(&self, _: &[(Tensor, usize)]) -> Result<()> {
        match self.0 {}
    }
    pub fn wait(&self) -> Result<()> {
        match self.0 {}
    }
}

pub fn nccl_version() -> std::result::Result<String, String> {
    Err("this rlvr was built without CUDA".into())
}
pub fn nccl_id() -> Result<Vec<u8>> {
    absent()
}
pub fn device(_: usize) -> Result<Device> {
    absent()
}
pub fn of_local_rank(local_rank: usize) -> usize {
    local_rank
}
pub fn bus_id(_: &Device) -> Result<String> {
    absent()
}
pub fn describe(_: &Device) -> Result<Description> {
    absent()
}
pub fn synchronize(_: &Device) -> Result<()> {
    absent()
}
pub fn multiprocessors(_: &Device) -> Result<usize> {
    absent()
}
pub fn memory_in_use(_: &Device) -> Result<u64> {
    absent()
}
pub fn memory_peak(_: &Device) -> Result<u64> {
    absent()
}
pub fn reset_memory_peak(_: &Device) -> Result<()> {
    absent()
}
pub fn uninit(_: &Device, _: impl Into<Shape>, _: DType) -> Result<Tensor> {
    absent()
}
pub fn duplicate(_: &Tensor) -> Result<Tensor> {
    absent()
}
pub fn read<T: WithDType>(_: &Tensor) -> Result<Vec<T>> {
    absent()
}
pub fn to_host(_: &Tensor) -> Result<Tensor> {
    absent()
}
pub fn concatenate(_: &[&Tensor]) -> Result<Tensor> {
    absent()
}
pub fn zero(_: &Tensor) -> Result<()> {
    absent()
}
pub fn overwrite(_: &Tensor, _: &Tensor) -> Result<()> {
    absent()
}

#[test]
fn the_error_says_how_to_get_cuda() {
    let text = device(0).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("without CUDA") && text.contains("--features cuda"), "{text}");
}
