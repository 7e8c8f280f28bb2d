//! Policy losses and their exact gradient with respect to the log-probabilities, one family a file.
//!
//! With `r = exp(logp - old_logp)` the loss of a step is `sum over tokens of w (l(r, A) + kl_coef * KL)`: a family
//! is its token term `l` and its weight `w`. Weights come from the totals of the whole optimiser step, so what
//! [`policy_loss`] returns for the parts of a step adds up to the step's loss and gradient, however it was cut.

mod bnpo;
mod cispo;
mod clipped;
mod dapo;
mod dr_grpo;
mod grpo;
mod luspo;
mod sapo;
mod sums;
mod vespo;

use super::kl::{Kl, kl};
use crate::config::loss::{ClipConfig, KlEstimator, LossConfig, RatioLevel};
use crate::error::{Error, Result};
use clipped::Clip;
pub use sums::LossSums;

/// One completion of L tokens. Log-probabilities in nats, at the sampling temperature.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Under the weights being trained. `[L]`
    pub logps: &'a [f64],
    /// Under the weights that sampled it; on the first update of a rollout the same slice as `logps`. `[L]`
    pub old_logps: &'a [f64],
    /// Under the reference model. `[L]`
    pub ref_logps: Option<&'a [f64]>,
    /// Factors of the tokens' policy terms, constant to the gradient: what corrects for a sampler that is not the
    /// trainer (`algo/importance.rs`), and 0 of a token that is left out (`algo/entropy.rs`). At the sequence level, where the
    /// terms of a completion are all equal, their mean is every token's. `[L]`
    pub factors: Option<&'a [f64]>,
    pub advantage: f64,
}

/// The penalty for leaving the reference model, as part of the loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KlPenalty {
    /// 0: no penalty; where there are reference log-probs the distance is reported all the same.
    pub coef: f64,
    pub estimator: KlEstimator,
    /// Whether each estimate is multiplied by the policy's ratio to the weights that sampled, which the gradient sees too: an estimate
    /// of the distance of the policy itself, DeepSeek-V3.2's and TRL's `use_bias_correction_kl`.
    pub corrected: bool,
}

impl KlPenalty {
    pub const NONE: Self = Self { coef: 0.0, estimator: KlEstimator::K3, corrected: false };

    /// By each token of a completion. `log_ratios`: of its tokens, or their mean as often where the ratio is the sequence's. `[L]`
    fn of(self, sequence: &Sequence<'_>, log_ratios: &[f64], level: RatioLevel) -> Option<Vec<Kl>> {
        let pairs = sequence.logps.iter().zip(sequence.ref_logps?);
        let mut all: Vec<Kl> = pairs.map(|(logp, reference)| kl(self.estimator, *logp, *reference)).collect();
        if self.corrected {
            let mean = all.iter().map(|kl| kl.value).sum::<f64>() / all.len().max(1) as f64;
            for (kl, log_ratio) in all.iter_mut().zip(log_ratios) {
                let ratio = log_ratio.exp();
                // The ratio moves with its own log-prob, or with all of the sequence's.
                let moved = if level == RatioLevel::Token { kl.value } else { mean };
                *kl = Kl { value: ratio * kl.value, slope: ratio * (kl.slope + moved) };
            }
        }
        Some(all)
    }
}

/// Counts of the whole optimiser step, over all its micro-batches and processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepTotals {
    /// Completions.
    pub sequences: usize,
    /// Completion tokens.
    pub active_tokens: usize,
    /// The completion budget, `grpo.max_completion_tokens`.
    pub max_completion_tokens: usize,
}

/// A micro-batch's part of the step.
#[derive(Clone, Debug)]
pub struct LossOutput {
    /// Already divided by the step's count: parts add up.
    pub loss: f64,
    /// Derivative of the step's loss by each log-probability, sequence after sequence. `[sum of L]`
    pub dloss_dlogp: Vec<f64>,
    pub sums: LossSums,
}

/// One token as a loss sees it.
struct Token {
    logp: f64,
    /// `logp - old_logp`: the token's, or its sequence's mean, as the ratio's level says.
    log_ratio: f64,
    /// Sum over the sequence of its tokens' log-ratios, each within 20 of 0.
    sequence_log_ratio: f64,
    advantage: f64,
}

