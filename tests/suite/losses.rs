//! Policy losses against TRL's values, and the fact that they do not depend on how a step is cut.

use proptest::prelude::*;
use rlvr::algo::loss::{KlPenalty, LossOutput, LossSums, Sequence, StepTotals, policy_loss};
use rlvr::config::loss::{CispoConfig, ClipConfig, LossConfig, RatioLevel, SapoConfig, VespoConfig};
use rlvr::rng::{Purpose, Sequential, Stream};
use serde_json::Value;

use crate::support::golden::golden_dir;
use crate::support::losses::configs;
use crate::support::seed;

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn rows(value: &Value, lengths: &[usize]) -> Vec<Vec<f64>> {
    let rows = value.as_array().unwrap().iter().zip(lengths);
    rows.map(|(row, length)| floats(row)[..*length].to_vec()).collect()
}

/// 1e-9 relative; 1e-12 absolute below 1e-3.
fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-3), "{what}: {got} is not {want}");
}

#[test]
fn golden_losses_equal_trl() {
    let folder = golden_dir();
    let text = std::fs::read_to_string(folder.join("losses.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64();
        let ratio = match case["importance_sampling_level"].as_str().unwrap() {
            "token" => RatioLevel::Token,
            _ => RatioLevel::Sequence,
        };
        let ratio = Some(ratio);
        let clip = ClipConfig {
            ratio,
            epsilon_low: number("epsilon_low"),
            epsilon_high: number("epsilon_high"),
            delta: number("delta"),
        };
        let name = case["loss_type"].as_str().unwrap();
        let config = match name {
            "grpo" => LossConfig::Grpo(clip),
            "bnpo" => LossConfig::Bnpo(clip),
            "dapo" => LossConfig::Dapo(clip),
            "dr_grpo" => LossConfig::DrGrpo(clip),
            "luspo" => LossConfig::Luspo(clip),
            "cispo" => LossConfig::Cispo(CispoConfig { ratio, max_ratio: number("epsilon_high") }),
            "sapo" => LossConfig::Sapo(SapoConfig { ratio, ..SapoConfig::default() }),
            "vespo" => LossConfig::Vespo(VespoConfig::default()),
            other => panic!("{other} is a loss this test does not know"),
        };
        let beta = number("beta").unwrap();
        let what = format!("{name} {ratio:?} beta {beta} delta {:?}", clip.delta);
        let lengths: Vec<usize> = floats(&case["lengths"]).iter().map(|x| *x as usize).collect();
        let [logps, old_logps, ref_logps, gradients] =
            ["logps", "old_logps", "ref_logps", "grad_logps"].map(|key| rows(&case[key], &lengths));
        let advantages = floats(&case["advantages"]);
        let sequences: Vec<Sequence> = (0..lengths.len())
            .map(|i| Sequence {
                logps: &logps[i],
                old_logps: &old_logps[i],
                ref_logps: (beta != 0.0).then_some(&ref_logps[i]),
                factors: None,
                advantage: advantages[i],
            })
            .collect();
        let totals = StepTotals {
            sequences: lengths.len(),
            active_tokens: lengths.iter().sum(),
            max_completion_tokens: number("max_completion_length").unwrap() as usize,
        };
        let out =
            policy_loss(&config, KlPenalty { coef: beta, ..KlPenalty::NONE }, &sequences, &totals).unwrap();
        close(out.loss, number("loss").unwrap(), &what);
        let wanted = gradients.concat();
        assert_eq!(out.dloss_dlogp.len(), wanted.len());
        for (t, (got, want)) in out.dloss_dlogp.iter().zip(wanted).enumerate() {
            close(*got, want, &format!("{what} gradient {t}"));
        }
        let metrics = out.sums.metrics(&config);
        let wanted = case["metrics"].as_object().unwrap();
        // The entropy is not the loss's.
        for (metric, want) in wanted.iter().filter(|(metric, _)| *metric != "entropy") {
            let got = metrics.iter().find(|(name, _)| name == metric);
            let (_, got) = got.unwrap_or_else(|| panic!("{what} has no {metric}"));
            close(*got, want.as_f64().unwrap(), &format!("{what} {metric}"));
        }
        assert!(metrics.iter().all(|(name, _)| wanted.contains_key(*name)), "{what}: {metrics:?}");
        checked += 1;
    }
    assert!(checked > 0, "no case in losses.json");
}

struct Completion {
    logps: Vec<f64>,
    old_logps: Vec<f64>,
    ref_logps: Vec<f64>,
    factors: Vec<f64>,
    advantage: f64,
}

impl Completion {
    fn random(draw: &mut Sequential) -> Self {
        let length = 1 + draw.below(12);
        let mut logps = |shift: f64| -> Vec<f64> {
            (0..length).map(|_| shift - 2.0 * f64::from(draw.uniform())).collect()
        };
        let (logps, old_logps, ref_logps) = (logps(0.0), logps(0.1), logps(-0.1));
        let factors = (0..length).map(|_| 2.0 * f64::from(draw.uniform())).collect();
        let advantage = 4.0 * f64::from(draw.uniform()) - 2.0;
        Self { logps, old_logps, ref_logps, factors, advantage }
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            logps: &self.logps,
            old_logps: &self.old_logps,
            ref_logps: Some(&self.ref_logps),
            factors: Some(&self.factors),
            advantage: self.advantage,
        }
    }
}

