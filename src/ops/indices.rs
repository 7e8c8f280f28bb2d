//! Row numbers and positions that ops read, with the copy of them that a device reads.

use std::sync::OnceLock;

use candle_core::{Device, Tensor};

use super::cuda;
use crate::error::Result;

/// Numbers of rows, tokens or positions. A device gets its copy with the first op that reads them there, so what
/// one pass or one decode step uses in every layer goes over once.
#[derive(Clone, Debug, Default)]
pub struct Indices {
    values: Vec<u32>,
    /// One above the largest; 0 when there are none.
    bound: usize,
    there: OnceLock<Tensor>,
    /// With `u32::MAX` for each number that comes again later.
    last_there: OnceLock<Tensor>,
}

impl Indices {
    pub fn new(values: impl Into<Vec<u32>>) -> Self {
        let values = values.into();
        let bound = values.iter().max().map_or(0, |largest| *largest as usize + 1);
        Self { values, bound, there: OnceLock::new(), last_there: OnceLock::new() }
    }

    pub fn as_slice(&self) -> &[u32] {
        &self.values
    }

    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The largest, when it is not below `end`.
    pub(super) fn outside(&self, end: usize) -> Option<usize> {
        (self.bound > end).then(|| self.bound - 1)
    }

    /// `[len]` u32 on `device`.
    pub(super) fn there(&self, device: &Device) -> Result<&Tensor> {
        once(&self.there, || cuda::upload(&self.values, device))
    }

    /// As [`Self::there`], with a number that no table has in place of all but the last of equal ones.
    pub(super) fn last_there(&self, device: &Device) -> Result<&Tensor> {
        once(&self.last_there, || {
            let mut seen = std::collections::HashSet::with_capacity(self.values.len());
            let mut values = self.values.clone();
            values.iter_mut().rev().filter(|value| !seen.insert(**value)).for_each(|value| *value = u32::MAX);
            cuda::upload(&values, device)
        })
    }
}

impl FromIterator<usize> for Indices {
    /// Numbers of 2^32 and more become `u32::MAX`, which is outside every table.
    fn from_iter<I: IntoIterator<Item = usize>>(values: I) -> Self {
        let short = |value| u32::try_from(value).unwrap_or(u32::MAX);
        Self::new(values.into_iter().map(short).collect::<Vec<u32>>())
    }
}

/// The value, made the first time.
pub(super) fn once<T>(cell: &OnceLock<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(value) = cell.get() {
        return Ok(value);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_equal_rows_stays() {
        let rows: Indices = [7, 2, 7, 0, 2, usize::MAX].into_iter().collect();
        let last = rows.last_there(&Device::Cpu).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(last, [u32::MAX, u32::MAX, 7, 0, 2, u32::MAX]);
        assert_eq!((rows.outside(1 << 32), rows.outside(8)), (None, Some(u32::MAX as usize)));
        assert_eq!(Indices::default().outside(0), None);
    }
}
