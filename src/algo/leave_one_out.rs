//! Leave-one-out: each completion against the mean of the others, an unbiased baseline (RLOO, arXiv:2402.14740).

/// Turns advantages over the mean of their group of G into such over the mean of the other G - 1: both differ by the
/// factor `G / (G - 1)`, because `r - (S - r) / (G - 1) = (r - S / G) G / (G - 1)`. The standard deviation that may
/// divide them stays the whole group's.
pub fn leave_one_out(advantages: &mut [Vec<f32>]) {
    for group in advantages.iter_mut().filter(|group| group.len() > 1) {
        let factor = group.len() as f32 / (group.len() - 1) as f32;
        group.iter_mut().for_each(|advantage| *advantage *= factor);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algo::advantage::advantages;
    use crate::config::stages::ScaleRewards;

    #[test]
    fn each_against_the_mean_of_the_others() {
        let rewards = [1.0f32, 0.3, -0.2, 0.0];
        let mut got = advantages(&[&rewards, &[0.5; 3]], ScaleRewards::None, 0.0);
        leave_one_out(&mut got);
        for (i, advantage) in got[0].iter().enumerate() {
            let others: f32 = (0..4).filter(|j| *j != i).map(|j| rewards[j]).sum();
            assert!((advantage - (rewards[i] - others / 3.0)).abs() < 1e-6, "{i}");
        }
        assert_eq!(got[1], [0.0; 3]);
    }
}
