//! The packed group equals separate copies; cutting a step into packs changes nothing; the sampler's log-probs
//! are the trainer's.

use rlvr::config::sampling::SamplingConfig;
use rlvr::model::decoder::Decoder;
use rlvr::model::gradients::Gradients;
use rlvr::model::keep::Keep;
use rlvr::rng::Purpose;
use rlvr::rollout::engine::{Completions, Draws, Engine, Request};
use rlvr::text::StopTokens;
use rlvr::types::{FinishReason, PackedBatch, Prompt};

use crate::support::adapters::with_adapter;
use crate::support::models::{family_decoders, small_decoder, tokens};
use crate::support::tensors::{floats, relative_error};

/// Adds the gradients of `-sum weight * logprob` and returns that sum.
fn accumulate(decoder: &Decoder, batch: &PackedBatch, weights: &[f32], gradients: &mut Gradients) -> f64 {
    let forward = decoder.forward(batch, Keep::Inputs).unwrap();
    let logps = decoder.logprobs(&forward, 0.9).unwrap().logprobs;
    let dlogps: Vec<f32> = weights.iter().map(|w| -w).collect();
    decoder.backward(forward, 0.9, &dlogps, gradients).unwrap();
    logps.iter().zip(weights).map(|(l, w)| -f64::from(*l) * f64::from(*w)).sum()
}

fn worst_difference(decoder: &Decoder, a: &Gradients, b: &Gradients) -> f32 {
    let mut worst = 0f32;
    for (((name, _), a), b) in decoder.trainable().zip(a.tensors()).zip(b.tensors()) {
        let (a, b) = (a.unwrap(), floats(&b.unwrap()));
        assert!(b.iter().any(|x| *x != 0.0), "{name} gets no gradient");
        worst = worst.max(relative_error(&floats(&a), &b));
    }
    worst
}

/// With all weights trained, and with an adapter.
fn both(seed: u64) -> [Decoder; 2] {
    [small_decoder(seed), with_adapter(small_decoder(seed), seed)]
}

#[test]
fn a_packed_group_equals_separate_copies_in_loss_and_every_gradient() {
    both(1).into_iter().for_each(packed_equals_copies);
}

fn packed_equals_copies(decoder: Decoder) {
    let prompt = tokens(1, 150);
    let completions: Vec<Vec<u32>> = [5, 1, 9, 120].iter().map(|n| tokens(*n as u32, *n)).collect();
    let weight = |g: usize| [0.5f32, -1.0, 0.25, 2.0][g];
    let mut packed = PackedBatch::default();
    packed.push_group(&prompt, completions.iter().map(Vec::as_slice));
    let weights: Vec<f32> =
        completions.iter().enumerate().flat_map(|(g, c)| vec![weight(g); c.len()]).collect();
    let mut once = decoder.zero_gradients();
    let loss = accumulate(&decoder, &packed, &weights, &mut once);
    let mut copies = decoder.zero_gradients();
    let mut naive_loss = 0.0;
    for (g, completion) in completions.iter().enumerate() {
        let mut copy = PackedBatch::default();
        copy.push_sequence(&prompt, completion);
        naive_loss += accumulate(&decoder, &copy, &vec![weight(g); completion.len()], &mut copies);
    }
    assert!((loss - naive_loss).abs() < 1e-4 * naive_loss.abs(), "{loss} {naive_loss}");
    let worst = worst_difference(&decoder, &once, &copies);
    println!("packed group against copies: worst relative gradient error {worst:.1e}");
    assert!(worst < 1e-4);
    // 150 + (5+1+9+120) - 4 tokens instead of 4 * 150 + 131.
    assert_eq!(packed.tokens.len(), 281);
}

#[test]
fn one_pack_equals_many_packs() {
    both(2).into_iter().for_each(cuts_change_nothing);
}

