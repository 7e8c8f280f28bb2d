//! Advantages and reward metrics against those of TRL's own trainers.

use rlvr::algo::advantage::{AdvantageRule, RewardPart, Rewards};
use rlvr::algo::summary::RewardSummary;
use rlvr::config::stages::{Baseline, CombineRewards, ScaleRewards, ScaleStd};
use serde_json::Value;

use crate::support::golden::golden_dir;

/// `[parts][groups][G]`
fn parts(value: &Value) -> Vec<Vec<Vec<f32>>> {
    serde_json::from_value(value.clone()).unwrap()
}

fn rewards(parts: &[Vec<Vec<f32>>], weights: &[f64]) -> Rewards {
    let total = (0..parts[0].len()).map(|g| {
        let sum = |i: usize| parts.iter().zip(weights).map(|(part, w)| *w as f32 * part[g][i]).sum();
        (0..parts[0][g].len()).map(sum).collect()
    });
    let part = |(part, weight): (&Vec<Vec<f32>>, &f64)| RewardPart { weight: *weight, rewards: part.clone() };
    Rewards { total: total.collect(), parts: parts.iter().zip(weights).map(part).collect() }
}

#[test]
fn golden_advantages_equal_trl() {
    let text = std::fs::read_to_string(golden_dir().join("advantages.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let eps = golden["eps"].as_f64().unwrap();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let name = case["rewards"].as_str().unwrap();
        let what = format!("{name}, {}, {}, {}", case["combine"], case["scale"], case["baseline"]);
        let parts = parts(&golden["rewards"][name]);
        let weights: Vec<f64> =
            serde_json::from_value(golden["weights"][parts.len().to_string()].clone()).unwrap();
        let rewards = rewards(&parts, &weights);
        let rule = AdvantageRule {
            combine_rewards: serde_json::from_value::<CombineRewards>(case["combine"].clone()).unwrap(),
            scale_rewards: serde_json::from_value::<ScaleRewards>(case["scale"].clone()).unwrap(),
            scale_std: ScaleStd::Sample,
            baseline: serde_json::from_value::<Baseline>(case["baseline"].clone()).unwrap(),
            eps,
        };
        let groups = rewards.total.len();
        let got = rule.advantages(&rewards, &Vec::new(), &vec![true; groups]);
        let want: Vec<Vec<f64>> = serde_json::from_value(case["advantages"].clone()).unwrap();
        for (got, want) in got.iter().flatten().zip(want.iter().flatten()) {
            // Rewards are f32 here, and f64 there.
            assert!(
                (f64::from(*got) - want).abs() <= 2e-6 * want.abs().max(1.0),
                "{what}: {got} is not {want}"
            );
            checked += 1;
        }
        let metrics = RewardSummary::new(&rewards, &rule, 1.0).metrics();
        for name in ["reward", "reward_std", "frac_reward_zero_std"] {
            let want = case["metrics"][name].as_f64().unwrap();
            let got = metrics.iter().find(|(named, _)| *named == name).unwrap().1;
            assert!((got - want).abs() <= 1e-6, "{what}: {name} is {got}, not {want}");
        }
        for (k, part) in rewards.parts.iter().enumerate() {
            let (mean, std) = rlvr::algo::advantage::moments(part.rewards.iter().flatten(), ScaleStd::Sample);
            for (got, of) in [(mean, "mean"), (std, "std")] {
                let want = case["metrics"][format!("rewards/part{k}/{of}")].as_f64().unwrap();
                assert!((got - want).abs() <= 1e-6, "{what}: {of} of part {k} is {got}, not {want}");
            }
        }
    }
    assert_eq!(golden["cases"].as_array().unwrap().len(), 35);
    assert!(checked > 250, "{checked}");
}

/// What TRL has no name for: leave-one-out of a scaled advantage is that of the mean, `G / (G - 1)` as far out, and the
/// population's deviation makes it `sqrt(G / (G - 1))` as far out.
#[test]
fn every_combination_differs_from_trls_by_a_known_factor() {
    let text = std::fs::read_to_string(golden_dir().join("advantages.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    for name in ["binary", "graded", "two parts"] {
        let parts = parts(&golden["rewards"][name]);
        let weights = &[1.0, 0.5][..parts.len()];
        let rewards = rewards(&parts, weights);
        let (groups, size) = (rewards.total.len(), rewards.total[0].len() as f64);
        let all = size * groups as f64;
        for (combine_rewards, scale_rewards) in [
            (CombineRewards::Sum, ScaleRewards::Group),
            (CombineRewards::Sum, ScaleRewards::Batch),
            (CombineRewards::Sum, ScaleRewards::None),
            (CombineRewards::NormalizeThenSum, ScaleRewards::Group),
        ] {
            let rule = |scale_std, baseline| AdvantageRule {
                combine_rewards,
                scale_rewards,
                scale_std,
                baseline,
                eps: 0.0,
            };
            let of = |scale_std, baseline| {
                rule(scale_std, baseline).advantages(&rewards, &Vec::new(), &vec![true; groups]).concat()
            };
            let sample = of(ScaleStd::Sample, Baseline::Mean);
            let population = match (combine_rewards, scale_rewards) {
                (_, ScaleRewards::None) => 1.0,
                (CombineRewards::Sum, ScaleRewards::Group) => (size / (size - 1.0)).sqrt(),
                // Normalised sums are as far apart as their own deviation says: the groups' factor cancels.
                _ => (all / (all - 1.0)).sqrt(),
            };
            for (kind, baseline, factor) in [
                (ScaleStd::Sample, Baseline::LeaveOneOut, size / (size - 1.0)),
                (ScaleStd::Population, Baseline::Mean, population),
                (ScaleStd::Population, Baseline::LeaveOneOut, population * size / (size - 1.0)),
            ] {
                for (got, from) in of(kind, baseline).into_iter().zip(&sample) {
                    let want = f64::from(*from) * factor;
                    assert!(
                        (f64::from(got) - want).abs() <= 2e-6 * want.abs().max(1.0),
                        "{name}, {combine_rewards:?}, {scale_rewards:?}, {kind:?}, {baseline:?}: {got} is not {want}"
                    );
                }
            }
        }
    }
}
