//! Sampling with a repetition penalty: what is drawn changes, what a log-prob means does not.

use rlvr::config::sampling::SamplingConfig;
use rlvr::model::keep::Keep;
use rlvr::rng::Purpose;
use rlvr::rollout::engine::{Completions, Draws, Engine, Request};
use rlvr::text::StopTokens;
use rlvr::types::{Group, PackedBatch, Prompt};

use crate::support::models::{small_decoder, tokens};

const TEMPERATURE: f32 = 0.7;

fn groups(repetition_penalty: f32) -> Vec<Group> {
    let decoder = small_decoder(8);
    let prompts: Vec<Prompt> = (0..4).map(|i| Prompt { token_ids: tokens(i, 12) }).collect();
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
    let sampling =
        SamplingConfig { temperature: TEMPERATURE, repetition_penalty, ..SamplingConfig::default() };
    let completions = Completions { per_prompt: 4, max_tokens: 24, sampling };
    let stop = StopTokens::new(vec![60]);
    let engine = Engine::new(&decoder, &stop, completions, 10_000);
    engine.generate(&requests, Draws { seed: 5, purpose: Purpose::Rollout, step: 1 }).unwrap().groups
}

/// Share of the drawn tokens that stand in the prompt or earlier in the completion.
fn repeated(groups: &[Group]) -> f64 {
    let (mut again, mut all) = (0, 0);
    for group in groups {
        for rollout in &group.rollouts {
            for (t, token) in rollout.token_ids.iter().enumerate() {
                let before = group.prompt.token_ids.iter().chain(&rollout.token_ids[..t]);
                again += usize::from(before.into_iter().any(|earlier| earlier == token));
                all += 1;
            }
        }
    }
    again as f64 / all as f64
}

#[test]
fn tokens_are_repeated_less_and_log_probs_stay_the_trainers() {
    let (plain, penalised) = (groups(1.0), groups(8.0));
    let (often, seldom) = (repeated(&plain), repeated(&penalised));
    assert!(seldom < 0.7 * often, "{seldom} against {often}");
    assert!(repeated(&groups(0.2)) > often, "below 1 it asks for more");
    let decoder = small_decoder(8);
    for group in &penalised {
        let mut batch = PackedBatch::default();
        batch.push(group);
        let forward = decoder.forward(&batch, Keep::Nothing).unwrap();
        let trained = decoder.logprobs(&forward, TEMPERATURE).unwrap().logprobs;
        let sampled = group.rollouts.iter().flat_map(|rollout| &rollout.logprobs);
        let worst = trained.iter().zip(sampled).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-4, "{worst}");
    }
}
