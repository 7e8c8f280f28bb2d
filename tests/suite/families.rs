//! The families of `docs/models.md` against candle-transformers' own models, against plain candle operations
//! differentiated by candle, and against transformers' rotary numbers.

use std::collections::HashMap;

use candle_core::{DType, Device, Result, Tensor, Var};
use rlvr::formats::hf::config_json;
use rlvr::model::config::{Family, ModelConfig};
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::types::PackedBatch;
use serde_json::{Value, json};

use crate::support::models::{family_config, family_configs, family_decoder, family_decoders, tokens};
use crate::support::tensors::{floats, relative_error};

/// Log-probs of `ids[1..]`, each from the tokens before it, as one reads the formulas.
fn plain_logprobs(config: &ModelConfig, w: &HashMap<String, Tensor>, ids: &[u32]) -> Result<Tensor> {
    let n = ids.len() - 1;
    let dim = config.head_dim;
    let norm = |x: &Tensor, name: &str| {
        let mean = (x.sqr()?.mean_keepdim(candle_core::D::Minus1)? + config.rms_norm_eps)?;
        x.broadcast_div(&mean.sqrt()?)?.broadcast_mul(&w[name])
    };
    let linear = |x: &Tensor, name: &str| {
        let y = x.matmul(&w[&format!("{name}.weight")].t()?)?;
        w.get(&format!("{name}.bias")).map_or(Ok(y.clone()), |bias| y.broadcast_add(bias))
    };
    let angles: Vec<f64> = (0..n)
        .flat_map(|p| config.rope_inverse_frequencies().into_iter().map(move |f| p as f64 * f))
        .collect();
    let angles = Tensor::from_vec(angles, (n, 1, dim / 2), &Device::Cpu)?;
    let factor = config.rope_attention_factor();
    let (cos, sin) = ((angles.cos()? * factor)?, (angles.sin()? * factor)?);
    let rotate = |x: &Tensor| {
        let (a, b) = (x.narrow(2, 0, dim / 2)?, x.narrow(2, dim / 2, dim / 2)?);
        let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
        Tensor::cat(&[first, (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?], 2)
    };
    let future: Vec<f64> = (0..n * n).map(|i| if i % n > i / n { f64::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(future, (n, n), &Device::Cpu)?;
    let input = Tensor::new(&ids[..n], &Device::Cpu)?;
    let mut x = w["model.embed_tokens.weight"].index_select(&input, 0)?;
    for layer in 0..config.num_hidden_layers {
        let at = |name: &str| format!("model.layers.{layer}.{name}");
        let normed = norm(&x, &at("input_layernorm.weight"))?;
        let heads = |name: &str, heads: usize| {
            linear(&normed, &at(&format!("self_attn.{name}_proj")))?.reshape((n, heads, dim))
        };
        let mut q = heads("q", config.num_attention_heads)?;
        let mut k = heads("k", config.num_key_value_heads)?;
        if config.family == Family::Qwen3 {
            q = norm(&q, &at("self_attn.q_norm.weight"))?;
            k = norm(&k, &at("self_attn.k_norm.weight"))?;
        }
        let (q, k, v) = (rotate(&q)?, rotate(&k)?, heads("v", config.num_key_value_heads)?);
        let mut columns = Vec::new();
        for head in 0..config.num_attention_heads {
            let of = |x: &Tensor, head: usize| x.narrow(1, head, 1)?.squeeze(1)?.contiguous();
            let kv = head * config.num_key_value_heads / config.num_attention_heads;
            let scores = (of(&q, head)?.matmul(&of(&k, kv)?.t()?)? / (dim as f64).sqrt())?;
            let e = (scores + &mask)?.exp()?;
            columns.push(e.broadcast_div(&e.sum_keepdim(1)?)?.matmul(&of(&v, kv)?)?);
        }
        x = (x + linear(&Tensor::cat(&columns, 1)?, &at("self_attn.o_proj"))?)?;
        let normed = norm(&x, &at("post_attention_layernorm.weight"))?;
        let gate = linear(&normed, &at("mlp.gate_proj"))?;
        let act = (&gate / (gate.neg()?.exp()? + 1.0)?)? * linear(&normed, &at("mlp.up_proj"))?;
        x = (x + linear(&act?, &at("mlp.down_proj"))?)?;
    }
    let head = w.get("lm_head.weight").unwrap_or(&w["model.embed_tokens.weight"]);
    let logits = norm(&x, "model.norm.weight")?.matmul(&head.t()?)?;
    let logp = logits.broadcast_sub(&logits.exp()?.sum_keepdim(1)?.log()?)?;
    logp.gather(&Tensor::new(&ids[1..], &Device::Cpu)?.unsqueeze(1)?, 1)?.squeeze(1)
}

#[test]
fn logprobs_and_every_gradient_are_those_of_plain_operations_and_candles_autograd() {
    for decoder in family_decoders(31) {
        let config = &decoder.config;
        let ids = tokens(5, 60);
        let mut batch = PackedBatch::default();
        batch.push_sequence(&ids[..1], &ids[1..]);
        let vars: HashMap<String, Var> = decoder
            .parameters()
            .map(|(name, w)| (name.into(), Var::from_tensor(&w.to_dtype(DType::F64).unwrap()).unwrap()))
            .collect();
        let w = vars.iter().map(|(name, var)| (name.clone(), var.as_tensor().clone())).collect();
        let want = plain_logprobs(config, &w, &ids).unwrap();
        let weights: Vec<f32> = (0..59).map(|i| (i % 5) as f32 - 1.5).collect();
        let weight = Tensor::new(&weights[..], &Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
        let store = (&want * weight).unwrap().sum_all().unwrap().backward().unwrap();
        for keep in [Keep::Inputs, Keep::Activations] {
            let forward = decoder.forward(&batch, keep).unwrap();
            let got = decoder.logprobs(&forward, 1.0).unwrap().logprobs;
            let error = relative_error(&got, &floats(&want));
            assert!(error < 1e-5, "{:?}: {error:e}", config.family);
            let mut gradients = decoder.zero_gradients();
            decoder.backward(forward, 1.0, &weights, &mut gradients).unwrap();
            let mut worst = 0f32;
            for ((name, _), gradient) in decoder.parameters().zip(gradients.tensors()) {
                let want = floats(store.get(&vars[name]).unwrap());
                let error = relative_error(&floats(&gradient.unwrap()), &want);
                assert!(error < 2e-5, "{:?} {keep:?} {name}: {error:e}", config.family);
                worst = worst.max(error);
            }
            println!("{:?} {keep:?}: worst relative gradient error {worst:.1e}", config.family);
        }
    }
}

/// Logits after the last of `ids`.
fn our_logits(decoder: &Decoder, ids: &[u32]) -> Tensor {
    let mut batch = PackedBatch::default();
    batch.push_sequence(ids, &[0]);
    let hidden = decoder.forward(&batch, Keep::Nothing).unwrap().hidden;
    decoder.logits(&hidden.narrow(0, ids.len() - 1, 1).unwrap()).unwrap()
}

#[test]
fn random_weights_give_the_logits_of_candle_transformers_qwen2_and_qwen3() {
    use candle_transformers::models::{qwen2, qwen3};
    let ids = tokens(8, 100);
    let input = Tensor::new(&ids[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    for (model_type, tied) in [("qwen2", true), ("qwen2", false), ("qwen3", true), ("qwen3", false)] {
        // candle's Qwen2 knows no head_dim of its own.
        let head_dim = if model_type == "qwen2" { 12 } else { 16 };
        let changes = json!({"tie_word_embeddings": tied, "head_dim": head_dim, "num_hidden_layers": 3});
        let ours = family_decoder(family_config(model_type, changes), 12);
        let mut json = config_json::to_json(&ours.config, DType::F32);
        json["sliding_window"] = 4096.into();
        json["max_window_layers"] = 28.into();
        let tensors: HashMap<String, Tensor> =
            ours.parameters().map(|(n, t)| (n.to_string(), t.clone())).collect();
        let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let want = if model_type == "qwen2" {
            let config = serde_json::from_value(json).unwrap();
            qwen2::ModelForCausalLM::new(&config, builder).unwrap().forward(&input, 0).unwrap()
        } else {
            let config = serde_json::from_value(json).unwrap();
            qwen3::ModelForCausalLM::new(&config, builder).unwrap().forward(&input, 0).unwrap()
        };
        let error = relative_error(&floats(&our_logits(&ours, &ids)), &floats(&want));
        println!("candle-transformers {model_type}, tied {tied}: relative error {error:.1e}");
        assert!(error < 1e-5, "{model_type}: {error:e}");
    }
}

#[test]
fn rotary_scaling_is_transformers() {
    // transformers 5.23, tests/golden/make/rope_numbers.py: theta 1e6, heads of 16, 131072 positions.
    let stretched = [1.0, 0.177827939, 0.0316227786, 0.00421755994, 0.000500000024, 4.44569851e-05];
    let cards = [stretched.to_vec(), vec![7.90569356e-06, 1.40585337e-06]].concat();
    let cases = [
        (
            json!({"rope_type": "linear", "factor": 4.0}),
            1.0,
            vec![
                0.25,
                0.0444569848,
                0.00790569466,
                0.00140585331,
                0.000250000012,
                4.44569851e-05,
                7.90569356e-06,
                1.40585337e-06,
            ],
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
            1.138629436111989,
            cards.clone(),
        ),
        (
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
                "attn_factor": 0.8782488562869419}),
            1.138629436111989,
            cards,
        ),
        (
            json!({"rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096,
                "beta_fast": 16, "beta_slow": 2, "mscale": 0.707, "mscale_all_dim": 1.0}),
            0.9210423553163399,
            vec![
                1.0,
                0.177827939,
                0.0316227786,
                0.00288199936,
                2.49999994e-05,
                4.44569832e-06,
                7.90569402e-07,
                1.40585328e-07,
            ],
        ),
        (
            json!({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512,
                "truncate": false, "attention_factor": 1.25}),
            1.25,
            vec![
                1.0,
                0.142259717,
                0.0115101263,
                0.000702926656,
                0.000125000006,
                2.22284925e-05,
                3.95284678e-06,
                7.02926684e-07,
            ],
        ),
    ];
    for (scaling, factor, frequencies) in cases {
        let changes = json!({"rope_scaling": scaling, "rope_theta": 1e6, "max_position_embeddings": 131072});
        let config = family_config("qwen3", changes);
        assert!((config.rope_attention_factor() - factor).abs() < 1e-12, "{scaling}");
        for (got, want) in config.rope_inverse_frequencies().into_iter().zip(frequencies) {
            // They are computed in f32 there.
            assert!((got / want - 1.0).abs() < 2e-6, "{scaling}: {got} {want}");
        }
    }
}

#[test]
fn what_is_written_for_a_family_reads_back_equal() {
    let all = family_configs().into_iter().chain([family_config(
        "qwen3",
        json!({"rope_theta": 1e6, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "attn_factor": 0.88,
            "original_max_position_embeddings": 128, "truncate": false, "beta_fast": 30.0}}),
    )]);
    for config in all {
        let json = config_json::to_json(&config, DType::BF16);
        assert_eq!(json["model_type"], config.family.model_type());
        assert_eq!(json["architectures"], json!([config.family.architecture()]));
        assert_eq!(config_json::from_json(&json, "config.json").unwrap(), config);
    }
}

#[test]
fn a_sliding_window_is_refused_only_where_a_layer_would_use_it() {
    let read = |changes: Value| {
        let mut json = config_json::to_json(&family_config("qwen2", json!({})), DType::F32);
        for (name, value) in changes.as_object().unwrap() {
            json[name] = value.clone();
        }
        config_json::from_json(&json, "config.json").map_err(|e| e.to_string())
    };
    // As published with Qwen2.5-7B-Instruct: a window that is switched off.
    let off = json!({"use_sliding_window": false, "sliding_window": 131072, "max_window_layers": 28});
    assert!(read(off).is_ok());
    let above = json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 2});
    assert!(read(above).is_ok(), "only layers from the third on would slide, and there are two");
    let error =
        read(json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1})).unwrap_err();
    assert!(error.contains("config.json: use_sliding_window: true: layers from 1 on"), "{error}");
    assert!(read(json!({"layer_types": ["full_attention", "full_attention"]})).is_ok());
    let error = read(json!({"layer_types": ["full_attention", "sliding_attention"]})).unwrap_err();
    assert!(error.contains("config.json: layer_types: \"sliding_attention\""), "{error}");
}

