//! What was written, read back and held against the weights in memory.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use super::probe::{Answer, Probe};
use super::source::{Format, Source};
use crate::error::{Error, Result};
use crate::formats::Written;
use crate::formats::gguf::GgufModel;
use crate::formats::hf::folder::FolderTensors;
use crate::formats::hf::load_decoder;
use crate::formats::peft;
use crate::model::decoder::{Decoder, Placement};

/// How the tensors of one stored type came back.
#[derive(Clone, Debug, Default, Serialize)]
pub struct WeightCheck {
    pub tensors: usize,
    /// Largest of `|read - memory| / |memory|` over the tensors, Euclidean norms.
    pub relative_error: f64,
    pub bound: f64,
}

/// How far the log-probs of the probe moved.
#[derive(Clone, Debug, Serialize)]
pub struct LogprobCheck {
    pub tokens: usize,
    pub max_difference: f64,
    pub mean_difference: f64,
    pub max_bound: f64,
    pub mean_bound: f64,
    /// Leading tokens that both generate greedily.
    pub greedy_equal: usize,
}

/// Everything [`read_back`] found.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// By stored type.
    pub weights: BTreeMap<String, WeightCheck>,
    pub logprobs: LogprobCheck,
    pub probe: Probe,
    /// What the weights in memory say of the probe.
    pub memory: Answer,
    /// What those read back say of it.
    pub read_back: Answer,
}

/// Relative error that one stored type may bring, for weights that are exact in `stored`.
///
/// bf16 and f16 round to nearest: 2^-8 and 2^-11 of each value, f16 doubled for values below its normal range. A
/// block of Q8_0 errs by half a step of its largest value / 127; in the worst case that value stands alone, and the
/// norm errs by sqrt(32) / 254 = 0.022. The others are twice what they do to normally distributed weights.
pub fn weight_bound(kind: &str, stored: DType) -> f64 {
    match (kind, stored) {
        ("F32", _) | ("BF16", DType::BF16) | ("F16", DType::F16) => 0.0,
        ("BF16", _) => 1.0 / 256.0,
        ("F16", _) => 1.0 / 1024.0,
        ("Q8_0", _) => 0.0225,
        ("Q6_K", _) => 0.04,
        ("Q5_0", _) => 0.1,
        _ => 0.16,
    }
}

/// Largest and mean difference of log-probs, in nats, that such weights may bring: `docs/export.md` says why.
fn logprob_bounds(weights: &BTreeMap<String, WeightCheck>, format: Format) -> (f64, f64) {
    let exact = weights.values().all(|check| check.relative_error == 0.0);
    let loosest = weights.values().map(|check| check.bound).fold(0.0, f64::max);
    match (exact, format) {
        (true, Format::Folder(_) | Format::Adapter) => (0.0, 0.0),
        // GGUF keeps the rotary base and table and the norms' epsilon in f32.
        (true, Format::Gguf(_)) => (1e-3, 1e-4),
        _ if loosest <= weight_bound("F16", DType::F32) => (0.2, 0.02),
        _ if loosest <= weight_bound("BF16", DType::F32) => (1.0, 0.1),
        _ if loosest <= weight_bound("Q8_0", DType::F32) => (2.0, 0.2),
        _ => (10.0, 1.5),
    }
}

/// Reads `path` back and compares its weights, one at a time, then its log-probs on the probe. `source`'s weights
/// are let go before the file's are loaded.
///
/// # Errors
/// What was read differs by more than the bounds, or cannot be read.
pub fn read_back(source: Source, format: Format, written: &Written, path: &Path) -> Result<Findings> {
    let Source { decoder, stored, probe, .. } = source;
    let opened = Opened::open(path, format)?;
    let mut weights = BTreeMap::<String, WeightCheck>::new();
    let written_tensors: Vec<(&str, &Tensor)> = match format {
        Format::Adapter => decoder.trainable().collect(),
        Format::Folder(_) | Format::Gguf(_) => decoder.parameters().collect(),
    };
    for (name, tensor) in written_tensors {
        let kind = written.stored_as.get(name).map_or("", String::as_str);
        let bound = weight_bound(kind, stored);
        let error = relative_error(tensor, &opened.tensor(name)?)?;
        if error.is_nan() || error > bound {
            return Err(failed(
                path,
                format!(
                    "{name}, stored as {kind}, came back with a relative error of {error:.3e}, bound {bound:.3e}"
                ),
            ));
        }
        let check = weights.entry(kind.to_string()).or_default();
        check.tensors += 1;
        check.bound = bound;
        check.relative_error = check.relative_error.max(error);
    }
    let memory = probe.ask(&decoder)?;
    let read_back = probe.ask(&opened.decoder(decoder, path, probe.positions())?)?;
    let logprobs = compare(&memory, &read_back, logprob_bounds(&weights, format));
    let LogprobCheck { max_difference: max, mean_difference: mean, max_bound, mean_bound, .. } = logprobs;
    if mean.is_nan() || max > max_bound || mean > mean_bound {
        return Err(failed(
            path,
            format!(
                "log-probs of the probe differ by up to {max:.3e}, {mean:.3e} on average, bounds {max_bound} and \
                 {mean_bound}"
            ),
        ));
    }
    Ok(Findings { weights, logprobs, probe: probe.clone(), memory, read_back })
}

