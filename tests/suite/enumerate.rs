//! The all-labels policy gradient is what sampled groups estimate, and label probabilities are exact.

use std::collections::HashMap;

use rlvr::algo::advantage::centered;
use rlvr::config::enumerate::{EnumerateConfig, ScaleExpected};
use rlvr::config::loss::LossConfig;
use rlvr::config::sampling::SamplingConfig;
use rlvr::config::stages::{ScaleRewards, ScaleStd};
use rlvr::data::jsonl::{EncodedAnswer, EncodedRow};
use rlvr::eval::enumerate::Enumerator;
use rlvr::model::decoder::Decoder;
use rlvr::model::keep::Keep;
use rlvr::rng::{Purpose, Stream};
use rlvr::rollout::engine::{Completions, Draws, Engine, Request};
use rlvr::rollout::tapes::Tapes;
use rlvr::task::{LabelId, Task};
use rlvr::text::StopTokens;
use rlvr::train::enumerate::Expectation;
use rlvr::train::learner::Learner;
use rlvr::train::policy::Policy;
use rlvr::types::{Group, PackedBatch, Prompt, ScoredGroup};

use crate::support::models::{learner, small_decoder, tokens};
use crate::support::tensors::floats;

const TEMPERATURE: f32 = 0.5;

/// Five labels; a right one earns 1, a wrong one 0.3, the negative one 0, anything else -0.2.
fn task(closed: bool) -> Task {
    let dir = tempfile::tempdir().unwrap();
    let negative = if closed { "negative = \"no\"\n" } else { "" };
    let text = format!(
        "name = \"t\"\n[input]\nmessages = \"chat\"\n[gold]\npath = \"gold\"\n[answers]\n{negative}positive = \"{{label}}\"\n\
         [labels]\nnegative = \"no\"\npositive = [\"a\", \"b\", \"c\", \"d\"]\n\
         [[verdict]]\nregex = '^(no|[abcd])$'\nlabel = \"$1\"\n[[verdict]]\ndefault = \"@malformed\"\n\
         [reward]\nexact_positive = 1.0\nwrong_label = 0.3\nfalse_negative = 0.0\nmalformed = -0.2\n"
    );
    let path = dir.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    Task::load(path.to_str().unwrap()).unwrap()
}

fn row(prompt: &Prompt, answers: &[Vec<u32>], gold: u16) -> EncodedRow {
    let answer =
        |(i, ids): (usize, &Vec<u32>)| EncodedAnswer { label: LabelId(i as u16), token_ids: ids.clone() };
    EncodedRow {
        line: 1,
        source: None,
        attack_succeeded: None,
        evidence: None,
        prompt: prompt.clone(),
        gold: LabelId(gold),
        target: None,
        answers: answers.iter().enumerate().map(answer).collect(),
        control_texts: Vec::new(),
        told: None,
        judge: None,
    }
}

fn flat(learner: &Learner) -> Vec<f64> {
    learner.gradients().tensors().flat_map(|g| floats(&g.unwrap())).map(f64::from).collect()
}

/// Groups of 32 completions of at most two tokens, some ended by a stop token after one.
fn sample(decoder: &Decoder, prompt: &Prompt, groups: u32) -> Vec<Group> {
    let stop_tokens = StopTokens::new((0..30).collect());
    let sampling = SamplingConfig { temperature: TEMPERATURE, ..SamplingConfig::default() };
    let completions = Completions { per_prompt: 32, max_tokens: 2, sampling };
    let engine = Engine::new(decoder, &stop_tokens, completions, 100_000);
    let requests: Vec<Request> = (0..groups).map(|sample_id| Request { prompt, sample_id }).collect();
    engine.generate(&requests, Draws { seed: 3, purpose: Purpose::Rollout, step: 0 }).unwrap().groups
}

