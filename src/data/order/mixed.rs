//! Rows of several sources in proportion to weights, as a pure function of the position: nothing has to be remembered.
//!
//! Positions are counted through the whole stage and cut into cycles of [`CYCLE`]. Of each cycle a source has the same whole number of
//! rows, so what it has given before a cycle is a product. Within a cycle its rows are spread evenly and jittered: the j-th of q has the
//! key (j + u) / q with u uniform in [0, 1), and the keys of all sources are sorted. So a step of any size has nearly the shares of the
//! whole.

use std::ops::Range;

use super::{permutation, walk};
use crate::config::mix::CYCLE;
use crate::rng::{Purpose, Stream};

/// A source: its rows, none of which is another's, and its weight, above 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    pub rows: Range<usize>,
    pub weight: f64,
}

#[derive(Clone, Debug)]
pub struct Mixed(Vec<Part>);

#[derive(Clone, Debug)]
struct Part {
    rows: Range<usize>,
    /// Of each cycle.
    quota: usize,
}

/// Tell the streams of a source's epochs and of a cycle's order from each other and from the pools of an order.
const EPOCHS: u32 = 1 << 8;
const CYCLES: u32 = 1 << 24;

impl Mixed {
    /// Shares are rounded to whole rows of a cycle, the largest remainders up, and at least one row each.
    pub fn new(shares: &[Share]) -> Self {
        let all: f64 = shares.iter().map(|share| share.weight).sum();
        let exact = |share: &Share| share.weight / all * CYCLE as f64;
        let mut quotas: Vec<usize> = shares.iter().map(|share| (exact(share) as usize).max(1)).collect();
        let remainder = |i: usize, quotas: &[usize]| exact(&shares[i]) - quotas[i] as f64;
        while quotas.iter().sum::<usize>() != CYCLE && !quotas.is_empty() {
            let short = quotas.iter().sum::<usize>() < CYCLE;
            let by_remainder = |a: &usize, b: &usize| {
                remainder(*a, &quotas).total_cmp(&remainder(*b, &quotas)).then(b.cmp(a))
            };
            let next = match short {
                true => (0..quotas.len()).max_by(by_remainder),
                // One row each was more than their shares.
                false => (0..quotas.len()).filter(|i| quotas[*i] > 1).min_by(by_remainder),
            };
            match next {
                Some(i) if short => quotas[i] += 1,
                Some(i) => quotas[i] -= 1,
                None => break,
            }
        }
        let part = |(share, quota): (&Share, usize)| Part { rows: share.rows.clone(), quota };
        Self(shares.iter().zip(quotas).map(part).collect())
    }

    /// Of each source the share of rows that it gives, and how often each of its rows comes in as many as all sources have.
    pub fn repeats(&self) -> Vec<(f64, f64)> {
        let all: usize = self.0.iter().map(|part| part.rows.len()).sum();
        let of = |part: &Part| {
            let share = part.quota as f64 / CYCLE as f64;
            (share, share * all as f64 / part.rows.len().max(1) as f64)
        };
        self.0.iter().map(of).collect()
    }

    /// The sources of a cycle's positions.
    fn cycle(&self, number: u32, seed: u64, stage: u32) -> Vec<usize> {
        let mut keys = Vec::with_capacity(CYCLE);
        for (source, part) in self.0.iter().enumerate() {
            let stream = Stream::new(seed, Purpose::Shuffle, [stage, number, CYCLES + source as u32]);
            let key = |j: usize| (j as f64 + f64::from(stream.uniform(j as u32))) / part.quota as f64;
            keys.extend((0..part.quota).map(|j| (key(j), source)));
        }
        keys.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        keys.into_iter().map(|(_, source)| source).collect()
    }

