//! Weights in Hugging Face layout: one `model.safetensors`, or shards named by `model.safetensors.index.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use half::{bf16, f16};
use serde_json::{Map, Value, json};

use super::config_json;
use super::shards::{INDEX, SINGLE, Shard, WeightFiles};
use crate::error::{Error, Result};
use crate::formats::file::{write_aside, write_json};
use crate::model::config::ModelConfig;
use crate::ops::memory;
use crate::trail;

pub use super::shards::{LOAD_WINDOW, TensorFile};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Tensors listed by name in one error; the rest are counted.
const MAX_LISTED: usize = 6;

/// Reads every parameter of `config` from `dir` onto `device`, converted to `dtype` one tensor at a time.
///
/// Keys are the names of [`ModelConfig::parameter_names`]. Stored tensors may be bf16, f16 or f32. A missing,
/// extra, duplicate or wrongly shaped tensor is an error that names it, as is a file that is absent or cut short; all are
/// listed at once. Besides the weights, 32 MiB of a file are in memory at a time; rotary `inv_freq` buffers and the
/// `lm_head.weight` of a tied model are skipped.
pub fn load(
    dir: &Path,
    config: &ModelConfig,
    device: &Device,
    dtype: DType,
) -> Result<BTreeMap<String, Tensor>> {
    let (shards, stored) = locate(dir, config)?;
    let mut tensors = BTreeMap::new();
    for (name, _) in config.parameter_names() {
        let (_, number) = stored[&name];
        let shard = &shards[number];
        // Converted before it goes to the device: no kernel is asked for, and half as much goes over.
        let tensor = shard.tensor(&shard.tensors[&name], dtype)?;
        tensors.insert(name, tensor.to_device(device).map_err(compute)?);
    }
    refuse_other_head(dir, config, &shards, &stored)?;
    Ok(tensors)
}

/// Refuses a head beside a tied one that is another: some programs would compute with it.
fn refuse_other_head(dir: &Path, config: &ModelConfig, shards: &[Shard], stored: &Located) -> Result<()> {
    let [embedding, head] =
        [EMBEDDING, HEAD].map(|name| stored.get(name).map(|(_, shard)| (&shards[*shard], name)));
    let (true, Some((a, embedding)), Some((b, head))) = (config.tie_word_embeddings, embedding, head) else {
        return Ok(());
    };
    let same_shape = stored[embedding].0 == stored[head].0;
    if same_shape && a.holds_the_same(&a.tensors[embedding], b, &b.tensors[head])? {
        return Ok(());
    }
    let problem = format!("tie_word_embeddings is true in config.json, but {head} is not {embedding}");
    let fix = format!("Set tie_word_embeddings to false where the head was trained apart, or remove {head}");
    Err(Error::input(dir.display(), problem, fix))
}

/// Refuses what [`load`] refuses, from the headers of the files: no tensor is read.
pub fn check(dir: &Path, config: &ModelConfig) -> Result<()> {
    locate(dir, config).map(drop)
}

/// Shape of each stored tensor, and which of the files has it.
type Located = BTreeMap<String, (Vec<usize>, usize)>;

fn locate(dir: &Path, config: &ModelConfig) -> Result<(Vec<Shard>, Located)> {
    let WeightFiles { shards, broken } = WeightFiles::open(dir)?;
    let mut stored = BTreeMap::new();
    let mut faults = Faults { broken, ..Faults::default() };
    for (number, shard) in shards.iter().enumerate() {
        for (name, tensor) in &shard.tensors {
            faults.check_dtype(name, tensor.dtype);
            if let Some((_, earlier)) = stored.insert(name.clone(), (tensor.shape.clone(), number)) {
                let [a, b] = [earlier, number].map(|n: usize| shards[n].path.display().to_string());
                faults.duplicate.push(format!("{name} (in {a} and {b})"));
            }
        }
    }
    faults.compare(&config.parameter_names(), &stored, config.tie_word_embeddings);
    if faults.broken.is_empty() && !faults.missing.is_empty() {
        refuse_other_names(dir, config, &stored)?;
    }
    faults.into_result(dir)?;
    Ok((shards, stored))
}

/// Says what all names have in common that should not be there, or lack; and a head that config.json asks for in vain.
fn refuse_other_names(dir: &Path, config: &ModelConfig, stored: &Located) -> Result<()> {
    let wanted: Vec<String> = config.parameter_names().into_iter().map(|(name, _)| name).collect();
    let refuse = |problem: String, fix: &str| Err(Error::input(dir.display(), problem, fix));
    let has = |name: &String| stored.contains_key(name);
    let absent: Vec<&String> = wanted.iter().filter(|name| !has(name)).collect();
    if absent == [HEAD] {
        let problem = format!("{HEAD} is missing, and tie_word_embeddings is not true in config.json");
        return refuse(problem, "Set tie_word_embeddings to true where the model has no head of its own");
    }
    if absent.len() < wanted.len() {
        return Ok(());
    }
    let short = |name: &String| name.strip_prefix("model.").is_some_and(|name| stored.contains_key(name));
    if wanted.iter().filter(|name| *name != HEAD).all(short) {
        let problem =
            "the names of all tensors lack `model.`: these are the weights of a model without its head";
        return refuse(
            problem.into(),
            "Save the whole causal language model, or put `model.` before each name",
        );
    }
    let Some(prefix) = stored.keys().find_map(|name| name.strip_suffix(EMBEDDING)) else { return Ok(()) };
    if wanted.iter().all(|name| has(&format!("{prefix}{name}"))) {
        let problem =
            format!("the names of all tensors begin with `{prefix}`, which a wrapper has put there");
        return refuse(
            problem,
            "Save the model that is inside of the wrapper, or take the prefix off each name",
        );
    }
    Ok(())
}

