//! Safetensors files, mapped a window at a time: what has been read is not held.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use memmap2::{Mmap, MmapOptions};
use rayon::prelude::*;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::disk;
use crate::error::{Error, Result};
use crate::{stop, trail};

pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// Bytes of a file that are mapped at once.
pub const LOAD_WINDOW: usize = 32 << 20;
/// Elements that one thread converts at a time.
const CHUNK: usize = 1 << 16;

/// The weight files of a folder.
pub(super) struct WeightFiles {
    pub(super) shards: Vec<Shard>,
    /// Files that are absent or not whole, with the reason.
    pub(super) broken: Vec<String>,
}

/// One file: its header, and where each tensor's bytes lie.
pub(super) struct Shard {
    pub(super) path: PathBuf,
    file: File,
    pub(super) tensors: BTreeMap<String, Stored>,
}

#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) name: String,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// From the start of the file.
    start: u64,
    bytes: usize,
}

impl WeightFiles {
    /// The one file, or the files of the index. An index beside `model.safetensors` is ignored, as transformers does.
    ///
    /// # Errors
    /// Without either, and for an index that is no index; broken files are listed, not an error.
    pub(super) fn open(dir: &Path) -> Result<Self> {
        let mut files = Self { shards: Vec::new(), broken: Vec::new() };
        for name in file_names(dir)? {
            let path = dir.join(&name);
            match path.is_file() {
                true => match Shard::read(&path)? {
                    Ok(shard) => files.shards.push(shard),
                    Err(problem) => files.broken.push(format!("{name}: {problem}")),
                },
                false => files.broken.push(format!("{name}: named by {INDEX} but absent")),
            }
        }
        Ok(files)
    }
}

fn file_names(dir: &Path) -> Result<BTreeSet<String>> {
    let index = dir.join(INDEX);
    if dir.join(SINGLE).is_file() {
        return Ok(BTreeSet::from([SINGLE.into()]));
    }
    if !index.is_file() {
        let problem = format!("no {SINGLE} and no {INDEX}");
        let fix = "Give a model directory in Hugging Face layout; a GGUF file becomes one with `rlvr import`";
        return Err(Error::input(dir.display(), problem, fix));
    }
    let text = disk::read_text(&index)?;
    let broken = |problem: String| Error::input(index.display(), problem, "Fetch the file again");
    let json: Value = serde_json::from_str(&text).map_err(|e| broken(format!("not valid JSON ({e})")))?;
    let map = json.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| broken("no weight_map object".into()))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        match file.as_str() {
            Some(name) if Path::new(name).file_name().is_some_and(|f| f == name) => names.insert(name.into()),
            _ => {
                let problem =
                    format!("weight_map gives {tensor} the file {file}, not a name in this directory");
                return Err(broken(problem));
            }
        };
    }
    Ok(names)
}

