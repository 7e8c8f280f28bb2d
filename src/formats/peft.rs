//! Adapters on disk as PEFT keeps them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use candle_core::{DType, Device};
use serde_json::{Map, Value, json};

use crate::config::lora::PROJECTIONS;
use crate::disk;
use crate::error::{Error, Result};
use crate::formats::file::{reason, write_aside, write_json};
use crate::formats::written::Written;
use crate::model::adapter::{Adapter, Shape};
use crate::model::decoder::Decoder;
use crate::ops::memory;

pub const CONFIG: &str = "adapter_config.json";
pub const WEIGHTS: &str = "adapter_model.safetensors";

/// Fields that say nothing about what the adapter computes.
const HARMLESS: [&str; 12] = [
    "auto_mapping",
    "base_model_name_or_path",
    "ensure_weight_tying",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "layers_pattern",
];

/// Fields read here.
const READ: [&str; 7] =
    ["peft_type", "r", "lora_alpha", "use_rslora", "target_modules", "bias", "init_lora_weights"];

/// Writes the adapter into `dir`, which is made if absent; `base` is the model it belongs to, as PEFT looks it up:
/// a folder or a name on the hub.
pub fn save(dir: &Path, adapter: &Adapter, base: &str) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(Error::io(dir, "create the adapter's folder"))?;
    let tensors = adapter.tensors.iter().map(|(name, tensor)| {
        Ok((name.as_str(), memory::to_host(tensor)?.to_dtype(DType::F32)?.contiguous()?))
    });
    let tensors = tensors.collect::<Result<Vec<_>>>()?;
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(|e| Error::Compute(e.into()))?;
    let path = dir.join(WEIGHTS);
    write_aside(&path, |out| out.write_all(&bytes).map_err(Error::io(&path, "write")))?;
    let Shape { rank, alpha, rslora, targets } = &adapter.shape;
    // PEFT's alpha is a whole number wherever it can be.
    let alpha = if alpha.fract() == 0.0 && *alpha < 1e15 { json!(*alpha as u64) } else { json!(alpha) };
    let config = json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "modules_to_save": null,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": targets,
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": rslora,
    });
    write_json(&dir.join(CONFIG), &config)
}

/// Writes the adapter of `decoder` alone, f32, into the folder `dir`, which is made if absent. `base` as for [`save`].
///
/// # Errors
/// `decoder` has no adapter, or a file cannot be written.
pub fn write(dir: &Path, decoder: &Decoder, base: &str) -> Result<Written> {
    let adapter = decoder.adapter().ok_or_else(|| {
        Error::input("--format peft", "there is no adapter to write", "Name its folder with --adapter")
    })?;
    save(dir, &adapter, base)?;
    let bytes = adapter.tensors.iter().map(|(_, tensor)| 4 * tensor.elem_count() as u64).sum();
    let stored_as = adapter.tensors.into_iter().map(|(name, _)| (name, "F32".to_string())).collect();
    Ok(Written { stored_as, bytes, notes: Vec::new() })
}

/// An adapter's folder, written by [`save`] or by PEFT. On the CPU, f32.
///
/// # Errors
/// A field of adapter_config.json that asks for something that is not computed here, by its name; a file that is
/// missing or damaged.
pub fn load(dir: &Path) -> Result<Adapter> {
    let path = dir.join(CONFIG);
    if !path.is_file() {
        let problem = format!("has no {CONFIG}");
        return Err(Error::input(dir.display(), problem, "Name an adapter's folder in PEFT layout"));
    }
    let text = disk::read_text(&path)?;
    let json: Value = serde_json::from_str(&text).map_err(|e| {
        Error::input(path.display(), format!("not valid JSON ({e})"), "Write or fetch the file again")
    })?;
    let object = json.as_object().ok_or_else(|| {
        Error::input(path.display(), "is no JSON object", "Name an adapter's folder in PEFT layout")
    })?;
    let mut shape = read_shape(object, &path)?;
    let path = dir.join(WEIGHTS);
    if !path.is_file() {
        let problem = format!("has no {WEIGHTS}");
        let fix = "Save the adapter with safe_serialization=True";
        return Err(Error::input(dir.display(), problem, fix));
    }
    let bytes = disk::read(&path)?;
    let stored = candle_core::safetensors::load_buffer(&bytes, &Device::Cpu).map_err(|e| {
        let problem = format!("not a whole safetensors file ({})", reason(&e));
        Error::input(path.display(), problem, "Write or fetch the file again")
    })?;
    let mut tensors = Vec::new();
    for (name, tensor) in stored {
        if !matches!(tensor.dtype(), DType::F32 | DType::BF16 | DType::F16) {
            let problem = format!("{name} is {:?}", tensor.dtype());
            return Err(Error::input(path.display(), problem, "Store the adapter as f32, bf16 or f16"));
        }
        let tensor = tensor.to_dtype(DType::F32)?;
        if !tensor.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()) {
            let problem = format!("{name} holds a NaN or an infinity");
            return Err(Error::input(path.display(), problem, "Use an earlier checkpoint of the adapter"));
        }
        tensors.push((name, tensor));
    }
    if shape.targets.is_empty() {
        let of_file =
            |layer: &&str| tensors.iter().any(|(name, _)| name.contains(&format!(".{layer}.lora_")));
        shape.targets = PROJECTIONS.into_iter().filter(of_file).collect();
    }
    Ok(Adapter { shape, tensors })
}

