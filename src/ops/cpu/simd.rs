//! Loops that the compiler vectorises, run with the widest instructions the processor has.

/// Largest number of f32 lanes in one register (AVX-512); partial sums are kept per lane, so that a sum does
/// not depend on the instruction set.
const LANES: usize = 16;

/// Evaluates an expression compiled for the best instruction set of this machine. What it calls must be
/// `#[inline(always)]`. A macro, because the closure it makes must be so too: else it is compiled for the oldest
/// processor, and runs several times slower without a word.
macro_rules! vectorize {
    ($body:expr) => {
        $crate::ops::cpu::simd::dispatch_inlined(
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use vectorize;

/// For `vectorize!` only.
#[inline(always)]
pub fn dispatch_inlined<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// `exp(x)` for `x <= 88`, relative error below 3e-7; 0 below -60. What is that small beside 1 changes no sum, but
/// left in place it would meet other small factors as a subnormal number, which products compute many times slower.
///
/// Cody-Waite reduction by ln 2 and the Cephes polynomial of degree 5. Branch-free and without a conversion to an
/// integer (Rust's saturates, which the compiler does not vectorise): 2^k is read off the bits of `k + 1.5 * 2^23`.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer without SSE4.1
    let clamped = if x < -87.0 { -87.0 } else { x }; // unlike `max`, lets NaN through
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = clamped - k * (355.0 / 512.0) + k * 2.121_944_4e-4; // ln 2 in two parts, the first exact
    let p = 1.987_569_2e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 0.166_666_66;
    let p = p * r + 0.5;
    let y = p * r * r + r + 1.0;
    let power = f32::from_bits(shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23);
    if x < -60.0 { 0.0 } else { y * power }
}

/// `1 / (1 + exp(-x))`
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp((-x).min(87.0)))
}

#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0f32; LANES];
    let (a_lanes, a_rest) = a.as_chunks::<LANES>();
    let (b_lanes, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_lanes.iter().zip(b_lanes) {
        for j in 0..LANES {
            acc[j] += a[j] * b[j];
        }
    }
    acc.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let (lanes, rest) = x.as_chunks::<LANES>();
    for x in lanes {
        for j in 0..LANES {
            acc[j] = acc[j].max(x[j]);
        }
    }
    rest.iter().chain(&acc).copied().fold(f32::NEG_INFINITY, f32::max)
}

/// `x <- exp(scale * x - shift)`; returns the sum of the new values.
#[inline(always)]
pub fn exp_scaled_in_place(x: &mut [f32], scale: f32, shift: f32) -> f32 {
    let mut acc = [0f32; LANES];
    let (lanes, rest) = x.as_chunks_mut::<LANES>();
    for x in lanes {
        for j in 0..LANES {
            x[j] = exp(x[j] * scale - shift);
            acc[j] += x[j];
        }
    }
    let mut sum = acc.iter().sum::<f32>();
    for x in rest {
        *x = exp(*x * scale - shift);
        sum += *x;
    }
    sum
}

/// `sum exp(scale * x - shift)` and `sum exp(scale * x - shift) * (scale * x - shift)`.
#[inline(always)]
pub fn exp_sums(x: &[f32], scale: f32, shift: f32) -> (f32, f32) {
    let (mut sums, mut weighted) = ([0f32; LANES], [0f32; LANES]);
    let (lanes, rest) = x.as_chunks::<LANES>();
    for x in lanes {
        for j in 0..LANES {
            let z = x[j] * scale - shift;
            let e = exp(z);
            sums[j] += e;
            weighted[j] += e * z;
        }
    }
    let (mut sum, mut weight) = (sums.iter().sum::<f32>(), weighted.iter().sum::<f32>());
    for x in rest {
        let z = x * scale - shift;
        let e = exp(z);
        sum += e;
        weight += e * z;
    }
    (sum, weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_3e_7_of_the_library() {
        let worst = (-6000..=8800)
            .map(|i| i as f32 / 100.0)
            .map(|x| ((f64::from(exp(x)) - f64::from(x).exp()) / f64::from(x).exp()).abs())
            .fold(0.0, f64::max);
        assert!(worst < 3e-7, "{worst:e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!([exp(f32::NEG_INFINITY), exp(-61.0)], [0.0; 2]);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_agree_with_plain_loops_at_every_length() {
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|i| ((i * 37) % 19) as f32 / 7.0 - 1.0).collect();
            let plain: f64 = x.iter().map(|x| f64::from(*x).powi(2)).sum();
            assert!((f64::from(vectorize!(dot(&x, &x))) - plain).abs() < 1e-4);
            assert_eq!(vectorize!(max(&x)), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            let (sum, weighted) = vectorize!(exp_sums(&x, 0.5, 0.25));
            let z = |x: &f32| f64::from(*x) * 0.5 - 0.25;
            assert!((f64::from(sum) - x.iter().map(|x| z(x).exp()).sum::<f64>()).abs() < 1e-4);
            assert!((f64::from(weighted) - x.iter().map(|x| z(x).exp() * z(x)).sum::<f64>()).abs() < 1e-4);
            let mut y = x.clone();
            assert!((vectorize!(exp_scaled_in_place(&mut y, 0.5, 0.25)) - sum).abs() < 1e-4);
        }
    }
}
