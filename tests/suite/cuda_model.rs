//! The whole model on a CUDA device against the CPU's: log-probs, every gradient, rollouts, optimiser steps, files.
//!
//! `support/cuda.rs` says where it runs.

use candle_core::{DType, Device, Tensor};
use rlvr::config::optim::{MomentsConfig, OptimConfig};
use rlvr::config::sampling::SamplingConfig;
use rlvr::formats::hf::config_json;
use rlvr::formats::hf::weights::{self, SaveOptions};
use rlvr::model::config::ModelConfig;
use rlvr::model::decoder::{Decoder, Placement};
use rlvr::model::gradients::Gradients;
use rlvr::model::keep::Keep;
use rlvr::ops::{elementwise, memory};
use rlvr::optim::adamw::{AdamW, Bf16Weights};
use rlvr::rng::Purpose;
use rlvr::rollout::engine::{Completions, Draws, Engine, Request, Rollouts};
use rlvr::text::StopTokens;
use rlvr::train::state;
use rlvr::types::{PackedBatch, Prompt};

use crate::support::adapters::with_adapter;
use crate::support::cuda::{Bench, values};
use crate::support::models::tokens;

const POSITIONS: usize = 128;

/// Tied with heads of 16, which plain arithmetic serves; or a Qwen3 with biases, untied with heads of 64, in bf16
/// for tensor cores.
fn config(tied: bool) -> ModelConfig {
    let [family, class] = if tied { ["llama", "LlamaForCausalLM"] } else { ["qwen3", "Qwen3ForCausalLM"] };
    let json = serde_json::json!({
        "model_type": family, "architectures": [class], "hidden_act": "silu", "attention_bias": !tied,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": if tied { 16 } else { 64 }, "vocab_size": 61, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": tied, "max_position_embeddings": POSITIONS,
    });
    config_json::from_json(&json, "test").unwrap()
}

/// The same weights on the CPU, in f32, and on the device: rounded to `dtype` on both.
fn pair(bench: &Bench, dtype: DType, tied: bool) -> (Decoder, Decoder) {
    let fresh = Decoder::random(config(tied), bench.seed, POSITIONS).unwrap();
    // Fresh norms are all 1 and biases all 0: neither would show a fault.
    let varied = |w: &Tensor| match w.dims1() {
        Ok(n) => {
            (w + Tensor::arange(0f32, n as f32, &Device::Cpu).unwrap().affine(0.5 / n as f64, -0.25)).unwrap()
        }
        Err(_) => w.clone(),
    };
    let rounded: Vec<(String, Tensor)> =
        fresh.parameters().map(|(name, w)| (name.to_string(), varied(w).to_dtype(dtype).unwrap())).collect();
    let there = rounded.iter().map(|(name, w)| (name.clone(), w.to_device(&bench.device).unwrap()));
    let there = Decoder::new(config(tied), there.collect::<Vec<_>>(), POSITIONS).unwrap();
    assert_eq!(there.dtype(), dtype);
    assert!(there.device().is_cuda());
    let here = rounded.into_iter().map(|(name, w)| (name, w.to_dtype(DType::F32).unwrap()));
    (Decoder::new(config(tied), here.collect::<Vec<_>>(), POSITIONS).unwrap(), there)
}

/// Two groups, one of them with a completion of a single token, and a row alone.
fn batch() -> PackedBatch {
    let mut batch = PackedBatch::default();
    let completions: Vec<Vec<u32>> = [5, 1, 12].iter().map(|n| tokens(*n as u32, *n)).collect();
    batch.push_group(&tokens(1, 37), completions.iter().map(Vec::as_slice));
    batch.push_sequence(&tokens(2, 20), &tokens(3, 6));
    batch.push_group(&tokens(4, 9), completions.iter().rev().map(Vec::as_slice));
    batch
}

fn dlogps(batch: &PackedBatch) -> Vec<f32> {
    (0..batch.targets.len()).map(|i| (i % 5) as f32 / 2.0 - 0.75).collect()
}

/// Log-probs of the targets, and all gradients.
fn learn(decoder: &Decoder, batch: &PackedBatch, keep: Keep, gradients: &mut Gradients) -> Vec<f32> {
    let forward = decoder.forward(batch, keep).unwrap();
    let logps = decoder.logprobs(&forward, 0.8).unwrap().logprobs;
    decoder.backward(forward, 0.8, &dlogps(batch), gradients).unwrap();
    logps
}

