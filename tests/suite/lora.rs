//! LoRA: an adapter computes what PEFT's does, trains alone, merges into the same model, and is read from PEFT's
//! files or refused by the field's name.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use rlvr::config::optim::OptimConfig;
use rlvr::formats::peft;
use rlvr::model::adapter::{Adapter, Shape};
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::optim::adamw::AdamW;
use rlvr::types::PackedBatch;
use serde_json::{Value, json};

use crate::support::adapters::{shape, trained, with_adapter};
use crate::support::golden::{self, Golden, golden_dir, group};
use crate::support::models::{small_decoder, tokens};
use crate::support::tensors::{floats, integers, relative_error};

fn batch() -> PackedBatch {
    let completions: Vec<Vec<u32>> = [5, 1, 12].iter().map(|n| tokens(*n as u32, *n)).collect();
    let mut batch = PackedBatch::default();
    batch.push_group(&tokens(1, 37), completions.iter().map(Vec::as_slice));
    batch
}

fn logprobs(decoder: &Decoder, batch: &PackedBatch) -> Vec<f32> {
    let forward = decoder.forward(batch, Keep::Nothing).unwrap();
    decoder.logprobs(&forward, 1.0).unwrap().logprobs
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0f32, |worst, (a, b)| worst.max((a - b).abs()))
}

fn bits(decoder: &Decoder) -> Vec<Vec<u32>> {
    let of = |t: &Tensor| floats(t).iter().map(|x| x.to_bits()).collect();
    decoder.parameters().map(|(_, t)| of(t)).collect()
}

#[test]
fn golden_logits_logprobs_and_adapter_gradients_are_pefts() {
    let dir = golden_dir();
    let adapter = dir.join("llama-tiny-lora");
    let mut decoder = golden::decoder(&dir.join("llama-tiny"));
    peft::attach(&adapter, &mut decoder).unwrap();
    let tensors = golden::expected(&adapter);
    let golden = Golden { tensors, decoder };
    let Golden { tensors, decoder } = &golden;

    let mut long = PackedBatch::default();
    long.push_sequence(&integers(&tensors["long_input"]), &[0]);
    let hidden = decoder.forward(&long, Keep::Nothing).unwrap().hidden;
    let logits = floats(&decoder.logits(&hidden).unwrap());
    let error = relative_error(&logits, &floats(&tensors["long_logits"]));
    println!("logits: relative error {error:.1e}");
    assert!(error < 1e-5, "{error:e}");
    let hidden = decoder.without_adapter().forward(&long, Keep::Nothing).unwrap().hidden;
    let off = relative_error(&floats(&decoder.logits(&hidden).unwrap()), &floats(&tensors["long_logits"]));
    assert!(off > 1e-3, "the adapter makes a difference: {off:e}");

    let (batch, advantages) = group(&golden);
    let forward = decoder.forward(&batch, Keep::Inputs).unwrap();
    let logps = decoder.logprobs(&forward, 1.0).unwrap().logprobs;
    let error = relative_error(&logps, &floats(&tensors["completion_logps"]));
    println!("completion log-probs: relative error {error:.1e}");
    assert!(error < 1e-5, "{error:e}");
    let n = batch.targets.len() as f32;
    let mut dlogps = vec![0f32; batch.targets.len()];
    for (range, advantage) in batch.target_ranges().zip(&advantages) {
        dlogps[range].fill(-advantage / n);
    }
    let mut gradients = decoder.zero_gradients();
    decoder.backward(forward, 1.0, &dlogps, &mut gradients).unwrap();
    let mut wanted: HashMap<String, &Tensor> = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?.replace(".default.", "."), tensor)))
        .collect();
    let mut worst = 0f32;
    for ((name, _), gradient) in decoder.trainable().zip(gradients.tensors()) {
        let want = wanted.remove(name).unwrap_or_else(|| panic!("no golden gradient of {name}"));
        let error = relative_error(&floats(&gradient.unwrap()), &floats(want));
        assert!(error < 1e-4, "{name}: {error:e}");
        worst = worst.max(error);
    }
    assert!(wanted.is_empty(), "gradients that were not compared: {:?}", wanted.keys());
    println!("worst relative gradient error over the adapter {worst:.1e}");
}