/// How [`save`] stores weights.
#[derive(Clone, Copy, Debug)]
pub struct SaveOptions {
    /// bf16, f16 or f32. Rounds to nearest even.
    pub dtype: DType,
    /// Tensor data of one file; past it the model is cut into shards with an index. A single larger tensor
    /// still goes into one file.
    pub max_shard_bytes: u64,
}

impl SaveOptions {
    /// Shards of at most 5 GB.
    pub fn new(dtype: DType) -> Self {
        Self { dtype, max_shard_bytes: 5_000_000_000 }
    }
}

/// Writes `tensors` and `config.json` into `dir`, which is made if absent.
///
/// The names and shapes must be those of [`ModelConfig::parameter_names`]. Every file is written aside, synced
/// and renamed, `config.json` last, so a killed save leaves no file cut short. Weight files of an earlier save
/// that the new one does not use are removed at the end.
pub fn save(
    dir: &Path,
    config: &ModelConfig,
    tensors: &[(String, Tensor)],
    options: SaveOptions,
) -> Result<()> {
    let mut by_name = BTreeMap::new();
    let mut faults = Faults::default();
    for (name, tensor) in tensors {
        if by_name.insert(name.clone(), (tensor.dims().to_vec(), tensor)).is_some() {
            faults.duplicate.push(name.clone());
        }
    }
    faults.compare(&config.parameter_names(), &by_name, false);
    faults.into_result(dir)?;
    save_with(dir, config, options, |name| Ok(by_name[name].1.clone())).map(|_| ())
}

/// [`save`] for weights made one at a time: `make` is called once for each of
/// [`ModelConfig::parameter_names`], in that order, and only one tensor is held. Returns the bytes written.
pub fn save_with(
    dir: &Path,
    config: &ModelConfig,
    options: SaveOptions,
    mut make: impl FnMut(&str) -> Result<Tensor>,
) -> Result<u64> {
    let SaveOptions { dtype, max_shard_bytes } = options;
    let Some(dtype_name) = stored_dtype(dtype) else {
        let fix = "Choose bf16, f16 or f32";
        return Err(Error::input("dtype", format!("weights cannot be stored as {dtype:?}"), fix));
    };
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the directory"))?;
    let bytes_of = |shape: &[usize]| (shape.iter().product::<usize>() * dtype.size_in_bytes()) as u64;
    let mut shards = vec![(0u64, Vec::new())];
    for (name, shape) in config.parameter_names() {
        let bytes = bytes_of(&shape);
        let (filled, parameters) = &shards[shards.len() - 1];
        if !parameters.is_empty() && filled + bytes > max_shard_bytes {
            shards.push((0, Vec::new()));
        }
        if let Some((filled, parameters)) = shards.last_mut() {
            *filled += bytes;
            parameters.push((name, shape));
        }
    }

    let count = shards.len();
    let mut kept = BTreeSet::new();
    let mut weight_map = Map::new();
    let mut written = 0;
    for (number, (bytes, parameters)) in shards.iter().enumerate() {
        let file = match count {
            1 => SINGLE.to_string(),
            _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
        };
        let mut header = Map::new();
        header.insert("__metadata__".into(), json!({"format": "pt"}));
        let mut offset = 0;
        for (name, shape) in parameters {
            let end = offset + bytes_of(shape);
            let entry = json!({"dtype": dtype_name, "shape": shape, "data_offsets": [offset, end]});
            header.insert(name.clone(), entry);
            weight_map.insert(name.clone(), file.clone().into());
            offset = end;
        }
        write_aside(&dir.join(&file), |out| {
            let mut header = Value::Object(header).to_string().into_bytes();
            header.resize(header.len().next_multiple_of(8), b' ');
            let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(dir.join(&file), "write"));
            put(&(header.len() as u64).to_le_bytes())?;
            put(&header)?;
            for (name, _) in parameters {
                trail::begin("write a tensor");
                put(&little_endian_bytes(&make(name)?, dtype)?)?;
            }
            Ok(())
        })?;
        written += bytes;
        kept.insert(file);
    }
    if count > 1 {
        let index = json!({"metadata": {"total_size": written}, "weight_map": weight_map});
        write_json(&dir.join(INDEX), &index)?;
        kept.insert(INDEX.into());
    }
    remove_stale(dir, &kept)?;
    write_json(&dir.join("config.json"), &config_json::to_json(config, dtype))?;
    Ok(written)
}

