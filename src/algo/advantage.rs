//! Rewards become advantages: each completion against the others of its group.

use crate::config::stages::{Baseline, CombineRewards, GrpoConfig, ScaleRewards, ScaleStd};

/// `[groups][G]`
pub type ByGroup<T> = Vec<Vec<T>>;

/// Every reward of the completions of a step.
#[derive(Clone, Debug, Default)]
pub struct Rewards {
    /// The task's reward, its parts' weighted sum.
    pub total: ByGroup<f32>,
    /// The task's named rewards, in its order.
    pub parts: Vec<RewardPart>,
}

/// One named reward of every completion of a step.
#[derive(Clone, Debug)]
pub struct RewardPart {
    pub weight: f64,
    pub rewards: ByGroup<f32>,
}

/// How rewards become advantages; the keys of `[grpo]` with these names.
#[derive(Clone, Copy, Debug)]
pub struct AdvantageRule {
    pub combine_rewards: CombineRewards,
    pub scale_rewards: ScaleRewards,
    pub scale_std: ScaleStd,
    pub baseline: Baseline,
    /// Added to the standard deviations that divide.
    pub eps: f64,
}

impl From<&GrpoConfig> for AdvantageRule {
    fn from(config: &GrpoConfig) -> Self {
        Self {
            combine_rewards: config.combine_rewards,
            scale_rewards: config.scale_rewards,
            scale_std: config.scale_std,
            baseline: config.baseline,
            eps: config.advantage_eps,
        }
    }
}

impl AdvantageRule {
    /// Whether each group is live: its rewards, combined as this rule combines them, tell its completions apart.
    /// Penalties do not count: nobody samples more prompts for the lengths of their answers.
    pub fn live(&self, rewards: &Rewards) -> Vec<bool> {
        match self.combine_rewards {
            CombineRewards::Sum => rewards.total.iter().map(|group| !all_equal(group)).collect(),
            CombineRewards::NormalizeThenSum => {
                let sums = sum_of_normalized(&rewards.parts, self.scale_std, self.eps);
                sums.iter().map(|group| group.iter().any(|s| *s != 0.0)).collect()
            }
        }
    }

    /// The groups that a step learns from: the live ones, and dead ones only as far as live ones are missing from
    /// `wanted`.
    pub fn kept(&self, rewards: &Rewards, wanted: usize) -> Vec<bool> {
        let mut kept = self.live(rewards);
        let mut missing = wanted.saturating_sub(kept.iter().filter(|kept| **kept).count());
        for kept in kept.iter_mut().filter(|kept| !**kept) {
            *kept = missing > 0;
            missing = missing.saturating_sub(1);
        }
        kept
    }

    /// Advantages of the groups that are `kept`, and none for the others. `penalties` are taken off the total, or off
    /// the first of several rewards that are normalised one by one, which is the task's main one; empty: none.
    pub fn advantages(&self, rewards: &Rewards, penalties: &ByGroup<f64>, kept: &[bool]) -> ByGroup<f32> {
        let kept_of = |all: &ByGroup<f32>, penalties: &ByGroup<f64>| -> ByGroup<f32> {
            let groups = all.iter().enumerate().filter(|(g, _)| kept[*g]);
            groups.map(|(g, group)| penalised(group, penalties.get(g).map_or(&[], Vec::as_slice))).collect()
        };
        let none = Vec::new();
        let mut all = match self.combine_rewards {
            CombineRewards::Sum => {
                centered(&kept_of(&rewards.total, penalties), self.scale_rewards, self.scale_std, self.eps)
            }
            CombineRewards::NormalizeThenSum => {
                let part = |(k, part): (usize, &RewardPart)| {
                    let penalties = if k == 0 { penalties } else { &none };
                    RewardPart { weight: part.weight, rewards: kept_of(&part.rewards, penalties) }
                };
                let parts: Vec<RewardPart> = rewards.parts.iter().enumerate().map(part).collect();
                normalized_then_summed(&parts, self.scale_std, self.eps)
            }
        };
        if self.baseline == Baseline::LeaveOneOut {
            leave_one_out(&mut all);
        }
        let mut all = all.into_iter();
        kept.iter().map(|kept| if *kept { all.next().unwrap_or_default() } else { Vec::new() }).collect()
    }
}