#[test]
fn a_fresh_adapter_changes_nothing_and_is_drawn_as_peft_draws_it() {
    let mut decoder = small_decoder(3);
    let before = logprobs(&decoder, &batch());
    let config = decoder.config.clone();
    let make = |seed, number| {
        let shape = shape(64, &["q_proj", "down_proj"]);
        Adapter::fresh(shape, &config, &Device::Cpu, seed, number).unwrap()
    };
    let first = |adapter: &Adapter| floats(&adapter.tensors[0].1);
    assert_ne!(first(&make(1, 0)), first(&make(1, 1)));
    assert_ne!(first(&make(1, 0)), first(&make(2, 0)));
    // q_proj reads 48 numbers, down_proj 80. A uniform within b has the variance b^2 / 3.
    for (index, inputs) in [(0usize, 48f32), (2, 80.0)] {
        let adapter = make(7, 0);
        let (name, a) = &adapter.tensors[index];
        assert!(name.ends_with("lora_A.weight"), "{name}");
        let (values, bound) = (floats(a), 1.0 / inputs.sqrt());
        assert!(values.iter().all(|v| v.abs() <= bound));
        let variance = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
        assert!((variance / (bound * bound / 3.0) - 1.0).abs() < 0.1, "{name}: {variance}");
    }
    decoder.attach(make(7, 0)).unwrap();
    assert_eq!(logprobs(&decoder, &batch()), before);
}

#[test]
fn training_moves_the_adapter_alone_and_the_reference_stays() {
    let mut decoder = small_decoder(4);
    let shape = Shape { rslora: true, ..shape(4, &["q_proj", "v_proj", "up_proj"]) };
    decoder.attach(Adapter::fresh(shape, &decoder.config, &Device::Cpu, 5, 0).unwrap()).unwrap();
    let batch = batch();
    let (base, start) = (bits(&decoder), logprobs(&decoder, &batch));
    let reference = decoder.without_adapter();
    let mut optimizer = AdamW::new(&decoder).unwrap();
    let (_, state) = optimizer.state(&decoder);
    assert!(state.iter().all(|(name, _)| name.contains("lora_")), "moments of adapters only");
    let mut gradients = decoder.zero_gradients();
    for _ in 0..5 {
        let forward = decoder.forward(&batch, Keep::Activations).unwrap();
        let up = vec![-1.0 / batch.targets.len() as f32; batch.targets.len()];
        decoder.backward(forward, 1.0, &up, &mut gradients).unwrap();
        optimizer.step(&mut decoder, &gradients, &OptimConfig::default(), 0.02).unwrap();
        gradients.clear();
    }
    let mean = |x: &[f32]| x.iter().sum::<f32>() / x.len() as f32;
    let now = logprobs(&decoder, &batch);
    assert!(mean(&now) > mean(&start) + 0.1, "{} after {}", mean(&now), mean(&start));
    assert!(bits(&decoder) == base, "a frozen weight has moved");
    assert_eq!(logprobs(&reference, &batch), start);
    assert_eq!(logprobs(&decoder.without_adapter(), &batch), start);
}

#[test]
fn a_merged_model_gives_the_adapters_logprobs() {
    for rslora in [false, true] {
        let mut decoder = small_decoder(6);
        let before = bits(&decoder);
        let shape = Shape { rslora, ..shape(4, &["k_proj", "o_proj", "gate_proj", "down_proj"]) };
        let (one, two) = (trained(&decoder, shape.clone(), 1), trained(&decoder, shape, 2));
        decoder.attach(one.clone()).unwrap();
        let batch = batch();
        let with_one = logprobs(&decoder, &batch);
        decoder.merge().unwrap();
        assert!(decoder.adapter().is_none() && decoder.trainable().count() == decoder.parameters().count());
        let error = worst(&logprobs(&decoder, &batch), &with_one);
        println!("merged against beside: {error:.1e} nats");
        assert!(error < 1e-4, "{error:e}");
        let moved = bits(&decoder).iter().zip(&before).filter(|(a, b)| a != b).count();
        assert_eq!(moved, 2 * 4, "four layers of each of two blocks");
        // The second beside the merged first, and both as one beside the weights as they were.
        decoder.attach(two.clone()).unwrap();
        let with_both = logprobs(&decoder, &batch);
        let mut again = small_decoder(6);
        again.attach(one.and(&two).unwrap()).unwrap();
        let error = worst(&logprobs(&again, &batch), &with_both);
        assert!(error < 1e-4, "{error:e}");
        assert!(worst(&with_both, &with_one) > 0.01);
    }
}