#[test]
fn a_steps_scores_are_expectations_under_the_policy() {
    let decoder = small_decoder(12);
    let prompts = [1, 2].map(|i| Prompt { token_ids: tokens(i, 24) });
    let answers: Vec<Vec<u32>> = (0..5).map(|i| vec![40 + i]).collect();
    // The first row is risky, the second benign.
    let rows = [row(&prompts[0], &answers, 1), row(&prompts[1], &answers, 0)];
    let (task, rows) = (task(true), rows.iter().collect::<Vec<_>>());
    let config = EnumerateConfig { temperature: TEMPERATURE, ..EnumerateConfig::default() };
    let expectation =
        Expectation { task: &task, config: &config, max_tokens_per_pack: 1000, reference: None };
    let metrics = expectation.learn(&mut learner(small_decoder(12)), &rows).unwrap();
    let enumerator =
        Enumerator { decoder: &decoder, task: &task, temperature: TEMPERATURE, max_tokens_per_pack: 1000 };
    let p: Vec<Vec<f64>> = enumerator
        .label_probabilities(&rows)
        .unwrap()
        .iter()
        .map(|labels| labels.iter().map(|label| label.logp.exp()).collect())
        .collect();
    let flags = |row: usize| p[row][1..].iter().sum::<f64>();
    for (name, want) in [
        ("verdict/accuracy_strict", (flags(0) + p[1][0]) / 2.0),
        ("verdict/exact_label_accuracy", (p[0][1] + p[1][0]) / 2.0),
        ("verdict/recall", flags(0)),
        ("verdict/false_positive_rate", flags(1)),
        ("verdict/malformed_rate", 1.0 - (flags(0) + p[0][0] + flags(1) + p[1][0]) / 2.0),
    ] {
        let got = metrics.get(name).unwrap();
        assert!((got - want).abs() < 1e-6 * want, "{name}: {got} is not {want}");
    }
}

#[test]
fn the_exact_gradient_is_the_mean_of_sampled_ones() {
    let decoder = small_decoder(12);
    let prompt = Prompt { token_ids: tokens(1, 24) };
    let groups = sample(&decoder, &prompt, 400);
    let mut counts: HashMap<&[u32], usize> = HashMap::new();
    for rollout in groups.iter().flat_map(|g| &g.rollouts) {
        *counts.entry(&rollout.token_ids).or_default() += 1;
    }
    let mut common: Vec<(&[u32], usize)> = counts.into_iter().collect();
    common.sort_by_key(|(ids, count)| (std::cmp::Reverse(*count), ids.to_vec()));
    let of_length =
        |n: usize| common.iter().filter(move |(ids, _)| ids.len() == n).map(|(ids, _)| ids.to_vec());
    let answers: Vec<Vec<u32>> =
        of_length(2).step_by(2).take(3).chain(of_length(1).step_by(2).take(2)).collect();

    let task = task(true);
    let row = row(&prompt, &answers, 1);
    let config = EnumerateConfig {
        temperature: TEMPERATURE,
        scale_rewards: ScaleExpected::None,
        ..EnumerateConfig::default()
    };
    let expectation =
        Expectation { task: &task, config: &config, max_tokens_per_pack: 1000, reference: None };
    let mut learner = learner(decoder);
    let metrics = expectation.learn(&mut learner, &[&row]).unwrap();
    let exact = flat(&learner);
    learner.clear();
    let rest = metrics.get("verdict/malformed_rate").unwrap();
    let completions = 400.0 * 32.0;
    let hits = common.iter().filter(|(ids, _)| answers.iter().any(|a| a == ids));
    let sampled_rest = 1.0 - hits.map(|(_, n)| *n as f64).sum::<f64>() / completions;
    println!(
        "rest {rest:.4}, sampled {sampled_rest:.4}; counts {:?}",
        &common.iter().take(8).collect::<Vec<_>>()
    );
    assert!(
        (rest - sampled_rest).abs() < 4.5 * (rest * (1.0 - rest) / completions).sqrt(),
        "{rest} {sampled_rest}"
    );
    assert!((0.05..0.95).contains(&rest), "both answers and others are sampled: {rest}");

    // Each group's gradient along the exact one and along directions at random, and what the samples earned.
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let mut directions = vec![exact.clone()];
    for d in 0..6 {
        let stream = Stream::new(8, Purpose::Bench, [d, 0, 0]);
        directions.push((0..exact.len() as u32).map(|i| f64::from(stream.uniform(i)) - 0.5).collect());
    }
    let project = |v: &[f64], d: &[f64]| v.iter().zip(d).map(|(a, b)| a * b).sum::<f64>() / norm(d);
    let earns = |ids: &Vec<u32>| match answers.iter().position(|a| a == ids) {
        Some(1) => 1.0,
        Some(0) => 0.0,
        Some(_) => 0.3,
        None => -0.2f32,
    };
    let mut estimates = vec![Vec::new(); directions.len()];
    let mut earned = Vec::new();
    for group in groups {
        let rewards: Vec<f32> = group.rollouts.iter().map(|r| earns(&r.token_ids)).collect();
        earned.extend(rewards.iter().map(|r| f64::from(*r)));
        // The mean holds each completion's own reward: that alone shrinks the estimate, by (G - 1) / G.
        let advantages = centered(&[&rewards], ScaleRewards::None, ScaleStd::Sample, 0.0).remove(0);
        let advantages = advantages.into_iter().map(|a| a * 32.0 / 31.0).collect();
        let scored = ScoredGroup { group, rewards, advantages };
        let loss = LossConfig::Luspo(Default::default());
        let policy = Policy { under: TEMPERATURE.into(), max_completion_tokens: 2, ..Policy::plain(&loss) };
        learner.learn(&policy, &[scored], 0..1, Tapes::default(), &mut Vec::new()).unwrap();
        let gradient = flat(&learner);
        learner.clear();
        estimates.iter_mut().zip(&directions).for_each(|(all, d)| all.push(project(&gradient, d)));
    }
    let moments = |values: &[f64]| {
        let n = values.len() as f64;
        let mean = values.iter().sum::<f64>() / n;
        let deviation = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
        (mean, deviation, deviation / n.sqrt())
    };
    for (i, (values, direction)) in estimates.iter().zip(&directions).enumerate() {
        let (mean, deviation, error) = moments(values);
        let want = project(&exact, direction);
        println!(
            "direction {i}: exact {want:.3e}, 400 groups of 32: {mean:.3e} +- {error:.1e}, one group: +- {deviation:.1e}"
        );
        assert!((mean - want).abs() < 4.5 * error, "direction {i}: {mean:e} +- {error:e} is not {want:e}");
        // The test could tell a wrong sign or factor of two along the gradient itself.
        assert!(i > 0 || error < 0.1 * want, "{error:e} {want:e}");
    }
    let (mean, _, error) = moments(&earned);
    let reward = metrics.get("reward").unwrap();
    assert!((mean - reward).abs() < 4.5 * error, "{mean} +- {error} is not {reward}");
}