/// Norm of the difference over the norm of `want`.
fn distance(got: &Tensor, want: &Tensor) -> f64 {
    let (got, want) = (values(got), values(want));
    assert_eq!(got.len(), want.len());
    let squares = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    squares(&mut got.iter().zip(&want).map(|(a, b)| a - b)) / squares(&mut want.iter().copied()).max(1e-12)
}

#[track_caller]
fn all_close(decoder: &Decoder, got: &Gradients, want: &Gradients, bound: f64) -> f64 {
    let mut worst = 0f64;
    for (((name, _), got), want) in decoder.trainable().zip(got.tensors()).zip(want.tensors()) {
        let error = distance(&got.unwrap(), &want.unwrap());
        assert!(error <= bound, "{name}: {error:e}");
        worst = worst.max(error);
    }
    worst
}

/// In bf16 activations and their gradients are rounded to 8 bits a dozen times on the way through two blocks.
fn bound(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 0.04 }
}

#[test]
fn logprobs_and_every_gradient_are_the_cpus() {
    let Some(bench) = Bench::new() else { return };
    for (dtype, tied) in [(DType::F32, true), (DType::F32, false), (DType::BF16, true), (DType::BF16, false)]
    {
        let (here, there) = pair(&bench, dtype, tied);
        let batch = batch();
        let mut want_gradients = here.zero_gradients();
        let want = learn(&here, &batch, Keep::Activations, &mut want_gradients);
        for keep in [Keep::Inputs, Keep::Activations] {
            let mut gradients = there.zero_gradients();
            let got = learn(&there, &batch, keep, &mut gradients);
            let worst = got.iter().zip(&want).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            let allowed = if dtype == DType::F32 { 1e-4 } else { 0.05 };
            assert!(worst <= allowed, "{dtype:?} {keep:?}: log-probs off by {worst:e}");
            let worst_gradient = all_close(&there, &gradients, &want_gradients, bound(dtype));
            println!("{dtype:?} {keep:?}: log-probs to {worst:.1e}, gradients to {worst_gradient:.1e}");
            let (got, want) = (gradients.norm().unwrap(), want_gradients.norm().unwrap());
            assert!((got / want - 1.0).abs() < bound(dtype), "norm {got}, want {want}");
            // A second pass over the same batch adds as much again.
            learn(&there, &batch, keep, &mut gradients);
            assert!((gradients.norm().unwrap() / got - 2.0).abs() < 1e-3);
        }
        if dtype == DType::BF16 {
            let mut gradients = there.zero_gradients_in(DType::BF16);
            learn(&there, &batch, Keep::Inputs, &mut gradients);
            assert_eq!(gradients.tensors().next().unwrap().unwrap().dtype(), DType::BF16);
            all_close(&there, &gradients, &want_gradients, bound(dtype));
        }
    }
}

#[test]
fn an_adapters_logprobs_and_gradients_are_the_cpus() {
    let Some(bench) = Bench::new() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let (here, there) = pair(&bench, dtype, true);
        let here = with_adapter(here, bench.seed);
        let mut there = there;
        there.attach(here.adapter().unwrap()).unwrap();
        let batch = batch();
        let (mut want_gradients, mut gradients) = (here.zero_gradients(), there.zero_gradients());
        let want = learn(&here, &batch, Keep::Inputs, &mut want_gradients);
        let got = learn(&there, &batch, Keep::Inputs, &mut gradients);
        let worst = got.iter().zip(&want).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        // In bf16 an adapter's output is one more rounding in each layer.
        let allowed = if dtype == DType::F32 { 1e-4 } else { 0.1 };
        assert!(worst <= allowed, "{dtype:?}: log-probs off by {worst:e}");
        assert_eq!(gradients.tensors().next().unwrap().unwrap().dtype(), DType::F32);
        let worst = all_close(&there, &gradients, &want_gradients, bound(dtype));
        println!("{dtype:?}: adapter's gradients to {worst:.1e}");
        // The reference has the same memory: what is cleared in one is cleared in the other, in a joined product too.
        let reference = there.without_adapter();
        let logprobs = || {
            let forward = reference.forward(&batch, Keep::Nothing).unwrap();
            reference.logprobs(&forward, 0.8).unwrap().logprobs
        };
        let before = logprobs();
        let (_, values) = there.parameters().find(|(name, _)| name.contains("v_proj")).unwrap();
        let kept = memory::duplicate(values).unwrap();
        elementwise::zero(values).unwrap();
        assert_ne!(logprobs(), before, "{dtype:?}");
        elementwise::add_assign(values, &kept).unwrap();
        assert_eq!(logprobs(), before, "{dtype:?}");
        there.merge().unwrap();
        let merged = there.forward(&batch, Keep::Nothing).unwrap();
        let merged = there.logprobs(&merged, 0.8).unwrap().logprobs;
        let worst = merged.iter().zip(&want).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst <= allowed, "{dtype:?}: merged, log-probs off by {worst:e}");
    }
}