#[test]
fn an_adapter_is_f32_over_bf16_weights() {
    let rounded = |dtype: DType| -> Decoder {
        let decoder = small_decoder(9);
        let round = |w: &Tensor| w.to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap();
        let weights = decoder.parameters().map(|(name, w)| (name.to_string(), round(w)));
        Decoder::new(decoder.config.clone(), weights.collect::<Vec<_>>(), 512).unwrap()
    };
    let mut exact = with_adapter(rounded(DType::F32), 3);
    let mut bf16 = with_adapter(rounded(DType::BF16), 3);
    assert_eq!(bf16.dtype(), DType::BF16);
    assert!(bf16.trainable().all(|(_, tensor)| tensor.dtype() == DType::F32));
    let batch = batch();
    let error = worst(&logprobs(&bf16, &batch), &logprobs(&exact, &batch));
    println!("bf16 against f32 activations: {error:.1e} nats");
    assert!(error < 0.1, "{error:e}");
    let up: Vec<f32> = (0..batch.targets.len()).map(|i| (i % 5) as f32 / 2.0 - 0.75).collect();
    let learn = |decoder: &Decoder| {
        let mut gradients = decoder.zero_gradients();
        let forward = decoder.forward(&batch, Keep::Inputs).unwrap();
        decoder.backward(forward, 1.0, &up, &mut gradients).unwrap();
        let all = gradients.tensors().map(|t| t.unwrap()).collect::<Vec<_>>();
        assert!(all.iter().all(|t| t.dtype() == DType::F32));
        all
    };
    let norm = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>().sqrt();
    for ((got, want), (name, _)) in learn(&bf16).iter().zip(learn(&exact)).zip(exact.trainable()) {
        let (got, want) = (floats(got), floats(&want));
        let difference: Vec<f32> = got.iter().zip(&want).map(|(a, b)| a - b).collect();
        assert!(norm(&difference) < 0.05 * norm(&want), "{name}");
    }
    // Merged, a weight is W + scale B A rounded once.
    exact.merge().unwrap();
    bf16.merge().unwrap();
    for ((name, got), (_, want)) in bf16.parameters().zip(exact.parameters()) {
        assert_eq!(floats(got), floats(&want.to_dtype(DType::BF16).unwrap()), "{name}");
    }
}

/// Changes a PEFT config before it is written back.
fn edit(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join(peft::CONFIG);
    let mut json = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

#[test]
fn a_saved_adapter_is_loaded_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = small_decoder(8);
    let adapter = trained(&decoder, Shape { alpha: 2.5, ..shape(3, &["v_proj"]) }, 1);
    peft::save(dir.path(), &adapter, "models/base").unwrap();
    let mut again = small_decoder(8);
    peft::attach(dir.path(), &mut again).unwrap();
    let again = again.adapter().unwrap();
    assert_eq!(again.shape, adapter.shape);
    for ((name, got), (wanted_name, want)) in again.tensors.iter().zip(&adapter.tensors) {
        assert_eq!((name, floats(got)), (wanted_name, floats(want)));
    }
    // As PEFT writes them: other order, all fields, a stored type that is not f32.
    edit(dir.path(), |json| {
        json["target_modules"] = json!("all-linear");
        json["lora_dropout"] = json!(0.1);
        json["loftq_config"] = json!({});
    });
    let all = trained(&decoder, shape(3, &rlvr::config::lora::PROJECTIONS), 2);
    let halves: HashMap<String, Tensor> =
        all.tensors.iter().map(|(n, t)| (n.clone(), t.to_dtype(DType::BF16).unwrap())).collect();
    candle_core::safetensors::save(&halves, dir.path().join(peft::WEIGHTS)).unwrap();
    let mut decoder = small_decoder(8);
    peft::attach(dir.path(), &mut decoder).unwrap();
    let (name, got) = decoder.trainable().last().unwrap();
    assert_eq!(floats(got), floats(&halves[name]));
}

