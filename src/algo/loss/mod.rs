//! Policy losses and their exact gradient with respect to the log-probabilities, one family a file.
//!
//! With `r = exp(logp - old_logp)` the loss of a step is `sum over tokens of w (l(r, A) + kl_coef * k3)`: a family
//! is its token term `l` and its weight `w`. Weights come from the totals of the whole optimiser step, so what
//! [`policy_loss`] returns for the parts of a step adds up to the step's loss and gradient, however it was cut.

mod clipped;
mod dapo;
mod dr_grpo;
mod grpo;

use std::ops::AddAssign;

use super::kl::k3;
use crate::config::loss::{LossConfig, RatioLevel};
use crate::error::{Error, Result};
use clipped::Clip;

/// One completion of L tokens. Log-probabilities in nats, at the sampling temperature.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Under the weights being trained. `[L]`
    pub logps: &'a [f64],
    /// Under the weights that sampled it; on the first update of a rollout the same slice as `logps`. `[L]`
    pub old_logps: &'a [f64],
    /// Under the reference model. `[L]`
    pub ref_logps: Option<&'a [f64]>,
    pub advantage: f64,
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

/// Sums whose means are formed once a step, after adding up its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LossSums {
    /// Ratios looked at: one a token, or one a sequence when the ratio is the sequence's.
    pub ratios: u64,
    /// Ratios below `1 - epsilon_low` with a negative advantage: the clip stopped their gradient.
    pub clipped_low: u64,
    /// Ratios above `1 + epsilon_high` with a positive advantage.
    pub clipped_high: u64,
    /// Tokens with a reference log-probability, and the sum of k3 over them.
    pub kl_tokens: u64,
    pub kl: f64,
}

/// The loss of one token as a function of its log-ratio.
struct Term {
    loss: f64,
    /// Derivative by the log-ratio.
    slope: f64,
    clipped: Option<Side>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Low,
    High,
}

trait Family {
    fn term(&self, log_ratio: f64, advantage: f64) -> Term;
    /// Weight of each token of a completion of `tokens` tokens.
    fn weight(&self, tokens: usize, totals: &StepTotals) -> f64;
}

fn family(config: &LossConfig) -> Box<dyn Family> {
    let clip = Clip::new(config.clip());
    match config {
        LossConfig::Grpo(_) => Box::new(grpo::Grpo(clip)),
        LossConfig::Dapo(_) => Box::new(dapo::Dapo(clip)),
        LossConfig::DrGrpo(_) => Box::new(dr_grpo::DrGrpo(clip)),
    }
}