    /// The rows of so many positions of a stage.
    pub(super) fn rows(&self, positions: Range<u64>, seed: u64, stage: u32) -> Vec<usize> {
        if self.0.iter().any(|part| part.rows.is_empty()) || self.0.is_empty() {
            return Vec::new();
        }
        let cycle = CYCLE as u64;
        let mut sources = Vec::with_capacity((positions.end - positions.start) as usize);
        let mut before = vec![0; self.0.len()];
        for number in positions.start / cycle..positions.end.div_ceil(cycle) {
            let first = number * cycle;
            for (at, source) in (first..).zip(self.cycle(number as u32, seed, stage)) {
                if positions.contains(&at) {
                    sources.push(source);
                } else if at < positions.start {
                    before[source] += 1;
                }
            }
        }
        let drawn = |source: usize| -> std::vec::IntoIter<usize> {
            let part = &self.0[source];
            let from = positions.start / cycle * part.quota as u64 + before[source];
            let wanted = sources.iter().filter(|of| **of == source).count() as u64;
            let len = part.rows.len();
            let epoch = |epoch| permutation(len, seed, [stage, epoch, EPOCHS + source as u32]);
            let rows = walk(from..from + wanted, len, epoch);
            rows.into_iter().map(|row| part.rows.start + row).collect::<Vec<_>>().into_iter()
        };
        let mut drawn: Vec<_> = (0..self.0.len()).map(drawn).collect();
        sources.iter().filter_map(|source| drawn[*source].next()).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mixed(sources: &[(usize, f64)]) -> Mixed {
        let mut first = 0;
        let share = |(rows, weight): &(usize, f64)| {
            first += rows;
            Share { rows: first - rows..first, weight: *weight }
        };
        Mixed::new(&sources.iter().map(share).collect::<Vec<_>>())
    }

    fn quotas(sources: &[(usize, f64)]) -> Vec<usize> {
        mixed(sources).0.iter().map(|part| part.quota).collect()
    }

    #[test]
    fn shares_are_whole_rows_of_a_cycle() {
        assert_eq!(quotas(&[(5, 1.0), (9, 3.0)]), [1024, 3072]);
        assert_eq!(quotas(&[(5, 1.0), (9, 1.0), (9, 1.0)]), [1366, 1365, 1365]);
        assert_eq!(quotas(&[(5, 1e-4), (9, 1.0), (9, 1e-4)]), [1, 4094, 1]);
        assert_eq!(quotas(&[(5, 2.0)]), [4096]);
        assert_eq!(mixed(&[(10, 1.0), (30, 3.0)]).repeats(), [(0.25, 1.0), (0.75, 1.0)]);
        assert_eq!(mixed(&[(10, 1.0), (30, 1.0)]).repeats(), [(0.5, 2.0), (0.5, 40.0 / 60.0)]);
    }

    #[test]
    fn a_small_source_comes_round_and_a_large_one_is_not_exhausted() {
        // Shares 1/4 and 3/4 over 4096 rows: 1024 of 10 rows, 3072 of 5000.
        let of = mixed(&[(10, 1.0), (5000, 3.0)]);
        let rows = of.rows(0..4096, 7, 1);
        let mut seen = vec![0; 5010];
        rows.iter().for_each(|row| seen[*row] += 1);
        // 102 epochs and 4 rows of the next.
        assert!(seen[..10].iter().all(|n| (102..=103).contains(n)), "{:?}", &seen[..10]);
        assert_eq!(seen[..10].iter().sum::<i32>(), 1024);
        assert!(seen[10..].iter().all(|n| *n <= 1));
        assert_ne!(rows, of.rows(0..4096, 8, 1));
        assert_ne!(rows, of.rows(0..4096, 7, 2));
        assert_ne!(of.cycle(0, 7, 1), of.cycle(1, 7, 1));
    }

    proptest! {
        #![proptest_config(crate::seed::cases(64))]

        /// However a stage is cut into steps, it sees the same rows; each source's share is its own in every stretch.
        #[test]
        fn steps_of_any_size_see_the_same_rows(
            sources in prop::collection::vec((1usize..40, 0.1f64..10.0), 1..5),
            first in 0u64..20_000,
            batch in 1u64..200,
        ) {
            let of = mixed(&sources);
            let whole = of.rows(first..first + 3 * batch, 3, 1);
            prop_assert_eq!(whole.len(), 3 * batch as usize);
            let steps: Vec<usize> = (0..3).flat_map(|i| of.rows(first + i * batch..first + (i + 1) * batch, 3, 1)).collect();
            prop_assert_eq!(&whole, &steps);
            for part in &of.0 {
                let got = whole.iter().filter(|row| part.rows.contains(row)).count() as f64;
                let want = part.quota as f64 / CYCLE as f64 * whole.len() as f64;
                // At key x a source has given x q rows, off by less than 1, and all of them x CYCLE, off by less than their number.
                let off = 1.0 + sources.len() as f64 * part.quota as f64 / CYCLE as f64;
                prop_assert!((got - want).abs() < 2.0 * off, "{} of {}", got, want);
            }
        }

        /// No row comes twice in an epoch of its source.
        #[test]
        fn every_epoch_of_a_source_has_every_row_once(len in 1usize..60, weight in 0.2f64..5.0) {
            let of = mixed(&[(len, 1.0), (50, weight)]);
            let rows: Vec<usize> = of.rows(0..9000, 5, 1).into_iter().filter(|row| *row < len).collect();
            for epoch in rows.chunks_exact(len) {
                let mut sorted = epoch.to_vec();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, (0..len).collect::<Vec<_>>());
            }
        }
    }
}
