//! Learning from the tokens of highest entropy alone, and the KL term times the ratio, against TRL's own trainer.

use rlvr::algo::entropy::top_entropy;
use rlvr::algo::loss::{KlPenalty, Sequence, StepTotals, policy_loss};
use rlvr::config::loss::{
    CispoConfig, ClipConfig, KlEstimator, LossConfig, RatioLevel, SapoConfig, VespoConfig,
};
use serde_json::Value;

use crate::support::golden::golden_dir;

/// 1e-9 relative; 1e-12 absolute below 1e-3.
fn close(got: f64, want: f64, what: &str) {
    assert!((got - want).abs() <= 1e-9 * want.abs().max(1e-3), "{what}: {got} is not {want}");
}

#[test]
fn golden_losses_on_the_highest_entropies_equal_trl() {
    let text = std::fs::read_to_string(golden_dir().join("top-entropy.json")).unwrap();
    let golden: Value = serde_json::from_str(&text).unwrap();
    let lengths: Vec<usize> = serde_json::from_value(golden["lengths"].clone()).unwrap();
    // Without the padding.
    let cut = |value: &Value| -> Vec<Vec<f64>> {
        let rows: Vec<Vec<f64>> = serde_json::from_value(value.clone()).unwrap();
        rows.into_iter().zip(&lengths).map(|(row, length)| row[..*length].to_vec()).collect()
    };
    let [logps, old_logps, ref_logps, entropies] =
        ["logps", "old_logps", "ref_logps", "entropies"].map(|name| cut(&golden[name]));
    let advantages: Vec<f64> = serde_json::from_value(golden["advantages"].clone()).unwrap();
    let all: Vec<f32> = entropies.concat().iter().map(|h| *h as f32).collect();
    let totals = StepTotals {
        sequences: lengths.len(),
        active_tokens: all.len(),
        max_completion_tokens: golden["max_completion_length"].as_u64().unwrap() as usize,
    };
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 75);
    for case in cases {
        let number = |name: &str| case[name].as_f64().unwrap();
        let what = format!("{} {} {} {}", case["loss_type"], case["level"], case["top"], case["beta"]);
        let threshold = top_entropy(&all, number("top")).unwrap();
        let kept: Vec<Vec<f64>> = entropies
            .iter()
            .map(|row| row.iter().map(|h| f64::from(u8::from(*h as f32 >= threshold))).collect())
            .collect();
        assert_eq!(kept, cut(&case["kept"]), "{what}");
        let ratio = Some(if case["level"] == "token" { RatioLevel::Token } else { RatioLevel::Sequence });
        let clip = ClipConfig { ratio, epsilon_low: Some(0.2), epsilon_high: Some(0.28), delta: None };
        let loss = match case["loss_type"].as_str().unwrap() {
            "grpo" => LossConfig::Grpo(clip),
            "bnpo" => LossConfig::Bnpo(clip),
            "dapo" => LossConfig::Dapo(clip),
            "dr_grpo" => LossConfig::DrGrpo(clip),
            "luspo" => LossConfig::Luspo(clip),
            "cispo" => LossConfig::Cispo(CispoConfig { ratio, max_ratio: Some(5.0) }),
            "sapo" => LossConfig::Sapo(SapoConfig { ratio, ..SapoConfig::default() }),
            "vespo" => LossConfig::Vespo(VespoConfig::default()),
            other => panic!("{other} is a loss this test does not know"),
        };
        let beta = number("beta");
        let sequences: Vec<Sequence> = (0..lengths.len())
            .map(|i| Sequence {
                logps: &logps[i],
                old_logps: &old_logps[i],
                ref_logps: (beta != 0.0).then_some(&ref_logps[i]),
                factors: Some(&kept[i]),
                advantage: advantages[i],
            })
            .collect();
        let corrected = case["corrected"].as_bool().unwrap();
        let penalty = KlPenalty { coef: beta, estimator: KlEstimator::K3, corrected };
        let out = policy_loss(&loss, penalty, &sequences, &totals).unwrap();
        if let Some(want) = case["kl"][0].as_f64() {
            close(out.sums.kl / out.sums.kl_tokens as f64, want, &format!("{what}, kl"));
        }
        // The bonus is a mean over the tokens that are kept.
        let each = number("entropy_coef") / kept.concat().iter().sum::<f64>();
        let bonus =
            kept.concat().iter().zip(entropies.concat()).map(|(kept, h)| each * kept * h).sum::<f64>();
        close(out.loss - bonus, number("loss"), &what);
        for (got, want) in out.dloss_dlogp.iter().zip(cut(&case["grad_logps"]).concat()) {
            close(*got, want, &format!("{what}, gradient"));
        }
        for (kept, want) in kept.concat().iter().zip(cut(&case["grad_entropies"]).concat()) {
            close(-each * kept, want, &format!("{what}, gradient by entropies"));
        }
    }
}