impl Shard {
    /// Reads the header alone. The inner error says why the file is none.
    fn read(path: &Path) -> Result<std::result::Result<Self, String>> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let length = file.metadata().map_err(Error::io(path, "read"))?.len();
        // Pages are read when they are touched, and the header is all that is.
        let whole = map(&file, MmapOptions::new().len(length as usize)).map_err(Error::io(path, "map"))?;
        Ok(match SafeTensors::read_metadata(&whole) {
            Err(error) => Err(format!("not a whole safetensors file ({error})")),
            Ok((header, metadata)) => {
                let data = 8 + header as u64;
                let stored = metadata.tensors().into_iter().map(|(name, info)| {
                    let (start, end) = info.data_offsets;
                    let (dtype, shape) = (info.dtype, info.shape.clone());
                    let stored = Stored {
                        name: name.clone(),
                        dtype,
                        shape,
                        start: data + start as u64,
                        bytes: end - start,
                    };
                    (name, stored)
                });
                Ok(Self { path: path.into(), tensors: stored.collect(), file })
            }
        })
    }

    /// A tensor on the CPU as `dtype`, converted window by window; it must be stored as bf16, f16 or f32.
    pub(super) fn tensor(&self, stored: &Stored, dtype: DType) -> Result<Tensor> {
        stop::look()?;
        match dtype {
            DType::F32 => self.read_as(stored, |x| x),
            DType::BF16 => self.read_as(stored, bf16::from_f32),
            DType::F16 => self.read_as(stored, f16::from_f32),
            _ => Err(self.unsupported(stored, dtype)),
        }
    }

    fn read_as<T: WithDType + Default>(
        &self,
        stored: &Stored,
        make: impl Fn(f32) -> T + Sync,
    ) -> Result<Tensor> {
        let values = match stored.dtype {
            Dtype::F32 => self.convert(stored, |b: [u8; 4]| f32::from_le_bytes(b), make),
            Dtype::BF16 => self.convert(stored, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32(), make),
            Dtype::F16 => self.convert(stored, |b: [u8; 2]| f16::from_le_bytes(b).to_f32(), make),
            _ => return Err(self.unsupported(stored, T::DTYPE)),
        }?;
        Ok(Tensor::from_vec(values, stored.shape.as_slice(), &Device::Cpu)?)
    }

    /// Whether two tensors of one shape have the same values, a window at a time; `other` is of `there`.
    pub(super) fn holds_the_same(&self, own: &Stored, there: &Self, other: &Stored) -> Result<bool> {
        if own.dtype != other.dtype {
            let (a, b) = (self.tensor(own, DType::F32)?, there.tensor(other, DType::F32)?);
            return Ok(a.flatten_all()?.to_vec1::<f32>()? == b.flatten_all()?.to_vec1::<f32>()?);
        }
        for at in (0..own.bytes).step_by(LOAD_WINDOW) {
            let length = LOAD_WINDOW.min(own.bytes - at);
            let part = |shard: &Self, stored: &Stored| {
                let window =
                    MmapOptions::new().offset(stored.start + at as u64).len(length).populate().to_owned();
                map(&shard.file, &window).map_err(Error::io(&shard.path, "map"))
            };
            if part(self, own)?[..] != part(there, other)?[..] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn not_finite(&self, stored: &Stored, at: usize) -> Error {
        let place = format!("{}: {}", self.path.display(), stored.name);
        let fix = "The training that wrote it has diverged, or the file is damaged: use an earlier checkpoint, or fetch it again";
        Error::input(place, format!("element {at} is NaN or infinite"), fix)
    }

    fn unsupported(&self, stored: &Stored, wanted: DType) -> Error {
        let problem = format!("a tensor is {:?} and wanted as {wanted:?}", stored.dtype);
        Error::input(self.path.display(), problem, "Store it as bf16, f16 or f32")
    }

    fn convert<T: Copy + Default + Send, const N: usize>(
        &self,
        stored: &Stored,
        read: impl Fn([u8; N]) -> f32 + Sync,
        make: impl Fn(f32) -> T + Sync,
    ) -> Result<Vec<T>> {
        let mut values = vec![T::default(); stored.bytes / N];
        for (window, values) in values.chunks_mut(LOAD_WINDOW / N).enumerate() {
            trail::begin("read a tensor");
            let start = stored.start + (window * LOAD_WINDOW) as u64;
            // Brought in at once: page faults would take most of the time.
            let part = map(&self.file, MmapOptions::new().offset(start).len(values.len() * N).populate());
            let bytes = part.map_err(Error::io(&self.path, "map"))?;
            let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(CHUNK * N));
            let all_finite = chunks.map(|(values, bytes)| {
                let mut most = 0u32;
                for (value, bytes) in values.iter_mut().zip(bytes.as_chunks::<N>().0) {
                    let number = read(*bytes);
                    // Without its sign a number is the larger the larger its bits are; infinity and NaN come last.
                    most = most.max(number.to_bits() & 0x7fff_ffff);
                    *value = make(number);
                }
                most < f32::INFINITY.to_bits()
            });
            if !all_finite.reduce(|| true, |a, b| a && b) {
                let found = bytes.as_chunks::<N>().0.iter().position(|bytes| !read(*bytes).is_finite());
                let at = window * (LOAD_WINDOW / N) + found.unwrap_or_default();
                return Err(self.not_finite(stored, at));
            }
        }
        Ok(values)
    }
}

#[allow(unsafe_code)]
fn map(file: &File, part: &MmapOptions) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only, dropped by the function that asked for it, and what it shows is copied out; rlvr
    // never rewrites a file in place (`write_aside` renames), so its bytes do not change underneath.
    unsafe { part.map(file) }
}

/// One safetensors file whose tensors are read when they are asked for, so that no two need be in memory at once.
pub struct TensorFile(Shard);

impl TensorFile {
    /// The types that its tensors are stored in; `None` for one that is no type of weights.
    pub fn dtypes(&self) -> impl Iterator<Item = Option<DType>> {
        self.0.tensors.values().map(|stored| match stored.dtype {
            Dtype::BF16 => Some(DType::BF16),
            Dtype::F16 => Some(DType::F16),
            Dtype::F32 => Some(DType::F32),
            _ => None,
        })
    }

    /// # Errors
    /// When the file cannot be read or is cut short.
    pub fn open(path: &Path) -> Result<Self> {
        Shard::read(path)?.map(Self).map_err(|problem| {
            let fix = "A download or copy was probably cut short: fetch it again";
            Error::input(path.display(), problem, fix)
        })
    }

    /// On the CPU, in the type it is stored in; `None` when there is no such tensor.
    pub fn get(&self, name: &str) -> Option<Result<Tensor>> {
        let stored = self.0.tensors.get(name)?;
        Some(self.raw(stored))
    }

    fn raw(&self, stored: &Stored) -> Result<Tensor> {
        let dtype = DType::try_from(stored.dtype)?;
        match stored.dtype {
            Dtype::F32 | Dtype::BF16 | Dtype::F16 => self.0.tensor(stored, dtype),
            _ => {
                let bytes = map(&self.0.file, MmapOptions::new().offset(stored.start).len(stored.bytes));
                let bytes = bytes.map_err(Error::io(&self.0.path, "map"))?;
                Ok(Tensor::from_raw_buffer(&bytes, dtype, &stored.shape, &Device::Cpu)?)
            }
        }
    }
}
