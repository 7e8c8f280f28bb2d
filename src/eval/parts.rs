//! A task's rewards one by one: what each pays by outcome, to a perfect model, and to who does not do the task.

use std::collections::BTreeMap;

use serde::Serialize;

use super::Judgement;
use super::hollow::Hollow;
use crate::task::{LabelId, Outcome, PaperReading, Reward, RewardKind, Task, Verdict};

/// A strategy's mean of one reward.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Earner {
    pub name: String,
    pub mean: f64,
}

/// One reward of a task.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Part {
    pub name: String,
    pub weight: f32,
    pub by_outcome: BTreeMap<&'static str, f32>,
    /// What a model that is always right earns of it.
    pub perfect: f64,
    /// The best of the answers that are the same for every row.
    pub constant: Earner,
    /// The best of the texts that answer nobody; None without benign rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hollow: Option<Earner>,
    /// Of the recorded answers, by gold label, and the mean of all.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub recorded: BTreeMap<String, f64>,
}

/// The outcomes that rows of these labels can have.
fn possible(golds: &[LabelId]) -> Vec<(&'static str, Outcome)> {
    let (benign, risky) =
        (golds.iter().any(|gold| gold.is_negative()), golds.iter().any(|gold| !gold.is_negative()));
    [
        ("exact positive", Outcome::ExactPositive, risky),
        ("exact negative", Outcome::ExactNegative, benign),
        ("wrong label", Outcome::WrongLabel, risky),
        ("false positive", Outcome::FalsePositive, benign),
        ("false negative", Outcome::FalseNegative, risky),
        ("malformed", Outcome::Malformed, true),
    ]
    .into_iter()
    .filter_map(|(name, outcome, can_be)| can_be.then_some((name, outcome)))
    .collect()
}

fn mean(reward: &Reward, outcomes: impl Iterator<Item = Outcome>) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for outcome in outcomes {
        sum += f64::from(reward.of(outcome));
        count += 1;
    }
    sum / count.max(1) as f64
}

/// Each of the task's rewards that pay by the outcome, on rows with these labels. `hollow`: texts that answer nobody, on the benign ones.
pub fn parts(
    task: &Task,
    golds: &[LabelId],
    hollow: &[Hollow],
    recorded: Option<&[(Judgement, String)]>,
) -> Vec<Part> {
    let of_outcomes = task.rewards().iter().filter_map(|named| match &named.kind {
        RewardKind::Outcomes(reward) => Some(((named.name.as_str(), named.weight), reward)),
        _ => None,
    });
    of_outcomes.map(|(named, reward)| part(task, named, reward, golds, hollow, recorded)).collect()
}

fn part(
    task: &Task,
    (name, weight): (&str, f32),
    named: &Reward,
    golds: &[LabelId],
    hollow: &[Hollow],
    recorded: Option<&[(Judgement, String)]>,
) -> Part {
    let always = |verdict| mean(named, golds.iter().map(|gold| Outcome::of(*gold, verdict)));
    let labels = task.labels().iter().enumerate().map(|(i, label)| match i {
        0 => (format!("always {label}"), Verdict::Negative),
        _ => (format!("always flag: {label}"), Verdict::Positive(LabelId(i as u16))),
    });
    let malformed = ("always malformed".to_string(), Verdict::Malformed(PaperReading::NotFlagged));
    let earners = labels.chain([malformed]).map(|(name, verdict)| Earner { name, mean: always(verdict) });
    // Of equals the first.
    let constant = earners.reduce(|best, next| if next.mean > best.mean { next } else { best });
    let right = |gold: LabelId| {
        Outcome::of(gold, if gold.is_negative() { Verdict::Negative } else { Verdict::Positive(gold) })
    };
    let of_hollow = |hollow: &Hollow| {
        let mut benign = hollow.verdicts.iter();
        let outcomes = golds.iter().map(|gold| match gold.is_negative() {
            true => benign.next().map_or(Outcome::Malformed, |verdict| Outcome::of(*gold, *verdict)),
            false => right(*gold),
        });
        Earner { name: hollow.name.into(), mean: mean(named, outcomes) }
    };
    let best = hollow
        .iter()
        .filter(|hollow| !hollow.verdicts.is_empty())
        .map(of_hollow)
        .reduce(|best, next| if next.mean > best.mean { next } else { best });
    let mut by_label = BTreeMap::new();
    if let Some(answers) = recorded {
        let of = |label: Option<LabelId>| {
            let kept =
                answers.iter().filter(|(judgement, _)| label.is_none_or(|label| judgement.gold == label));
            mean(named, kept.map(|(judgement, _)| Outcome::of(judgement.gold, judgement.verdict)))
        };
        by_label.insert("all".into(), of(None));
        for (judgement, _) in answers {
            by_label.entry(task.label_text(judgement.gold)).or_insert_with(|| of(Some(judgement.gold)));
        }
    }
    Part {
        name: name.into(),
        weight,
        by_outcome: possible(golds).into_iter().map(|(name, outcome)| (name, named.of(outcome))).collect(),
        perfect: mean(named, golds.iter().map(|gold| right(*gold))),
        constant: constant.unwrap_or(Earner { name: "-".into(), mean: 0.0 }),
        hollow: best,
        recorded: by_label,
    }
}

