//! Sampling on the CPU, a row a task.

use candle_core::Tensor;
use rayon::prelude::*;

use super::{Repetition, Sampled, Sampling, inverse_temperature, reach};
use crate::error::Result;
use crate::ops::cpu::simd::{exp, max, vectorize};
use crate::ops::cpu::widened::View;

/// What stands for a row that is no distribution: a NaN among the logits, or a largest that is infinite.
const NO_DISTRIBUTION: Sampled = Sampled { token: 0, logprob: f32::NAN };

pub(super) fn sample(logits_rv: &Tensor, sampling: &Sampling, uniforms: &[f32]) -> Result<Vec<Sampled>> {
    let (rows, vocab) = logits_rv.dims2()?;
    let logits = View::new(logits_rv)?;
    let draws = uniforms.len() / rows;
    let draw = |(i, uniform): (usize, &f32)| {
        let row = i / draws;
        sample_row(&logits[row * vocab..(row + 1) * vocab], sampling, *uniform)
    };
    Ok(uniforms.par_iter().enumerate().map(draw).collect())
}

pub(super) fn sample_penalised(
    logits_rv: &Tensor,
    sampling: &Sampling,
    uniforms: &[f32],
    repetition: Repetition,
) -> Result<Vec<Sampled>> {
    let (rows, vocab) = logits_rv.dims2()?;
    let logits = View::new(logits_rv)?;
    let draws = uniforms.len() / rows;
    let draw = |(i, (uniform, seen)): (usize, (&f32, &Vec<u32>))| {
        let row = i / draws;
        sample_row_penalised(
            &logits[row * vocab..(row + 1) * vocab],
            sampling,
            *uniform,
            repetition.factor,
            seen,
        )
    };
    Ok(uniforms.par_iter().zip(repetition.seen).enumerate().map(draw).collect())
}

fn sample_row_penalised(
    logits_v: &[f32],
    sampling: &Sampling,
    uniform: f32,
    factor: f32,
    seen: &[u32],
) -> Sampled {
    let mut penalised = logits_v.to_vec();
    for token in seen {
        // From the plain logit: a token that came twice is penalised once.
        if let (Some(to), Some(from)) = (penalised.get_mut(*token as usize), logits_v.get(*token as usize)) {
            *to = if *from > 0.0 { from / factor } else { from * factor };
        }
    }
    let token = sample_row(&penalised, sampling, uniform).token;
    let largest = vectorize!(if any_nan(logits_v) { f32::NAN } else { max(logits_v) });
    if !largest.is_finite() {
        return NO_DISTRIBUTION;
    }
    let row = Row { logits: logits_v, max: largest, scale: inverse_temperature(sampling) };
    let whole: f64 = vectorize!(logits_v.chunks(BLOCK).map(|block| f64::from(row.block_sum(block))).sum());
    Sampled { token, logprob: (logits_v[token as usize] - largest) * row.scale - whole.ln() as f32 }
}

/// Logits whose weights are summed together before their sum is compared.
const BLOCK: usize = 1024;

/// One draw from one row. `uniform` in [0, 1).
pub fn sample_row(logits_v: &[f32], sampling: &Sampling, uniform: f32) -> Sampled {
    let largest = vectorize!(if any_nan(logits_v) { f32::NAN } else { max(logits_v) });
    if !largest.is_finite() {
        return NO_DISTRIBUTION;
    }
    let row = Row { logits: logits_v, max: largest, scale: inverse_temperature(sampling) };
    let blocks: Vec<f64> =
        vectorize!(logits_v.chunks(BLOCK).map(|block| f64::from(row.block_sum(block))).collect());
    let whole: f64 = blocks.iter().sum();
    let cut = (sampling.top_k > 0 && sampling.top_k < logits_v.len())
        || sampling.top_p < 1.0
        || sampling.min_p > 0.0;
    // Half a step of 2^-24 is added: a token that has next to no probability is not drawn even by a uniform of 0.
    let share = f64::from(uniform) + 0.5 / f64::from(1 << 24);
    let mut mass = whole;
    let token = if sampling.temperature == 0.0 {
        logits_v.iter().position(|x| *x == largest).unwrap_or(0) as u32
    } else if cut {
        let allowed = row.allowed(sampling, whole);
        if sampling.replay_truncation {
            mass = allowed.iter().map(|t| row.weight(*t)).sum();
        }
        row.inverse_transform(&allowed, share)
    } else {
        let mut target = share * whole;
        let mut at = 0;
        while at + 1 < blocks.len() && blocks[at] <= target {
            target -= blocks[at];
            at += 1;
        }
        let first = at * BLOCK;
        let tokens: Vec<u32> = (first as u32..(first + BLOCK).min(logits_v.len()) as u32).collect();
        row.inverse_transform(&tokens, target / blocks[at])
    };
    Sampled { token, logprob: (logits_v[token as usize] - largest) * row.scale - mass.ln() as f32 }
}

