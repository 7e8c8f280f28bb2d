//! One GRPO step: roll out -> judge -> advantage -> learn. DeepSeekMath, arXiv:2402.03300, algorithm 1.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Instant;

use super::dump::{self, Trace};
use super::learner::Learner;
use super::objective::{At, Objective, Surroundings};
use super::penalties::penalties;
use super::policy::Policy;
use super::prompts::Prompts;
use super::reference::Reference;
use super::rolled::{Rolled, Round, Scored};
use super::watch::Watch;
use crate::algo::advantage::AdvantageRule;
use crate::algo::entropy::EntropyControl;
use crate::algo::loss::KlPenalty;
use crate::config::loss::KlPlace;
use crate::config::optim::OptimConfig;
use crate::config::stages::GrpoConfig;
use crate::data::difficulty::Difficulty;
use crate::data::jsonl::EncodedRow;
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::forward::Distribution;
use crate::observe::{Event, Metrics, PromptRecord, SampleKind, SampleRecord, Sinks};
use crate::ops::sampling::Sampling;
use crate::reward::Judges;
use crate::rng::Purpose;
use crate::rollout::engine::{Completions, Draws, Engine, Request};
use crate::stop;
use crate::types::ScoredGroup;

pub struct Grpo<'a> {
    around: Surroundings<'a>,
    config: &'a GrpoConfig,
    prompts: Prompts,
    /// `None` without a KL penalty.
    reference: Option<Reference<'a>>,
    /// `None` where nobody is asked what a completion earns.
    judges: Option<Judges>,
    watch: Watch,
    /// Of a coefficient that adapts.
    entropy: Option<EntropyControl>,
    /// Lines whose prompts were told.
    told: BTreeSet<usize>,
}

/// One step in so many does not reuse what its rollout computed, so that the sampler's log-probs are held against a
/// packed pass and not against themselves.
const STEPS_BETWEEN_CHECKS: u64 = 50;

impl<'a> Grpo<'a> {
    /// `difficulty`: what a checkpoint kept of it.
    pub fn new(
        around: Surroundings<'a>,
        policy: &Decoder,
        difficulty: Option<Difficulty>,
        sinks: &mut Sinks,
    ) -> Result<Self> {
        let config = &around.config.grpo;
        let reference = match config.kl_coef {
            0.0 => None,
            _ => Some(Reference::open(around, policy, config.reference_sync_steps, sinks)?),
        };
        let prompts = Prompts::new(&around, difficulty)?;
        let judges = Judges::open(&around.materials.task)?;
        let (watch, told) = (Watch::default(), BTreeSet::new());
        let entropy = around.entropy.unwrap_or(EntropyControl::new(config.entropy_coef));
        let entropy = config.adaptive_entropy.map(|_| entropy);
        Ok(Self { around, config, prompts, reference, judges, watch, entropy, told })
    }
}

impl Objective for Grpo<'_> {
    fn step(&mut self, learner: &mut Learner, at: At, sinks: &mut Sinks) -> Result<Metrics> {
        let config = self.config;
        let rule = AdvantageRule::from(config);

        // y_1 .. y_G ~ pi_old(. | x) for each prompt x, and their rewards R_1 .. R_G.
        let mut rolled = self.roll_out(learner.decoder(), at.step, &rule)?;
        let tried = rolled.take_tried();
        for text in std::mem::take(&mut rolled.warnings) {
            sinks.warn(format!("grpo step {}: {text}", at.step + 1));
        }
        let missing = rolled.missing(&rule, config.prompts_per_step);
        let mut metrics = rolled.metrics(&rule, (config.max_resamples > 0).then_some(missing));

        // A_i = (R_i - mean R) / (std R + eps), or what the rule says in its place.
        let kept = rule.kept(&rolled.rewards, config.prompts_per_step);
        rolled.drop_others(&kept);
        let penalties = penalties(config, &rolled.groups, self.reference.as_ref(), &mut metrics)?;
        let advantages = rule.advantages(&rolled.rewards, &penalties, &kept);
        metrics.extend(rolled.timing_metrics());

        let Scored { groups, mut tapes, samples, mine } = rolled.scored(advantages, config.truncated);

        // On each rollout mu times, part by part: theta <- AdamW(theta, gradient of the loss of r_t A_i, its clip and the KL).
        let start = Instant::now();
        let mut old_logps = Vec::new();
        let mut traces = Vec::new();
        let (mut whole, mut control) = (None, self.entropy);
        for _ in 0..config.updates_per_rollout {
            let trace = self.around.config.run.dump_steps.contains(&(at.step + 1));
            let plain = Policy { mine: Some(&mine), ..self.policy(trace) };
            let mut parts = Vec::new();
            traces.clear();
            for part in parts_of(groups.len(), config.minibatches) {
                let tapes = std::mem::take(&mut tapes);
                let entropy_coef = match (&control, &config.adaptive_entropy) {
                    (Some(control), Some(rule)) => control.applied(rule),
                    _ => config.entropy_coef,
                };
                let policy = Policy { entropy_coef, ..plain };
                let mut learned = learner.learn(&policy, &groups, part, tapes, &mut old_logps)?;
                learned.metrics.extend(learner.step(at.learning_rate)?);
                // The weights are between two steps now: no stop before the last update.
                whole = Some(stop::hold());
                if let (Some(control), Some(rule)) = (&mut control, &config.adaptive_entropy) {
                    learned.entropy.into_iter().for_each(|entropy| control.observe(entropy, rule));
                    learned.metrics.insert("entropy_coef", control.coef());
                }
                traces.append(&mut learned.traces);
                parts.push(learned.metrics);
            }
            // Of several passes over a rollout the last is reported, except for what only the first one has.
            metrics.extend(of_parts(&parts).iter().map(|(name, value)| (name.to_string(), value)));
        }
        drop(whole);
        self.entropy = control;
        tried.into_iter().for_each(|(row, result)| self.prompts.tried(row, result));
        metrics.insert("time/update", start.elapsed().as_secs_f64());
        let seen = (at.step + 1) * config.prompts_per_step as u64;
        metrics.insert("epoch", seen as f64 / self.around.materials.rows.grpo.len() as f64);

        if let Some(reference) = &mut self.reference {
            reference.after_step(at.step + 1, learner.decoder(), sinks)?;
        }
        self.say(at.step + 1, &metrics, samples, &groups, &traces, sinks)?;
        Ok(metrics)
    }

    fn steps(&self) -> u64 {
        self.config.steps_of(self.around.materials.rows.grpo.len())
    }

    fn optim(&self) -> &OptimConfig {
        &self.config.optim
    }

    fn reference(&self) -> Option<&str> {
        self.reference.as_ref().and_then(Reference::digest)
    }

    fn entropy(&self) -> Option<EntropyControl> {
        self.entropy
    }

    fn difficulty(&self) -> Option<&Difficulty> {
        self.prompts.difficulty()
    }
}

