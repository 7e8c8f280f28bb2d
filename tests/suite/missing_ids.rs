//! Rows of the embedding that no token has: without probability in log-probs, gradients and draws alike.

use candle_core::Tensor;
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::ops::sampling::{Sampling, sample};
use rlvr::types::PackedBatch;

use crate::support::models::{small_decoder, tokens};
use crate::support::seed;
use crate::support::tensors::floats;

/// A hole, and a tail that reaches past the vocabulary of 61.
fn masked(decoder: &Decoder) -> Decoder {
    decoder.deep_copy().unwrap().named("m", &[3..5, 50..usize::MAX]).unwrap()
}

fn is_token(id: usize) -> bool {
    !(3..5).contains(&id) && id < 50
}

fn batch() -> PackedBatch {
    let (prompt, target) = (tokens(1, 6), [7, 20, 2]);
    let prompt: Vec<u32> = prompt.into_iter().map(|id| if is_token(id as usize) { id } else { 9 }).collect();
    let mut batch = PackedBatch::default();
    batch.push_sequence(&prompt, &target);
    batch
}

#[test]
fn logprobs_are_those_of_the_tokens_there_are() {
    let whole = small_decoder(seed::of_test());
    let decoder = masked(&whole);
    let batch = batch();
    let forward = decoder.forward(&batch, Keep::Nothing).unwrap();
    let found = decoder.logprobs(&forward, 0.8).unwrap();
    let rows: Vec<u32> = batch.targets.iter().map(|target| target.row as u32).collect();
    let hidden =
        forward.hidden.index_select(&Tensor::new(rows, forward.hidden.device()).unwrap(), 0).unwrap();
    let logits = whole.logits(&hidden).unwrap().to_vec2::<f32>().unwrap();
    for (i, (row, target)) in logits.iter().zip(&batch.targets).enumerate() {
        let weights: Vec<f64> = row
            .iter()
            .enumerate()
            .filter(|(id, _)| is_token(*id))
            .map(|(_, z)| (f64::from(*z) / 0.8).exp())
            .collect();
        let sum: f64 = weights.iter().sum();
        let want = (f64::from(row[target.token as usize]) / 0.8).exp() / sum;
        assert!((f64::from(found.logprobs[i]) - want.ln()).abs() < 1e-5);
        let entropy: f64 = weights.iter().map(|w| -(w / sum) * (w / sum).ln()).sum();
        assert!((f64::from(found.entropies[i]) - entropy).abs() < 1e-4);
    }
}

#[test]
fn no_gradient_reaches_them() {
    let decoder = masked(&small_decoder(seed::of_test()));
    let forward = decoder.forward(&batch(), Keep::Inputs).unwrap();
    let mut gradients = decoder.zero_gradients();
    decoder.backward(forward, 1.0, &vec![1.0, -0.5, 0.25], &mut gradients).unwrap();
    // The head is the embedding, and no such id is in the batch.
    let head = gradients.at(0).unwrap().unwrap();
    for (id, row) in head.to_vec2::<f32>().unwrap().iter().enumerate() {
        assert_eq!(row.iter().any(|x| *x != 0.0), is_token(id), "row {id}");
    }
}

#[test]
fn none_is_drawn() {
    let decoder = masked(&small_decoder(seed::of_test()));
    let hidden = decoder.forward(&batch(), Keep::Nothing).unwrap().hidden;
    let logits = decoder.logits(&hidden).unwrap();
    let rows = logits.dim(0).unwrap();
    let uniforms: Vec<f32> = (0..rows * 400).map(|i| (i % 400) as f32 / 400.0).collect();
    for sampling in [
        Sampling::default(),
        Sampling { temperature: 30.0, ..Sampling::default() },
        Sampling { top_k: 60, temperature: 30.0, ..Sampling::default() },
        Sampling { top_p: 0.9999, temperature: 30.0, ..Sampling::default() },
        Sampling { min_p: 1e-9, temperature: 30.0, ..Sampling::default() },
        Sampling { temperature: 0.0, ..Sampling::default() },
    ] {
        let drawn = sample(&logits, &sampling, &uniforms).unwrap();
        assert!(drawn.iter().all(|s| is_token(s.token as usize) && s.logprob.is_finite()), "{sampling:?}");
    }
    assert_eq!(floats(&logits).iter().filter(|x| **x < -1e29).count(), rows * 13);
}

#[test]
fn numbers_that_are_none_are_refused_by_the_models_name() {
    let decoder = small_decoder(seed::of_test());
    let tensors = decoder.parameters().map(|(name, tensor)| {
        // Finite weights whose products overflow.
        let factor = if name == "model.norm.weight" { 3e38 } else { 1.0 };
        (name.to_string(), (tensor * factor).unwrap())
    });
    let broken = Decoder::new(decoder.config.clone(), tensors.collect::<Vec<_>>(), 512).unwrap();
    let broken = broken.named("model x", &[]).unwrap();
    let forward = broken.forward(&batch(), Keep::Nothing).unwrap();
    let error = broken.logprobs(&forward, 1.0).unwrap_err();
    assert!(
        error.is_input() && error.to_string().starts_with("model x: its logits are no distribution"),
        "{error}"
    );
    assert!(!error.at_step(3).is_input());
}
