//! Policy losses against TRL's values, and the fact that they do not depend on how a step is cut.

use rlvr::algo::loss::{LossOutput, LossSums, Sequence, StepTotals, policy_loss};
use rlvr::config::loss::{ClipConfig, LossConfig, RatioLevel};
use rlvr::rng::{Purpose, Sequential, Stream};
use serde_json::Value;

use super::golden::golden_dir;

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
    let Some(folder) = golden_dir() else { return };
    let text = std::fs::read_to_string(folder.join("losses.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let mut checked = 0;
    for case in golden["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64();
        let ratio = match case["importance_sampling_level"].as_str().unwrap() {
            "token" => RatioLevel::Token,
            _ => RatioLevel::Sequence,
        };
        let clip = ClipConfig {
            ratio: Some(ratio),
            epsilon_low: number("epsilon_low"),
            epsilon_high: number("epsilon_high"),
            delta: number("delta"),
        };
        let name = case["loss_type"].as_str().unwrap();
        let config = match name {
            "grpo" => LossConfig::Grpo(clip),
            "dapo" => LossConfig::Dapo(clip),
            "dr_grpo" => LossConfig::DrGrpo(clip),
            _ => continue,
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
                advantage: advantages[i],
            })
            .collect();
        let totals = StepTotals {
            sequences: lengths.len(),
            active_tokens: lengths.iter().sum(),
            max_completion_tokens: number("max_completion_length").unwrap() as usize,
        };
        let out = policy_loss(&config, beta, &sequences, &totals).unwrap();
        close(out.loss, number("loss").unwrap(), &what);
        let wanted = gradients.concat();
        assert_eq!(out.dloss_dlogp.len(), wanted.len());
        for (t, (got, want)) in out.dloss_dlogp.iter().zip(wanted).enumerate() {
            close(*got, want, &format!("{what} gradient {t}"));
        }
        for (metric, got) in out.sums.metrics() {
            close(got, case["metrics"][metric].as_f64().unwrap(), &format!("{what} {metric}"));
        }
        checked += 1;
    }
    assert_eq!(checked, 18, "3 losses x 2 ratio levels x plain, KL, delta");
}

struct Completion {
    logps: Vec<f64>,
    old_logps: Vec<f64>,
    ref_logps: Vec<f64>,
    advantage: f64,
}

impl Completion {
    fn random(draw: &mut Sequential) -> Self {
        let length = 1 + draw.below(12);
        let mut logps = |shift: f64| -> Vec<f64> {
            (0..length).map(|_| shift - 2.0 * f64::from(draw.uniform())).collect()
        };
        let (logps, old_logps, ref_logps) = (logps(0.0), logps(0.1), logps(-0.1));
        Self { logps, old_logps, ref_logps, advantage: 4.0 * f64::from(draw.uniform()) - 2.0 }
    }

    fn sequence(&self) -> Sequence<'_> {
        Sequence {
            logps: &self.logps,
            old_logps: &self.old_logps,
            ref_logps: Some(&self.ref_logps),
            advantage: self.advantage,
        }
    }
}

fn configs() -> Vec<LossConfig> {
    let levels = [RatioLevel::Token, RatioLevel::Sequence];
    let clips = levels.map(|ratio| ClipConfig {
        ratio: Some(ratio),
        epsilon_high: Some(0.28),
        delta: Some(2.0),
        ..ClipConfig::default()
    });
    clips
        .into_iter()
        .flat_map(|c| [LossConfig::Grpo(c), LossConfig::Dapo(c), LossConfig::DrGrpo(c)])
        .collect()
}

fn step(completions: &[Completion]) -> StepTotals {
    StepTotals {
        sequences: completions.len(),
        active_tokens: completions.iter().map(|c| c.logps.len()).sum(),
        max_completion_tokens: 12,
    }
}

#[test]
fn a_step_is_the_same_however_it_is_cut_and_ordered() {
    for trial in 0..40 {
        let mut draw = Stream::new(11, Purpose::Synthetic, [trial, 0, 0]).sequential();
        let completions: Vec<_> = (0..1 + draw.below(9)).map(|_| Completion::random(&mut draw)).collect();
        let totals = step(&completions);
        for config in configs() {
            let run = |sequences: &[Sequence]| policy_loss(&config, 0.04, sequences, &totals).unwrap();
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
                    assert_eq!(
                        dloss_dlogp[start..start + length],
                        whole.dloss_dlogp[before..before + length],
                        "{config:?} trial {trial} sequence {i}"
                    );
                    start += length;
                }
            }
            close(loss, whole.loss, &format!("{config:?} trial {trial}"));
            assert_eq!((sums.ratios, sums.clipped_low), (whole.sums.ratios, whole.sums.clipped_low));
            close(sums.kl, whole.sums.kl, "kl");
        }
    }
}

#[test]
fn gradients_equal_finite_differences() {
    let mut draw = Stream::new(12, Purpose::Synthetic, [0; 3]).sequential();
    let mut completions: Vec<_> = (0..6).map(|_| Completion::random(&mut draw)).collect();
    let totals = step(&completions);
    for config in configs() {
        let loss = |completions: &[Completion]| {
            let sequences: Vec<_> = completions.iter().map(Completion::sequence).collect();
            policy_loss(&config, 0.04, &sequences, &totals).unwrap()
        };
        let gradient = loss(&completions).dloss_dlogp;
        let mut index = 0;
        for i in 0..completions.len() {
            for t in 0..completions[i].logps.len() {
                let mut at = |shift: f64| {
                    let logp = completions[i].logps[t];
                    completions[i].logps[t] = logp + shift;
                    let value = loss(&completions).loss;
                    completions[i].logps[t] = logp;
                    value
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                let got = gradient[index];
                assert!((got - slope).abs() < 1e-7, "{config:?} {i} {t}: {got} is not {slope}");
                index += 1;
            }
        }
    }
}
