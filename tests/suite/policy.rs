//! The gradient of a GRPO step does not depend on how the step is computed.

use rlvr::algo::loss::KlPenalty;
use rlvr::config::loss::LossConfig;
use rlvr::config::sampling::SamplingConfig;
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::observe::Metrics;
use rlvr::rng::{Purpose, Stream};
use rlvr::rollout::engine::{Completions, Draws, Engine, Request, Rollouts};
use rlvr::rollout::tapes::Tapes;
use rlvr::text::StopTokens;
use rlvr::train::learner::Learner;
use rlvr::train::policy::Policy;
use rlvr::types::{FinishReason, Prompt, ScoredGroup};

use crate::support::losses::configs;
use crate::support::models::{learner, small_decoder, tokens};
use crate::support::tensors::{floats, relative_error};

/// Six groups of three, the second and the last two without advantages, in rollout packs of two groups.
fn roll_out(decoder: &Decoder, keep: Keep) -> (Vec<ScoredGroup>, Rollouts) {
    let prompts: Vec<Prompt> = (0..6).map(|i| Prompt { token_ids: tokens(i, 20 + 7 * i as usize) }).collect();
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
    let stop = StopTokens::new((0..8).collect());
    let completions = Completions { per_prompt: 3, max_tokens: 9, sampling: SamplingConfig::default() };
    let engine = Engine::new(decoder, &stop, completions, 160).taping(keep, 10_000);
    let draws = Draws { seed: 5, purpose: Purpose::Rollout, step: 1 };
    let rollouts = engine.generate(&requests, draws).unwrap();
    let advantage = |group: usize, i: usize| match group {
        1 | 4 | 5 => 0.0,
        _ => Stream::new(6, Purpose::Bench, [group as u32, i as u32, 0]).uniform(0) * 4.0 - 2.0,
    };
    let scored = rollouts.groups.iter().enumerate().map(|(g, group)| ScoredGroup {
        group: group.clone(),
        rewards: vec![0.0; 3],
        advantages: (0..3).map(|i| advantage(g, i)).collect(),
    });
    (scored.collect(), rollouts)
}

fn plain(loss: &LossConfig) -> Policy<'_> {
    Policy { max_completion_tokens: 9, max_tokens_per_pack: 10_000, ..Policy::plain(loss) }
}

/// The metrics of an update of the weights that sampled, and a learner that holds its gradients.
fn learned(policy: &Policy, groups: &[ScoredGroup], tapes: Tapes) -> (Metrics, Learner) {
    let mut learner = learner(small_decoder(8));
    let metrics = learner.learn(policy, groups, 0..groups.len(), tapes, &mut Vec::new()).unwrap().metrics;
    (metrics, learner)
}

fn worst(got: &Learner, want: &Learner, factor: f32) -> f32 {
    let pairs = got.gradients().tensors().zip(want.gradients().tensors());
    pairs.fold(0.0, |worst, (got, want)| {
        let want: Vec<f32> = floats(&want.unwrap()).iter().map(|x| x * factor).collect();
        worst.max(relative_error(&floats(&got.unwrap()), &want))
    })
}

fn update(max_tokens_per_pack: usize, keep: Keep) -> (Metrics, Learner) {
    let (groups, rollouts) = roll_out(&small_decoder(8), keep);
    let taped: Vec<_> = rollouts.tapes.groups().collect();
    if !matches!(keep, Keep::Nothing) {
        assert_eq!(taped, [[0, 1], [2, 3], [4, 5]], "the third tape has dead groups only");
    }
    let loss = LossConfig::default();
    learned(&Policy { max_tokens_per_pack, ..plain(&loss) }, &groups, rollouts.tapes)
}

#[test]
fn tapes_and_packs_change_neither_gradients_nor_metrics() {
    let (want_metrics, want) = update(10_000, Keep::Nothing);
    assert_eq!(want_metrics.get("num_tokens_reused"), Some(0.0));
    for (max_tokens, keep) in [
        (1, Keep::Nothing),
        (1, Keep::Inputs),
        (1, Keep::Activations),
        (10_000, Keep::Inputs),
        (10_000, Keep::Activations),
    ] {
        let what = format!("packs of {max_tokens} tokens, {keep:?}");
        let (metrics, got) = update(max_tokens, keep);
        let reused = if matches!(keep, Keep::Nothing) { Some(0.0) } else { metrics.get("num_tokens") };
        assert_eq!(metrics.get("num_tokens_reused"), reused, "{what}");
        for (name, want) in want_metrics.iter() {
            let got = metrics.get(name).unwrap();
            let fine = (got - want).abs() <= 2e-5 * want.abs().max(0.1);
            assert!(fine || name == "num_tokens_reused", "{what}: {name} {got} is not {want}");
        }
        let error = worst(&got, &want, 1.0);
        assert!(error < 1e-5, "{what}: {error:e}");
    }
}

