//! Weights from disk: how long they take to where they compute, and the memory meanwhile.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use half::bf16;

use crate::error::{Error, Result};
use crate::formats::hf::config_json;
use crate::formats::hf::weights::{self, SaveOptions};
use crate::model::config::ModelConfig;
use crate::observe::peak_memory_gib;
use crate::ops::memory::{self, Normal, synchronize};
use crate::rng::{Purpose, Stream};

/// Random values that are made; then they come again.
const REPEATED: usize = 1 << 20;
const GIB: f64 = (1u64 << 30) as f64;

/// Writes a model of this shape with random weights in bf16; returns its bytes. The values repeat: to loading they are
/// all alike.
///
/// # Errors
/// A file cannot be written.
pub fn write_random(dir: &Path, config: &ModelConfig, max_shard_bytes: u64) -> Result<u64> {
    let shapes: HashMap<String, Vec<usize>> = config.parameter_names().into_iter().collect();
    let dtype = DType::BF16;
    let stream = Stream::new(1, Purpose::Bench, [0, 0, 0]);
    let pattern = Normal { shape: REPEATED.into(), dtype, deviation: 0.02, stream };
    let pattern = memory::normal(&Device::Cpu, &pattern)?.to_vec1::<bf16>()?;
    let make = |name: &str| {
        let shape = shapes.get(name).map(Vec::as_slice).unwrap_or_default();
        let elements: usize = shape.iter().product();
        let mut values = Vec::with_capacity(elements);
        while values.len() < elements {
            let more = (elements - values.len()).min(REPEATED);
            values.extend_from_slice(&pattern[..more]);
        }
        Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
    };
    weights::save_with(dir, config, SaveOptions { dtype, max_shard_bytes }, make)
}

/// What loading took.
pub struct Loaded {
    pub parameters: usize,
    /// Bytes of each file.
    pub files: Vec<u64>,
    /// Bytes of the weights in the type they were loaded as.
    pub weight_bytes: f64,
    pub seconds: f64,
    /// Peak of this process in host memory, where the system says it.
    pub peak_gib: Option<f64>,
    /// The peak before loading.
    pub before_gib: Option<f64>,
    /// The weights in host memory, GiB: none where they are on a device.
    pub on_host_gib: f64,
}

impl Loaded {
    pub fn file_bytes(&self) -> f64 {
        self.files.iter().sum::<u64>() as f64
    }

    /// Host memory that loading took beside the weights.
    pub fn beside_gib(&self) -> Option<f64> {
        Some(self.peak_gib? - self.before_gib? - self.on_host_gib)
    }

    pub fn largest_file(&self) -> f64 {
        self.files.iter().max().copied().unwrap_or(0) as f64
    }
}

/// Loads the weights in `dir` as `dtype` and drops them.
///
/// # Errors
/// As [`weights::load`].
pub fn load(dir: &Path, device: &Device, dtype: DType) -> Result<Loaded> {
    let config = config_json::load(dir)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let entry = entry.map_err(Error::io(dir, "list"))?;
        if entry.file_name().to_string_lossy().ends_with(".safetensors") {
            // Through the links of a hub cache.
            files.push(std::fs::metadata(entry.path()).map_err(Error::io(entry.path(), "read"))?.len());
        }
    }
    let before_gib = peak_memory_gib();
    let start = Instant::now();
    let tensors = weights::load(dir, &config, device, dtype)?;
    synchronize(device)?;
    let seconds = start.elapsed().as_secs_f64();
    let peak_gib = peak_memory_gib();
    let parameters: usize = tensors.values().map(|tensor| tensor.elem_count()).sum();
    let weight_bytes = (parameters * dtype.size_in_bytes()) as f64;
    let on_host_gib = if device.is_cuda() { 0.0 } else { weight_bytes / GIB };
    Ok(Loaded { parameters, files, weight_bytes, seconds, peak_gib, before_gib, on_host_gib })
}
