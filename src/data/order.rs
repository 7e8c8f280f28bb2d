//! Which rows a step sees: a pure function of its arguments, so the cursor of a run is its step.

mod mixed;

pub use mixed::{Mixed, Share};

use crate::error::{Error, Result};
use crate::rng::{Purpose, Stream};

/// Rows of step `step` of `batch` rows each, counted from 0, out of `len` rows. Each epoch is a new
/// permutation, and a step that reaches the end of one flows into the next: no row is dropped, and none comes
/// twice in one epoch. `stage` tells the stages of a run apart. Empty if `len` is 0.
pub fn indices(step: u64, batch: usize, len: usize, seed: u64, stage: u32) -> Vec<usize> {
    let first = step * batch as u64;
    walk(first..first + batch as u64, len, |epoch| permutation(len, seed, [stage, epoch, Pool::All as u32]))
}

/// Which rows are permuted together; part of the stream's key.
#[derive(Clone, Copy, Debug)]
enum Pool {
    All = 0,
    Negative = 1,
    Positive = 2,
}

fn permutation(len: usize, seed: u64, ids: [u32; 3]) -> Vec<usize> {
    let mut rows: Vec<usize> = (0..len).collect();
    Stream::new(seed, Purpose::Shuffle, ids).sequential().shuffle(&mut rows);
    rows
}

/// Positions of an endless run of epochs, each in the order that `epoch` gives.
fn walk(positions: std::ops::Range<u64>, len: usize, epoch: impl Fn(u32) -> Vec<usize>) -> Vec<usize> {
    let Some(len) = std::num::NonZeroU64::new(len as u64) else { return Vec::new() };
    let mut current = None;
    let row = |position: u64| {
        let number = (position / len) as u32;
        let (_, rows) = match current.take() {
            Some((n, rows)) if n == number => current.insert((n, rows)),
            _ => current.insert((number, epoch(number))),
        };
        rows[(position % len) as usize]
    };
    positions.map(row).collect()
}

/// More stages than there are: keys of redrawn rounds lie above.
const STAGES: u32 = 16;

/// The order of one stage.
#[derive(Clone, Debug)]
pub struct Order {
    seed: u64,
    stage: u32,
    rows: Rows,
}

#[derive(Clone, Debug)]
enum Rows {
    All(usize),
    Balanced { negative: Vec<usize>, positive: Vec<usize> },
    Mixed(Mixed),
}

impl Order {
    /// Every row once an epoch, as [`indices`].
    pub fn shuffled(len: usize, seed: u64, stage: u32) -> Self {
        Self { seed, stage, rows: Rows::All(len) }
    }

    /// Rows of several sources, each as often as its weight says; see [`Mixed`].
    pub fn mixed(shares: &[Share], seed: u64, stage: u32) -> Self {
        Self { seed, stage, rows: Rows::Mixed(Mixed::new(shares)) }
    }

    /// Half of each step's rows negative, half positive, whatever their share in the data: the scarcer side
    /// comes round more often. Each side is shuffled by itself, and no row comes twice in one of its epochs.
    /// `is_negative` says it of each row; `key` is the config's, for the error.
    ///
    /// # Errors
    /// One side is empty.
    pub fn balanced(
        is_negative: impl Iterator<Item = bool>,
        key: &str,
        seed: u64,
        stage: u32,
    ) -> Result<Self> {
        let (negative, positive): (Vec<_>, Vec<_>) =
            is_negative.enumerate().partition(|(_, negative)| *negative);
        let rows = |side: Vec<(usize, bool)>| side.into_iter().map(|(row, _)| row).collect::<Vec<_>>();
        let (negative, positive) = (rows(negative), rows(positive));
        let missing = match (negative.is_empty(), positive.is_empty()) {
            (false, false) => {
                return Ok(Self { seed, stage, rows: Rows::Balanced { negative, positive } });
            }
            (true, true) => "no",
            (true, false) => "no negative",
            (false, true) => "no positive",
        };
        let why = format!("the data has {missing} rows");
        Err(Error::config(key, "label_sign", "none", why))
    }

    /// As [`Self::indices`], in an order of its own for each round of a step: prompts in the place of others.
    pub fn redrawn(&self, step: u64, batch: usize, round: u32) -> Vec<usize> {
        Self { stage: self.stage + STAGES * round, ..self.clone() }.indices(step, batch)
    }