/// The loss of one token.
struct Term {
    loss: f64,
    /// Derivative by the token's log-probability. At the sequence level every token's log-ratio is the mean over its
    /// sequence: that mean moves by 1/L with each of the L log-probabilities and L equal terms depend on it, so the
    /// derivative keeps the form of the token level.
    slope: f64,
    clipped: Option<Side>,
}

impl Term {
    const NONE: Self = Self { loss: 0.0, slope: 0.0, clipped: None };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Low,
    High,
}

trait Family {
    fn term(&self, token: &Token) -> Term;

    /// Weight of each token of a completion of `tokens` tokens.
    fn weight(&self, tokens: usize, totals: &StepTotals) -> f64;

    /// Whether a token's term is of its own log-prob at every level, the ratio before it being a constant.
    fn is_by_token(&self) -> bool {
        false
    }

    /// The weight that a sequence as a whole gives its tokens, for families that have one.
    fn sequence_weight(&self, _token: &Token) -> Option<f64> {
        None
    }
}

fn family(config: &LossConfig) -> Box<dyn Family> {
    let clip = |config: &ClipConfig| Clip::new(config);
    match config {
        LossConfig::Grpo(c) => Box::new(grpo::Grpo(clip(c))),
        LossConfig::Bnpo(c) => Box::new(bnpo::Bnpo(clip(c))),
        LossConfig::Dapo(c) => Box::new(dapo::Dapo(clip(c))),
        LossConfig::DrGrpo(c) => Box::new(dr_grpo::DrGrpo(clip(c))),
        LossConfig::Luspo(c) => Box::new(luspo::Luspo(clip(c))),
        LossConfig::Cispo(c) => Box::new(cispo::Cispo::new(c)),
        LossConfig::Sapo(c) => Box::new(sapo::Sapo::new(c)),
        LossConfig::Vespo(c) => Box::new(vespo::Vespo::new(c)),
    }
}