/// Loss, gradient and metric sums of one micro-batch of a step.
///
/// At the sequence level every token's log-ratio is the mean over its sequence. That mean moves by 1/L with each
/// of the L log-probabilities and L equal terms depend on it, so the gradient keeps the form of the token level.
///
/// # Errors
/// Slices of different lengths, a KL penalty without reference log-probabilities, or more than `totals` has.
pub fn policy_loss(
    config: &LossConfig,
    kl_coef: f64,
    sequences: &[Sequence<'_>],
    totals: &StepTotals,
) -> Result<LossOutput> {
    check(kl_coef, sequences, totals)?;
    let family = family(config);
    let level = config.clip().ratio();
    let tokens = sequences.iter().map(|s| s.logps.len()).sum();
    let mut out =
        LossOutput { loss: 0.0, dloss_dlogp: Vec::with_capacity(tokens), sums: LossSums::default() };
    for sequence in sequences.iter().filter(|s| !s.logps.is_empty()) {
        let weight = family.weight(sequence.logps.len(), totals);
        // Added up by sequence first: a sequence's part is the same number in any micro-batch.
        let mut loss = 0.0;
        for (t, log_ratio) in log_ratios(sequence, level).into_iter().enumerate() {
            let term = family.term(log_ratio, sequence.advantage);
            let (mut token_loss, mut slope) = (term.loss, term.slope);
            if let Some(ref_logps) = sequence.ref_logps {
                let kl = k3(sequence.logps[t], ref_logps[t]);
                token_loss += kl_coef * kl.value;
                slope += kl_coef * kl.slope;
                out.sums.kl += kl.value;
                out.sums.kl_tokens += 1;
            }
            loss += token_loss;
            out.dloss_dlogp.push(weight * slope);
            if t == 0 || level == RatioLevel::Token {
                out.sums.count(term.clipped);
            }
        }
        out.loss += weight * loss;
    }
    Ok(out)
}

/// `[L]`
fn log_ratios(sequence: &Sequence<'_>, level: RatioLevel) -> Vec<f64> {
    let by_token: Vec<f64> =
        sequence.logps.iter().zip(sequence.old_logps).map(|(new, old)| new - old).collect();
    match level {
        RatioLevel::Token => by_token,
        RatioLevel::Sequence => {
            let mean = by_token.iter().sum::<f64>() / by_token.len() as f64;
            vec![mean; by_token.len()]
        }
    }
}

fn check(kl_coef: f64, sequences: &[Sequence<'_>], totals: &StepTotals) -> Result<()> {
    let fault = |problem: String| {
        Err(Error::input("policy loss", problem, "This is a fault of rlvr: report it with the config"))
    };
    for (i, sequence) in sequences.iter().enumerate() {
        let tokens = sequence.logps.len();
        let lengths = (sequence.old_logps.len(), sequence.ref_logps.map_or(tokens, <[f64]>::len));
        if lengths != (tokens, tokens) {
            return fault(format!(
                "sequence {i} has {tokens} log-probs, {} old and {} reference ones",
                lengths.0, lengths.1
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

impl LossSums {
    fn count(&mut self, clipped: Option<Side>) {
        self.ratios += 1;
        match clipped {
            Some(Side::Low) => self.clipped_low += 1,
            Some(Side::High) => self.clipped_high += 1,
            None => {}
        }
    }

    /// Means by metric name; `kl` only where there was a reference.
    pub fn metrics(&self) -> Vec<(&'static str, f64)> {
        let share = |count: u64| count as f64 / self.ratios.max(1) as f64;
        let mut metrics = vec![
            ("clip_ratio/low_mean", share(self.clipped_low)),
            ("clip_ratio/high_mean", share(self.clipped_high)),
            ("clip_ratio/region_mean", share(self.clipped_low + self.clipped_high)),
        ];
        if self.kl_tokens > 0 {
            metrics.push(("kl", self.kl / self.kl_tokens as f64));
        }
        metrics
    }
}

impl AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.ratios += other.ratios;
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.kl_tokens += other.kl_tokens;
        self.kl += other.kl;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::loss::ClipConfig;

    const TOTALS: StepTotals = StepTotals { sequences: 2, active_tokens: 4, max_completion_tokens: 10 };

    fn ln(x: f64) -> f64 {
        x.ln()
    }

    /// Ratios 1.5 and 1 of a good completion, 0.5 and 2 of a bad one.
    fn loss(config: &LossConfig) -> LossOutput {
        let old = [-1.0, -1.0];
        let good = [-1.0 + ln(1.5), -1.0];
        let bad = [-1.0 + ln(0.5), -1.0 + ln(2.0)];
        let sequence = |logps, advantage| Sequence { logps, old_logps: &old, ref_logps: None, advantage };
        policy_loss(config, 0.0, &[sequence(&good, 2.0), sequence(&bad, -1.0)], &TOTALS).unwrap()
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
            out.sums.metrics(),
            [("clip_ratio/low_mean", 0.25), ("clip_ratio/high_mean", 0.25), ("clip_ratio/region_mean", 0.5)]
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
        let sequence =
            Sequence { logps: &logps, old_logps: &logps, ref_logps: Some(&ref_logps), advantage: 0.0 };
        let totals = StepTotals { sequences: 1, active_tokens: 1, max_completion_tokens: 1 };
        let out = policy_loss(&LossConfig::default(), 0.5, &[sequence], &totals).unwrap();
        close(out.loss, 0.5 * (1.0 - ln(2.0)));
        close(out.dloss_dlogp[0], -0.5);
        assert_eq!(out.sums.metrics().last().unwrap().0, "kl");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let (two, one) = ([-1.0, -1.0], [-1.0]);
        let good = Sequence { logps: &two, old_logps: &two, ref_logps: None, advantage: 1.0 };
        let refused = |kl_coef, sequence, totals: StepTotals| {
            policy_loss(&LossConfig::default(), kl_coef, &[sequence], &totals).unwrap_err().to_string()
        };
        assert!(refused(0.0, Sequence { old_logps: &one, ..good }, TOTALS).contains("2 log-probs, 1 old"));
        assert!(refused(0.1, good, TOTALS).contains("no reference"));
        assert!(refused(0.0, good, StepTotals { active_tokens: 1, ..TOTALS }).contains("2 tokens in a step"));
    }

    #[test]
    fn no_advantage_is_no_gradient_even_when_the_ratio_overflows() {
        let sequence = Sequence { logps: &[0.0], old_logps: &[-1e4], ref_logps: None, advantage: 0.0 };
        let out = policy_loss(&LossConfig::default(), 0.0, &[sequence], &TOTALS).unwrap();
        assert_eq!((out.loss, out.dloss_dlogp[0]), (0.0, 0.0));
    }
}