fn roll_out(decoder: &Decoder, prompts: &[Prompt], keep: Keep) -> Rollouts {
    let stop = StopTokens::new((0..8).collect());
    let sampling = SamplingConfig { temperature: 0.8, ..SamplingConfig::default() };
    let completions = Completions { per_prompt: 4, max_tokens: 10, sampling };
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
    let engine = Engine::new(decoder, &stop, completions, 170).taping(keep, 10_000);
    engine.generate(&requests, Draws { seed: 3, purpose: Purpose::Rollout, step: 5 }).unwrap()
}

#[test]
fn a_rollout_draws_the_cpus_tokens_and_its_tape_gives_the_gradients_of_a_new_pass() {
    let Some(bench) = Bench::new() else { return };
    let prompts: Vec<Prompt> =
        (0..3).map(|i| Prompt { token_ids: tokens(i, 20 + 17 * i as usize) }).collect();
    for dtype in [DType::F32, DType::BF16] {
        let (here, there) = pair(&bench, dtype, true);
        for keep in [Keep::Nothing, Keep::Inputs, Keep::Activations] {
            let Rollouts { groups, mut tapes, .. } = roll_out(&there, &prompts, keep);
            if dtype == DType::F32 {
                let want = roll_out(&here, &prompts, Keep::Nothing).groups;
                let ids = |groups: &[rlvr::types::Group]| -> Vec<Vec<u32>> {
                    groups.iter().flat_map(|g| &g.rollouts).map(|r| r.token_ids.clone()).collect()
                };
                assert_eq!(ids(&groups), ids(&want));
            }
            // Of every group alone: the sampler's log-probs are the trainer's, and so are the tape's activations.
            let taped: Vec<Vec<usize>> = tapes.groups().map(<[usize]>::to_vec).collect();
            for members in taped {
                let range = members[0]..members[members.len() - 1] + 1;
                let mut batch = PackedBatch::default();
                groups[range.clone()].iter().for_each(|group| batch.push(group));
                let (mut fresh, mut reused) = (there.zero_gradients(), there.zero_gradients());
                let trainer = learn(&there, &batch, Keep::Inputs, &mut fresh);
                let sampled =
                    groups[range.clone()].iter().flat_map(|g| &g.rollouts).flat_map(|r| &r.logprobs);
                let worst = sampled.zip(&trainer).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
                let allowed = if dtype == DType::F32 { 1e-4 } else { 0.05 };
                assert!(worst <= allowed, "{dtype:?}: sampler and trainer differ by {worst:e}");
                let forward = tapes.forward(&batch, &members).unwrap().unwrap();
                tapes.retain_for(&(range.end..groups.len()).collect::<Vec<_>>());
                there.backward(forward, 0.8, &dlogps(&batch), &mut reused).unwrap();
                all_close(&there, &reused, &fresh, bound(dtype));
            }
        }
    }
}

fn step(decoder: &mut Decoder, optimizer: &mut AdamW) -> f64 {
    let mut gradients = decoder.zero_gradients();
    learn(decoder, &batch(), Keep::Inputs, &mut gradients);
    let config = OptimConfig { weight_decay: 0.1, ..OptimConfig::default() };
    optimizer.step(decoder, &gradients, &config, 1e-2).unwrap()
}

