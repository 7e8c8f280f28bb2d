//! What the metrics of a step are made of: sums over its micro-batches.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

use super::Side;
use crate::config::loss::LossConfig;

/// Sums whose means are formed once a step, after adding up its micro-batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LossSums {
    /// Ratios looked at: one a token, or one a sequence when the ratio is the sequence's.
    pub ratios: u64,
    /// Ratios below `1 - epsilon_low` with a negative advantage: the clip stopped their gradient.
    pub clipped_low: u64,
    /// Ratios above the upper bound with a positive advantage.
    pub clipped_high: u64,
    /// Smallest share of a sequence's ratios that is clipped below.
    pub low_min: Option<f64>,
    /// Largest share of a sequence's ratios that is clipped above.
    pub high_max: Option<f64>,
    /// Sequences with a weight of their own (vespo), and the sum of the weights.
    pub weighted_sequences: u64,
    pub sequence_weights: f64,
    /// Tokens with a reference log-probability, and the sum of the KL estimate over them.
    pub kl_tokens: u64,
    pub kl: f64,
}

impl LossSums {
    /// The ratios of one sequence.
    pub(super) fn count(&mut self, sides: &[Option<Side>]) {
        let of = |side: Side| sides.iter().filter(|s| **s == Some(side)).count() as u64;
        let (low, high, all) = (of(Side::Low), of(Side::High), sides.len() as u64);
        self.ratios += all;
        self.clipped_low += low;
        self.clipped_high += high;
        self.low_min = least(self.low_min, Some(low as f64 / all as f64));
        self.high_max = most(self.high_max, Some(high as f64 / all as f64));
    }

    /// Means by TRL's metric names, those that `config` has a meaning for; `kl` only where there was a reference.
    pub fn metrics(&self, config: &LossConfig) -> Vec<(&'static str, f64)> {
        let share = |count: u64| count as f64 / self.ratios.max(1) as f64;
        let mut metrics = match config {
            LossConfig::Cispo(_) => vec![("cispo_clip_ratio", share(self.clipped_high))],
            LossConfig::Sapo(_) => Vec::new(),
            LossConfig::Vespo(_) => {
                let mean = self.sequence_weights / self.weighted_sequences.max(1) as f64;
                vec![("vespo/phi_seq_mean", mean)]
            }
            _ => vec![
                ("clip_ratio/low_mean", share(self.clipped_low)),
                ("clip_ratio/high_mean", share(self.clipped_high)),
                ("clip_ratio/region_mean", share(self.clipped_low + self.clipped_high)),
                ("clip_ratio/low_min", self.low_min.unwrap_or(0.0)),
                ("clip_ratio/high_max", self.high_max.unwrap_or(0.0)),
            ],
        };
        if self.kl_tokens > 0 {
            metrics.push(("kl", self.kl / self.kl_tokens as f64));
        }
        metrics
    }
}

fn least(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::min)
}

fn most(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    a.into_iter().chain(b).reduce(f64::max)
}

impl AddAssign for LossSums {
    fn add_assign(&mut self, other: Self) {
        self.ratios += other.ratios;
        self.clipped_low += other.clipped_low;
        self.clipped_high += other.clipped_high;
        self.low_min = least(self.low_min, other.low_min);
        self.high_max = most(self.high_max, other.high_max);
        self.weighted_sequences += other.weighted_sequences;
        self.sequence_weights += other.sequence_weights;
        self.kl_tokens += other.kl_tokens;
        self.kl += other.kl;
    }
}
