//! What is taken off each completion's reward: for its length, and for its distance to the reference.

use super::reference::Reference;
use crate::algo::advantage::{ByGroup, overlong_penalty};
use crate::config::loss::KlPlace;
use crate::config::stages::GrpoConfig;
use crate::error::Result;
use crate::observe::Metrics;
use crate::types::Group;

/// By group; empty without penalties. Metrics: rewards/overlong/mean, kl.
pub fn penalties(
    config: &GrpoConfig,
    groups: &[Group],
    reference: Option<&Reference>,
    metrics: &mut Metrics,
) -> Result<ByGroup<f64>> {
    let mut penalties = Vec::new();
    if config.overlong_buffer_tokens > 0 {
        penalties = overlong(config, groups);
        let count = penalties.iter().map(Vec::len).sum::<usize>().max(1) as f64;
        metrics.insert("rewards/overlong/mean", -penalties.iter().flatten().sum::<f64>() / count);
    }
    if let (Some(reference), KlPlace::Reward) = (reference, config.kl_in()) {
        let distances = reference.distances(groups, config.kl_estimator(), config.sampling.temperature)?;
        let tokens: usize = groups.iter().map(Group::completion_tokens).sum();
        metrics.insert("kl", distances.iter().flatten().sum::<f64>() / tokens.max(1) as f64);
        add(&mut penalties, distances, config.kl_coef);
    }
    Ok(penalties)
}

fn overlong(config: &GrpoConfig, groups: &[Group]) -> ByGroup<f64> {
    let (budget, buffer) = (config.max_completion_tokens, config.overlong_buffer_tokens);
    let penalty = config.overlong_penalty.unwrap_or(1.0);
    let of = |length| overlong_penalty(length, budget, buffer, penalty);
    groups.iter().map(|g| g.rollouts.iter().map(|r| of(r.token_ids.len())).collect()).collect()
}

/// Adds `coef * more`; no penalties so far are zeros.
fn add(penalties: &mut ByGroup<f64>, more: ByGroup<f64>, coef: f64) {
    penalties.resize_with(more.len(), Vec::new);
    for (penalties, more) in penalties.iter_mut().zip(more) {
        penalties.resize(more.len(), 0.0);
        penalties.iter_mut().zip(more).for_each(|(p, m)| *p += coef * m);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{FinishReason, Prompt, Rollout};

    fn group(lengths: &[usize]) -> Group {
        let rollout = |length: &usize| Rollout {
            token_ids: vec![7; *length],
            logprobs: vec![-1.0; *length],
            finish: FinishReason::Stop,
        };
        Group { prompt: Prompt { token_ids: vec![1] }, rollouts: lengths.iter().map(rollout).collect() }
    }

    fn config() -> GrpoConfig {
        GrpoConfig {
            max_completion_tokens: 20,
            overlong_buffer_tokens: 4,
            overlong_penalty: Some(0.5),
            ..GrpoConfig::default()
        }
    }

    /// A group that dynamic sampling has dropped is empty, has no penalties and counts in no mean.
    #[test]
    fn lengths_cost_what_the_buffer_says() {
        let groups = [group(&[16, 17, 20]), group(&[]), group(&[18, 1])];
        let mut metrics = Metrics::default();
        let got = penalties(&config(), &groups, None, &mut metrics).unwrap();
        assert_eq!(got, [vec![0.0, 0.125, 0.5], vec![], vec![0.25, 0.0]]);
        // 0.875 over five completions.
        assert_eq!(metrics.get("rewards/overlong/mean"), Some(-0.175));
        let none = penalties(&GrpoConfig::default(), &groups, None, &mut Metrics::default()).unwrap();
        assert!(none.is_empty());
    }

    #[test]
    fn a_distance_comes_on_top_of_a_length() {
        let distances = || vec![vec![2.0, 0.0], vec![], vec![-1.0]];
        let mut alone = Vec::new();
        add(&mut alone, distances(), 0.1);
        assert_eq!(alone, [vec![0.2, 0.0], vec![], vec![-0.1]]);
        let mut both = vec![vec![0.5, 0.25], vec![], vec![1.0]];
        add(&mut both, distances(), 0.1);
        assert_eq!(both, [vec![0.7, 0.25], vec![], vec![0.9]]);
    }
}