fn cuts_change_nothing(decoder: Decoder) {
    let rows: Vec<(Vec<u32>, Vec<u32>)> =
        (0..5).map(|i| (tokens(i, 20 + 31 * i as usize), tokens(50 + i, 3 + i as usize))).collect();
    let mut whole = decoder.zero_gradients();
    let mut batch = PackedBatch::default();
    rows.iter().for_each(|(p, t)| batch.push_sequence(p, t));
    let loss = accumulate(&decoder, &batch, &vec![0.1; batch.targets.len()], &mut whole);
    for order in [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]] {
        let mut parts = decoder.zero_gradients();
        let mut sum = 0.0;
        for cut in order.chunks(2) {
            let mut batch = PackedBatch::default();
            cut.iter().for_each(|i| batch.push_sequence(&rows[*i].0, &rows[*i].1));
            sum += accumulate(&decoder, &batch, &vec![0.1; batch.targets.len()], &mut parts);
        }
        assert!((sum - loss).abs() < 1e-4 * loss.abs());
        let worst = worst_difference(&decoder, &parts, &whole);
        assert!(worst < 1e-5, "{worst:e}");
    }
}

fn engine<'a>(decoder: &'a Decoder, stop_tokens: &'a StopTokens) -> Engine<'a> {
    let sampling = SamplingConfig { temperature: 0.8, ..SamplingConfig::default() };
    let completions = Completions { per_prompt: 4, max_tokens: 12, sampling };
    Engine::new(decoder, stop_tokens, completions, 400)
}

const DRAWS: Draws = Draws { seed: 3, purpose: Purpose::Rollout, step: 5 };

#[test]
fn sampled_logprobs_are_the_trainers() {
    both(3).iter().chain(&family_decoders(3)).for_each(sampler_agrees);
}

fn sampler_agrees(decoder: &Decoder) {
    let stop = StopTokens::new(vec![7, 9, 11, 30, 31]);
    let prompts: Vec<Prompt> =
        (0..3).map(|i| Prompt { token_ids: tokens(i, 40 + 60 * i as usize) }).collect();
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
    let groups = engine(decoder, &stop).generate(&requests, DRAWS).unwrap().groups;
    let mut stopped = 0;
    for group in &groups {
        let mut batch = PackedBatch::default();
        batch.push_group(&group.prompt.token_ids, group.rollouts.iter().map(|r| r.token_ids.as_slice()));
        let forward = decoder.forward(&batch, Keep::Nothing).unwrap();
        let trainer = decoder.logprobs(&forward, 0.8).unwrap().logprobs;
        let sampler: Vec<f32> = group.rollouts.iter().flat_map(|r| r.logprobs.clone()).collect();
        let worst = trainer.iter().zip(&sampler).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst < 1e-4, "{worst:e}");
        for rollout in &group.rollouts {
            let ends = rollout.token_ids.iter().position(|t| stop.contains(*t));
            match rollout.finish {
                FinishReason::Stop => {
                    stopped += 1;
                    assert_eq!(ends, Some(rollout.token_ids.len() - 1));
                }
                FinishReason::Length => assert_eq!((ends, rollout.token_ids.len()), (None, 12)),
            }
        }
    }
    assert!((1..12).contains(&stopped), "both ways to finish occur: {stopped}");
}

#[test]
fn a_tape_gives_the_gradients_of_a_forward_pass_anew() {
    both(6).iter().chain(&family_decoders(6)).for_each(tape_is_a_forward_pass);
}

