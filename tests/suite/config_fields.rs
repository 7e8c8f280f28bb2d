//! Every field of a config.json, changed one at a time: the log-probs change as transformers' do, or the field is
//! refused (tests/golden/config-fields, made by tests/golden/make/config_fields.py).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device};
use rlvr::error::Result;
use rlvr::formats::hf::{config_json, weights};
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::types::PackedBatch;
use serde_json::{Map, Value};

use crate::support::golden::golden_dir;

/// The base's config with the changes of a case.
fn changed(base: &Value, case: &Value) -> Value {
    fn within<'a>(config: &'a mut Value, path: &str) -> (&'a mut Map<String, Value>, String) {
        match path.split_once('.') {
            Some((outer, inner)) => (config[outer].as_object_mut().unwrap(), inner.into()),
            None => (config.as_object_mut().unwrap(), path.into()),
        }
    }
    let mut config = base.clone();
    for path in case["removed"].as_array().unwrap() {
        let (map, name) = within(&mut config, path.as_str().unwrap());
        map.remove(&name).unwrap();
    }
    for (path, value) in case["changes"].as_object().unwrap() {
        let (map, name) = within(&mut config, path);
        map.insert(name, value.clone());
    }
    config
}

/// What a case changes, in one line.
fn name(case: &Value) -> String {
    let removed =
        case["removed"].as_array().unwrap().iter().map(|path| format!("no {}", path.as_str().unwrap()));
    let changes = case["changes"].as_object().unwrap().iter().map(|(path, value)| format!("{path}={value}"));
    removed.chain(changes).collect::<Vec<_>>().join(" ")
}

fn logps(folder: &Path, config: &Value, ids: &[u32]) -> Result<Vec<f64>> {
    let config = config_json::from_json(config, "config.json")?;
    let tensors = weights::load(folder, &config, &Device::Cpu, DType::F32)?;
    let decoder = Decoder::new(config, tensors, 256)?;
    let mut batch = PackedBatch::default();
    batch.push_sequence(&ids[..1], &ids[1..]);
    let forward = decoder.forward(&batch, Keep::Nothing)?;
    let found = decoder.logprobs(&forward, 1.0)?.logprobs;
    Ok(found.into_iter().map(f64::from).collect())
}

/// What transformers computes and rlvr refuses: what it does not compute, and files that say two things at once.
const REFUSED: [&str; 16] = [
    "attention_bias",
    "attention_dropout",
    "hidden_act",
    "is_causal",
    "layer_types",
    "max_window_layers",
    "mlp_bias",
    "num_hidden_layers",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "use_sliding_window",
];

/// The reverse: rlvr reads null as absent, and returns no tuples.
fn only_transformers_may_refuse(case: &Value) -> bool {
    let mut changes = case["changes"].as_object().unwrap().iter();
    changes.all(|(path, value)| value.is_null() || path == "return_dict")
        && case["removed"].as_array().unwrap().is_empty()
}

#[test]
fn a_changed_field_changes_both_programs_alike_or_is_refused() {
    let golden = golden_dir().join("config-fields");
    let cases = std::fs::read_to_string(golden.join("cases.json")).unwrap();
    let cases: Value = serde_json::from_str(&cases).unwrap();
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    };
    let ids: Vec<u32> = numbers(&cases["ids"]).into_iter().map(|id| id as u32).collect();
    let folder = tempfile::tempdir().unwrap();
    let (mut counts, mut refused, mut wrong) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
    for (base, of) in cases["bases"].as_object().unwrap() {
        let model = folder.path().join(base);
        std::fs::create_dir(&model).unwrap();
        std::fs::copy(golden.join(format!("{base}.safetensors")), model.join("model.safetensors")).unwrap();
        let plain = numbers(&of["logps"]);
        for case in of["cases"].as_array().unwrap() {
            let want = case.get("logps").map(numbers).or(case.get("same").map(|_| plain.clone()));
            let (kind, fault) = match (logps(&model, &changed(&of["config"], case), &ids), want) {
                (Ok(got), Some(want)) => {
                    let off = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                    ("equal", (off > 1e-4).then(|| format!("log-probs differ by {off:.1e}")))
                }
                (Ok(_), None) => {
                    let fault = format!("loads, but transformers says {}", case["refused"]);
                    ("only transformers refuses", (!only_transformers_may_refuse(case)).then_some(fault))
                }
                (Err(_), None) => ("both refuse", None),
                (Err(error), Some(_)) => {
                    let error = error.to_string();
                    let removed =
                        case["removed"].as_array().unwrap().iter().map(|path| path.as_str().unwrap());
                    let paths =
                        removed.chain(case["changes"].as_object().unwrap().keys().map(String::as_str));
                    let named = paths.clone().any(|path| error.contains(path.rsplit('.').next().unwrap()));
                    refused.extend(paths.map(|path| path.split('.').next().unwrap().to_string()));
                    // Fewer layers or biases than the file has.
                    let tensors = error.contains("unexpected tensors: model.layers.");
                    ("only rlvr refuses", (!named && !tensors).then_some(error))
                }
            };
            *counts.entry(kind).or_insert(0) += 1;
            wrong.extend(fault.map(|fault| format!("{base}: {}: {fault}", name(case))));
        }
    }
    println!("{counts:?}");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unforeseen: Vec<_> = refused.iter().filter(|field| !REFUSED.contains(&field.as_str())).collect();
    assert!(unforeseen.is_empty(), "refused here, computed by transformers: {unforeseen:?}");
    assert!(counts["equal"] > counts["only rlvr refuses"]);
}
