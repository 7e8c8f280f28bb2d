//! The gradient of a GRPO step does not depend on how the step is computed.

use std::ops::Range;

use rlvr::algo::loss::KlPenalty;
use rlvr::config::ActivationMemory;
use rlvr::config::loss::LossConfig;
use rlvr::config::sampling::SamplingConfig;
use rlvr::model::decoder::{Decoder, Keep};
use rlvr::model::gradients::Gradients;
use rlvr::model::tape::Tape;
use rlvr::observe::Metrics;
use rlvr::rng::{Purpose, Stream};
use rlvr::rollout::engine::{Engine, Request, Rollouts, TapePolicy};
use rlvr::text::StopTokens;
use rlvr::train::policy::PolicyUpdate;
use rlvr::train::step::Trainee;
use rlvr::types::{FinishReason, Prompt, ScoredGroup};

use crate::losses::configs;
use crate::model_parity::{floats, relative_error};
use crate::shared_prefix::{small_decoder, tokens};

/// Six groups of three, the second and the last two without advantages, in rollout packs of two groups.
fn roll_out(decoder: &Decoder, keep: Keep) -> (Vec<ScoredGroup>, Rollouts) {
    let prompts: Vec<Prompt> = (0..6).map(|i| Prompt { token_ids: tokens(i, 20 + 7 * i as usize) }).collect();
    let requests: Vec<Request> =
        prompts.iter().enumerate().map(|(i, prompt)| Request { prompt, sample_id: i as u32 }).collect();
    let engine = Engine {
        decoder,
        stop_tokens: &StopTokens::new((0..8).collect()),
        sampling: SamplingConfig::default(),
        group_size: 3,
        max_completion_tokens: 9,
        max_tokens_per_pack: 160,
        tape: TapePolicy { keep, max_tokens: 10_000 },
        seed: 5,
        purpose: Purpose::Rollout,
        step: 1,
    };
    let rollouts = engine.generate(&requests).unwrap();
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

fn plain(loss: &LossConfig) -> PolicyUpdate<'_> {
    PolicyUpdate {
        loss,
        penalty: KlPenalty::NONE,
        temperature: 1.0,
        cut: None,
        max_completion_tokens: 9,
        max_tokens_per_pack: 10_000,
        entropy_coef: 0.0,
        importance_cap: None,
        reference: None,
    }
}

fn gradients_of(
    decoder: &Decoder,
    update: &PolicyUpdate,
    groups: &[ScoredGroup],
    tapes: Vec<(Range<usize>, Tape)>,
) -> Gradients {
    let gradients = decoder.zero_gradients();
    let trainee = Trainee { decoder, gradients: &gradients, activations: ActivationMemory::Recompute };
    update.accumulate(trainee, groups, tapes, &mut Vec::new()).unwrap();
    gradients
}

fn worst(decoder: &Decoder, got: &Gradients, want: &Gradients, factor: f32) -> f32 {
    let pairs = decoder.parameters().zip(got.tensors()).zip(want.tensors());
    pairs.fold(0.0, |worst, ((_, got), want)| {
        let want: Vec<f32> = floats(want.unwrap()).iter().map(|x| x * factor).collect();
        worst.max(relative_error(&floats(got.unwrap()), &want))
    })
}

fn update(decoder: &Decoder, max_tokens_per_pack: usize, keep: Keep) -> (Metrics, Gradients) {
    let (groups, rollouts) = roll_out(decoder, keep);
    let ranges: Vec<_> = rollouts.tapes.iter().map(|(range, _)| range.clone()).collect();
    if !matches!(keep, Keep::Nothing) {
        assert_eq!(ranges, [0..2, 2..4, 4..6], "the third tape has dead groups only");
    }
    let gradients = decoder.zero_gradients();
    let trainee = Trainee { decoder, gradients: &gradients, activations: ActivationMemory::Recompute };
    let loss = LossConfig::default();
    let update = PolicyUpdate { max_tokens_per_pack, ..plain(&loss) };
    let metrics = update.accumulate(trainee, &groups, rollouts.tapes, &mut Vec::new()).unwrap();
    (metrics, gradients)
}

#[test]
fn tapes_and_packs_change_neither_gradients_nor_metrics() {
    let decoder = small_decoder(8);
    let (want_metrics, want) = update(&decoder, 10_000, Keep::Nothing);
    assert_eq!(want_metrics.get("num_tokens_reused"), Some(0.0));
    for (max_tokens, keep) in [
        (1, Keep::Nothing),
        (1, Keep::Inputs),
        (1, Keep::Activations),
        (10_000, Keep::Inputs),
        (10_000, Keep::Activations),
    ] {
        let what = format!("packs of {max_tokens} tokens, {keep:?}");
        let (metrics, gradients) = update(&decoder, max_tokens, keep);
        let reused = if matches!(keep, Keep::Nothing) { Some(0.0) } else { metrics.get("num_tokens") };
        assert_eq!(metrics.get("num_tokens_reused"), reused, "{what}");
        for (name, want) in want_metrics.iter() {
            let got = metrics.get(name).unwrap();
            let fine = (got - want).abs() <= 2e-5 * want.abs().max(0.1);
            assert!(fine || name == "num_tokens_reused", "{what}: {name} {got} is not {want}");
        }
        for (((name, _), got), want) in decoder.parameters().zip(gradients.tensors()).zip(want.tensors()) {
            let error = relative_error(&floats(got.unwrap()), &floats(want.unwrap()));
            assert!(error < 1e-5, "{what}: {name} {error:e}");
        }
    }
}