/// What is wrong with a set of tensors, all of it, by name.
#[derive(Default)]
struct Faults {
    broken: Vec<String>,
    missing: Vec<String>,
    extra: Vec<String>,
    duplicate: Vec<String>,
    shape: Vec<String>,
    dtype: Vec<String>,
}

impl Faults {
    fn check_dtype(&mut self, name: &str, dtype: safetensors::Dtype) {
        use safetensors::Dtype::{BF16, F16, F32};
        if !matches!(dtype, BF16 | F16 | F32) && !is_skipped(name, false) {
            self.dtype.push(format!("{name} is {dtype:?}"));
        }
    }

    fn compare<T>(
        &mut self,
        wanted: &[(String, Vec<usize>)],
        stored: &BTreeMap<String, (Vec<usize>, T)>,
        tied: bool,
    ) {
        for (name, shape) in wanted {
            match stored.get(name) {
                None => self.missing.push(name.clone()),
                Some((found, _)) if found != shape => {
                    self.shape.push(format!("{name} is {found:?}, wanted {shape:?}"));
                }
                Some(_) => {}
            }
        }
        let wanted = wanted.iter().map(|(name, _)| name).collect::<BTreeSet<_>>();
        let extra = stored.keys().filter(|name| !wanted.contains(name) && !is_skipped(name, tied));
        self.extra.extend(extra.cloned());
    }

    fn into_result(self, dir: &Path) -> Result<()> {
        // What a broken file holds is not missing.
        let missing = if self.broken.is_empty() { self.missing } else { Vec::new() };
        let fix = match self.broken.is_empty() {
            true => "Give weights that fit config.json: its names and shapes, stored as bf16, f16 or f32",
            false => "A download or copy was probably cut short: fetch the files again",
        };
        let kinds = [
            ("broken files", self.broken),
            ("missing tensors", missing),
            ("unexpected tensors", self.extra),
            ("tensors stored twice", self.duplicate),
            ("tensors of the wrong shape", self.shape),
            ("tensors of an unsupported type", self.dtype),
        ];
        let problems = kinds.into_iter().filter(|(_, names)| !names.is_empty()).map(|(kind, names)| {
            let listed = names.iter().take(MAX_LISTED).cloned().collect::<Vec<_>>().join(", ");
            match names.len().saturating_sub(MAX_LISTED) {
                0 => format!("{kind}: {listed}"),
                more => format!("{kind}: {listed} and {more} more"),
            }
        });
        let problems = problems.collect::<Vec<_>>();
        if problems.is_empty() {
            return Ok(());
        }
        Err(Error::input(dir.display(), problems.join("; "), fix))
    }
}

/// Stored by other programs, computed here: rotary buffers, and the copy of a tied head.
fn is_skipped(name: &str, tied: bool) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (tied && name == "lm_head.weight")
}

fn stored_dtype(dtype: DType) -> Option<&'static str> {
    match dtype {
        DType::BF16 => Some("BF16"),
        DType::F16 => Some("F16"),
        DType::F32 => Some("F32"),
        _ => None,
    }
}

fn little_endian_bytes(tensor: &Tensor, dtype: DType) -> Result<Vec<u8>> {
    let flat = memory::to_host(tensor)?.to_dtype(dtype)?.flatten_all()?;
    Ok(match dtype {
        DType::BF16 => concatenate(&flat.to_vec1::<bf16>()?, |x| x.to_le_bytes()),
        DType::F16 => concatenate(&flat.to_vec1::<f16>()?, |x| x.to_le_bytes()),
        _ => concatenate(&flat.to_vec1::<f32>()?, |x| x.to_le_bytes()),
    })
}

fn concatenate<T: Copy, const N: usize>(values: &[T], bytes_of: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    let mut bytes = vec![0; values.len() * N];
    for (slot, &value) in bytes.chunks_exact_mut(N).zip(values) {
        slot.copy_from_slice(&bytes_of(value));
    }
    bytes
}

fn remove_stale(dir: &Path, kept: &BTreeSet<String>) -> Result<()> {
    for entry in std::fs::read_dir(dir).map_err(Error::io(dir, "list"))? {
        let name = entry.map_err(Error::io(dir, "list"))?.file_name();
        let name = name.to_string_lossy();
        let is_shard = name.starts_with("model-") && name.contains("-of-") && name.ends_with(".safetensors");
        if (is_shard || name == SINGLE || name == INDEX) && !kept.contains(&*name) {
            let path = dir.join(&*name);
            std::fs::remove_file(&path).map_err(Error::io(&path, "remove"))?;
        }
    }
    Ok(())
}

fn compute(error: candle_core::Error) -> Error {
    Error::Compute(Box::new(error))
}