/// `path` still has its temporary name.
fn failed(path: &Path, problem: String) -> Error {
    Error::Unfaithful { path: path.with_extension(""), problem }
}

fn compare(memory: &Answer, read: &Answer, (max_bound, mean_bound): (f64, f64)) -> LogprobCheck {
    let pairs = memory.logprobs.iter().zip(&read.logprobs);
    let differences: Vec<f64> = pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs()).collect();
    let max = differences.iter().copied().fold(0.0, f64::max);
    let tokens = differences.len();
    let greedy_equal = memory.greedy.iter().zip(&read.greedy).take_while(|(a, b)| a == b).count();
    LogprobCheck {
        tokens,
        max_difference: max,
        mean_difference: differences.iter().sum::<f64>() / tokens.max(1) as f64,
        max_bound,
        mean_bound,
        greedy_equal,
    }
}

/// An export, opened again.
enum Opened {
    Folder(FolderTensors),
    Adapter(FolderTensors),
    Gguf(Box<GgufModel>),
}

impl Opened {
    fn open(path: &Path, format: Format) -> Result<Self> {
        match format {
            Format::Folder(_) => FolderTensors::open(path).map(Self::Folder),
            Format::Adapter => FolderTensors::open(path).map(Self::Adapter),
            Format::Gguf(_) => Ok(Self::Gguf(Box::new(GgufModel::open(path)?))),
        }
    }

    fn tensor(&self, name: &str) -> Result<Tensor> {
        match self {
            Self::Folder(folder) | Self::Adapter(folder) => folder.tensor(name),
            Self::Gguf(gguf) => gguf.tensor(name),
        }
    }

    /// As another command would load it. Lets go of the weights `before`, or puts the adapter beside them.
    fn decoder(self, mut before: Decoder, path: &Path, positions: usize) -> Result<Decoder> {
        match self {
            Self::Adapter(_) => {
                before.detach();
                peft::attach(path, &mut before)?;
                Ok(before)
            }
            Self::Folder(_) => {
                drop(before);
                load_decoder(path, positions, &Placement::CPU)
            }
            Self::Gguf(gguf) => {
                drop(before);
                let names = gguf.config.parameter_names();
                let tensors = names.into_iter().map(|(name, _)| Ok((name.clone(), gguf.tensor(&name)?)));
                Decoder::new(gguf.config.clone(), tensors.collect::<Result<Vec<_>>>()?, positions)
            }
        }
    }
}

fn relative_error(memory: &Tensor, read: &Tensor) -> candle_core::Result<f64> {
    let wide = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all();
    let (memory, read) = (wide(memory)?, wide(read)?);
    let (mut off, mut size) = (0.0, 0.0);
    for start in (0..memory.elem_count()).step_by(1 << 20) {
        let count = (1 << 20).min(memory.elem_count() - start);
        let (a, b) = (memory.narrow(0, start, count)?.to_vec1::<f32>()?, read.narrow(0, start, count)?);
        for (a, b) in a.into_iter().zip(b.to_vec1::<f32>()?) {
            off += f64::from(a - b).powi(2);
            size += f64::from(a).powi(2);
        }
    }
    Ok(if off == 0.0 { 0.0 } else { (off / size).sqrt() })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// The largest error of a value by itself is what a tensor of a few weights may show as its own.
    #[test]
    fn the_bounds_of_types_that_round_are_met_and_tight() {
        let worst = |rounded: fn(f32) -> f32| -> f64 {
            let error = |i: u32| {
                let x = 1.0 + i as f32 / (1 << 20) as f32;
                f64::from((rounded(x) - x).abs() / x)
            };
            (0..1 << 20).map(error).fold(0.0, f64::max)
        };
        let (bf16, f16) = (worst(|x| bf16::from_f32(x).to_f32()), worst(|x| f16::from_f32(x).to_f32()));
        let bound = |kind| weight_bound(kind, DType::F32);
        assert!(bf16 <= bound("BF16") && bf16 > 0.99 * bound("BF16"), "{bf16} of {}", bound("BF16"));
        // Below the normal range f16 errs by more than above it.
        assert!(f16 <= bound("F16") / 2.0 && f16 > 0.49 * bound("F16"), "{f16} of {}", bound("F16"));
    }
}
