//! Counter-based randomness: a number is a pure function of its key, so it is the same on every device,
//! in any batch order and after any resume.
//!
//! Philox 4x32-10, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.

/// What a draw is for. Part of the key, so that two purposes never share a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    WeightInit = 1,
    Shuffle = 2,
    Rollout = 3,
    Evaluation = 4,
    Synthetic = 5,
    Bench = 6,
    /// Rounding of bf16 weights: (step, weight).
    Rounding = 7,
    Check = 8,
}

/// Philox 4x32 with 10 rounds: 128 counter bits and 64 key bits in, 128 random bits out.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const M: [u64; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const W: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(W[0]), key[1].wrapping_add(W[1])];
        }
        let (p0, p1) = (M[0] * u64::from(counter[0]), M[1] * u64::from(counter[2]));
        counter = [
            (p1 >> 32) as u32 ^ counter[1] ^ key[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ counter[3] ^ key[1],
            p0 as u32,
        ];
    }
    counter
}

/// A uniform in [0, 1) from the top 24 bits, exact in f32.
pub fn unit_f32(bits: u32) -> f32 {
    (bits >> 8) as f32 * (1.0 / (1 << 24) as f32)
}

/// The stream of one (seed, purpose, a, b, c): for rollouts (step, sample, rollout), drawn by token index.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    key: [u32; 2],
    ids: [u32; 3],
}

impl Stream {
    pub fn new(seed: u64, purpose: Purpose, ids: [u32; 3]) -> Self {
        // The purpose is mixed into the key through one Philox call, so that seeds that differ by a small
        // number and purposes never collide.
        let mixed = philox4x32([purpose as u32, 0, 0, 0], [seed as u32, (seed >> 32) as u32]);
        Self { key: [mixed[0], mixed[1]], ids }
    }

    /// The Philox key and the counter's upper three words, for a kernel that draws the same numbers.
    pub fn words(&self) -> ([u32; 2], [u32; 3]) {
        (self.key, self.ids)
    }

    /// 128 bits at position `index` of the stream.
    pub fn block(&self, index: u32) -> [u32; 4] {
        philox4x32([index, self.ids[0], self.ids[1], self.ids[2]], self.key)
    }

    /// Uniform in [0, 1) at position `index`.
    pub fn uniform(&self, index: u32) -> f32 {
        unit_f32(self.block(index)[0])
    }

    /// Standard normal at position `index` (Box-Muller).
    pub fn normal(&self, index: u32) -> f32 {
        let [a, b, ..] = self.block(index);
        // 1 - u lies in (0, 1], so the logarithm is finite.
        let radius = (-2.0 * f64::ln(1.0 - f64::from(unit_f32(a)))).sqrt();
        (radius * (std::f64::consts::TAU * f64::from(unit_f32(b))).cos()) as f32
    }

    /// A cursor that draws position after position.
    pub fn sequential(self) -> Sequential {
        Sequential { stream: self, next: 0 }
    }
}

/// Draws of one stream in order; for shuffles and synthetic data.
#[derive(Clone, Debug)]
pub struct Sequential {
    stream: Stream,
    next: u32,
}

impl Sequential {
    pub fn next_u32(&mut self) -> u32 {
        self.next += 1;
        self.stream.block(self.next - 1)[0]
    }

    pub fn uniform(&mut self) -> f32 {
        unit_f32(self.next_u32())
    }

    /// Uniform in `0..n`. `n` must be positive. Multiply-shift; the bias is below n / 2^32.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.next_u32()) * n as u64) >> 32) as usize
    }

    pub fn choose<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    /// Fisher-Yates.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers_of_random123() {
        // kat_vectors of Random123 1.14, philox4x32 10 rounds.
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn streams_differ_by_purpose_and_id_and_repeat_by_key() {
        let draw = |seed, purpose, ids| Stream::new(seed, purpose, ids).block(7);
        let base = draw(1, Purpose::Rollout, [1, 2, 3]);
        assert_eq!(base, draw(1, Purpose::Rollout, [1, 2, 3]));
        for other in [
            draw(2, Purpose::Rollout, [1, 2, 3]),
            draw(1, Purpose::Shuffle, [1, 2, 3]),
            draw(1, Purpose::Rollout, [1, 2, 4]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn moments_of_uniform_and_normal() {
        let s = Stream::new(3, Purpose::WeightInit, [0; 3]);
        let n = 20_000;
        let mean = |f: &dyn Fn(u32) -> f64| (0..n).map(f).sum::<f64>() / f64::from(n);
        assert!((mean(&|i| f64::from(s.uniform(i))) - 0.5).abs() < 0.01);
        assert!(mean(&|i| f64::from(s.normal(i))).abs() < 0.03);
        assert!((mean(&|i| f64::from(s.normal(i)).powi(2)) - 1.0).abs() < 0.05);
    }
}