/// Away from the weights that sampled, and with a reference of its own, so that no term of a loss is silent.
#[test]
fn every_loss_has_one_gradient_however_its_groups_are_packed() {
    let (decoder, reference) = (small_decoder(8), small_decoder(9));
    let (groups, _) = roll_out(&decoder, Keep::Nothing);
    let mut old = Vec::new();
    let gradients = decoder.zero_gradients();
    let trainee =
        Trainee { decoder: &decoder, gradients: &gradients, activations: ActivationMemory::Recompute };
    // With the penalty, groups without advantages are computed too.
    let penalty = KlPenalty { coef: 0.04, ..KlPenalty::NONE };
    let loss = LossConfig::default();
    let first = PolicyUpdate { penalty, reference: Some(&reference), ..plain(&loss) };
    first.accumulate(trainee, &groups, Vec::new(), &mut old).unwrap();
    let mut draw = Stream::new(7, Purpose::Bench, [0; 3]).sequential();
    old.iter_mut().flatten().for_each(|logp| *logp += f64::from(draw.uniform()) - 0.5);
    for (loss, penalty) in configs() {
        let update = PolicyUpdate { penalty, reference: Some(&reference), ..plain(&loss) };
        let [(whole, want), (cut, got)] = [10_000, 1].map(|max_tokens_per_pack| {
            let gradients = decoder.zero_gradients();
            let trainee = Trainee { decoder: &decoder, gradients: &gradients, ..trainee };
            let update = PolicyUpdate { max_tokens_per_pack, ..update };
            let metrics = update.accumulate(trainee, &groups, Vec::new(), &mut old.clone()).unwrap();
            (metrics, gradients)
        });
        let error = worst(&decoder, &got, &want, 1.0);
        assert!(error < 1e-5, "{loss:?}: {error:e}");
        for name in ["loss", "kl"] {
            let (got, want) = (cut.get(name).unwrap(), whole.get(name).unwrap());
            assert!((got - want).abs() <= 2e-5 * want.abs().max(0.1), "{loss:?}: {name} {got} is not {want}");
        }
        assert!(want.tensors().all(|t| floats(t.unwrap()).iter().any(|x| *x != 0.0)), "{loss:?} is silent");
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
    let want = gradients_of(&decoder, &plain(&loss), &unpaid, Vec::new());
    for tapes in [Vec::new(), rollouts.tapes] {
        let got = gradients_of(&decoder, &plain(&loss), &masked, tapes);
        let worst = worst(&decoder, &got, &want, 1.0);
        assert!(worst < 1e-5, "{worst:e}");
    }
}

#[test]
fn importance_weights_scale_the_gradient_up_to_the_cap() {
    let decoder = small_decoder(8);
    let loss = LossConfig::default();
    let (mut groups, _) = roll_out(&decoder, Keep::Nothing);
    let want = gradients_of(&decoder, &plain(&loss), &groups, Vec::new());
    // A sampler that finds every token half as likely as the trainer does: weights of 2.
    let logprobs = groups.iter_mut().flat_map(|g| &mut g.group.rollouts).flat_map(|r| &mut r.logprobs);
    logprobs.for_each(|l| *l -= std::f32::consts::LN_2);
    for (cap, factor) in [(5.0, 2.0), (1.5, 1.5)] {
        let update = PolicyUpdate { importance_cap: Some(cap), ..plain(&loss) };
        let got = gradients_of(&decoder, &update, &groups, Vec::new());
        let worst = worst(&decoder, &got, &want, factor);
        assert!(worst < 1e-4, "cap {cap}: {worst:e}");
    }
}

#[test]
fn an_entropy_bonus_reaches_dead_groups_and_does_not_depend_on_packs() {
    let decoder = small_decoder(8);
    let loss = LossConfig::default();
    let (mut groups, _) = roll_out(&decoder, Keep::Nothing);
    groups.iter_mut().for_each(|g| g.advantages.fill(0.0));
    let update = PolicyUpdate { entropy_coef: 0.1, ..plain(&loss) };
    let whole = gradients_of(&decoder, &update, &groups, Vec::new());
    assert!(whole.norm().unwrap() > 1e-4);
    let cut = gradients_of(&decoder, &PolicyUpdate { max_tokens_per_pack: 1, ..update }, &groups, Vec::new());
    let worst = worst(&decoder, &cut, &whole, 1.0);
    assert!(worst < 1e-4, "{worst:e}");
}