#[test]
fn bf16_on_the_cpu_is_f32_but_for_roundings() {
    for (seed, exact) in family_decoders(17).into_iter().enumerate() {
        let family = exact.config.family;
        let as_type = |dtype| {
            let rounded = exact.parameters().map(|(name, w)| {
                let w = w.to_dtype(DType::BF16).unwrap().to_dtype(dtype).unwrap();
                (name.to_string(), w)
            });
            Decoder::new(exact.config.clone(), rounded.collect::<Vec<_>>(), 512).unwrap()
        };
        let (narrow, wide) = (as_type(DType::BF16), as_type(DType::F32));
        assert_eq!((narrow.dtype(), wide.dtype()), (DType::BF16, DType::F32));
        let mut batch = PackedBatch::default();
        let completions = [tokens(2, 5), tokens(3, 30)];
        batch.push_group(&tokens(seed as u32, 40), completions.iter().map(Vec::as_slice));
        let learn = |decoder: &Decoder, dtype| {
            let forward = decoder.forward(&batch, Keep::Activations).unwrap();
            assert_eq!(forward.hidden.dtype(), decoder.dtype(), "activations have the weights' type");
            let logprobs = decoder.logprobs(&forward, 1.0).unwrap().logprobs;
            let mut gradients = decoder.zero_gradients_in(dtype);
            decoder.backward(forward, 1.0, &vec![0.1; logprobs.len()], &mut gradients).unwrap();
            let flat = gradients.tensors().flat_map(|g| floats(&g.unwrap())).collect::<Vec<f32>>();
            (logprobs, flat)
        };
        let (want, want_gradients) = learn(&wide, DType::F32);
        // 8 bits: a rounding is off by up to 2^-9 of a value; some 30 follow one another here.
        for dtype in [DType::F32, DType::BF16] {
            let (got, gradients) = learn(&narrow, dtype);
            let worst = got.iter().zip(&want).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!((1e-5..0.15).contains(&worst), "{family:?}: log-probs off by {worst:e}");
            let difference: f32 = gradients.iter().zip(&want_gradients).map(|(a, b)| (a - b).powi(2)).sum();
            let norm: f32 = want_gradients.iter().map(|g| g * g).sum();
            let relative = (difference / norm).sqrt();
            println!("{family:?} bf16, gradients {dtype:?}: log-probs {worst:.1e}, gradient {relative:.1e}");
            assert!(relative < 0.04, "{family:?}: gradients off by {relative:e}");
        }
    }
}