/// What is wrong with one of several rewards, a sentence each.
pub fn warnings(parts: &[Part]) -> Vec<String> {
    let mut said = Vec::new();
    for part in parts.iter().filter(|_| parts.len() > 1) {
        let Part { name, perfect, constant, .. } = part;
        let mut values = part.by_outcome.values();
        let first = values.next();
        if values.all(|value| Some(value) == first) {
            said.push(format!(
                "reward `{name}` is {perfect:.3} whatever the answer to these rows is: it teaches nothing"
            ));
            continue;
        }
        if part.weight == 0.0 {
            said.push(format!("reward `{name}` has weight 0: it is counted and not learned from"));
        }
        let beats = |earner: &Earner| earner.mean >= *perfect;
        let winner = std::iter::once(constant).chain(&part.hollow).find(|earner| beats(earner));
        if let Some(winner) = winner.filter(|_| part.weight > 0.0) {
            said.push(format!(
                "reward `{name}` pays `{}` {:.3} without the task being done, a perfect model {perfect:.3}",
                winner.name, winner.mean
            ));
        }
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two labels, `[reward]` as by default, and three more rewards.
    fn task(dir: &std::path::Path) -> Task {
        let text = "name = \"t\"\n[input]\nmessages = \"m\"\n[gold]\npath = \"g\"\n[labels]\nnegative = \"no\"\n\
             positive = [\"yes\"]\n[[verdict]]\nregex = 'yes'\nlabel = \"yes\"\n[[verdict]]\nregex = 'no'\n\
             label = \"@negative\"\n[[verdict]]\ndefault = \"@malformed\"\n\
             [extra_rewards.form]\nweight = 0.1\nexact_positive = 1.0\nexact_negative = 1.0\nwrong_label = 1.0\n\
             false_positive = 1.0\nfalse_negative = 1.0\n\
             [extra_rewards.other]\nweight = 0.1\nwrong_label = 1.0\n\
             [extra_rewards.label]\nweight = 0.5\nexact_positive = 1.0\n";
        let path = dir.join("t.toml");
        std::fs::write(&path, text).unwrap();
        Task::load(path.to_str().unwrap()).unwrap()
    }

    #[test]
    fn a_reward_that_any_answer_or_a_constant_one_wins_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let task = task(dir.path());
        let golds = [LabelId(0), LabelId(0), LabelId(1)];
        let found = parts(&task, &golds, &[], None);
        let by_name: BTreeMap<&str, &Part> = found.iter().map(|part| (part.name.as_str(), part)).collect();
        assert_eq!((by_name["t"].perfect, by_name["t"].constant.name.as_str()), (1.0, "always no"));
        assert!((by_name["t"].constant.mean - 2.0 / 3.0).abs() < 1e-9);
        assert_eq!(by_name["form"].constant.mean, 1.0);
        let said = warnings(&found);
        assert_eq!(said.len(), 3, "{said:?}");
        assert!(said[0].starts_with("reward `form` pays `always no` 1.000"), "{said:?}");
        // Of benign rows alone the label's reward is nothing, whatever is said.
        assert!(said[1].starts_with("reward `label` pays `always flag: yes`"), "{said:?}");
        let benign = warnings(&parts(&task, &[LabelId(0)], &[], None));
        assert!(benign.iter().any(|text| text.starts_with("reward `label` is 0.000 whatever")), "{benign:?}");
        // One reward has the whole audit to itself.
        assert_eq!(warnings(&found[..1]), Vec::<String>::new());
    }
}