/// The choice is made over the whole update: what is learned from does not depend on packs and tapes either.
#[test]
fn tokens_of_the_highest_entropy_are_chosen_once_an_update() {
    let loss = LossConfig::default();
    let run = |top_entropy, entropy_coef, max_tokens_per_pack, keep| {
        let (groups, rollouts) = roll_out(&small_decoder(8), keep);
        let policy = Policy { top_entropy, entropy_coef, max_tokens_per_pack, ..plain(&loss) };
        learned(&policy, &groups, rollouts.tapes)
    };
    let (whole, want) = run(Some(0.3), 0.02, 10_000, Keep::Nothing);
    for (max_tokens, keep) in [(1, Keep::Nothing), (1, Keep::Activations), (10_000, Keep::Inputs)] {
        let (metrics, got) = run(Some(0.3), 0.02, max_tokens, keep);
        let error = worst(&got, &want, 1.0);
        assert!(error < 1e-5, "packs of {max_tokens}, {keep:?}: {error:e}");
        for name in ["loss", "entropy_threshold", "entropy"] {
            let (got, want) = (metrics.get(name).unwrap(), whole.get(name).unwrap());
            assert!((got - want).abs() <= 2e-5 * want.abs().max(0.1), "{name}: {got} is not {want}");
        }
    }
    // With nearly all tokens kept it is nearly what it is without the choice, with few another gradient.
    let (_, every) = run(None, 0.0, 10_000, Keep::Nothing);
    let error = |top| worst(&run(Some(top), 0.0, 10_000, Keep::Nothing).1, &every, 1.0);
    let (most, few) = (error(1.0), error(0.1));
    assert!(most < 1e-6 && few > 0.1, "{most:e} {few:e}");
}

/// Away from the weights that sampled, and with a reference of its own, so that no term of a loss is silent.
#[test]
fn every_loss_has_one_gradient_however_its_groups_are_packed() {
    let (decoder, reference) = (small_decoder(8), small_decoder(9));
    let (groups, _) = roll_out(&decoder, Keep::Nothing);
    let mut old = Vec::new();
    // With the penalty, groups without advantages are computed too.
    let penalty = KlPenalty { coef: 0.04, ..KlPenalty::NONE };
    let loss = LossConfig::default();
    let first = Policy { penalty, reference: Some(&reference), ..plain(&loss) };
    learner(small_decoder(8)).learn(&first, &groups, 0..groups.len(), Tapes::default(), &mut old).unwrap();
    let mut draw = Stream::new(7, Purpose::Bench, [0; 3]).sequential();
    old.iter_mut().flatten().for_each(|logp| *logp += f64::from(draw.uniform()) - 0.5);
    for (loss, penalty) in configs() {
        let policy = Policy { penalty, reference: Some(&reference), ..plain(&loss) };
        let [(whole, want), (cut, got)] = [10_000, 1].map(|max_tokens_per_pack| {
            let mut learner = learner(small_decoder(8));
            let policy = Policy { max_tokens_per_pack, ..policy };
            let learned =
                learner.learn(&policy, &groups, 0..groups.len(), Tapes::default(), &mut old.clone()).unwrap();
            (learned.metrics, learner)
        });
        let error = worst(&got, &want, 1.0);
        assert!(error < 1e-5, "{loss:?}: {error:e}");
        for name in ["loss", "kl"] {
            let (got, want) = (cut.get(name).unwrap(), whole.get(name).unwrap());
            assert!((got - want).abs() <= 2e-5 * want.abs().max(0.1), "{loss:?}: {name} {got} is not {want}");
        }
        let silent = |t: candle_core::Tensor| floats(&t).iter().all(|x| *x == 0.0);
        assert!(!want.gradients().tensors().any(|t| silent(t.unwrap())), "{loss:?} is silent");
    }
}