fn penalised(rewards: &[f32], penalties: &[f64]) -> Vec<f32> {
    match penalties {
        [] => rewards.to_vec(),
        _ => rewards.iter().zip(penalties).map(|(r, p)| (f64::from(*r) - p) as f32).collect(),
    }
}

/// Advantages `(r - mean) / (std + eps)` of all groups of a step; `mean` is the group's, `std` the group's, the
/// step's or absent, as `scale` says. A group whose rewards are all equal gets exact zeros.
///
/// The sample's deviation is TRL's and verl's. The population's makes every advantage of a group of G larger by
/// `sqrt(G / (G - 1))`: Adam alone is indifferent to such a factor, a KL or entropy term beside it is not.
///
/// Paper: DeepSeekMath, arXiv:2402.03300, section 4.1.2; without `std`: Dr. GRPO, arXiv:2503.20783.
pub fn centered<G: AsRef<[f32]>>(
    groups: &[G],
    scale: ScaleRewards,
    kind: ScaleStd,
    eps: f64,
) -> ByGroup<f32> {
    let step_std = match scale {
        ScaleRewards::Batch => moments(groups.iter().flat_map(AsRef::as_ref), kind).1,
        ScaleRewards::Group | ScaleRewards::None => 0.0,
    };
    let of_group = |rewards: &G| -> Vec<f32> {
        let rewards = rewards.as_ref();
        if all_equal(rewards) {
            return vec![0.0; rewards.len()];
        }
        let (mean, std) = moments(rewards.iter(), kind);
        let divisor = match scale {
            ScaleRewards::Group => std + eps,
            ScaleRewards::Batch => step_std + eps,
            ScaleRewards::None => 1.0,
        };
        rewards.iter().map(|r| ((f64::from(*r) - mean) / divisor) as f32).collect()
    };
    groups.iter().map(of_group).collect()
}

/// Leave-one-out, an unbiased baseline (RLOO, arXiv:2402.14740). Turns advantages over the mean of their group of G
/// into such over the mean of the other G - 1: both differ by the factor `G / (G - 1)`, because
/// `r - (S - r) / (G - 1) = (r - S / G) G / (G - 1)`. The standard deviation that may divide them stays the whole
/// group's.
pub fn leave_one_out(advantages: &mut ByGroup<f32>) {
    for group in advantages.iter_mut().filter(|group| group.len() > 1) {
        let factor = group.len() as f32 / (group.len() - 1) as f32;
        group.iter_mut().for_each(|advantage| *advantage *= factor);
    }
}

/// GDPO: `sum_k w_k (r_k - mean_k) / (std_k + eps)` with the group's mean and standard deviation, divided by its
/// standard deviation over the whole step plus eps. Its mean over the step is 0 by itself. A dead group gets exact zeros.
///
/// Paper: GDPO, arXiv:2601.05242, equations 4 to 6.
pub fn normalized_then_summed(parts: &[RewardPart], kind: ScaleStd, eps: f64) -> ByGroup<f32> {
    let sums = sum_of_normalized(parts, kind, eps);
    let count = sums.iter().map(Vec::len).sum::<usize>();
    let variance = sums.iter().flatten().map(|s| s * s).sum::<f64>() / degrees(count, kind);
    let divisor = variance.sqrt() + eps;
    let divisor = if divisor > 0.0 { divisor } else { 1.0 };
    sums.into_iter().map(|group| group.into_iter().map(|s| (s / divisor) as f32).collect()).collect()
}

/// Below this share of the weights a sum of normalised rewards is the rounding of f32, and its rewards cancel out.
const CANCELLED: f64 = 1e-6;