/// So many groups in `parts` updates, the last of which may be shorter; without groups, one update of none.
fn parts_of(groups: usize, parts: usize) -> impl Iterator<Item = Range<usize>> {
    let size = groups.div_ceil(parts).max(1);
    (0..groups.max(1)).step_by(size).map(move |from| from..groups.min(from + size))
}

/// Metrics of one pass from those of its updates: tokens add up, of a largest or least value that of all counts, of others the mean.
fn of_parts(parts: &[Metrics]) -> Metrics {
    let mut all = Metrics::default();
    for (name, _) in parts.iter().flat_map(Metrics::iter) {
        if all.get(name).is_some() {
            continue;
        }
        let values = parts.iter().filter_map(|part| part.get(name));
        let value = match name {
            _ if name.starts_with("num_tokens") => values.sum(),
            _ if name.ends_with("max") => values.fold(f64::NEG_INFINITY, f64::max),
            _ if name.ends_with("min") => values.fold(f64::INFINITY, f64::min),
            _ => values.clone().sum::<f64>() / values.count() as f64,
        };
        all.insert(name, value);
    }
    all
}

impl<'a> Grpo<'a> {
    /// Samples and judges a group a prompt. With dynamic sampling, other prompts follow in the place of those whose
    /// groups are dead, for so many rounds at most.
    fn roll_out(&mut self, policy: &Decoder, step: u64, rule: &AdvantageRule) -> Result<Rolled<'a>> {
        let (config, materials, pack) = (self.config, self.around.materials, &self.around.config.pack);
        let completions = Completions {
            per_prompt: config.group_size,
            max_tokens: config.max_completion_tokens,
            sampling: config.sampling,
        };
        let draws = Draws { seed: self.around.config.seed, purpose: Purpose::Rollout, step };
        let mut rolled = Rolled::new(&materials.task);
        loop {
            let (round, taken) = (rolled.rounds, rolled.groups.len());
            let indices =
                self.prompts.round(step, round, taken, rolled.missing(rule, config.prompts_per_step));
            let rows: Vec<&EncodedRow> = indices.iter().map(|i| &materials.rows.grpo[*i]).collect();
            let most = config.group_size * config.max_completion_tokens;
            let costs: Vec<usize> = rows.iter().map(|row| row.prompt.token_ids.len() + most).collect();
            let (ranks, encoder) = (self.around.ranks, &materials.encoder);
            let owners = ranks.owners(&costs);
            let round_of = Round { indices: &indices, rows: &rows, owners: &owners, encoder, ranks };
            // A group never leaves the rank that draws it.
            let mine = round_of.mine();
            let request = |i: &usize| Request { prompt: &rows[*i].prompt, sample_id: (taken + i) as u32 };
            let requests: Vec<Request> = mine.iter().map(request).collect();
            let rows_of_mine: Vec<&EncodedRow> = mine.iter().map(|i| rows[*i]).collect();
            let mut engine =
                Engine::new(policy, materials.encoder.stop_tokens(), completions, pack.rollout_tokens());
            // Rounds after the first keep nothing.
            if round == 0 && !step.is_multiple_of(STEPS_BETWEEN_CHECKS) {
                engine = engine.taping(pack.activations.into(), pack.reused_tokens());
            }
            // What is judged elsewhere is judged while the next pack is drawn.
            let rollouts = engine.generate_watched(&requests, draws, &mut |first, groups| {
                let rows = rows_of_mine.get(first..).unwrap_or_default();
                rolled.hear(rows, groups, encoder, (self.judges.as_ref(), step + 1))
            })?;
            rolled.add(&round_of, rollouts, self.judges.as_mut())?;
            let missing = rolled.missing(rule, config.prompts_per_step);
            if missing == 0 || rolled.rounds as usize > config.max_resamples {
                return Ok(rolled);
            }
        }
    }

    fn policy(&self, trace: bool) -> Policy<'_> {
        let (config, pack) = (self.config, &self.around.config.pack);
        let in_loss = config.kl_in() == KlPlace::Loss;
        let coef = if in_loss { config.kl_coef } else { 0.0 };
        let sampling = config.sampling;
        Policy {
            loss: &config.loss,
            penalty: KlPenalty {
                coef,
                estimator: config.kl_estimator(),
                corrected: config.kl_bias_correction,
            },
            under: Distribution {
                temperature: sampling.temperature,
                cut: sampling.replay_truncation.then(|| Sampling::from(&sampling)),
            },
            max_completion_tokens: config.max_completion_tokens,
            max_tokens_per_pack: pack.max_tokens_per_pack,
            entropy_coef: config.entropy_coef,
            measures_entropy: config.adaptive_entropy.is_some(),
            top_entropy: config.top_entropy_quantile,
            importance_cap: config.importance_cap,
            reference: self.reference.as_ref().filter(|_| in_loss).map(Reference::weights),
            trace,
            mine: None,
        }
    }

    /// Warnings, samples, and every token of a step that is dumped.
    fn say(
        &mut self,
        step: u64,
        metrics: &Metrics,
        samples: Vec<SampleRecord>,
        groups: &[ScoredGroup],
        traces: &[Trace],
        sinks: &mut Sinks,
    ) -> Result<()> {
        let worst = metrics.get("sampling/sampling_logp_difference/max").unwrap_or(0.0);
        let most = self.config.max_logprob_difference;
        if worst > f64::from(most) {
            sinks.warn(format!(
                "grpo step {step}: sampler and trainer log-probs differ by up to {worst:.2e}, above \
                 grpo.max_logprob_difference = {most}"
            ));
        }
        for text in self.watch.observe(&self.around.materials.task, &samples) {
            sinks.warn(format!("grpo step {step}: {text}"));
        }
        let stage = "grpo".to_string();
        if !traces.is_empty() {
            let tokens = dump::records(traces, groups, &samples, &self.around.materials.encoder);
            sinks.emit(&Event::Tokens { stage: stage.clone(), step, completions: tokens });
        }
        let kind = SampleKind::Rollouts;
        sinks.emit(&Event::Prompts { kind, prompts: self.new_prompts(groups, &samples)? });
        sinks.emit(&Event::Samples { kind, stage, step, samples });
        Ok(())
    }

    /// Those that this process has not told of yet. `samples`: of every completion, group after group.
    fn new_prompts(&mut self, groups: &[ScoredGroup], samples: &[SampleRecord]) -> Result<Vec<PromptRecord>> {
        let mut prompts = Vec::new();
        let mut first = 0;
        for scored in groups {
            let line = samples.get(first).map(|sample| sample.line);
            first += scored.rewards.len();
            let Some(line) = line.filter(|line| self.told.insert(*line)) else { continue };
            let tokenizer = self.around.materials.encoder.tokenizer();
            let prompt = tokenizer.decode_whole(&scored.group.prompt.token_ids)?;
            prompts.push(PromptRecord { line, prompt });
        }
        Ok(prompts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_cut_into_parts_without_an_empty_one() {
        let parts = |groups, of| parts_of(groups, of).collect::<Vec<_>>();
        assert_eq!(parts(8, 1), vec![Range { start: 0, end: 8 }]);
        assert_eq!(parts(8, 3), [0..3, 3..6, 6..8]);
        assert_eq!(parts(2, 4), [0..1, 1..2]);
        assert_eq!(parts(0, 2), vec![Range { start: 0, end: 0 }]);
    }

    #[test]
    fn metrics_of_parts_add_up_where_they_count() {
        let part = |tokens, loss, high| -> Metrics {
            [("num_tokens", tokens), ("loss", loss), ("clip_ratio/high_max", high)].into_iter().collect()
        };
        let mut first = part(10.0, 1.0, 0.5);
        first.insert("sampling/sampling_logp_difference/max", 0.25);
        let all = of_parts(&[first, part(30.0, 2.0, 0.25)]);
        let wanted = [
            ("num_tokens", 40.0),
            ("loss", 1.5),
            ("clip_ratio/high_max", 0.5),
            ("sampling/sampling_logp_difference/max", 0.25),
        ];
        assert_eq!(all.iter().collect::<Vec<_>>(), wanted);
    }
}
