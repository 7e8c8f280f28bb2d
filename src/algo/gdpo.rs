//! GDPO: several rewards, each normalised within its group before they are added up.

use super::advantage::advantages;
use crate::config::stages::ScaleRewards;

/// One named reward of every completion of a step.
#[derive(Clone, Debug)]
pub struct RewardColumn {
    pub weight: f64,
    /// By group.
    pub rewards: Vec<Vec<f32>>,
}

/// `sum_k w_k (r_k - mean_k) / (std_k + eps)` with the group's mean and standard deviation, divided by its standard
/// deviation over the whole step plus eps. Its mean over the step is 0 by itself. A group in which every reward is
/// constant gets exact zeros; standard deviations are the population's.
///
/// Paper: GDPO, arXiv:2601.05242, equations 4 to 6.
pub fn normalize_then_sum(columns: &[RewardColumn], eps: f64) -> Vec<Vec<f32>> {
    let mut sums: Vec<Vec<f64>> = Vec::new();
    for column in columns {
        let groups: Vec<&[f32]> = column.rewards.iter().map(Vec::as_slice).collect();
        let normalized = advantages(&groups, ScaleRewards::Group, eps);
        sums.resize_with(normalized.len(), Vec::new);
        for (sum, group) in sums.iter_mut().zip(normalized) {
            sum.resize(group.len(), 0.0);
            sum.iter_mut().zip(group).for_each(|(s, a)| *s += column.weight * f64::from(a));
        }
    }
    let count = sums.iter().map(Vec::len).sum::<usize>().max(1) as f64;
    let std = (sums.iter().flatten().map(|s| s * s).sum::<f64>() / count).sqrt();
    let divisor = if std + eps > 0.0 { std + eps } else { 1.0 };
    sums.into_iter().map(|group| group.into_iter().map(|s| (s / divisor) as f32).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reward_of_small_spread_keeps_its_say() {
        // Group 1: the first reward tells the completions apart, the second does too, on a hundredth of the scale.
        let column =
            |weight, rewards: [[f32; 2]; 2]| RewardColumn { weight, rewards: rewards.map(Vec::from).into() };
        let columns = [column(1.0, [[1.0, 0.0], [1.0, 1.0]]), column(0.5, [[0.0, 0.01], [0.02, 0.03]])];
        // Normalised: (1, -1) + 0.5 (-1, 1) = (0.5, -0.5) and 0.5 (-1, 1); all are 0.5 in size, and so is the std.
        let got = normalize_then_sum(&columns, 0.0);
        for (got, want) in got.concat().iter().zip([1.0, -1.0, -1.0, 1.0]) {
            assert!((got - want).abs() < 1e-5, "{got} is not {want}");
        }
        let dead = normalize_then_sum(&[column(1.0, [[0.1, 0.1], [0.3, 0.3]])], 0.0);
        assert_eq!(dead, [[0.0; 2]; 2]);
    }
}