fn step(completions: &[Completion]) -> StepTotals {
    StepTotals {
        sequences: completions.len(),
        active_tokens: completions.iter().map(|c| c.logps.len()).sum(),
        max_completion_tokens: 12,
    }
}

proptest! {
    #![proptest_config(seed::cases(40))]

    #[test]
    fn a_step_is_the_same_however_it_is_cut_and_ordered(seed in any::<u64>()) {
        let mut draw = Stream::new(seed, Purpose::Synthetic, [0; 3]).sequential();
        let completions: Vec<_> = (0..1 + draw.below(9)).map(|_| Completion::random(&mut draw)).collect();
        let totals = step(&completions);
        for (config, penalty) in configs() {
            let run = |sequences: &[Sequence]| policy_loss(&config, penalty, sequences, &totals).unwrap();
            let in_order: Vec<_> = completions.iter().map(Completion::sequence).collect();
            let whole = run(&in_order);
            let mut order: Vec<usize> = (0..completions.len()).collect();
            draw.shuffle(&mut order);
            let (mut loss, mut sums, mut rest) = (0.0, LossSums::default(), &order[..]);
            while !rest.is_empty() {
                let (part, later) = rest.split_at(1 + draw.below(rest.len()));
                rest = later;
                let sequences: Vec<_> = part.iter().map(|i| completions[*i].sequence()).collect();
                let LossOutput { loss: part_loss, dloss_dlogp, sums: part_sums } = run(&sequences);
                loss += part_loss;
                sums += part_sums;
                let mut start = 0;
                for i in part {
                    let before: usize = completions[..*i].iter().map(|c| c.logps.len()).sum();
                    let length = completions[*i].logps.len();
                    prop_assert_eq!(
                        &dloss_dlogp[start..start + length],
                        &whole.dloss_dlogp[before..before + length],
                        "{:?} sequence {}", config, i
                    );
                    start += length;
                }
            }
            close(loss, whole.loss, &format!("{config:?}"));
            for ((name, got), (_, want)) in sums.metrics(&config).into_iter().zip(whole.sums.metrics(&config)) {
                close(got, want, &format!("{config:?} {name}"));
            }
        }
    }
}

/// The weight of a detached factor is what it is at the point itself: the loss that is differenced keeps the
/// factor of cispo and vespo fixed, as `-factor A logp`.
#[test]
fn gradients_equal_finite_differences() {
    let mut draw = Stream::new(12, Purpose::Synthetic, [0; 3]).sequential();
    let mut completions: Vec<_> = (0..6).map(|_| Completion::random(&mut draw)).collect();
    let totals = step(&completions);
    for (config, penalty) in configs() {
        let detached = matches!(config, LossConfig::Cispo(_) | LossConfig::Vespo(_));
        let loss = |completions: &[Completion]| {
            let sequences: Vec<_> = completions.iter().map(Completion::sequence).collect();
            policy_loss(&config, penalty, &sequences, &totals).unwrap()
        };
        let gradient = loss(&completions).dloss_dlogp;
        let mut index = 0;
        for i in 0..completions.len() {
            for t in 0..completions[i].logps.len() {
                let mut at = |shift: f64| {
                    let (logp, old) = (completions[i].logps[t], completions[i].old_logps[t]);
                    completions[i].logps[t] = logp + shift;
                    // Both move together: the ratio, and with it the factor, stays.
                    completions[i].old_logps[t] = old + if detached { shift } else { 0.0 };
                    let value = loss(&completions).loss;
                    completions[i].logps[t] = logp;
                    completions[i].old_logps[t] = old;
                    value
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                let got = gradient[index];
                assert!((got - slope).abs() < 1e-7, "{config:?} {penalty:?} {i} {t}: {got} is not {slope}");
                index += 1;
            }
        }
    }
}

/// Dual-clip PPO, arXiv:1912.09729, equation 5, as it stands there.
#[test]
fn delta_is_the_c_of_dual_clip() {
    let mut draw = Stream::new(13, Purpose::Synthetic, [0; 3]).sequential();
    let mut bound = 0;
    for _ in 0..500 {
        let (log_ratio, a) = (4.0 * f64::from(draw.uniform()) - 2.0, 4.0 * f64::from(draw.uniform()) - 2.0);
        let c = 1.3 + 3.0 * f64::from(draw.uniform());
        let dual = |log_ratio: f64| {
            let r = log_ratio.exp();
            let ppo = (r * a).min(r.clamp(0.8, 1.2) * a);
            if a < 0.0 { -ppo.max(c * a) } else { -ppo }
        };
        let logps = [log_ratio - 1.0];
        let sequence =
            Sequence { logps: &logps, old_logps: &[-1.0], ref_logps: None, factors: None, advantage: a };
        let config = LossConfig::Luspo(ClipConfig { delta: Some(c), ..ClipConfig::default() });
        let totals = StepTotals { sequences: 1, active_tokens: 1, max_completion_tokens: 1 };
        let out = policy_loss(&config, KlPenalty::NONE, &[sequence], &totals).unwrap();
        close(out.loss, dual(log_ratio), "value");
        let slope = (dual(log_ratio + 1e-6) - dual(log_ratio - 1e-6)) / 2e-6;
        assert!((out.dloss_dlogp[0] - slope).abs() < 1e-6, "r {} A {a} c {c}", log_ratio.exp());
        bound += usize::from(a < 0.0 && log_ratio.exp() > c);
    }
    assert!(bound > 5, "c binds in some draws: {bound}");
}
