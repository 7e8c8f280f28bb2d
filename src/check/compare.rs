//! How far one array is from another, so that nothing wrong can look right.

use candle_core::DType;

/// Relative errors of an array; a number that is not finite never gets this far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// `||got - want|| / ||want||`
    pub norm: f64,
    /// `max |got - want| / max |want|`: shows a single wrong element of a large array.
    pub max: f64,
}

impl Difference {
    /// Both at most `tolerance`. Not so when one is NaN.
    pub fn within(&self, tolerance: f64) -> bool {
        self.norm <= tolerance && self.max <= tolerance
    }
}

/// What storing a result near `value` in `dtype` may add to the error of its f32 arithmetic: a unit in bf16's last
/// place. Half of it is the rounding; the other half is for a reference that was rounded too, and fell to the other
/// side of a tie. Nothing for f32, whose arithmetic rounds alike.
pub fn rounding(dtype: DType, value: f64) -> f64 {
    if dtype != DType::BF16 {
        return 0.0;
    }
    // 8 significant bits; below the smallest normal number the steps stay as they are.
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    2f64.powi(exponent.max(-126) - 7)
}

/// How far `got` is from `want`, relative to `want`; where that is all zeros, absolute.
///
/// # Errors
/// In words, when the lengths differ, there is nothing to compare, or a value is NaN or infinite.
pub fn compare(got: &[f64], want: &[f64]) -> Result<Difference, String> {
    if got.len() != want.len() {
        return Err(format!("{} values instead of {}", got.len(), want.len()));
    }
    if got.is_empty() {
        return Err("no values".into());
    }
    for (whose, values) in [("the reference", want), ("the result", got)] {
        let bad = values.iter().filter(|v| !v.is_finite()).count();
        if let Some(first) = values.iter().position(|v| !v.is_finite()) {
            let (value, all) = (values[first], values.len());
            return Err(format!(
                "{whose} is not finite at {bad} of {all} elements, first {value} at {first}"
            ));
        }
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let max = |values: &mut dyn Iterator<Item = f64>| values.fold(0f64, |m, v| m.max(v.abs()));
    let error = || got.iter().zip(want).map(|(g, w)| g - w);
    let relative = |error: f64, size: f64| if size > 0.0 { error / size } else { error };
    Ok(Difference {
        norm: relative(norm(&mut error()), norm(&mut want.iter().copied())),
        max: relative(max(&mut error()), max(&mut want.iter().copied())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    fn wave(n: usize) -> Vec<f64> {
        (0..n).map(|i| (i as f64).sin()).collect()
    }

    #[test]
    fn equal_arrays_differ_by_nothing() {
        assert_eq!(compare(&wave(100), &wave(100)), Ok(Difference { norm: 0.0, max: 0.0 }));
    }

    #[test]
    fn one_wrong_element_in_a_million_shows() {
        let (want, mut got) = (wave(1_000_000), wave(1_000_000));
        got[777_777] += 0.5;
        let difference = compare(&got, &want).unwrap();
        assert!(difference.norm < 1e-3 && difference.max > 0.4, "{difference:?}");
        assert!(!difference.within(1e-2));
    }

    #[test]
    fn what_is_not_finite_never_passes() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let (want, mut got) = (wave(10), wave(10));
            got[9] = bad;
            assert!(compare(&got, &want).unwrap_err().contains("at 9"));
            assert!(compare(&want, &got).unwrap_err().contains("reference"), "nor in the reference");
            assert!(compare(&got, &got).is_err(), "nor on both sides");
        }
        let difference = Difference { norm: f64::NAN, max: 0.0 };
        assert!(!difference.within(1.0) && !difference.within(f64::INFINITY) && !difference.within(f64::NAN));
    }

    #[test]
    fn missing_and_extra_elements_never_pass() {
        assert!(compare(&wave(9), &wave(10)).is_err() && compare(&wave(11), &wave(10)).is_err());
        assert!(compare(&[], &[]).is_err(), "nothing was compared");
    }

    #[test]
    fn a_rounding_is_the_step_to_the_next_number() {
        for value in [1.0f32, -1.5, 1.9921875, 3e-3, -7e20, f32::MIN_POSITIVE, 1e-40] {
            let value = bf16::from_f32(value);
            let next = bf16::from_bits(value.to_bits() + 1);
            let step = (next.to_f64() - value.to_f64()).abs();
            assert_eq!(rounding(DType::BF16, value.to_f64()), step, "{value}");
        }
        assert_eq!(rounding(DType::BF16, 0.0), bf16::from_bits(1).to_f64());
        assert_eq!(rounding(DType::F32, 1.0), 0.0);
    }

    #[test]
    fn zeros_are_compared_absolutely() {
        assert!(compare(&[0.0, 0.0], &[0.0, 0.0]).unwrap().within(0.0));
        assert_eq!(compare(&[0.0, 3.0], &[0.0, 0.0]), Ok(Difference { norm: 3.0, max: 3.0 }));
    }
}