fn tape_is_a_forward_pass(decoder: &Decoder) {
    // Stops early often: sequences leave the batch, and some completions have a single token.
    let stop = StopTokens::new((0..20).collect());
    let prompts: Vec<Prompt> =
        (0..3).map(|i| Prompt { token_ids: tokens(i, 25 + 40 * i as usize) }).collect();
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
    for keep in [Keep::Inputs, Keep::Activations] {
        let engine = engine(decoder, &stop).taping(keep, 10_000);
        let mut rollouts = engine.generate(&requests, DRAWS).unwrap();
        assert_eq!(rollouts.tapes.groups().collect::<Vec<_>>(), [[0, 1, 2]]);
        // The middle group is dead: its rows stay behind.
        let mut batch = PackedBatch::default();
        [0, 2].iter().for_each(|group: &usize| batch.push(&rollouts.groups[*group]));
        let lengths = &batch.target_counts;
        assert!(lengths.contains(&1) && lengths.iter().any(|n| *n > 2), "{lengths:?}");
        let weights: Vec<f32> = (0..batch.targets.len()).map(|i| (i % 7) as f32 - 3.0).collect();
        let (mut fresh, mut reused) = (decoder.zero_gradients(), decoder.zero_gradients());
        accumulate(decoder, &batch, &weights, &mut fresh);
        let dlogps: Vec<f32> = weights.iter().map(|w| -w).collect();
        let forward = rollouts.tapes.forward(&batch, &[0, 2]).unwrap().unwrap();
        rollouts.tapes.retain_for(&[]);
        decoder.backward(forward, 0.9, &dlogps, &mut reused).unwrap();
        let worst = worst_difference(decoder, &reused, &fresh);
        println!("{keep:?}: tape against a new forward pass: worst relative gradient error {worst:.1e}");
        assert!(worst < 1e-5, "{worst:e}");
    }
    // Groups of 73, 113 and 153 tokens: two are within the bound, and the third is computed anew.
    for keep in [Keep::Inputs, Keep::Activations] {
        let whole = engine(decoder, &stop).generate(&requests, DRAWS).unwrap();
        let rollouts = engine(decoder, &stop).taping(keep, 200).generate(&requests, DRAWS).unwrap();
        assert_eq!(rollouts.tapes.groups().collect::<Vec<_>>(), [[0, 1]]);
        let ids = |groups: &[rlvr::types::Group]| -> Vec<Vec<u32>> {
            groups.iter().flat_map(|g| &g.rollouts).map(|r| r.token_ids.clone()).collect()
        };
        assert_eq!(ids(&rollouts.groups), ids(&whole.groups), "what is kept changes no draw");
        let mut batch = PackedBatch::default();
        rollouts.groups[..2].iter().for_each(|group| batch.push(group));
        let weights: Vec<f32> = (0..batch.targets.len()).map(|i| (i % 7) as f32 - 3.0).collect();
        let (mut fresh, mut reused) = (decoder.zero_gradients(), decoder.zero_gradients());
        accumulate(decoder, &batch, &weights, &mut fresh);
        let forward = rollouts.tapes.forward(&batch, &[0, 1]).unwrap().unwrap();
        let dlogps: Vec<f32> = weights.iter().map(|w| -w).collect();
        decoder.backward(forward, 0.9, &dlogps, &mut reused).unwrap();
        let worst = worst_difference(decoder, &reused, &fresh);
        assert!(worst < 1e-5, "{keep:?}, two of three: {worst:e}");
        assert!(!rollouts.tapes.together(1, 2));
        let mut last = PackedBatch::default();
        last.push(&rollouts.groups[2]);
        assert!(rollouts.tapes.forward(&last, &[2]).unwrap().is_none());
    }
}

#[test]
fn a_rollout_does_not_depend_on_the_batch_it_is_sampled_in() {
    let decoder = small_decoder(4);
    let stop = StopTokens::new(vec![7, 9]);
    let prompts: Vec<Prompt> = (0..3).map(|i| Prompt { token_ids: tokens(i, 30 + 9 * i as usize) }).collect();
    let request = |i: usize| Request { prompt: &prompts[i], sample_id: i as u32 };
    let engine = engine(&decoder, &stop);
    let together = engine.generate(&[request(0), request(1), request(2)], DRAWS).unwrap().groups;
    let alone = engine.generate(&[request(2)], DRAWS).unwrap().groups;
    let ids = |g: &rlvr::types::Group| g.rollouts.iter().map(|r| r.token_ids.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&together[2]), ids(&alone[0]));
    assert_ne!(ids(&together[2])[0], ids(&together[2])[1], "rollouts of a group differ");
}

#[test]
fn a_prompt_that_leaves_no_room_is_refused() {
    let decoder = small_decoder(5);
    let prompt = Prompt { token_ids: tokens(1, 505) };
    let stop = StopTokens::new(Vec::new());
    let error =
        engine(&decoder, &stop).generate(&[Request { prompt: &prompt, sample_id: 0 }], DRAWS).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("505") && text.contains("512") && text.contains("max_prompt_tokens"), "{text}");
}
