//! The machine a command runs on: its devices, and what the operating system says of it.

use candle_core::{DType, Device};

use crate::error::{Error, Result};

/// Where tensors live. `auto` takes a CUDA device when the build and the machine have one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum DeviceChoice {
    Cpu,
    Cuda,
}

impl DeviceChoice {
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }

    /// # Errors
    /// When there is no CUDA device, or this build cannot use one; says which.
    pub fn open(self) -> Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => cuda_device(),
        }
    }
}

fn cuda_device() -> Result<Device> {
    if cfg!(not(feature = "cuda")) {
        let fix = "Build with --features cuda, or choose the device cpu";
        return Err(Error::input("device cuda", "this program was built without CUDA", fix));
    }
    Device::new_cuda(0).map_err(|e| {
        let text = e.to_string();
        let what = text.lines().next().unwrap_or("unknown error").to_string();
        Error::input("device cuda", format!("cannot be opened: {what}"), "Check nvidia-smi and the driver")
    })
}

/// Waits until the device has done all it was given; the CPU always has.
pub fn synchronize(device: &Device) -> Result<()> {
    Ok(device.synchronize()?)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    pub fn candle(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}