/// Loss, gradient and metric sums of one micro-batch of a step. An empty sequence counts in the totals only.
///
/// # Errors
/// Slices of different lengths, a KL penalty without reference log-probabilities, or more than `totals` has.
pub fn policy_loss(
    config: &LossConfig,
    penalty: KlPenalty,
    sequences: &[Sequence<'_>],
    totals: &StepTotals,
) -> Result<LossOutput> {
    check(penalty.coef, sequences, totals)?;
    let family = family(config);
    let level = config.ratio();
    let tokens = sequences.iter().map(|s| s.logps.len()).sum();
    let mut out =
        LossOutput { loss: 0.0, dloss_dlogp: Vec::with_capacity(tokens), sums: LossSums::default() };
    for sequence in sequences.iter().filter(|s| !s.logps.is_empty()) {
        let weight = family.weight(sequence.logps.len(), totals);
        let log_ratios: Vec<f64> =
            sequence.logps.iter().zip(sequence.old_logps).map(|(new, old)| new - old).collect();
        let mean_log_ratio = log_ratios.iter().sum::<f64>() / log_ratios.len() as f64;
        let sequence_log_ratio = log_ratios.iter().map(|r| r.clamp(-20.0, 20.0)).sum();
        // VESPO's weight is the sequence's, and its ratio is none.
        let kl_level = if matches!(config, LossConfig::Vespo(_)) { RatioLevel::Token } else { level };
        let penalties = match kl_level {
            RatioLevel::Token => penalty.of(sequence, &log_ratios, kl_level),
            RatioLevel::Sequence => penalty.of(sequence, &vec![mean_log_ratio; log_ratios.len()], kl_level),
        };
        // Added up by sequence first: a sequence's part is the same number in any micro-batch.
        let mut loss = 0.0;
        let mut sides = Vec::with_capacity(log_ratios.len());
        for (t, (&logp, by_token)) in sequence.logps.iter().zip(log_ratios).enumerate() {
            let log_ratio = match level {
                RatioLevel::Token => by_token,
                RatioLevel::Sequence => mean_log_ratio,
            };
            let token = Token { logp, log_ratio, sequence_log_ratio, advantage: sequence.advantage };
            let Term { loss: mut token_loss, mut slope, clipped } = family.term(&token);
            if let Some(factors) = sequence.factors {
                let factor = match level {
                    RatioLevel::Sequence if !family.is_by_token() => {
                        factors.iter().sum::<f64>() / factors.len() as f64
                    }
                    _ => factors[t],
                };
                token_loss *= factor;
                slope *= factor;
            }
            if let Some(kl) = penalties.as_ref().map(|all| all[t]) {
                token_loss += penalty.coef * kl.value;
                slope += penalty.coef * kl.slope;
                out.sums.kl += kl.value;
                out.sums.kl_tokens += 1;
            }
            loss += token_loss;
            out.dloss_dlogp.push(weight * slope);
            if t == 0 || level == RatioLevel::Token {
                sides.push(clipped);
            }
            if let (0, Some(weight)) = (t, family.sequence_weight(&token)) {
                out.sums.weighted_sequences += 1;
                out.sums.sequence_weights += weight;
            }
        }
        out.sums.count(&sides);
        out.loss += weight * loss;
    }
    Ok(out)
}

fn check(kl_coef: f64, sequences: &[Sequence<'_>], totals: &StepTotals) -> Result<()> {
    let fault = |problem: String| {
        Err(Error::input("policy loss", problem, "This is a fault of rlvr: report it with the config"))
    };
    for (i, sequence) in sequences.iter().enumerate() {
        let tokens = sequence.logps.len();
        let optional = |slice: Option<&[f64]>| slice.map_or(tokens, <[f64]>::len);
        let old = sequence.old_logps.len();
        let (reference, factors) = (optional(sequence.ref_logps), optional(sequence.factors));
        if [old, reference, factors] != [tokens; 3] {
            return fault(format!(
                "sequence {i} has {tokens} log-probs, {old} old and {reference} reference ones, {factors} factors"
            ));
        }
        if kl_coef != 0.0 && sequence.ref_logps.is_none() {
            return fault(format!("sequence {i} has no reference log-probs for the KL penalty"));
        }
    }
    let tokens = sequences.iter().map(|s| s.logps.len()).sum::<usize>();
    if sequences.len() > totals.sequences || tokens > totals.active_tokens {
        return fault(format!(
            "a micro-batch of {} sequences and {tokens} tokens in a step of {} and {}",
            sequences.len(),
            totals.sequences,
            totals.active_tokens
        ));
    }
    if totals.max_completion_tokens == 0 && tokens > 0 {
        return fault("the completion budget is 0 tokens".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::loss::SapoConfig;

    const TOTALS: StepTotals = StepTotals { sequences: 2, active_tokens: 4, max_completion_tokens: 10 };

    fn ln(x: f64) -> f64 {
        x.ln()
    }

    /// Ratios 1.5 and 1 of a good completion, 0.5 and 2 of a bad one.
    fn loss(config: &LossConfig) -> LossOutput {
        let old = [-1.0, -1.0];
        let good = [-1.0 + ln(1.5), -1.0];
        let bad = [-1.0 + ln(0.5), -1.0 + ln(2.0)];
        let sequence =
            |logps, advantage| Sequence { logps, old_logps: &old, ref_logps: None, factors: None, advantage };
        policy_loss(config, KlPenalty::NONE, &[sequence(&good, 2.0), sequence(&bad, -1.0)], &TOTALS).unwrap()
    }

    #[track_caller]
    fn close(got: f64, want: f64) {
        assert!((got - want).abs() < 1e-12, "{got} is not {want}");
    }

    // Token losses, clip [0.8, 1.2]: -min(3, 2.4) = -2.4, -2; -min(-0.5, -0.8) = 0.8, -min(-2, -1.2) = 2.
    #[test]
    fn the_three_weights_of_one_batch() {
        let clip = ClipConfig::default();
        close(loss(&LossConfig::Grpo(clip)).loss, (-4.4 / 2.0 + 2.8 / 2.0) / 2.0);
        close(loss(&LossConfig::Dapo(clip)).loss, -1.6 / 4.0);
        close(loss(&LossConfig::DrGrpo(clip)).loss, -1.6 / 20.0);
    }

    #[test]
    fn a_clipped_token_gets_no_gradient() {
        let out = loss(&LossConfig::Dapo(ClipConfig::default()));
        // -A r / 4 where the clip does not bind.
        for (got, want) in out.dloss_dlogp.iter().zip([0.0, -0.5, 0.0, 0.5]) {
            close(*got, want);
        }
        assert_eq!(
            out.sums.metrics(&LossConfig::Dapo(ClipConfig::default())),
            [
                ("clip_ratio/low_mean", 0.25),
                ("clip_ratio/high_mean", 0.25),
                ("clip_ratio/region_mean", 0.5),
                ("clip_ratio/low_min", 0.0),
                ("clip_ratio/high_max", 0.5),
            ]
        );
    }

    #[test]
    fn delta_bounds_what_the_clip_leaves_open() {
        let out = loss(&LossConfig::Dapo(ClipConfig { delta: Some(1.5), ..ClipConfig::default() }));
        // The last token's loss falls from 2 to 1.5 and its gradient to 0.
        close(out.loss, -2.1 / 4.0);
        close(out.dloss_dlogp[3], 0.0);
    }

    #[test]
    fn the_sequence_ratio_is_the_geometric_mean() {
        let ratio = Some(RatioLevel::Sequence);
        let out = loss(&LossConfig::Dapo(ClipConfig { ratio, ..ClipConfig::default() }));
        // sqrt(1.5) = 1.2247 clips to 1.2, with A = 2; sqrt(0.5 * 2) = 1 with A = -1: two tokens each.
        close(out.loss, (2.0 * -2.4 + 2.0 * 1.0) / 4.0);
        for (got, want) in out.dloss_dlogp.iter().zip([0.0, 0.0, 0.25, 0.25]) {
            close(*got, want);
        }
        assert_eq!((out.sums.ratios, out.sums.clipped_high), (2, 1));
    }

    #[test]
    fn the_kl_penalty_adds_its_value_and_its_pull() {
        let (logps, ref_logps) = ([-1.0], [-1.0 + ln(2.0)]);
        let sequence = Sequence {
            logps: &logps,
            old_logps: &logps,
            ref_logps: Some(&ref_logps),
            factors: None,
            advantage: 0.0,
        };
        let totals = StepTotals { sequences: 1, active_tokens: 1, max_completion_tokens: 1 };
        let out = policy_loss(
            &LossConfig::default(),
            KlPenalty { coef: 0.5, ..KlPenalty::NONE },
            &[sequence],
            &totals,
        )
        .unwrap();
        close(out.loss, 0.5 * (1.0 - ln(2.0)));
        close(out.dloss_dlogp[0], -0.5);
        assert_eq!(out.sums.metrics(&LossConfig::default()).last().unwrap().0, "kl");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (two, one) = ([-1.0, -1.0], [-1.0]);
        let good = Sequence { logps: &two, old_logps: &two, ref_logps: None, factors: None, advantage: 1.0 };
        let refused = |coef, sequence, totals: StepTotals| {
            let penalty = KlPenalty { coef, ..KlPenalty::NONE };
            policy_loss(&LossConfig::default(), penalty, &[sequence], &totals).unwrap_err().to_string()
        };
        assert!(refused(0.0, Sequence { old_logps: &one, ..good }, TOTALS).contains("2 log-probs, 1 old"));
        assert!(refused(0.1, good, TOTALS).contains("no reference"));
        assert!(refused(0.0, good, StepTotals { active_tokens: 1, ..TOTALS }).contains("2 tokens in a step"));
    }

    #[test]
    fn no_advantage_is_no_gradient_even_when_the_ratio_overflows() {
        let sequence =
            Sequence { logps: &[0.0], old_logps: &[-1e4], ref_logps: None, factors: None, advantage: 0.0 };
        for config in [
            LossConfig::default(),
            LossConfig::Sapo(SapoConfig::default()),
            LossConfig::Vespo(Default::default()),
        ] {
            let out = policy_loss(&config, KlPenalty::NONE, &[sequence], &TOTALS).unwrap();
            assert_eq!((out.loss, out.dloss_dlogp[0]), (0.0, 0.0), "{config:?}");
        }
    }
}