#[test]
fn optimiser_steps_are_the_cpus() {
    let Some(bench) = Bench::new() else { return };
    let (mut here, mut there) = pair(&bench, DType::F32, true);
    let (mut a, mut b) = (AdamW::new(&here).unwrap(), AdamW::new(&there).unwrap());
    let (want, got) = (step(&mut here, &mut a), step(&mut there, &mut b));
    assert!((got / want - 1.0).abs() < 1e-4, "norm {got}, want {want}");
    for ((name, w), (_, v)) in here.parameters().zip(there.parameters()) {
        // Where a gradient is about nothing, its sign decides: a few elements may differ by a whole step.
        let error = distance(v, w);
        assert!(error < 5e-3, "{name}: {error:e}");
    }
    for weights in [Bf16Weights::Masters, Bf16Weights::StochasticRounding { seed: 1 }] {
        for moments in [MomentsConfig::F32, MomentsConfig::Int8] {
            let (_, mut there) = pair(&bench, DType::BF16, true);
            let mut optimizer = AdamW::with(&there, moments, weights).unwrap();
            let before: Vec<f64> = there.parameters().flat_map(|(_, w)| values(w)).collect();
            step(&mut there, &mut optimizer);
            let after: Vec<f64> = there.parameters().flat_map(|(_, w)| values(w)).collect();
            let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
            assert!(moved > before.len() / 3, "{weights:?} {moments:?}: {moved} of {} moved", before.len());
            assert!(after.iter().all(|w| w.is_finite()));
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_named() {
    let Some(bench) = Bench::new() else { return };
    let (_, mut there) = pair(&bench, DType::BF16, true);
    let mut gradients = there.zero_gradients();
    let name = there.parameters().nth(3).unwrap().0.to_string();
    let poison = gradients.at(3).unwrap().unwrap();
    rlvr::ops::memory::cuda::fill(poison, f32::NAN).unwrap();
    let mut optimizer = AdamW::new(&there).unwrap();
    let error =
        optimizer.step(&mut there, &gradients, &OptimConfig::default(), 1e-3).unwrap_err().to_string();
    assert!(error.contains(&name), "{error}");
}

#[test]
fn weights_and_optimiser_come_back_from_their_files() {
    let Some(bench) = Bench::new() else { return };
    for dtype in [DType::F32, DType::BF16] {
        let (_, mut there) = pair(&bench, dtype, false);
        let mut optimizer =
            AdamW::with(&there, MomentsConfig::Int8, Bf16Weights::StochasticRounding { seed: 7 }).unwrap();
        step(&mut there, &mut optimizer);
        let cursor = state::Cursor { optimizer_updates: Some(optimizer.updates()), ..Default::default() };
        let dir = tempfile::tempdir().unwrap();
        state::write(dir.path(), &cursor).unwrap();
        state::write_optimizer(dir.path(), &optimizer.state(&there).1.into_iter().collect()).unwrap();
        state::save_weights(dir.path(), &there).unwrap();
        let copy = there.deep_copy().unwrap();
        let again = weights::load(dir.path(), &config(false), &bench.device, dtype).unwrap();
        let mut again = Decoder::new(config(false), again, POSITIONS).unwrap();
        let mut restored =
            state::read_optimizer(dir.path(), &cursor, &again, rlvr::dist::Share::WHOLE).unwrap().unwrap();
        let same = |a: &Decoder, b: &Decoder| {
            a.parameters().zip(b.parameters()).all(|((_, a), (_, b))| values(a) == values(b))
        };
        assert!(same(&there, &again) && same(&there, &copy));
        step(&mut there, &mut optimizer);
        assert!(!same(&there, &copy), "a copy has memory of its own");
        step(&mut again, &mut restored);
        assert!(same(&there, &again), "{dtype:?}: the second step is another one after a restore");
    }
    // Stored as f32 and read as bf16: converted on the way.
    let (here, _) = pair(&bench, DType::BF16, false);
    let dir = tempfile::tempdir().unwrap();
    let tensors: Vec<(String, Tensor)> =
        here.parameters().map(|(name, w)| (name.to_string(), w.clone())).collect();
    weights::save(dir.path(), &config(false), &tensors, SaveOptions::new(DType::F32)).unwrap();
    let read = weights::load(dir.path(), &config(false), &bench.device, DType::BF16).unwrap();
    assert!(tensors.iter().all(|(name, w)| values(w) == values(&read[name])));
}

#[test]
fn weights_made_on_the_device_are_those_made_on_the_cpu() {
    let Some(bench) = Bench::new() else { return };
    let here = Decoder::random(config(false), bench.seed, POSITIONS).unwrap();
    for dtype in [DType::F32, DType::BF16] {
        let place = Placement { device: bench.device.clone(), dtype, missing: Vec::new() };
        let there = Decoder::random_on(&place, config(false), bench.seed, POSITIONS).unwrap();
        for ((name, w), (_, v)) in here.parameters().zip(there.parameters()) {
            assert_eq!(v.dtype(), dtype);
            let error = distance(v, w);
            assert!(error < if dtype == DType::F32 { 1e-5 } else { 4e-3 }, "{name}: {error:e}");
        }
    }
}
