//! Settings of policy losses.

use rlvr::algo::loss::KlPenalty;
use rlvr::config::loss::{
    CispoConfig, ClipConfig, KlEstimator, LossConfig, RatioLevel, SapoConfig, VespoConfig,
};

/// Every loss at every level, with the estimators of the penalty in turn.
pub fn configs() -> Vec<(LossConfig, KlPenalty)> {
    let levels = [RatioLevel::Token, RatioLevel::Sequence];
    let of_level = |ratio| {
        let ratio = Some(ratio);
        let c = ClipConfig { ratio, epsilon_high: Some(0.28), delta: Some(2.0), ..ClipConfig::default() };
        [
            LossConfig::Grpo(c),
            LossConfig::Bnpo(c),
            LossConfig::Dapo(c),
            LossConfig::DrGrpo(c),
            LossConfig::Luspo(c),
            LossConfig::Cispo(CispoConfig { ratio, max_ratio: Some(1.5) }),
            LossConfig::Sapo(SapoConfig { ratio, ..SapoConfig::default() }),
            LossConfig::Vespo(VespoConfig::default()),
        ]
    };
    let estimators = [KlEstimator::K1, KlEstimator::K2, KlEstimator::K3, KlEstimator::Abs];
    let losses = levels.into_iter().flat_map(of_level);
    losses
        .enumerate()
        .map(|(i, loss)| {
            let estimator = estimators[(i + i / 8) % 4];
            // Of losses whose ratio is a constant to the gradient the penalty's would be one too for finite differences.
            let constant = matches!(loss, LossConfig::Cispo(_) | LossConfig::Vespo(_));
            (loss, KlPenalty { coef: 0.04, estimator, corrected: i % 3 != 0 && !constant })
        })
        .collect()
}
