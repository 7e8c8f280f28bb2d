//! Warnings while training, when the reward is being fooled or the model falls to one answer.

use std::collections::{BTreeMap, VecDeque};

use crate::eval::audit::{MOST_MALFORMED, best_constant, is_scrap, takes_over};
use crate::observe::SampleRecord;
use crate::task::{LabelId, Task};

/// Steps that are looked at together.
const WINDOW: usize = 10;

/// Looks at the rollouts of the last steps. Each thing is said once, and again only after it had gone away.
#[derive(Default)]
pub struct Watch {
    steps: VecDeque<Seen>,
    said: Vec<String>,
}

/// Counts of one step.
#[derive(Default)]
struct Seen {
    rollouts: usize,
    reward: f64,
    malformed: usize,
    /// Verdicts, and gold labels.
    verdicts: BTreeMap<String, usize>,
    golds: BTreeMap<String, usize>,
    /// Of each of several rewards: the least and most, and sum and count over right and over wrong answers.
    parts: BTreeMap<String, Spread>,
    /// Answers that pass for benign, and those of a word or two among them.
    benign: usize,
    scraps: usize,
}

/// What one of several rewards paid.
#[derive(Clone, Copy, Debug)]
struct Spread {
    least: f32,
    most: f32,
    /// Sum and count over answers that are right, and over the others.
    right: (f64, usize),
    wrong: (f64, usize),
}

impl Default for Spread {
    fn default() -> Self {
        Self { least: f32::INFINITY, most: f32::NEG_INFINITY, right: (0.0, 0), wrong: (0.0, 0) }
    }
}

impl Spread {
    fn add(&mut self, value: f32, is_right: bool) {
        (self.least, self.most) = (self.least.min(value), self.most.max(value));
        let side = if is_right { &mut self.right } else { &mut self.wrong };
        *side = (side.0 + f64::from(value), side.1 + 1);
    }

    fn merge(&mut self, other: &Self) {
        (self.least, self.most) = (self.least.min(other.least), self.most.max(other.most));
        self.right = (self.right.0 + other.right.0, self.right.1 + other.right.1);
        self.wrong = (self.wrong.0 + other.wrong.0, self.wrong.1 + other.wrong.1);
    }

    /// What is wrong with the reward of this name.
    fn says(&self, name: &str) -> Option<String> {
        if self.least == self.most {
            return Some(format!(
                "reward `{name}` was {:.3} for every answer of the last {WINDOW} steps: it teaches nothing",
                self.least
            ));
        }
        let mean = |(sum, count): (f64, usize)| (count >= WINDOW).then(|| sum / count as f64);
        let (right, wrong) = (mean(self.right)?, mean(self.wrong)?);
        (right < wrong).then(|| {
            format!(
                "reward `{name}` paid wrong answers {wrong:.3} and right ones {right:.3} over the last {WINDOW} steps"
            )
        })
    }
}

impl Watch {
    /// What there is to say after a step with these rollouts.
    pub fn observe(&mut self, task: &Task, rollouts: &[SampleRecord]) -> Vec<String> {
        let negative = task.labels().first().map(String::as_str).unwrap_or_default();
        let mut seen = Seen { rollouts: rollouts.len(), ..Seen::default() };
        for sample in rollouts {
            for (name, value) in &sample.rewards {
                seen.parts.entry(name.clone()).or_default().add(*value, sample.verdict == sample.gold);
            }
            seen.reward += f64::from(sample.reward);
            seen.malformed += usize::from(sample.verdict == "malformed");
            *seen.verdicts.entry(sample.verdict.clone()).or_default() += 1;
            *seen.golds.entry(sample.gold.clone()).or_default() += 1;
            if sample.verdict == negative {
                seen.benign += 1;
                seen.scraps += usize::from(is_scrap(&sample.completion));
            }
        }
        self.steps.push_back(seen);
        if self.steps.len() > WINDOW {
            self.steps.pop_front();
        }
        if self.steps.len() < WINDOW {
            return Vec::new();
        }
        self.judge(task)
    }

