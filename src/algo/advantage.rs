//! Rewards become advantages: each completion against the others of its group.

use crate::config::stages::ScaleRewards;

/// Advantages `(r - mean) / (std + eps)` of all groups of a step; `mean` is the group's, `std` the group's, the
/// step's or absent, as `scale` says. A group whose rewards are all equal gets exact zeros.
///
/// `std` is the population standard deviation. TRL and verl take the sample's, which makes every advantage
/// smaller by the one factor `sqrt((G - 1) / G)`; Adam is indifferent to such a factor.
///
/// Paper: DeepSeekMath, arXiv:2402.03300, section 4.1.2; without `std`: Dr. GRPO, arXiv:2503.20783.
pub fn advantages(groups: &[&[f32]], scale: ScaleRewards, eps: f64) -> Vec<Vec<f32>> {
    let step_std = match scale {
        ScaleRewards::Batch => moments(groups.iter().copied().flatten()).1,
        ScaleRewards::Group | ScaleRewards::None => 0.0,
    };
    let of_group = |rewards: &&[f32]| -> Vec<f32> {
        if all_equal(rewards) {
            return vec![0.0; rewards.len()];
        }
        let (mean, std) = moments(rewards.iter());
        let divisor = match scale {
            ScaleRewards::Group => std + eps,
            ScaleRewards::Batch => step_std + eps,
            ScaleRewards::None => 1.0,
        };
        rewards.iter().map(|r| ((f64::from(*r) - mean) / divisor) as f32).collect()
    };
    groups.iter().map(of_group).collect()
}

/// What a step's rewards say about how much there is to learn from them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RewardSummary {
    pub groups: usize,
    /// Mean over completions.
    pub mean: f64,
    /// Mean over groups of the standard deviation within.
    pub std: f64,
    /// Groups in which every completion got the best reward there is: nothing left to learn.
    pub all_right: usize,
    /// Groups in which every completion got the same lesser reward: too hard, and no gradient either.
    pub all_wrong: usize,
}

impl RewardSummary {
    /// `max_reward`: the best reward that the task gives.
    pub fn new(groups: &[&[f32]], max_reward: f32) -> Self {
        let count = groups.len().max(1) as f64;
        let mut summary = Self { groups: groups.len(), ..Self::default() };
        summary.mean = moments(groups.iter().copied().flatten()).0;
        for rewards in groups {
            match rewards.first() {
                Some(first) if all_equal(rewards) && *first >= max_reward => summary.all_right += 1,
                Some(_) if all_equal(rewards) => summary.all_wrong += 1,
                _ => summary.std += moments(rewards.iter()).1 / count,
            }
        }
        summary
    }

    /// By metric name; the three counts as shares of the groups.
    pub fn metrics(&self) -> [(&'static str, f64); 5] {
        let share = |count: usize| count as f64 / self.groups.max(1) as f64;
        [
            ("reward", self.mean),
            ("reward_std", self.std),
            ("frac_reward_zero_std", share(self.all_right + self.all_wrong)),
            ("zero_std/all_right", share(self.all_right)),
            ("zero_std/all_wrong", share(self.all_wrong)),
        ]
    }
}

fn all_equal(rewards: &[f32]) -> bool {
    rewards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean and population standard deviation; zeros of nothing.
fn moments<'a>(rewards: impl Iterator<Item = &'a f32> + Clone) -> (f64, f64) {
    let count = rewards.clone().count().max(1) as f64;
    let mean = rewards.clone().map(|r| f64::from(*r)).sum::<f64>() / count;
    let variance = rewards.map(|r| (f64::from(*r) - mean).powi(2)).sum::<f64>() / count;
    (mean, variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} is not {want:?}");
    }

    #[test]
    fn one_success_in_four() {
        // mean 1/4, std sqrt(3)/4: the success gets sqrt(3), each failure -1/sqrt(3).
        let got = advantages(&[&[1.0, 0.0, 0.0, 0.0]], ScaleRewards::Group, 0.0);
        close(&got[0], &[1.732_050_8, -0.577_350_3, -0.577_350_3, -0.577_350_3]);
    }

    #[test]
    fn eps_is_added_to_the_standard_deviation() {
        let got = advantages(&[&[1.0, 0.0]], ScaleRewards::Group, 0.5);
        close(&got[0], &[0.5, -0.5]);
    }

    #[test]
    fn the_whole_steps_standard_deviation_divides() {
        // Rewards 1 0 1 1: mean 3/4, std sqrt(3)/4; the first group's mean is 1/2.
        let got = advantages(&[&[1.0, 0.0], &[1.0, 1.0]], ScaleRewards::Batch, 0.0);
        close(&got[0], &[1.154_700_5, -1.154_700_5]);
        assert_eq!(got[1], [0.0, 0.0]);
    }

    #[test]
    fn unscaled_advantages_are_distances_from_the_mean() {
        close(&advantages(&[&[3.0, 0.0, 0.0]], ScaleRewards::None, 1e-6)[0], &[2.0, -1.0, -1.0]);
    }

    #[test]
    fn equal_rewards_teach_exactly_nothing() {
        // 0.1 is no binary fraction: without care the mean is off by a rounding and eps = 0 divides by it.
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            assert_eq!(advantages(&[&[0.1; 3]], scale, 0.0), [[0.0; 3]]);
        }
    }

    #[test]
    fn dead_groups_are_counted_by_cause() {
        let groups: [&[f32]; 4] = [&[1.0, 1.0], &[0.0, 0.0], &[0.5, 0.5], &[1.0, 0.0]];
        let summary = RewardSummary::new(&groups, 1.0);
        assert_eq!((summary.groups, summary.all_right, summary.all_wrong), (4, 1, 2));
        let want = [0.5, 0.125, 0.75, 0.25, 0.5];
        for ((name, got), want) in summary.metrics().into_iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{name}: {got} is not {want}");
        }
        assert_eq!(RewardSummary::new(&[], 1.0).mean, 0.0);
    }
}