#[test]
fn label_probabilities_equal_those_of_separate_copies() {
    let decoder = small_decoder(2);
    let answers: Vec<Vec<u32>> = (0..5).map(|i| tokens(20 + i, 1 + i as usize)).collect();
    let prompts: Vec<Prompt> = (0..3).map(|i| Prompt { token_ids: tokens(i, 9 + 8 * i as usize) }).collect();
    let rows: Vec<EncodedRow> = prompts.iter().map(|prompt| row(prompt, &answers, 0)).collect();
    let rows: Vec<&EncodedRow> = rows.iter().collect();
    let alone = |prompt: &Prompt, answer: &[u32]| -> f64 {
        let mut batch = PackedBatch::default();
        batch.push_sequence(&prompt.token_ids, answer);
        let forward = decoder.forward(&batch, Keep::Nothing).unwrap();
        decoder.logprobs(&forward, TEMPERATURE).unwrap().logprobs.iter().map(|l| f64::from(*l)).sum()
    };
    let task_of = task;
    for (closed, max_tokens_per_pack) in [(true, 1), (true, 1000), (false, 60)] {
        let task = task_of(closed);
        let enumerator =
            Enumerator { decoder: &decoder, task: &task, temperature: TEMPERATURE, max_tokens_per_pack };
        let mut asked = rows.iter().map(|row| (*row).clone()).collect::<Vec<_>>();
        if !closed {
            asked.iter_mut().for_each(|row| drop(row.answers.remove(0)));
        }
        let asked: Vec<&EncodedRow> = asked.iter().collect();
        let all = enumerator.label_probabilities(&asked).unwrap();
        for (got, prompt) in all.iter().zip(&prompts) {
            assert_eq!(got.iter().map(|g| g.label.index()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
            let sum: f64 = got.iter().map(|g| g.p).sum();
            assert!((sum - 1.0).abs() < 1e-9, "{sum}");
            let want: Vec<f64> = answers.iter().map(|a| alone(prompt, a)).collect();
            let total: f64 = want.iter().map(|l| l.exp()).sum();
            for (g, want) in got.iter().zip(&want).skip(usize::from(!closed)) {
                assert!((g.logp - want).abs() < 1e-4, "{} is not {want}", g.logp);
                let p = want.exp() / if closed { total } else { 1.0 };
                assert!((g.p / p - 1.0).abs() < 1e-3, "{} is not {p}", g.p);
            }
        }
    }
    let bare = EncodedRow { answers: Vec::new(), ..rows[0].clone() };
    let task = task_of(true);
    let enumerator =
        Enumerator { decoder: &decoder, task: &task, temperature: 1.0, max_tokens_per_pack: 100 };
    let error = enumerator.label_probabilities(&[&bare]).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("without its answers"), "{error}");
}
