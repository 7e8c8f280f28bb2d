//! How work and numbers are divided among ranks: the same on every rank, from the same numbers.

use std::ops::Range;

use candle_core::Tensor;

use crate::error::Result;

/// Elements of an optimiser's block: a part of a weight begins at a multiple of it, so that parts of one-byte moments put together are
/// the moments of the whole.
const BLOCK: usize = 256;

/// Which part of every weight is one rank's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    pub rank: usize,
    pub size: usize,
}

impl Share {
    /// All of it.
    pub const WHOLE: Self = Self { rank: 0, size: 1 };

    pub fn is_whole(self) -> bool {
        self.size == 1
    }

    pub fn range(self, count: usize) -> Range<usize> {
        part(count, self.rank, self.size)
    }

    /// The tensor itself where the share is all of it; else its part, flat, in the tensor's memory.
    pub fn of(self, tensor: &Tensor) -> Result<Tensor> {
        if self.is_whole() {
            return Ok(tensor.clone());
        }
        let range = self.range(tensor.elem_count());
        Ok(tensor.flatten_all()?.narrow(0, range.start, range.len())?)
    }
}

/// The elements of a weight of `count` that `rank` of `size` keeps the optimiser's state of. The last ranks may have none.
pub fn part(count: usize, rank: usize, size: usize) -> Range<usize> {
    let each = count.div_ceil(size).next_multiple_of(BLOCK);
    let start = (rank * each).min(count);
    start..(start + each).min(count)
}

/// The rank that does each piece of work: the costliest first, each to the rank that has least so far. Equal ones keep their order.
pub fn owners(costs: &[usize], size: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..costs.len()).collect();
    order.sort_by_key(|i| std::cmp::Reverse(costs[*i]));
    let mut loads = vec![0usize; size.max(1)];
    let mut owners = vec![0; costs.len()];
    for i in order {
        let least =
            loads.iter().enumerate().min_by_key(|(rank, load)| (**load, *rank)).map_or(0, |(rank, _)| rank);
        owners[i] = least;
        loads[least] += costs[i].max(1);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_a_weight_once_and_begin_at_blocks() {
        for (count, size) in [(0, 3), (1, 4), (255, 2), (256, 2), (257, 2), (1000, 3), (4096 * 7, 8), (5, 1)]
        {
            let parts: Vec<Range<usize>> = (0..size).map(|rank| part(count, rank, size)).collect();
            assert_eq!(parts.iter().map(|p| p.len()).sum::<usize>(), count, "{count} over {size}: {parts:?}");
            assert!(parts.windows(2).all(|two| two[0].end == two[1].start));
            assert!(parts.iter().all(|p| p.start % BLOCK == 0 || p.is_empty()));
        }
        assert_eq!(part(1000, 0, 1), 0..1000);
    }

    #[test]
    fn the_costliest_goes_first_to_whom_has_least() {
        assert_eq!(owners(&[3, 9, 4, 4], 2), [1, 0, 1, 1]);
        assert_eq!(owners(&[5, 5, 5, 5], 2), [0, 1, 0, 1]);
        assert_eq!(owners(&[1, 2], 4), [1, 0]);
        assert_eq!(owners(&[0, 0, 0], 3), [0, 1, 2], "work without a cost is still shared");
        assert_eq!(owners(&[7, 8], 1), [0, 0]);
    }
}
