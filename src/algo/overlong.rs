//! DAPO's soft overlong punishment, arXiv:2503.14476, equation 13.

/// What a completion of `length` tokens loses: nothing up to `budget - buffer` tokens, then linearly more, `penalty`
/// at the whole budget.
pub fn overlong_penalty(length: usize, budget: usize, buffer: usize, penalty: f64) -> f64 {
    let over = (length + buffer).saturating_sub(budget);
    if buffer == 0 { 0.0 } else { penalty * over.min(buffer) as f64 / buffer as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_penalty_grows_over_the_buffer() {
        let of = |length| overlong_penalty(length, 20, 4, 0.5);
        assert_eq!([0, 16, 17, 18, 20, 25].map(of), [0.0, 0.0, 0.125, 0.25, 0.5, 0.5]);
        assert_eq!(overlong_penalty(20, 20, 0, 1.0), 0.0);
    }
}
