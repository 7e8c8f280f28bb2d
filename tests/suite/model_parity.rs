//! Logits, log-probs and gradients equal what transformers computes (golden files, made in f64) and what
//! candle-transformers computes on random weights.

use std::collections::HashMap;

use candle_core::{DType, Device, Tensor};
use rlvr::formats::hf::config_json;
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::types::PackedBatch;

use crate::support::golden::{Golden, golden_dir, group};
use crate::support::tensors::{floats, integers, relative_error};

/// The models of the golden set: folders with a config.json and what it should compute.
fn golden_models() -> Vec<(String, Golden)> {
    let root = golden_dir();
    let folders = std::fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    let folders = folders.filter(|dir| dir.join("config.json").is_file());
    let models: Vec<_> = folders
        .filter(|dir| dir.join("expected.safetensors").is_file())
        .map(|dir| (dir.file_name().unwrap().to_string_lossy().into_owned(), Golden::load(&dir)))
        .collect();
    assert!(!models.is_empty(), "{} has no model", root.display());
    models
}

#[test]
fn golden_logits_of_a_long_input() {
    for (model, golden) in golden_models() {
        logits_are_golden(&model, &golden);
    }
}

fn logits_are_golden(model: &str, golden: &Golden) {
    let tokens = integers(&golden.tensors["long_input"]);
    let mut batch = PackedBatch::default();
    batch.push_sequence(&tokens, &[0]);
    let hidden = golden.decoder.forward(&batch, Keep::Nothing).unwrap().hidden;
    let logits = golden.decoder.logits(&hidden).unwrap();
    let error = relative_error(&floats(&logits), &floats(&golden.tensors["long_logits"]));
    println!("{model}: logits: relative error {error:.1e}");
    assert!(error < 1e-5, "{error:e}");
}

#[test]
fn golden_packed_group_equals_the_naive_one_in_every_logprob_and_gradient() {
    for (model, golden) in golden_models() {
        group_is_golden(&model, &golden);
    }
}

fn group_is_golden(model: &str, golden: &Golden) {
    let (batch, advantages) = group(golden);
    let decoder = &golden.decoder;
    for keep in [Keep::Inputs, Keep::Activations] {
        let forward = decoder.forward(&batch, keep).unwrap();
        let logps = decoder.logprobs(&forward, 1.0).unwrap().logprobs;
        let error = relative_error(&logps, &floats(&golden.tensors["completion_logps"]));
        println!("{model}, {keep:?}: completion log-probs: relative error {error:.1e}");
        assert!(error < 1e-5, "{error:e}");
        // loss = -(A * ratio) summed over completion tokens / all of them, at ratio 1.
        let n = batch.targets.len() as f32;
        let mut dlogps = vec![0f32; batch.targets.len()];
        for (range, advantage) in batch.target_ranges().zip(&advantages) {
            dlogps[range].fill(-advantage / n);
        }
        let mut gradients = decoder.zero_gradients();
        decoder.backward(forward, 1.0, &dlogps, &mut gradients).unwrap();
        let mut worst = 0f32;
        for ((name, _), gradient) in decoder.parameters().zip(gradients.tensors()) {
            let error = relative_error(
                &floats(&gradient.unwrap()),
                &floats(&golden.tensors[&format!("grad.{name}")]),
            );
            assert!(error < 1e-4, "{name}: {error:e}");
            worst = worst.max(error);
        }
        println!("{model}, {keep:?}: worst relative gradient error over all weights {worst:.1e}");
    }
}

#[test]
fn random_weights_give_candle_transformers_logits() {
    use candle_transformers::models::llama::{Cache, Config, Llama};
    let json = r#"{"model_type":"llama","architectures":["LlamaForCausalLM"],"hidden_size":64,
        "intermediate_size":112,"num_hidden_layers":3,"num_attention_heads":4,"num_key_value_heads":2,
        "vocab_size":101,"rms_norm_eps":1e-5,"rope_theta":10000.0,"tie_word_embeddings":false,
        "max_position_embeddings":128,"hidden_act":"silu"}"#;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    let config = config_json::load(dir.path()).unwrap();
    let decoder = Decoder::random(config, 11, 128).unwrap();
    let tokens: Vec<u32> = (0..100u32).map(|i| (i * 37 + 5) % 101).collect();
    let mut batch = PackedBatch::default();
    batch.push_sequence(&tokens, &[7]);
    let forward = decoder.forward(&batch, Keep::Nothing).unwrap();
    let last = forward.hidden.narrow(0, 99, 1).unwrap();
    let ours = decoder.logits(&last).unwrap();

    let tensors: HashMap<String, Tensor> =
        decoder.parameters().map(|(n, t)| (n.to_string(), t.clone())).collect();
    let builder = candle_nn::VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
    let config = Config {
        hidden_size: 64,
        intermediate_size: 112,
        vocab_size: 101,
        num_hidden_layers: 3,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        use_flash_attn: false,
        rms_norm_eps: 1e-5,
        rope_theta: 10000.0,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: None,
        max_position_embeddings: 128,
        tie_word_embeddings: false,
    };
    let theirs = Llama::load(builder, &config).unwrap();
    let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
    let input = Tensor::new(&tokens[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let want = theirs.forward(&input, 0, &mut cache).unwrap();
    let error = relative_error(&floats(&ours), &floats(&want));
    println!("candle-transformers: relative error {error:.1e}");
    assert!(error < 1e-5, "{error:e}");
    // The head alone agrees too when asked for one target's log-prob.
    let logp = decoder.logprobs(&forward, 1.0).unwrap().logprobs[0];
    let want = candle_nn::ops::log_softmax(&want, 1).unwrap().get(0).unwrap().get(7).unwrap();
    assert!((logp - want.to_scalar::<f32>().unwrap()).abs() < 1e-5);
}
