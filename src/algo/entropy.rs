//! Which tokens a step learns from: those at which the policy hesitates. Wang et al., "Beyond the 80/20 Rule", arXiv:2506.01939.

/// The entropy that the share `top` of the highest ones reaches: the quantile `1 - top` of all, between two of them by linear
/// interpolation, in f32, as `torch.quantile` and TRL have it. `top`: above 0, at most 1. None of no tokens.
pub fn top_entropy(entropies: &[f32], top: f64) -> Option<f32> {
    let mut sorted = entropies.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    let last = sorted.len().checked_sub(1)?;
    let rank = (1.0 - top) as f32 * last as f32;
    let below = (rank as usize).min(last);
    let (a, b, weight) = (sorted[below], sorted[(below + 1).min(last)], rank - below as f32);
    Some(if weight < 0.5 { a + weight * (b - a) } else { b - (b - a) * (1.0 - weight) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let five = [0.5, 0.1, 0.4, 0.2, 0.3];
        assert_eq!(top_entropy(&five, 1.0), Some(0.1));
        assert_eq!(top_entropy(&five, 0.5), Some(0.3));
        // Rank 3.2 of 0 to 4: a fifth of the way from 0.4 to 0.5.
        assert!((top_entropy(&five, 0.2).unwrap() - 0.42).abs() < 1e-6);
        assert_eq!(top_entropy(&[2.0], 0.01), Some(2.0));
        assert_eq!(top_entropy(&[], 0.5), None);
    }
}
