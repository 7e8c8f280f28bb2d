//! Where a run computes: the device a config asks for, and the type of the weights there.

use candle_core::{DType, Device};

use crate::config::model::DtypeKind;
use crate::config::{Config, DeviceKind};
use crate::error::{Error, Result};
use crate::model::decoder::{Decoder, Placement};
use crate::ops::cuda;

/// A device, opened.
pub struct Opened {
    pub place: Placement,
    /// Why "auto" took the CPU.
    pub fell_back: Option<String>,
}

/// Opens what `device` and `dtype` say.
///
/// # Errors
/// When a CUDA device is asked for and there is none.
pub fn open(device: DeviceKind, dtype: DtypeKind) -> Result<Opened> {
    open_at(device, dtype, 0)
}

/// [`open`], of several CUDA devices that of the rank with this number on its host.
fn open_at(device: DeviceKind, dtype: DtypeKind, local_rank: usize) -> Result<Opened> {
    let ordinal = || cuda::of_local_rank(local_rank);
    let (device, fell_back) = match device {
        DeviceKind::Cpu => (Device::Cpu, None),
        DeviceKind::Cuda => (cuda::device(ordinal())?, None),
        DeviceKind::Auto => match cuda::device(ordinal()) {
            Ok(device) => (device, None),
            Err(error) => (Device::Cpu, Some(format!("running on the CPU: {}", cause(&error)))),
        },
    };
    let dtype = dtype.on(device.is_cuda());
    Ok(Opened { place: Placement { device, dtype, missing: Vec::new() }, fell_back })
}

/// What is wrong, without the advice for someone who asked for the device.
fn cause(error: &Error) -> String {
    match error {
        Error::Input { problem, .. } => problem.clone(),
        other => other.to_string(),
    }
}

/// [`open`] for a run, whose ranks of one host take a device each: refuses keys of its stages that would have no effect there.
///
/// # Errors
/// As [`open`], and for such a key.
pub fn open_for(config: &Config, local_rank: usize) -> Result<Opened> {
    let opened = open_at(config.device, config.model.dtype, local_rank)?;
    if opened.place.dtype == DType::F32 {
        let why = "the weights are f32 here (model.dtype, device)";
        config.optims().try_for_each(|(prefix, optim)| optim.validate_for_f32(prefix, why))?;
    }
    Ok(opened)
}

/// How far log-probs may lie apart between weights with an adapter beside them and with it merged in, nats.
pub fn merged_bound(decoder: &Decoder) -> f32 {
    if decoder.dtype() == DType::F32 { 1e-3 } else { 0.1 }
}