#[test]
fn a_masked_completion_gives_no_gradient_with_or_without_a_tape() {
    let decoder = small_decoder(8);
    let loss = LossConfig::Luspo(Default::default());
    let (mut unpaid, _) = roll_out(&decoder, Keep::Nothing);
    let (mut masked, rollouts) = roll_out(&decoder, Keep::Inputs);
    let mut count = 0;
    for (unpaid, masked) in unpaid.iter_mut().zip(&mut masked) {
        for (i, rollout) in masked.group.rollouts.iter_mut().enumerate() {
            if rollout.finish == FinishReason::Length {
                unpaid.advantages[i] = 0.0;
                rollout.token_ids.clear();
                rollout.logprobs.clear();
                count += 1;
            }
        }
    }
    assert!((1..18).contains(&count), "some are cut off, some not: {count}");
    // Luspo divides by completions, masked ones included, and by no count of tokens.
    let want = learned(&plain(&loss), &unpaid, Tapes::default()).1;
    for tapes in [Tapes::default(), rollouts.tapes] {
        let (_, got) = learned(&plain(&loss), &masked, tapes);
        let worst = worst(&got, &want, 1.0);
        assert!(worst < 1e-5, "{worst:e}");
    }
}

#[test]
fn importance_weights_scale_the_gradient_up_to_the_cap() {
    let decoder = small_decoder(8);
    let loss = LossConfig::default();
    let (mut groups, _) = roll_out(&decoder, Keep::Nothing);
    let want = learned(&plain(&loss), &groups, Tapes::default()).1;
    // A sampler that finds every token half as likely as the trainer does: weights of 2.
    let logprobs = groups.iter_mut().flat_map(|g| &mut g.group.rollouts).flat_map(|r| &mut r.logprobs);
    logprobs.for_each(|l| *l -= std::f32::consts::LN_2);
    for (cap, factor) in [(5.0, 2.0), (1.5, 1.5)] {
        let policy = Policy { importance_cap: Some(cap), ..plain(&loss) };
        let (_, got) = learned(&policy, &groups, Tapes::default());
        let worst = worst(&got, &want, factor);
        assert!(worst < 1e-4, "cap {cap}: {worst:e}");
    }
}

#[test]
fn an_entropy_bonus_reaches_dead_groups_and_does_not_depend_on_packs() {
    let decoder = small_decoder(8);
    let loss = LossConfig::default();
    let (mut groups, _) = roll_out(&decoder, Keep::Nothing);
    groups.iter_mut().for_each(|g| g.advantages.fill(0.0));
    let policy = Policy { entropy_coef: 0.1, ..plain(&loss) };
    let (_, whole) = learned(&policy, &groups, Tapes::default());
    assert!(whole.gradients().norm().unwrap() > 1e-4);
    let (_, cut) = learned(&Policy { max_tokens_per_pack: 1, ..policy }, &groups, Tapes::default());
    let worst = worst(&cut, &whole, 1.0);
    assert!(worst < 1e-4, "{worst:e}");
}

/// Part after part of a rollout, an update each: what each part's update is by itself, against the log-probs that sampled it.
#[test]
fn a_part_of_a_rollout_is_learned_from_as_if_it_were_all_and_against_its_samplers_logprobs() {
    let (groups, rollouts) = roll_out(&small_decoder(8), Keep::Inputs);
    let loss = LossConfig::default();
    let policy = plain(&loss);
    let mut in_parts = learner(small_decoder(8));
    let mut old = Vec::new();
    let first = in_parts.learn(&policy, &groups, 0..3, rollouts.tapes, &mut old).unwrap().metrics;
    let (alone_metrics, alone) = learned(&policy, &groups[..3], Tapes::default());
    assert!((first.get("loss").unwrap() - alone_metrics.get("loss").unwrap()).abs() < 1e-6);
    assert!(worst(&in_parts, &alone, 1.0) < 1e-5);
    // A rate that moves the weights far enough for ratios to leave the clip's range.
    in_parts.step(0.05).unwrap();
    let second = in_parts.learn(&policy, &groups, 3..6, Tapes::default(), &mut old).unwrap().metrics;

    let mut moved = learner(small_decoder(8));
    moved.learn(&policy, &groups[..3], 0..3, Tapes::default(), &mut Vec::new()).unwrap();
    moved.step(0.05).unwrap();
    let sampled =
        |g: &ScoredGroup| g.group.rollouts.iter().flat_map(|r| &r.logprobs).map(|l| f64::from(*l)).collect();
    let mut known: Vec<Vec<f64>> = groups[3..].iter().map(sampled).collect();
    let wanted = moved.learn(&policy, &groups[3..], 0..3, Tapes::default(), &mut known).unwrap().metrics;
    for name in ["loss", "clip_ratio/region_mean", "entropy"] {
        let (got, wanted) = (second.get(name).unwrap(), wanted.get(name).unwrap());
        assert!((got - wanted).abs() < 1e-4 * (1.0 + wanted.abs()), "{name}: {got} {wanted}");
    }
    assert!(second.get("clip_ratio/region_mean").unwrap() > 0.0, "the ratio is not 1 here");
    assert!(worst(&in_parts, &moved, 1.0) < 1e-3);
}