#[test]
fn layers_that_a_pattern_or_paths_name_are_those_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = small_decoder(8);
    let adapter = trained(&decoder, shape(3, &["q_proj", "v_proj"]), 1);
    peft::save(dir.path(), &adapter, "base").unwrap();
    let path = |layer: usize, name: &str| format!("model.layers.{layer}.self_attn.{name}");
    let all = [path(0, "q_proj"), path(0, "v_proj"), path(1, "q_proj"), path(1, "v_proj")];
    let named = [
        json!(r"model\.layers\.\d+\.self_attn\.(q|v)_proj"),
        json!("^.*self_attn.*$"),
        json!(all),
        json!(["q_proj", "self_attn.v_proj"]),
    ];
    for target_modules in named {
        edit(dir.path(), |json| json["target_modules"] = target_modules.clone());
        let mut decoder = small_decoder(8);
        peft::attach(dir.path(), &mut decoder).unwrap_or_else(|error| panic!("{target_modules}: {error}"));
        assert_eq!(decoder.adapter().unwrap().shape, adapter.shape, "{target_modules}");
    }
    // Some layers only: what they lack is named.
    let mut some = adapter.clone();
    some.tensors.retain(|(name, _)| !name.contains("layers.1"));
    peft::save(dir.path(), &some, "base").unwrap();
    edit(dir.path(), |json| json["target_modules"] = json!(all[..2]));
    let text = peft::attach(dir.path(), &mut small_decoder(8)).unwrap_err().to_string();
    assert!(text.contains("layers.1.self_attn.q_proj.lora_A.weight is missing"), "{text}");
}

#[test]
fn what_is_not_computed_is_refused_by_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = small_decoder(8);
    let adapter = trained(&decoder, shape(3, &["q_proj", "v_proj"]), 1);
    for (field, value) in [
        ("peft_type", json!("LOHA")),
        ("bias", json!("all")),
        ("fan_in_fan_out", json!(true)),
        ("modules_to_save", json!(["lm_head"])),
        ("rank_pattern", json!({"q_proj": 8})),
        ("alpha_pattern", json!({"q_proj": 8})),
        ("use_dora", json!(true)),
        ("layers_to_transform", json!([0])),
        ("init_lora_weights", json!("pissa")),
        ("target_modules", json!(["q_proj", "lm_head"])),
        ("target_modules", json!(3)),
        ("a_feature_to_come", json!(2)),
        ("r", json!(0)),
        ("lora_alpha", json!("16")),
        ("use_rslora", json!("yes")),
    ] {
        peft::save(dir.path(), &adapter, "base").unwrap();
        edit(dir.path(), |json| json[field] = value.clone());
        let error = peft::load(dir.path()).unwrap_err();
        let text = error.to_string();
        assert!(error.is_input() && text.contains(&format!("adapter_config.json: {field}: ")), "{text}");
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_by_its_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let decoder = small_decoder(8);
    let adapter = trained(&decoder, shape(3, &["q_proj"]), 1);
    type Tensors = Vec<(String, Tensor)>;
    let refused = |change: &dyn Fn(&mut Tensors)| {
        let mut changed = adapter.clone();
        change(&mut changed.tensors);
        peft::save(dir.path(), &changed, "base").unwrap();
        let error = peft::attach(dir.path(), &mut small_decoder(8)).unwrap_err();
        assert!(error.is_input());
        error.to_string()
    };
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let text = refused(&|tensors| tensors.remove(0).0.clear());
    assert!(
        text.contains("adapter_model.safetensors") && text.contains(&format!("{name} is missing")),
        "{text}"
    );
    let text = refused(&|tensors| tensors[0].1 = tensors[0].1.narrow(1, 0, 5).unwrap());
    assert!(text.contains(&format!("{name} is [3, 5], wanted [3, 48]")), "{text}");
    let text = refused(&|tensors| tensors[0].0 = "lm_head.lora_A.weight".into());
    assert!(text.contains("lm_head.lora_A.weight is unexpected"), "{text}");

    peft::save(dir.path(), &adapter, "base").unwrap();
    std::fs::write(dir.path().join(peft::WEIGHTS), "cut").unwrap();
    let text = peft::load(dir.path()).unwrap_err().to_string();
    assert!(text.contains("not a whole safetensors file"), "{text}");
    std::fs::remove_file(dir.path().join(peft::WEIGHTS)).unwrap();
    assert!(peft::load(dir.path()).unwrap_err().to_string().contains("has no adapter_model.safetensors"));
    std::fs::remove_file(dir.path().join(peft::CONFIG)).unwrap();
    assert!(peft::load(dir.path()).unwrap_err().to_string().contains("has no adapter_config.json"));
}