    fn judge(&mut self, task: &Task) -> Vec<String> {
        let count: usize = self.steps.iter().map(|s| s.rollouts).sum();
        let n = count.max(1) as f64;
        let sum = |of: fn(&Seen) -> usize| self.steps.iter().map(of).sum::<usize>();
        let total = |of: fn(&Seen) -> &BTreeMap<String, usize>, name: &str| {
            self.steps.iter().filter_map(|s| of(s).get(name)).sum::<usize>() as f64 / n
        };
        let mut found: Vec<(&'static str, Option<String>)> = Vec::new();

        let golds: Vec<LabelId> = self
            .steps
            .iter()
            .flat_map(|s| &s.golds)
            .filter_map(|(name, times)| Some((task.label_id(name)?, *times)))
            .flat_map(|(label, times)| std::iter::repeat_n(label, times))
            .collect();
        let reward = self.steps.iter().map(|s| s.reward).sum::<f64>() / n;
        // What an answer that was not given would have earned is known of outcomes only.
        let best = if task.is_by_outcome() { best_constant(task, &golds) } else { None };
        let beaten = best.filter(|(_, earns)| *earns >= reward);
        found.push((
            "beaten",
            beaten.map(|(name, earns)| {
                format!("`{name}` would have earned {earns:.3} on the last {WINDOW} steps' prompts, the model {reward:.3}")
            }),
        ));

        let malformed = sum(|s| s.malformed) as f64 / n;
        found.push((
            "malformed",
            (malformed > MOST_MALFORMED).then(|| {
                format!("{:.0}% of the last {WINDOW} steps' answers are malformed", 100.0 * malformed)
            }),
        ));

        let label = task.labels().iter().find_map(|name| {
            let (given, true_share) = (total(|s| &s.verdicts, name), total(|s| &s.golds, name));
            takes_over(given, true_share).then(|| {
                format!(
                    "{:.0}% of the last {WINDOW} steps' answers say `{name}`, which {:.0}% of the logs are",
                    100.0 * given,
                    100.0 * true_share
                )
            })
        });
        found.push(("label", label));

        let (benign, scraps) = (sum(|s| s.benign), sum(|s| s.scraps));
        let hollow = task.takes_any_text() && benign >= WINDOW && 2 * scraps > benign;
        found.push((
            "scraps",
            hollow.then(|| {
                format!(
                    "{scraps} of {benign} answers that passed for benign in the last {WINDOW} steps have at most two words: \
                     the reward is being fooled; see samples/ and docs/reward-audit.md"
                )
            }),
        ));

        let mut found: Vec<(String, Option<String>)> =
            found.into_iter().map(|(kind, text)| (kind.to_string(), text)).collect();
        let mut parts = BTreeMap::<&String, Spread>::new();
        for (name, spread) in self.steps.iter().flat_map(|s| &s.parts) {
            parts.entry(name).or_default().merge(spread);
        }
        found.extend(parts.iter().map(|(name, spread)| (format!("reward {name}"), spread.says(name))));

        let mut texts = Vec::new();
        for (kind, text) in found {
            match text {
                None => self.said.retain(|said| *said != kind),
                Some(_) if self.said.contains(&kind) => {}
                Some(text) => {
                    self.said.push(kind);
                    texts.push(text);
                }
            }
        }
        texts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollouts(task: &Task, answer: &str) -> Vec<SampleRecord> {
        let sample = |gold: &str| {
            let label = task.label_id(gold).unwrap();
            let verdict = task.judge(answer, crate::types::FinishReason::Stop);
            let name = match verdict {
                crate::task::Verdict::Negative => "Safe",
                crate::task::Verdict::Malformed(_) | crate::task::Verdict::Ungrounded => "malformed",
                crate::task::Verdict::Positive(l) => &task.labels()[l.index()],
            };
            SampleRecord {
                line: 1,
                gold: gold.into(),
                verdict: name.into(),
                reason: None,
                reward: task.reward(crate::task::Outcome::of(label, verdict)),
                rewards: Default::default(),
                advantage: None,
                tokens: None,
                finish: None,
                completion: answer.into(),
            }
        };
        ["Safe", "Denial-of-Service", "Safe", "Privilege Escalation"].map(sample).to_vec()
    }

    #[test]
    fn scraps_that_earn_are_named_once() {
        let task = Task::load("riskcue").unwrap().without_grounds();
        let mut watch = Watch::default();
        let mut said = Vec::new();
        for _ in 0..15 {
            said.extend(watch.observe(&task, &rollouts(&task, "One")));
        }
        // The model is no better than `always Safe`, says Safe to all, in scraps.
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(
            said[0].contains("`always Safe` would have earned 0.500") && said[2].contains("40 of 40"),
            "{said:?}"
        );
    }

    #[test]
    fn a_reward_that_teaches_nothing_or_pays_for_mistakes_is_named() {
        let task = Task::load("demo").unwrap();
        let mut watch = Watch::default();
        let mut said = Vec::new();
        for _ in 0..WINDOW + 3 {
            let mut step = rollouts(&task, "Done: a b c");
            for sample in &mut step {
                let is_right = sample.verdict == sample.gold;
                let parts = [("form", 1.0), ("brevity", if is_right { 0.25 } else { 0.5 })];
                sample.rewards = parts.map(|(name, value)| (name.to_string(), value)).into();
            }
            said.extend(watch.observe(&task, &step));
        }
        let said: Vec<&String> = said.iter().filter(|text| text.starts_with("reward `")).collect();
        assert_eq!(said.len(), 2, "{said:?}");
        assert!(said[0].contains("`brevity` paid wrong answers 0.500 and right ones 0.250"), "{said:?}");
        assert!(said[1].contains("`form` was 1.000 for every answer"), "{said:?}");
    }

    #[test]
    fn malformed_answers_are_named_again_after_they_had_gone() {
        let task = Task::load("demo").unwrap();
        let mut watch = Watch::default();
        let mut times = 0;
        for answer in ["", "Done: a b c", ""] {
            for _ in 0..WINDOW + 1 {
                let said = watch.observe(&task, &rollouts(&task, answer));
                times += said.iter().filter(|text| text.contains("malformed")).count();
            }
        }
        assert_eq!(times, 2);
    }
}
