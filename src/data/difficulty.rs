//! Prompts in the order of what they can teach: those that the policy gets right about half of the time come first.

use serde::{Deserialize, Serialize};

use crate::rng::{Purpose, Stream};

/// Completions of one prompt so far, the older ones fading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Successes {
    pub right: u32,
    pub tried: u32,
}

/// Completions that a running rate remembers, at most twice as many.
const MEMORY: u32 = 16;

/// Least weight of a prompt, against 1/4 at a success rate of a half, so that none is lost for good.
const LEAST_WEIGHT: f64 = 0.02;

/// The running success rate of every row. Counts are whole numbers, so that a checkpoint holds them exactly.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difficulty(Vec<Successes>);

impl Difficulty {
    pub fn new(rows: usize) -> Self {
        Self(vec![Successes::default(); rows])
    }

    pub fn rows(&self) -> usize {
        self.0.len()
    }

    pub fn add(&mut self, row: usize, result: Successes) {
        let Some(all) = self.0.get_mut(row) else { return };
        if all.tried >= MEMORY {
            *all = Successes { right: all.right / 2, tried: all.tried / 2 };
        }
        all.right += result.right;
        all.tried += result.tried;
    }

    /// All rows, in the order in which draws without replacement take them, with probabilities in proportion to
    /// `s (1 - s)` and a least weight; `s` is the success rate, with one success and one failure added.
    ///
    /// Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).
    pub fn order(&self, step: u64, seed: u64) -> Vec<usize> {
        let stream = Stream::new(seed, Purpose::Shuffle, [u32::MAX, step as u32, 0]);
        let key = |(row, s): (usize, &Successes)| {
            let rate = f64::from(s.right + 1) / f64::from(s.tried + 2);
            let weight = (rate * (1.0 - rate)).max(LEAST_WEIGHT);
            let uniform = f64::from(stream.uniform(row as u32)) + f64::from(f32::EPSILON) / 4.0;
            (-uniform.ln() / weight, row)
        };
        let mut keys: Vec<(f64, usize)> = self.0.iter().enumerate().map(key).collect();
        keys.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        keys.into_iter().map(|(_, row)| row).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_known_prompts_come_first_and_no_prompt_is_lost() {
        let mut difficulty = Difficulty::new(30);
        for row in 0..10 {
            difficulty.add(row, Successes { right: 8, tried: 16 });
            difficulty.add(row + 10, Successes { right: 16, tried: 16 });
            difficulty.add(row + 20, Successes { right: 0, tried: 16 });
        }
        let mut first = [0; 3];
        for step in 0..500 {
            let order = difficulty.order(step, 7);
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..30).collect::<Vec<_>>());
            first[order[0] / 10] += 1;
        }
        // Weights 0.25 against 17/18^2 = 0.0525 twice: shares 0.704 and 0.148 twice.
        assert!((320..385).contains(&first[0]), "{first:?}");
        assert!(first[1] > 40 && first[2] > 40, "{first:?}");
        assert_ne!(difficulty.order(0, 7), difficulty.order(1, 7));
        assert_eq!(difficulty.order(3, 7), difficulty.order(3, 7));
    }

    #[test]
    fn old_results_fade() {
        let mut difficulty = Difficulty::new(1);
        for _ in 0..10 {
            difficulty.add(0, Successes { right: 8, tried: 8 });
        }
        for _ in 0..6 {
            difficulty.add(0, Successes { right: 0, tried: 8 });
        }
        let Successes { right, tried } = difficulty.0[0];
        assert!(right * 10 < tried, "{right} of {tried}");
    }

    #[test]
    fn what_a_checkpoint_holds_reads_back() {
        let mut difficulty = Difficulty::new(3);
        difficulty.add(1, Successes { right: 3, tried: 8 });
        let json = serde_json::to_string(&difficulty).unwrap();
        assert_eq!(serde_json::from_str::<Difficulty>(&json).unwrap(), difficulty);
    }
}
