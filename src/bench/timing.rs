//! How long a piece of work takes, and what the machine could do at best.

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use super::ops::{Case, Maker, Run};
use crate::error::Result;
use crate::ops::linear;
use crate::ops::memory::synchronize;
use crate::plan::cost::Rates;

/// Runs that are timed at least, unless they take longer than `PATIENCE`.
const FEWEST: usize = 5;
const PATIENCE: f64 = 10.0;
const MOST: usize = 2000;
/// More sets of inputs than this are not made, whatever the cache.
pub const MOST_SETS: usize = 64;
/// On CUDA, work between two synchronisations takes at least this long, so that waiting costs below 1%.
const BATCH_SECONDS: f64 = 4e-3;

/// Seconds of one run.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    pub median: f64,
    pub best: f64,
    pub runs: usize,
    /// Sets of inputs the runs took turns on.
    pub sets: usize,
}

/// Times `case` for about `seconds`, on inputs as of [`input_sets`].
pub fn time(case: &Case, maker: &Maker, seconds: f64, most_sets: usize) -> Result<Timing> {
    repeat(&maker.device, &input_sets(case, maker, most_sets)?, seconds)
}

/// Runs of `case` on different inputs, each made once; together the inputs are larger than the caches, unless that
/// takes more than `most` sets.
pub fn input_sets(case: &Case, maker: &Maker, most: usize) -> Result<Vec<Run>> {
    let wanted = (cache_bytes(&maker.device) as f64 / case.cost.bytes.max(1.0)).ceil();
    let sets = (wanted as usize).clamp(1, most);
    let runs: Vec<Run> = (0..sets).map(|set| (case.make)(&maker.set(set))).collect::<Result<_>>()?;
    for run in &runs {
        run()?;
    }
    Ok(runs)
}

/// Inputs that together are larger than this come from memory, not from a cache.
fn cache_bytes(device: &Device) -> usize {
    if device.is_cuda() { 512 << 20 } else { 320 << 20 }
}

fn repeat(device: &Device, runs: &[Run], seconds: f64) -> Result<Timing> {
    let mut turn = runs.iter().cycle();
    let mut timed = |batch: usize| -> Result<f64> {
        let start = Instant::now();
        for run in turn.by_ref().take(batch) {
            run()?;
        }
        synchronize(device)?;
        Ok(start.elapsed().as_secs_f64() / batch as f64)
    };
    synchronize(device)?;
    let first = timed(1)?;
    let batch = if device.is_cuda() { (BATCH_SECONDS / first.max(1e-7)).ceil() as usize } else { 1 };
    let start = Instant::now();
    let mut each = Vec::new();
    loop {
        each.push(timed(batch)?);
        let spent = start.elapsed().as_secs_f64();
        if (each.len() >= FEWEST && spent >= seconds) || each.len() >= MOST || spent >= PATIENCE {
            break;
        }
    }
    each.sort_by(f64::total_cmp);
    Ok(Timing { median: each[each.len() / 2], best: each[0], runs: each.len() * batch, sets: runs.len() })
}

/// Rows and columns of the product that is the ceiling of all products.
pub fn ceiling_size(device: &Device) -> usize {
    if device.is_cuda() { 8192 } else { 2048 }
}

/// Both ceilings, best of the runs: a ceiling is what the machine can do, not what it does on average. The product is
/// one of `n` x `n` matrices.
pub fn ceilings(maker: &Maker, n: usize, seconds: f64) -> Result<Rates> {
    let (x, w) = (maker.set(0).random((n, n))?, maker.set(1).random((n, n))?);
    let product: Run = Box::new(move || linear::forward(&x, &w).map(drop));
    product()?;
    let flops = 2.0 * (n as f64).powi(3) / repeat(&maker.device, &[product], seconds)?.best;
    Ok(Rates { flops, bandwidth: copy_bandwidth(&maker.device, seconds)? })
}

fn copy_bandwidth(device: &Device, seconds: f64) -> Result<f64> {
    const BYTES: usize = 512 << 20;
    if device.is_cuda() {
        let from = Tensor::zeros(BYTES / 4, DType::F32, device)?;
        let copy: Run = Box::new(move || Ok(from.copy().map(drop)?));
        copy()?;
        return Ok(2.0 * BYTES as f64 / repeat(device, &[copy], seconds)?.best);
    }
    let (from, mut to) = (vec![1f32; BYTES / 4], vec![2f32; BYTES / 4]);
    let part = (BYTES / 4).div_ceil(rayon::current_num_threads());
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    for round in 0.. {
        let start = Instant::now();
        to.par_chunks_mut(part).zip(from.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&to);
        best = best.min(start.elapsed().as_secs_f64());
        if round >= FEWEST && begin.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    Ok(2.0 * BYTES as f64 / best)
}
