//! What storing a weight in each type may do to it: the error of a tensor, in units of its type's own rounding.

use candle_core::{DType, Device, Tensor};

use crate::error::Result;

/// How far one tensor came back from what is in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Distance {
    /// `|read - memory| / |memory|`, Euclidean norms.
    pub relative_error: f64,
    /// The worst value's or block's error over the largest that rounding to nearest can make; above 1 is a fault.
    pub of_allowed: f64,
}

/// The unit in which a stored type errs.
#[derive(Clone, Copy, Debug)]
enum Grain {
    /// Every value comes back as it was.
    Exact,
    /// Half a unit in the last place of each value.
    Float { mantissa_bits: i32, least_exponent: i32 },
    /// The root mean square over a block, at most `share` of its largest value and `floor` more.
    Block { len: usize, share: f64, floor: f64 },
}

/// Half of the distance between the smallest numbers of f16, in which blocks keep their scales.
const SCALE_FLOOR: f64 = 1.0 / (1u64 << 25) as f64;

impl Grain {
    /// Of weights that are exact in `stored`.
    ///
    /// A block of 32 in Q8_0 has steps of its largest value / 127, of which it errs by half, and a scale rounded to
    /// 2^-11; Q5_0 has steps of 1/16, and the value opposite to the largest errs by a whole one. The superblocks of 256
    /// err by what their steps (1/32 in Q6_K, up to 2/15 in Q4_K) and the rounding of 8- and 6-bit scales add up to, with
    /// room for quantisers that move a block's ends to lower its mean error. Scales of small blocks are subnormal in f16.
    fn of(kind: &str, stored: DType) -> Self {
        let block = |len, share, steps| Self::Block { len, share, floor: steps * SCALE_FLOOR };
        match (kind, stored) {
            ("BF16", DType::BF16) | ("F16", DType::F16) => Self::Exact,
            ("BF16", _) => Self::Float { mantissa_bits: 7, least_exponent: -126 },
            ("F16", _) => Self::Float { mantissa_bits: 10, least_exponent: -14 },
            ("Q8_0", _) => block(32, 1.0 / 254.0 + 1.0 / 2048.0, 127.0),
            ("Q5_0", _) => block(32, 1.0 / 16.0 + 1.0 / 2048.0, 16.0),
            ("Q6_K", _) => block(256, 0.02, 32.0 * 128.0),
            ("Q4_K", _) => block(256, 0.1, 16.0 * 63.0),
            _ => Self::Exact,
        }
    }

    /// Of each value or block of `memory`.
    fn worst(self, memory: &[f32], read: &[f32]) -> f64 {
        let error = |a: &f32, b: &f32| (f64::from(*a) - f64::from(*b)).abs();
        let of = |error: f64, allowed: f64| if error == 0.0 { 0.0 } else { error / allowed };
        let pairs = memory.iter().zip(read);
        match self {
            Self::Exact => pairs.map(|(a, b)| of(error(a, b), 0.0)).fold(0.0, worse),
            Self::Float { mantissa_bits, least_exponent } => {
                let half_ulp = |x: f32| {
                    let exponent = (x.to_bits() >> 23 & 0xff) as i32 - 127;
                    2f64.powi(exponent.max(least_exponent) - mantissa_bits - 1)
                };
                pairs.map(|(a, b)| of(error(a, b), half_ulp(*a))).fold(0.0, worse)
            }
            Self::Block { len, share, floor } => {
                let blocks = memory.chunks(len).zip(read.chunks(len));
                let each = blocks.map(|(memory, read)| {
                    let largest = memory.iter().fold(0f32, |most, x| most.max(x.abs()));
                    let squares: f64 = memory.iter().zip(read).map(|(a, b)| error(a, b).powi(2)).sum();
                    of((squares / memory.len() as f64).sqrt(), share * f64::from(largest) + floor)
                });
                each.fold(0.0, worse)
            }
        }
    }
}

/// NaN is worse than any number.
fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// Values looked at together: whole blocks of every type.
const CHUNK: usize = 1 << 20;

/// How far `read`, which was stored as `kind`, lies from `memory`, whose values are exact in `stored`.
///
/// # Errors
/// The shapes differ.
pub fn distance(kind: &str, stored: DType, memory: &Tensor, read: &Tensor) -> Result<Distance> {
    let wide = |tensor: &Tensor| tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all();
    let grain = Grain::of(kind, stored);
    let (memory, read) = (wide(memory)?, wide(&read.reshape(memory.dims())?)?);
    let (mut off, mut size, mut of_allowed) = (0.0, 0.0, 0.0);
    for start in (0..memory.elem_count()).step_by(CHUNK) {
        let count = CHUNK.min(memory.elem_count() - start);
        let (a, b) = (memory.narrow(0, start, count)?.to_vec1::<f32>()?, read.narrow(0, start, count)?);
        let b = b.to_vec1::<f32>()?;
        for (a, b) in a.iter().zip(&b) {
            off += (f64::from(*a) - f64::from(*b)).powi(2);
            size += f64::from(*a).powi(2);
        }
        of_allowed = worse(of_allowed, grain.worst(&a, &b));
    }
    Ok(Distance { relative_error: if off == 0.0 { 0.0 } else { (off / size).sqrt() }, of_allowed })
}

