//! Where a bench runs, and the shape of its random model.

use anyhow::Result;
use candle_core::Device;
use serde_json::{Value, json};

use crate::cli::machine;
use crate::config::DeviceKind;
use crate::config::model::DtypeKind;
use crate::error::Error;
use crate::model::config::ModelConfig;
use crate::model::decoder::{Decoder, Placement};
use crate::observe::peak_memory_gib;
use crate::ops::cuda;
use crate::plan::shapes;
use crate::train::place;

#[derive(clap::Args)]
pub struct On {
    /// Shape of the model: tiny, smollm2-135m, smollm2-360m; on a GPU also those of `rlvr bench ops`.
    #[arg(long, default_value = "smollm2-135m")]
    preset: String,
    #[arg(long, value_parser = machine::device(&[DeviceKind::Cpu, DeviceKind::Cuda]), default_value = "cpu")]
    device: DeviceKind,
    /// Type of weights and activations. Default: bf16 on a GPU, f32 on the CPU.
    #[arg(long, value_parser = machine::dtype(&[DtypeKind::F32, DtypeKind::Bf16]))]
    dtype: Option<DtypeKind>,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

impl On {
    pub fn place(&self) -> Result<Placement> {
        crate::cli::use_threads(self.threads)?;
        Ok(place::open(self.device, self.dtype.unwrap_or(DtypeKind::Auto))?.place)
    }

    /// With random weights, for sequences of so many tokens.
    pub fn decoder(&self, place: &Placement, tokens: usize) -> Result<Decoder> {
        Ok(Decoder::random_on(place, shape(&self.preset, self.device)?, 1, tokens)?)
    }

    /// What was asked for, and the peak until now.
    pub fn json(&self, bench: &str, place: &Placement) -> Result<Value> {
        Ok(json!({
            "bench": bench, "preset": self.preset, "device": self.device.name(), "dtype": place.dtype.as_str(),
            "threads": rayon::current_num_threads(), "peak_memory_gib": peak_gib(&place.device)?,
        }))
    }

    pub fn describe(&self, place: &Placement) -> Result<String> {
        let machine = match place.device.is_cuda() {
            true => cuda::describe(&place.device)?.name,
            false => format!("{} threads", rayon::current_num_threads()),
        };
        Ok(format!("{} {}, {machine}", self.preset, place.dtype.as_str()))
    }
}

/// Of the device's pool; on the CPU of the process.
pub fn peak_gib(device: &Device) -> Result<Option<f64>> {
    Ok(match device.is_cuda() {
        true => Some(cuda::memory_peak(device)? as f64 / (1u64 << 30) as f64),
        false => peak_memory_gib(),
    })
}

/// Refuses counts of 0.
pub fn above_zero(counts: &[(&str, usize)]) -> Result<()> {
    match counts.iter().find(|(_, count)| *count == 0) {
        Some((flag, _)) => Err(Error::config(flag, 0, "1 or more", "there would be nothing to time").into()),
        None => Ok(()),
    }
}

/// The shape of a preset; a CPU has the memory for the small ones.
pub fn shape(preset: &str, device: DeviceKind) -> Result<ModelConfig> {
    let config = shapes::find(preset)?;
    if device == DeviceKind::Cpu && !["tiny", "smollm2-135m", "smollm2-360m"].contains(&preset) {
        let want = "tiny, smollm2-135m or smollm2-360m on the CPU";
        let why = "larger shapes do not fit a CPU step in f32; add --device cuda";
        return Err(Error::config("--preset", preset, want, why).into());
    }
    Ok(config)
}
