//! What a step's rewards say about how much there is to learn from them.

use super::advantage::{AdvantageRule, Rewards, moments};
use crate::config::stages::{CombineRewards, ScaleRewards, ScaleStd};

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RewardSummary {
    pub groups: usize,
    /// Mean over completions.
    pub mean: f64,
    /// Sample standard deviation over completions, as TRL has it.
    pub std: f64,
    /// TRL's share: of completions whose deviation that would divide is 0. Where the whole step's divides it is 0 or 1.
    pub zero_std: f64,
    /// Dead groups in which every completion got the best reward there is: nothing left to learn.
    pub all_right: usize,
    /// The other dead groups: too hard, and no gradient either.
    pub all_wrong: usize,
}

impl RewardSummary {
    /// `max_reward`: the best reward that the task gives.
    pub fn new(rewards: &Rewards, rule: &AdvantageRule, max_reward: f32) -> Self {
        let (total, live) = (&rewards.total, rule.live(rewards));
        let mut summary = Self { groups: total.len(), ..Self::default() };
        (summary.mean, summary.std) = moments(total.iter().flatten(), ScaleStd::Sample);
        for (rewards, live) in total.iter().zip(&live) {
            match rewards.iter().all(|r| *r >= max_reward) {
                _ if *live => {}
                true => summary.all_right += 1,
                false => summary.all_wrong += 1,
            }
        }
        summary.zero_std = match (rule.combine_rewards, rule.scale_rewards) {
            (CombineRewards::Sum, ScaleRewards::Batch) => f64::from(u8::from(summary.std == 0.0)),
            (CombineRewards::NormalizeThenSum, _) => f64::from(u8::from(!live.contains(&true))),
            _ => summary.share(summary.all_right + summary.all_wrong),
        };
        summary
    }

    fn share(&self, count: usize) -> f64 {
        count as f64 / self.groups.max(1) as f64
    }

    /// By metric name; the counts as shares of the groups.
    pub fn metrics(&self) -> [(&'static str, f64); 5] {
        [
            ("reward", self.mean),
            ("reward_std", self.std),
            ("frac_reward_zero_std", self.zero_std),
            ("zero_std/all_right", self.share(self.all_right)),
            ("zero_std/all_wrong", self.share(self.all_wrong)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algo::advantage::{ByGroup, RewardPart};
    use crate::config::stages::GrpoConfig;

    fn summary(config: &GrpoConfig, total: ByGroup<f32>, parts: Vec<RewardPart>) -> RewardSummary {
        RewardSummary::new(&Rewards { total, parts }, &AdvantageRule::from(config), 1.0)
    }

    #[test]
    fn dead_groups_are_counted_by_cause() {
        let groups = || [[1.0, 1.0], [0.0, 0.0], [0.5, 0.5], [1.0, 0.0]].map(Vec::from).into();
        let by_group = summary(&GrpoConfig::default(), groups(), Vec::new());
        assert_eq!((by_group.groups, by_group.all_right, by_group.all_wrong), (4, 1, 2));
        // Squares about 1/2 sum to 6/4, over 7.
        let want = [0.5, (1.5f64 / 7.0).sqrt(), 0.75, 0.25, 0.5];
        for ((name, got), want) in by_group.metrics().into_iter().zip(want) {
            assert!((got - want).abs() < 1e-12, "{name}: {got} is not {want}");
        }
        // What divides is the step's deviation: it is not 0.
        let batch = GrpoConfig { scale_rewards: ScaleRewards::Batch, ..GrpoConfig::default() };
        let by_step = summary(&batch, groups(), Vec::new());
        assert_eq!((by_step.zero_std, by_step.all_right, by_step.all_wrong), (0.0, 1, 2));
        assert_eq!(summary(&batch, vec![vec![0.1; 2]; 3], Vec::new()).zero_std, 1.0);
        assert_eq!(summary(&batch, Vec::new(), Vec::new()).mean, 0.0);
    }

    /// Its rewards tie and it is live: rewards that are normalised one by one tell its completions apart.
    #[test]
    fn a_live_group_whose_sums_tie_is_not_counted_as_dead() {
        let gdpo = GrpoConfig { combine_rewards: CombineRewards::NormalizeThenSum, ..GrpoConfig::default() };
        let part = |weight, rewards: [f32; 2]| RewardPart { weight, rewards: vec![rewards.into()] };
        let parts = vec![part(1.0, [1.0, 0.0]), part(0.5, [0.0, 2.0])];
        let summary = summary(&gdpo, vec![vec![1.0, 1.0]], parts);
        assert_eq!((summary.std, summary.zero_std, summary.all_right, summary.all_wrong), (0.0, 0.0, 0, 0));
    }
}