/// [`load`], then [`Decoder::attach`].
pub fn attach(dir: &Path, decoder: &mut Decoder) -> Result<()> {
    decoder.attach(load(dir)?).map_err(|error| match error {
        Error::Input { problem, fix, .. } => Error::input(dir.join(WEIGHTS).display(), problem, fix),
        other => other,
    })
}

/// `targets` is empty where they are a pattern or paths: then the file's tensors say it.
fn read_shape(json: &Map<String, Value>, path: &Path) -> Result<Shape> {
    let refuse = |field: &str, want: &str| {
        let got = json.get(field).unwrap_or(&Value::Null);
        let problem = format!("{got} is not supported, only {want}");
        let fix = "Train a plain LoRA adapter, or merge this one with PEFT and load the merged model";
        Err(Error::input(format!("{}: {field}", path.display()), problem, fix))
    };
    let get = |field: &str| json.get(field).unwrap_or(&Value::Null);
    if get("peft_type").as_str() != Some("LORA") {
        return refuse("peft_type", "\"LORA\"");
    }
    if !matches!(get("bias"), Value::Null) && get("bias").as_str() != Some("none") {
        return refuse("bias", "\"none\"");
    }
    // These change the weights beside the adapter as well.
    let init = get("init_lora_weights").as_str().unwrap_or("true");
    if !["true", "false", "gaussian", "orthogonal", "eva"].contains(&init) {
        return refuse("init_lora_weights", "true, false, \"gaussian\", \"orthogonal\" or \"eva\"");
    }
    for (field, value) in json {
        let known = HARMLESS.contains(&field.as_str()) || READ.contains(&field.as_str());
        if !known && !is_neutral(value) {
            return refuse(field, "null, false or empty");
        }
    }
    let rank = match get("r").as_u64() {
        Some(rank) if (1..=1 << 16).contains(&rank) => rank as usize,
        _ => return refuse("r", "a whole number from 1 to 65536"),
    };
    let alpha = match get("lora_alpha").as_f64() {
        Some(alpha) if alpha.is_finite() => alpha,
        _ => return refuse("lora_alpha", "a number"),
    };
    let rslora = match get("use_rslora") {
        Value::Null => false,
        Value::Bool(rslora) => *rslora,
        _ => return refuse("use_rslora", "true or false"),
    };
    let all = || format!("\"all-linear\" or a list of some of {}", PROJECTIONS.join(", "));
    let targets = match get("target_modules") {
        Value::String(text) if text == "all-linear" => PROJECTIONS.to_vec(),
        Value::String(pattern) if !pattern.is_empty() => Vec::new(),
        Value::Array(names) if !names.is_empty() => {
            let layer =
                |name: &Value| name.as_str().and_then(|path| path.rsplit('.').next()).map(String::from);
            let known = |name: &Value| PROJECTIONS.iter().any(|p| layer(name).as_deref() == Some(p));
            if !names.iter().all(known) {
                return refuse("target_modules", &all());
            }
            let has = |p: &&str| names.iter().any(|name| name.as_str() == Some(p));
            let are_plain = names.iter().all(|name| name.as_str().is_some_and(|name| !name.contains('.')));
            if are_plain { PROJECTIONS.into_iter().filter(has).collect() } else { Vec::new() }
        }
        _ => return refuse("target_modules", &all()),
    };
    Ok(Shape { rank, alpha, rslora, targets })
}

/// A feature's field that leaves the feature off.
fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}