    /// Rows of step `step` of `batch` rows each, counted from 0. Mixed, see [`Mixed`]. Balanced, negative and positive rows take
    /// turns, and an odd batch gives its extra row to each side in turn.
    pub fn indices(&self, step: u64, batch: usize) -> Vec<usize> {
        let (negative, positive) = match &self.rows {
            Rows::All(len) => return indices(step, batch, *len, self.seed, self.stage),
            Rows::Mixed(mixed) => {
                let first = step * batch as u64;
                return mixed.rows(first..first + batch as u64, self.seed, self.stage);
            }
            Rows::Balanced { negative, positive } => (negative, positive),
        };
        let side = |rows: &[usize], pool: Pool, positions| -> Vec<usize> {
            let key = |epoch| [self.stage, epoch, pool as u32];
            let order = walk(positions, rows.len(), |epoch| permutation(rows.len(), self.seed, key(epoch)));
            order.into_iter().map(|i| rows[i]).collect()
        };
        let batch = batch as u64;
        // Of all rows before a step, half are negative, rounded down.
        let negatives = |step: u64| step * batch / 2;
        let positives = |step: u64| step * batch - negatives(step);
        let negative = side(negative, Pool::Negative, negatives(step)..negatives(step + 1));
        let positive = side(positive, Pool::Positive, positives(step)..positives(step + 1));
        let mut rows = Vec::with_capacity(batch as usize);
        for i in 0..negative.len().max(positive.len()) {
            rows.extend(positive.get(i));
            rows.extend(negative.get(i));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn run(steps: u64, batch: usize, len: usize) -> Vec<usize> {
        (0..steps).flat_map(|step| indices(step, batch, len, 7, 1)).collect()
    }

    proptest! {
        #![proptest_config(crate::seed::cases(256))]

        #[test]
        fn every_epoch_has_every_row_once(len in 1usize..40, batch in 1usize..50) {
            let rows = run((3 * len).div_ceil(batch) as u64, batch, len);
            for epoch in rows.chunks_exact(len) {
                prop_assert_eq!(epoch.iter().copied().collect::<BTreeSet<_>>().len(), len);
            }
        }

        #[test]
        fn the_batch_size_does_not_change_the_order(len in 1usize..40, batch in 1usize..50) {
            let rows = run(4, batch, len);
            prop_assert_eq!(rows, run(4 * batch as u64, 1, len));
        }

        #[test]
        fn a_balanced_run_is_half_negative(
            signs in prop::collection::vec(any::<bool>(), 2..40),
            batch in 1usize..20,
            step in 0u64..100,
        ) {
            let (mut signs, mixed) = (signs.clone(), [true, false]);
            signs[..2].copy_from_slice(&mixed);
            let order = Order::balanced(signs.iter().copied(), "grpo.balance", 3, 0).unwrap();
            let rows = order.indices(step, batch);
            prop_assert_eq!(rows.len(), batch);
            let two_steps = [rows.clone(), order.indices(step + 1, batch)].concat();
            let negatives = |rows: &[usize]| rows.iter().filter(|row| signs[**row]).count();
            prop_assert!(negatives(&rows).abs_diff(batch - negatives(&rows)) <= 1);
            if step % 2 == 0 {
                prop_assert_eq!(negatives(&two_steps), batch);
            }
        }
    }

    #[test]
    fn epochs_seeds_and_stages_have_orders_of_their_own() {
        let epoch = |seed, stage, number| indices(number, 20, 20, seed, stage);
        let base = epoch(1, 1, 0);
        assert_eq!(base, epoch(1, 1, 0));
        for other in [epoch(1, 1, 1), epoch(2, 1, 0), epoch(1, 2, 0)] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn each_side_of_a_balanced_run_has_epochs_of_its_own() {
        // 2 negative rows, 6 positive: in 3 steps of 4 the negatives come 3 times, the positives once.
        let signs = [true, false, false, false, true, false, false, false];
        let order = Order::balanced(signs.into_iter(), "grpo.balance", 9, 0).unwrap();
        let rows: Vec<_> = (0..3).flat_map(|step| order.indices(step, 4)).collect();
        let count = |row| rows.iter().filter(|r| **r == row).count();
        assert_eq!((0..8).map(count).collect::<Vec<_>>(), [3, 1, 1, 1, 3, 1, 1, 1]);
    }

    #[test]
    fn balance_needs_both_sides() {
        let error = |signs: &[bool]| {
            Order::balanced(signs.iter().copied(), "grpo.balance", 0, 0).unwrap_err().to_string()
        };
        assert!(error(&[true]).contains("the data has no positive rows"));
        assert!(error(&[false]).contains("the data has no negative rows"));
        assert!(error(&[]).contains("the data has no rows"));
    }

    #[test]
    fn no_rows_give_no_indices() {
        assert_eq!(indices(3, 4, 0, 1, 1), [0; 0]);
    }
}