#[cfg(test)]
mod tests {
    use candle_core::quantized::{GgmlDType, QTensor};
    use half::{bf16, f16};

    use super::*;
    use crate::rng::{Purpose, Stream};

    #[test]
    fn the_bounds_of_types_that_round_are_met_and_tight() {
        // Subnormals, ties and every exponent that weights have.
        let values: Vec<f32> = (0..1 << 20)
            .map(|i| f32::from_bits(0x2f00_0000 + i * 0x151))
            .flat_map(|x| [x, -x])
            .filter(|x| x.abs() < 6e4)
            .collect();
        let (bf16, f16): (Vec<f32>, Vec<f32>) =
            values.iter().map(|x| (bf16::from_f32(*x).to_f32(), f16::from_f32(*x).to_f32())).unzip();
        for (kind, rounded) in [("BF16", bf16), ("F16", f16)] {
            let worst = Grain::of(kind, DType::F32).worst(&values, &rounded);
            assert!(worst <= 1.0 && worst > 0.99, "{kind}: {worst}");
            // One value a unit further off.
            let mut wrong = rounded;
            let last = wrong.len() - 1;
            wrong[last] *= 1.0 + 1.0 / 64.0;
            assert!(Grain::of(kind, DType::F32).worst(&values, &wrong) > 1.0, "{kind}");
        }
        assert_eq!(Grain::of("BF16", DType::BF16).worst(&[1.0], &[1.0]), 0.0);
        assert!(Grain::of("BF16", DType::BF16).worst(&[1.0], &[1.0078125]).is_infinite());
        assert!(Grain::of("F16", DType::F32).worst(&[7e4], &[f32::INFINITY]).is_infinite());
        assert!(Grain::of("F16", DType::F32).worst(&[1.0, 1.0], &[f32::NAN, 1.0]).is_nan());
    }

    /// Weights as they come: normal, with outliers, tiny, all of one sign, alone in their block.
    fn tensors() -> Vec<(&'static str, Tensor)> {
        let mut stream = Stream::new(7, Purpose::Check, [0; 3]).sequential();
        let mut uniform = || (stream.below(1 << 24) as f32 + 0.5) / (1 << 24) as f32;
        let mut normal = || (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
        let plain: Vec<f32> = (0..64 * 256).map(|_| 0.02 * normal()).collect();
        type Shape = fn(usize, f32) -> f32;
        let shapes: [(&'static str, Shape); 6] = [
            ("normal", |_, x| x),
            ("outliers", |i, x| if i % 97 == 0 { 60.0 * x } else { x }),
            ("tiny", |_, x| 1e-4 * x),
            ("one sign", |_, x| 1.0 + x.abs()),
            ("alone", |i, x| if i % 256 == 17 { 1.0 } else { 1e-6 * x }),
            ("opposite", |i, x| if i % 2 == 0 { 1.0 + 1e-3 * x } else { -1.0 + 1e-3 * x }),
        ];
        let tensor = |shape: Shape| {
            let values: Vec<f32> = plain.iter().enumerate().map(|(i, x)| shape(i, *x)).collect();
            Tensor::from_vec(values, (64, 256), &Device::Cpu).unwrap()
        };
        shapes.map(|(name, shape)| (name, tensor(shape))).into()
    }

    #[test]
    fn quantised_blocks_stay_within_their_bounds_and_one_wrong_row_does_not() {
        for (kind, dtype) in [
            ("Q8_0", GgmlDType::Q8_0),
            ("Q5_0", GgmlDType::Q5_0),
            ("Q6_K", GgmlDType::Q6K),
            ("Q4_K", GgmlDType::Q4K),
        ] {
            for (name, tensor) in tensors() {
                let read = QTensor::quantize(&tensor, dtype).unwrap().dequantize(&Device::Cpu).unwrap();
                let found = distance(kind, DType::F32, &tensor, &read).unwrap();
                assert!(found.of_allowed <= 1.0, "{kind} {name}: {found:?}");
                if name == "normal" {
                    // No looser than a few times what is usual.
                    assert!(found.of_allowed > 0.2, "{kind}: {found:?}");
                    let order: Vec<u32> = (0..64).map(|row| if row < 2 { 1 - row } else { row }).collect();
                    let order = Tensor::new(order, &Device::Cpu).unwrap();
                    let swapped = read.index_select(&order, 0).unwrap();
                    let found = distance(kind, DType::F32, &tensor, &swapped).unwrap();
                    assert!(found.of_allowed > 3.0, "{kind}: {found:?}");
                }
            }
        }
    }
}
