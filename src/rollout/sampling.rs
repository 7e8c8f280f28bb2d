//! From a row of logits to one token: temperature, top-k, top-p, by inverse transform of one uniform.

use crate::config::sampling::SamplingConfig;
use crate::ops::simd::{exp_sums, max, vectorize};

/// A sampled token and its log-probability, nats.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampled {
    pub token: u32,
    /// Under the whole distribution at the sampling temperature (at 1 when greedy): what the trainer computes.
    pub logprob: f32,
}

/// `uniform` in [0, 1). Temperature 0 takes the largest logit, the first one of equals.
pub fn sample(logits_v: &[f32], config: &SamplingConfig, uniform: f32) -> Sampled {
    let greedy = config.temperature == 0.0;
    let scale = if greedy { 1.0 } else { 1.0 / config.temperature };
    let (shift, sum) = vectorize(|| {
        let shift = max(logits_v) * scale;
        (shift, exp_sums(logits_v, scale, shift).0)
    });
    let token = if greedy {
        let best = logits_v.iter().enumerate().fold(0, |b, (i, x)| if *x > logits_v[b] { i } else { b });
        best as u32
    } else {
        let weight = |token: u32| f64::from(logits_v[token as usize] * scale - shift).exp();
        let allowed = allowed(logits_v, config, f64::from(sum), &weight);
        inverse_transform(&allowed, weight, f64::from(uniform))
    };
    Sampled { token, logprob: logits_v[token as usize] * scale - shift - sum.ln() }
}

/// Tokens that top-k and top-p leave, in vocabulary order. Never empty.
///
/// top-k first, then the smallest set of the most probable tokens whose share of what is left reaches `top_p`;
/// equal logits are kept in vocabulary order.
fn allowed(logits_v: &[f32], config: &SamplingConfig, sum: f64, weight: &dyn Fn(u32) -> f64) -> Vec<u32> {
    let mut tokens: Vec<u32> = (0..logits_v.len() as u32).collect();
    if config.top_k == 0 && config.top_p >= 1.0 {
        return tokens;
    }
    let order =
        |a: &u32, b: &u32| logits_v[*b as usize].total_cmp(&logits_v[*a as usize]).then_with(|| a.cmp(b));
    let mut total = sum;
    if config.top_k > 0 && config.top_k < tokens.len() {
        tokens.select_nth_unstable_by(config.top_k - 1, order);
        tokens.truncate(config.top_k);
        total = tokens.iter().map(|t| weight(*t)).sum();
    }
    if config.top_p < 1.0 {
        tokens.sort_unstable_by(order);
        let mut mass = 0.0;
        let keep = tokens.iter().position(|t| {
            mass += weight(*t);
            mass >= f64::from(config.top_p) * total
        });
        tokens.truncate(keep.map_or(tokens.len(), |last| last + 1));
    }
    tokens.sort_unstable();
    tokens
}

fn inverse_transform(tokens: &[u32], weight: impl Fn(u32) -> f64, uniform: f64) -> u32 {
    let total: f64 = tokens.iter().map(|t| weight(*t)).sum();
    let mut mass = 0.0;
    let hit = tokens.iter().find(|t| {
        mass += weight(**t);
        mass > uniform * total
    });
    // Rounding can leave the last token's mass a hair short of the total.
    hit.or(tokens.last()).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(temperature: f32, top_k: usize, top_p: f32) -> SamplingConfig {
        SamplingConfig { temperature, top_k, top_p }
    }

    /// Probabilities 1/2, 1/4, 1/8, 1/8.
    fn logits() -> Vec<f32> {
        [0.5f32, 0.25, 0.125, 0.125].map(f32::ln).to_vec()
    }

    #[test]
    fn uniform_picks_by_cumulative_mass() {
        for (u, token) in [(0.0, 0), (0.49, 0), (0.51, 1), (0.76, 2), (0.9, 3), (0.9999999, 3)] {
            let s = sample(&logits(), &config(1.0, 0, 1.0), u);
            assert_eq!(s.token, token, "u = {u}");
            assert!((s.logprob - logits()[token as usize]).abs() < 1e-6);
        }
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail_but_keep_the_full_logprob() {
        // Two tokens left, 2/3 and 1/3.
        for cut in [config(1.0, 2, 1.0), config(1.0, 0, 0.7)] {
            assert_eq!(sample(&logits(), &cut, 0.66).token, 0);
            let s = sample(&logits(), &cut, 0.67);
            assert_eq!(s.token, 1);
            assert!((s.logprob - 0.25f32.ln()).abs() < 1e-6);
        }
        // Of equal logits the earlier survives: 1/2 + 1/4 + 1/8 >= 0.8.
        assert_eq!(sample(&logits(), &config(1.0, 0, 0.8), 0.999).token, 2);
    }

    #[test]
    fn temperature_sharpens_and_zero_is_greedy() {
        // At T = 1/2 the weights are squared: 16, 4, 1, 1 of 22.
        let s = sample(&logits(), &config(0.5, 0, 1.0), 0.0);
        assert!((s.logprob - (16f32 / 22.0).ln()).abs() < 1e-6);
        let s = sample(&[0.0, 2.0, 2.0], &config(0.0, 0, 1.0), 0.99);
        assert_eq!(s.token, 1);
        assert!((s.logprob - (1.0 / (2.0 + (-2f32).exp())).ln()).abs() < 1e-6);
    }
}
