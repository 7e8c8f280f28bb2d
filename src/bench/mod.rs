//! Timed work: a GRPO step by phase, an SFT step, an evaluation, every op alone beside what the machine can do at best,
//! weights from disk.

pub mod eval;
pub mod load;
pub mod ops;
pub mod sft;
pub mod step;
pub mod timing;

use crate::rng::{Purpose, Stream};

/// `count` tokens below `vocab` that depend on `which` alone.
fn random_tokens(vocab: usize, which: [u32; 3], count: usize) -> Vec<u32> {
    let stream = Stream::new(1, Purpose::Bench, which);
    (0..count as u32).map(|i| stream.block(i)[0] % vocab as u32).collect()
}