/// Takes the tokens that the cuts leave out of a row of logits, all but `target`, out of its distribution: their
/// logits become so small that they have no probability, and stay finite.
pub(in crate::ops) fn apply_cut(logits_v: &mut [f32], sampling: &Sampling, target: u32) {
    let largest = vectorize!(if any_nan(logits_v) { f32::NAN } else { max(logits_v) });
    if !largest.is_finite() {
        return;
    }
    let row = Row { logits: logits_v, max: largest, scale: inverse_temperature(sampling) };
    let whole = vectorize!(logits_v.chunks(BLOCK).map(|block| f64::from(row.block_sum(block))).sum());
    let mut allowed = row.allowed(sampling, whole).into_iter().peekable();
    let none = largest - 1e4 / row.scale;
    for (x, token) in logits_v.iter_mut().zip(0u32..) {
        if allowed.next_if_eq(&token).is_none() && token != target {
            *x = none;
        }
    }
}

#[inline(always)]
fn any_nan(x: &[f32]) -> bool {
    x.chunks(BLOCK).any(|block| block.iter().fold(0u32, |found, x| found | u32::from(x.is_nan())) != 0)
}

struct Row<'a> {
    logits: &'a [f32],
    max: f32,
    scale: f32,
}

impl Row<'_> {
    /// The token's probability over the largest one.
    fn weight(&self, token: u32) -> f64 {
        f64::from((self.logits[token as usize] - self.max) * self.scale).exp()
    }

    /// Sum of the weights of a block of logits.
    #[inline(always)]
    fn block_sum(&self, block: &[f32]) -> f32 {
        let mut sums = [0f32; 16];
        let (lanes, rest) = block.as_chunks::<16>();
        for x in lanes {
            for j in 0..16 {
                sums[j] += exp((x[j] - self.max) * self.scale);
            }
        }
        sums.iter().sum::<f32>() + rest.iter().map(|x| exp((x - self.max) * self.scale)).sum::<f32>()
    }

    /// By logit downwards, equal ones by token upwards.
    fn order(&self, a: &u32, b: &u32) -> std::cmp::Ordering {
        let logit = |token: &u32| self.logits[*token as usize];
        logit(b).total_cmp(&logit(a)).then_with(|| a.cmp(b))
    }

    /// Tokens that the cuts leave, in vocabulary order. Never empty. `whole` is the sum of all weights.
    fn allowed(&self, sampling: &Sampling, whole: f64) -> Vec<u32> {
        let vocab = self.logits.len();
        let (top_k, reach) = (sampling.top_k, reach(sampling));
        let by_count = top_k > 0 && top_k < vocab;
        let mut tokens = if by_count {
            self.at_least(self.bound_of_top(top_k))
        } else if sampling.top_p < 1.0 {
            // Tokens with less than an even share of what top-p may leave out are never needed.
            let tiny = 0.5 * (1.0 - f64::from(sampling.top_p)) * whole / vocab as f64;
            self.at_least(self.max + (tiny.ln() / f64::from(self.scale)) as f32)
        } else {
            self.at_least(f32::NEG_INFINITY)
        };
        let mut total = whole;
        if by_count {
            tokens.select_nth_unstable_by(top_k - 1, |a, b| self.order(a, b));
            tokens.truncate(top_k);
            total = tokens.iter().map(|t| self.weight(*t)).sum();
        }
        if sampling.top_p < 1.0 {
            self.keep_mass(&mut tokens, f64::from(sampling.top_p) * total);
        }
        tokens.retain(|t| self.max - self.logits[*t as usize] <= reach);
        tokens.sort_unstable();
        tokens
    }

    fn at_least(&self, bound: f32) -> Vec<u32> {
        let logits = self.logits.iter().zip(0u32..);
        logits.filter(|(x, _)| **x >= bound).map(|(_, token)| token).collect()
    }

    /// A logit that at least `top_k` tokens reach: a block's largest is one token of it.
    fn bound_of_top(&self, top_k: usize) -> f32 {
        let mut largest: Vec<f32> = vectorize!(self.logits.chunks(128).map(max).collect());
        if largest.len() < top_k {
            return f32::NEG_INFINITY;
        }
        *largest.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Cuts `tokens` to the shortest run in [`Row::order`] whose weight reaches `need`, in any order.
    fn keep_mass(&self, tokens: &mut Vec<u32>, need: f64) {
        let (mut first, mut end, mut before) = (0, tokens.len(), 0.0);
        while end - first > 1 {
            let middle = usize::midpoint(first, end);
            tokens[first..end].select_nth_unstable_by(middle - first, |a, b| self.order(a, b));
            let upper: f64 = tokens[first..middle].iter().map(|t| self.weight(*t)).sum();
            if before + upper >= need {
                end = middle;
            } else {
                before += upper;
                first = middle;
            }
        }
        tokens.truncate(first + 1);
    }

    /// The first of `tokens` up to and with which they have more than `share` of their weight.
    fn inverse_transform(&self, tokens: &[u32], share: f64) -> u32 {
        let total: f64 = tokens.iter().map(|t| self.weight(*t)).sum();
        let mut mass = 0.0;
        let hit = tokens.iter().find(|t| {
            mass += self.weight(**t);
            mass > share * total
        });
        // Rounding can ask for a hair more than there is: then the most probable.
        hit.or_else(|| tokens.iter().min_by(|a, b| self.order(a, b))).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::ops::sampling::sample;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn a_token_that_came_before_is_penalised_once_and_keeps_its_plain_log_prob() {
        // By hand: 2, -1, 0.5, 1.6 become 1, -2, 0.5, 1.6, whose largest is the last.
        let (logits, greedy) = ([2.0, -1.0, 0.5, 1.6], config(0.0, 0, 1.0, 0.0));
        let got = sample_row_penalised(&logits, &greedy, 0.5, 2.0, &[0, 1, 0, 9]);
        assert_eq!(got.token, 3);
        let whole: f32 = logits.iter().map(|x| x.exp()).sum();
        assert!((got.logprob - (1.6f32.exp() / whole).ln()).abs() < 1e-6);
        let (plain, none) =
            (sample_row(&logits, &greedy, 0.5), sample_row_penalised(&logits, &greedy, 0.5, 2.0, &[]));
        assert_eq!((plain.token, plain), (0, none));
        // Shares follow the penalised logits: e^1 of e^1 + e^-2 + e^0.5 + e^1.6.
        let sampling = config(1.0, 0, 1.0, 0.0);
        let draws = 4000;
        let hits = (0..draws)
            .filter(|i| {
                sample_row_penalised(&logits, &sampling, (*i as f32 + 0.5) / draws as f32, 2.0, &[0, 1]).token
                    == 0
            })
            .count();
        let want = 1f64.exp() / [1f64, -2.0, 0.5, 1.6].iter().map(|x| x.exp()).sum::<f64>();
        assert!((hits as f64 / f64::from(draws) - want).abs() < 1e-3, "{hits} {want}");
    }

    fn config(temperature: f32, top_k: usize, top_p: f32, min_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, min_p, replay_truncation: false }
    }

    /// Probabilities 1/2, 1/4, 1/8, 1/8.
    fn logits() -> Vec<f32> {
        [0.5f32, 0.25, 0.125, 0.125].map(f32::ln).to_vec()
    }

    #[test]
    fn uniform_picks_by_cumulative_mass() {
        for (u, token) in [(0.0, 0), (0.49, 0), (0.51, 1), (0.76, 2), (0.9, 3), (0.9999999, 3)] {
            let s = sample_row(&logits(), &config(1.0, 0, 1.0, 0.0), u);
            assert_eq!(s.token, token, "u = {u}");
            assert!((s.logprob - logits()[token as usize]).abs() < 1e-6);
        }
        // The first token has a probability of e^-40.
        assert_eq!(sample_row(&[-40.0, 0.0], &config(1.0, 0, 1.0, 0.0), 0.0).token, 1);
    }

    #[test]
    fn cuts_take_the_tail_but_keep_the_full_logprob() {
        // Two tokens left, 2/3 and 1/3.
        for cut in [config(1.0, 2, 1.0, 0.0), config(1.0, 0, 0.7, 0.0), config(1.0, 0, 1.0, 0.4)] {
            assert_eq!(sample_row(&logits(), &cut, 0.66).token, 0);
            let s = sample_row(&logits(), &cut, 0.67);
            assert_eq!(s.token, 1);
            assert!((s.logprob - 0.25f32.ln()).abs() < 1e-6);
        }
        // Of equal logits the earlier survives: 1/2 + 1/4 + 1/8 >= 0.8.
        assert_eq!(sample_row(&logits(), &config(1.0, 0, 0.8, 0.0), 0.999).token, 2);
        assert_eq!(sample_row(&logits(), &config(1.0, 3, 1.0, 0.0), 0.999).token, 2);
    }

    #[test]
    fn temperature_sharpens_and_zero_is_greedy() {
        // At T = 1/2 the weights are squared: 16, 4, 1, 1 of 22.
        let s = sample_row(&logits(), &config(0.5, 0, 1.0, 0.0), 0.0);
        assert!((s.logprob - (16f32 / 22.0).ln()).abs() < 1e-6);
        let s = sample_row(&[0.0, 2.0, 2.0], &config(0.0, 0, 1.0, 0.0), 0.99);
        assert_eq!(s.token, 1);
        assert!((s.logprob - (1.0 / (2.0 + (-2f32).exp())).ln()).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_distribution_has_no_logprob() {
        for row in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            let s = sample_row(&row, &config(1.0, 0, 1.0, 0.0), 0.5);
            assert!(s.token == 0 && s.logprob.is_nan(), "{row:?}");
        }
    }

    /// Tokens the cuts leave, by sorting everything, and their probabilities.
    fn plain(logits: &[f32], c: &Sampling) -> Vec<(u32, f64)> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |x: f32| f64::from((x - largest) * (1.0 / c.temperature)).exp();
        let mut sorted: Vec<(u32, f64)> = (0u32..).zip(logits.iter().map(|x| weight(*x))).collect();
        // By logit: -0 lies below 0.
        sorted.sort_by(|a, b| logits[b.0 as usize].total_cmp(&logits[a.0 as usize]).then(a.0.cmp(&b.0)));
        if c.top_k > 0 {
            sorted.truncate(c.top_k);
        }
        let total: f64 = sorted.iter().map(|t| t.1).sum();
        let mut mass = 0.0;
        let keep = sorted.iter().position(|t| {
            mass += t.1;
            mass >= f64::from(c.top_p) * total
        });
        sorted.truncate(keep.map_or(sorted.len(), |last| last + 1));
        sorted.retain(|t| t.1 >= f64::from(c.min_p));
        sorted.sort_by_key(|t| t.0);
        let left: f64 = sorted.iter().map(|t| t.1).sum();
        sorted.into_iter().map(|(token, weight)| (token, weight / left)).collect()
    }

    #[test]
    fn a_batch_draws_as_the_plain_method_does() {
        let stream = Stream::new(crate::seed::of_test(), Purpose::Bench, [0; 3]);
        let (rows, vocab, draws) = (6, 5003, 5);
        // Rounded to sixteenths: many equal logits.
        let values: Vec<f32> =
            (0..rows * vocab).map(|i| (stream.normal(i as u32) * 48.0).round() / 16.0).collect();
        let logits = Tensor::from_slice(&values, (rows, vocab), &Device::Cpu).unwrap();
        let uniforms: Vec<f32> = (0..rows * draws).map(|i| stream.uniform((1 << 20) + i as u32)).collect();
        for c in [
            config(1.0, 0, 1.0, 0.0),
            config(0.7, 50, 1.0, 0.0),
            config(1.3, 1, 1.0, 0.0),
            config(1.0, 4000, 0.99, 0.0),
            config(1.5, 0, 0.9, 0.0),
            config(3.0, 0, 0.999, 0.001),
            config(1.0, 0, 1.0, 0.05),
        ] {
            let drawn = sample(&logits, &c, &uniforms).unwrap();
            for (i, (s, u)) in drawn.iter().zip(&uniforms).enumerate() {
                let row = &values[i / draws * vocab..][..vocab];
                let mut before = 0.0;
                let left = plain(row, &c);
                let at = left.iter().position(|t| t.0 == s.token);
                let Some(at) = at else { panic!("{c:?}, draw {i}: {} is cut away", s.token) };
                left[..at].iter().for_each(|t| before += t.1);
                let (low, high, u) = (before - 1e-6, before + left[at].1 + 1e-6, f64::from(*u));
                assert!(low <= u && u <= high, "{c:?}, draw {i}: {u} not in {low} .. {high}");
                let full = plain(row, &config(c.temperature, 0, 1.0, 0.0));
                // By id: tokens too rare to change a sum in f64 are not in it.
                let want = full.iter().find(|t| t.0 == s.token).unwrap().1.ln();
                assert!((f64::from(s.logprob) - want).abs() < 1e-5, "{c:?}, draw {i}");
            }
        }
        assert!(sample(&logits, &config(1.0, 0, 1.0, 0.0), &uniforms[1..]).is_err());
    }
}