/// `sum_k w_k (r_k - mean_k) / (std_k + eps)`, exact zeros where the completions of a group are all alike in it.
fn sum_of_normalized(parts: &[RewardPart], kind: ScaleStd, eps: f64) -> ByGroup<f64> {
    let mut sums: ByGroup<f64> = Vec::new();
    for part in parts {
        let normalized = centered(&part.rewards, ScaleRewards::Group, kind, eps);
        sums.resize_with(normalized.len(), Vec::new);
        for (sum, group) in sums.iter_mut().zip(normalized) {
            sum.resize(group.len(), 0.0);
            sum.iter_mut().zip(group).for_each(|(s, a)| *s += part.weight * f64::from(a));
        }
    }
    let weights: f64 = parts.iter().map(|part| part.weight.abs()).sum();
    for group in &mut sums {
        if group.iter().all(|s| s.abs() <= CANCELLED * weights) {
            group.fill(0.0);
        }
    }
    sums
}

/// DAPO's soft overlong punishment: what a completion of `length` tokens loses. Nothing up to `budget - buffer` tokens,
/// then linearly more, `penalty` at the whole budget. arXiv:2503.14476, equation 13.
pub fn overlong_penalty(length: usize, budget: usize, buffer: usize, penalty: f64) -> f64 {
    let over = (length + buffer).saturating_sub(budget);
    if buffer == 0 { 0.0 } else { penalty * over.min(buffer) as f64 / buffer as f64 }
}

pub(super) fn all_equal(rewards: &[f32]) -> bool {
    rewards.windows(2).all(|pair| pair[0] == pair[1])
}

/// Mean and standard deviation; of nothing zeros, and of one reward no deviation.
pub fn moments<'a>(rewards: impl Iterator<Item = &'a f32> + Clone, kind: ScaleStd) -> (f64, f64) {
    let count = rewards.clone().count();
    let mean = rewards.clone().map(|r| f64::from(*r)).sum::<f64>() / count.max(1) as f64;
    let squares = rewards.map(|r| (f64::from(*r) - mean).powi(2)).sum::<f64>();
    (mean, (squares / degrees(count, kind)).sqrt())
}

