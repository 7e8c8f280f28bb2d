//! What a step's rewards say about how much there is to learn from them.

use super::advantage::{ByGroup, all_equal, moments};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RewardSummary {
    pub groups: usize,
    /// Mean over completions.
    pub mean: f64,
    /// Mean over groups of the standard deviation within.
    pub std: f64,
    /// Dead groups in which every completion got the best reward there is: nothing left to learn.
    pub all_right: usize,
    /// The other dead groups: too hard, and no gradient either.
    pub all_wrong: usize,
}

impl RewardSummary {
    /// `total`: the task's reward of every completion; `live`: of each group, as the advantages' rule has it;
    /// `max_reward`: the best reward that the task gives.
    pub fn new(total: &ByGroup<f32>, live: &[bool], max_reward: f32) -> Self {
        let count = total.len().max(1) as f64;
        let mut summary = Self { groups: total.len(), ..Self::default() };
        summary.mean = moments(total.iter().flatten()).0;
        for (rewards, live) in total.iter().zip(live) {
            if !all_equal(rewards) {
                summary.std += moments(rewards.iter()).1 / count;
            }
            match rewards.iter().all(|r| *r >= max_reward) {
                _ if *live => {}
                true => summary.all_right += 1,
                false => summary.all_wrong += 1,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dead_groups_are_counted_by_cause() {
        let groups = [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [1.0, 0.0]].map(Vec::from).into();
        let summary = RewardSummary::new(&groups, &[false, false, false, true], 1.0);
        assert_eq!((summary.groups, summary.all_right, summary.all_wrong), (4, 1, 2));
        let want = [0.5, 0.125, 0.75, 0.25, 0.5];
        for ((name, got), want) in summary.metrics().into_iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{name}: {got} is not {want}");
        }
        assert_eq!(RewardSummary::new(&Vec::new(), &[], 1.0).mean, 0.0);
    }

    /// Its rewards tie and it is live: rewards that are normalised one by one tell its completions apart.
    #[test]
    fn a_live_group_whose_sums_tie_is_not_counted_as_dead() {
        let summary = RewardSummary::new(&vec![vec![1.0, 1.0]], &[true], 1.0);
        assert_eq!((summary.std, summary.all_right, summary.all_wrong), (0.0, 0, 0));
    }
}