/// What a sum of squares is divided by.
fn degrees(count: usize, kind: ScaleStd) -> f64 {
    match kind {
        ScaleStd::Sample => count.saturating_sub(1).max(1) as f64,
        ScaleStd::Population => count.max(1) as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::stages::ScaleStd::{Population, Sample};

    #[track_caller]
    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-6), "{got:?} is not {want:?}");
    }

    const PLAIN: AdvantageRule = AdvantageRule {
        combine_rewards: CombineRewards::Sum,
        scale_rewards: ScaleRewards::None,
        scale_std: Population,
        baseline: Baseline::Mean,
        eps: 0.0,
    };
    const GDPO: AdvantageRule = AdvantageRule { combine_rewards: CombineRewards::NormalizeThenSum, ..PLAIN };

    /// Two rewards of each completion, and their weighted sum.
    fn two<const N: usize, const G: usize>(weights: [f64; 2], parts: [[[f32; G]; N]; 2]) -> Rewards {
        let total = (0..N).map(|g| {
            (0..G).map(|i| (0..2).map(|k| weights[k] as f32 * parts[k][g][i]).sum::<f32>()).collect()
        });
        let part = |k: usize| RewardPart { weight: weights[k], rewards: parts[k].map(Vec::from).into() };
        Rewards { total: total.collect(), parts: vec![part(0), part(1)] }
    }

    fn one<const N: usize, const G: usize>(total: [[f32; G]; N]) -> Rewards {
        Rewards { total: total.map(Vec::from).into(), parts: Vec::new() }
    }

    #[test]
    fn one_success_in_four() {
        // mean 1/4, std sqrt(3)/4: the success gets sqrt(3), each failure -1/sqrt(3).
        let got = centered(&[&[1.0, 0.0, 0.0, 0.0]], ScaleRewards::Group, Population, 0.0);
        close(&got[0], &[1.732_050_8, -0.577_350_3, -0.577_350_3, -0.577_350_3]);
    }

    #[test]
    fn a_samples_deviation_is_larger_than_the_populations() {
        // Squares sum to 3/4, over 3 of a sample: std 1/2.
        let got = centered(&[&[1.0, 0.0, 0.0, 0.0]], ScaleRewards::Group, Sample, 0.0);
        close(&got[0], &[1.5, -0.5, -0.5, -0.5]);
        // Over the step: squares 3/4 over 3, and the first group's mean is 1/2.
        let got = centered(&[&[1.0, 0.0], &[1.0, 1.0]], ScaleRewards::Batch, Sample, 0.0);
        close(&got[0], &[1.0, -1.0]);
        // (1, -1)/sqrt(2) twice, whose squares sum to 2 over 3 of a sample.
        let got =
            normalized_then_summed(&two([1.0, 0.0], [[[1.0, 0.0]; 2], [[0.0; 2]; 2]]).parts, Sample, 0.0);
        close(&got.concat(), &[0.866_025_4, -0.866_025_4, 0.866_025_4, -0.866_025_4]);
    }

    #[test]
    fn eps_is_added_to_the_standard_deviation() {
        let got = centered(&[&[1.0, 0.0]], ScaleRewards::Group, Population, 0.5);
        close(&got[0], &[0.5, -0.5]);
    }

    #[test]
    fn the_whole_steps_standard_deviation_divides() {
        // Rewards 1 0 1 1: mean 3/4, std sqrt(3)/4; the first group's mean is 1/2.
        let got = centered(&[&[1.0, 0.0], &[1.0, 1.0]], ScaleRewards::Batch, Population, 0.0);
        close(&got[0], &[1.154_700_5, -1.154_700_5]);
        assert_eq!(got[1], [0.0, 0.0]);
    }

    #[test]
    fn unscaled_advantages_are_distances_from_the_mean() {
        close(&centered(&[&[3.0, 0.0, 0.0]], ScaleRewards::None, Population, 1e-6)[0], &[2.0, -1.0, -1.0]);
    }

    #[test]
    fn equal_rewards_teach_exactly_nothing() {
        // 0.1 is no binary fraction: without care the mean is off by a rounding and eps = 0 divides by it.
        for scale in [ScaleRewards::Group, ScaleRewards::Batch, ScaleRewards::None] {
            assert_eq!(centered(&[&[0.1; 3]], scale, Population, 0.0), [[0.0; 3]]);
        }
    }

    #[test]
    fn each_against_the_mean_of_the_others() {
        let rewards = [1.0f32, 0.3, -0.2, 0.0];
        let mut got = centered(&[&rewards[..], &[0.5; 3]], ScaleRewards::None, Population, 0.0);
        leave_one_out(&mut got);
        for (i, advantage) in got[0].iter().enumerate() {
            let others: f32 = (0..4).filter(|j| *j != i).map(|j| rewards[j]).sum();
            assert!((advantage - (rewards[i] - others / 3.0)).abs() < 1e-6, "{i}");
        }
        assert_eq!(got[1], [0.0; 3]);
    }

    #[test]
    fn a_reward_of_small_spread_keeps_its_say() {
        // Group 1: the first reward tells the completions apart, the second does too, on a hundredth of the scale.
        let parts = [[[1.0, 0.0], [1.0, 1.0]], [[0.0, 0.01], [0.02, 0.03]]];
        // Normalised: (1, -1) + 0.5 (-1, 1) = (0.5, -0.5) and 0.5 (-1, 1); all are 0.5 in size, and so is the std.
        let got = normalized_then_summed(&two([1.0, 0.5], parts).parts, Population, 0.0);
        close(&got.concat(), &[1.0, -1.0, -1.0, 1.0]);
        let dead =
            normalized_then_summed(&two([1.0, 1.0], [[[0.1, 0.1]], [[0.3, 0.3]]]).parts, Population, 0.0);
        assert_eq!(dead, [[0.0; 2]]);
    }

    #[test]
    fn the_penalty_grows_over_the_buffer() {
        let of = |length| overlong_penalty(length, 20, 4, 0.5);
        assert_eq!([0, 16, 17, 18, 20, 25].map(of), [0.0, 0.0, 0.125, 0.25, 0.5, 0.5]);
        assert_eq!(overlong_penalty(20, 20, 0, 1.0), 0.0);
    }

    /// Group 0: sums tie, (1 + 0, 0 + 1), and with weights (1, 1/2) on rewards (1, 0) and (0, 2) the normalised sums do
    /// not: (1, -1) + (-1, 1) / 2. Group 1: both tie. Group 2: sums differ, normalised ones cancel.
    #[test]
    fn a_group_is_live_by_the_rule_that_makes_its_advantages() {
        let rewards =
            two([1.0, 0.5], [[[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]], [[0.0, 2.0], [3.0, 3.0], [1.0, 0.0]]]);
        assert_eq!(PLAIN.live(&rewards), [false, false, true]);
        assert_eq!(GDPO.live(&rewards), [true, false, true]);
        // Dynamic sampling keeps the one that has an advantage, and drops it where it has none.
        assert_eq!(GDPO.kept(&rewards, 2), [true, false, true]);
        assert_eq!(PLAIN.kept(&rewards, 1), [false, false, true]);
        let cancelling = two([1.0, 1.0], [[[1.0, 0.0, 0.0]], [[0.0, 0.3, 0.3]]]);
        assert_eq!((PLAIN.live(&cancelling), GDPO.live(&cancelling)), (vec![true], vec![false]));
        // What is live has an advantage, and what has one is live.
        for (rule, rewards) in
            [(PLAIN, &rewards), (GDPO, &rewards), (PLAIN, &cancelling), (GDPO, &cancelling)]
        {
            let live = rule.live(rewards);
            let advantages = rule.advantages(rewards, &Vec::new(), &vec![true; live.len()]);
            let told_apart: Vec<bool> = advantages.iter().map(|a| a.iter().any(|a| *a != 0.0)).collect();
            assert_eq!(told_apart, live, "{rule:?}");
        }
    }

    #[test]
    fn dead_groups_are_kept_only_where_live_ones_are_missing() {
        let rewards = one([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 1.0]]);
        assert_eq!(PLAIN.kept(&rewards, 2), [false, true, false, true]);
        assert_eq!(PLAIN.kept(&rewards, 3), [true, true, false, true]);
        assert_eq!(PLAIN.kept(&rewards, 9), [true; 4]);
        // More live ones than were asked for all stay.
        assert_eq!(PLAIN.kept(&rewards, 1), [false, true, false, true]);
    }

    #[test]
    fn what_is_not_kept_has_no_advantages_and_no_part_in_the_steps_deviation() {
        let rewards = one([[1.0, 0.0], [9.0, 0.0]]);
        let rule = AdvantageRule { scale_rewards: ScaleRewards::Batch, ..PLAIN };
        // Of 1 and 0 the deviation is 1/2.
        assert_eq!(rule.advantages(&rewards, &Vec::new(), &[true, false]), [vec![1.0, -1.0], vec![]]);
    }

    #[test]
    fn a_penalty_comes_off_before_the_mean() {
        // 1 - 0.5, 0, 0.5 - 0 : mean 1/3.
        let got = PLAIN.advantages(&one([[1.0, 0.0, 0.5]]), &vec![vec![0.5, 0.0, 0.0]], &[true]);
        close(&got[0], &[1.0 / 6.0, -1.0 / 3.0, 1.0 / 6.0]);
        // A dead group is told apart by its penalties once it is kept, and is no live one for that.
        let dead = one([[1.0, 1.0]]);
        assert_eq!(PLAIN.live(&dead), [false]);
        assert_eq!(PLAIN.advantages(&dead, &vec![vec![0.0, 0.5]], &[true]), [[0.25, -0.25]]);
    }

    /// The main reward (1, 0, 0) less (1, 0, 0) is flat, so the second alone speaks: (0, 0, 1) has mean 1/3 and deviation
    /// sqrt(2)/3, which give (-1, -1, 2) / sqrt(2); over one group the step's deviation is 1.
    #[test]
    fn under_gdpo_a_penalty_belongs_to_the_main_reward() {
        let rewards = two([1.0, 3.0], [[[1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0]]]);
        let got = GDPO.advantages(&rewards, &vec![vec![1.0, 0.0, 0.0]], &[true]);
        let root = std::f32::consts::FRAC_1_SQRT_2;
        close(&got[0], &[-root, -root, 2.0 * root]);
    }
}
