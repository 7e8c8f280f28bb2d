//! What the rewards of a run paid for: each by itself, by outcome and label, and where they disagree.

use std::collections::BTreeMap;

use super::answers::outcome;
use super::run::Run;
use super::svg::{short, smooth};
use super::tables::{Table, strings};
use crate::observe::{SampleKind, SampleRecord};

/// Completions shown in which the rewards disagree most.
const DISAGREEMENTS: usize = 5;
/// Characters of one of them.
const MOST_CHARACTERS: usize = 240;
/// What a task's whole reward is called beside its parts.
const TOTAL: &str = "reward";

/// All that there is to say of the rewards of each run.
pub fn rewards(runs: &[Run]) -> Vec<Table> {
    let of_run = |run: &Run| {
        let answers = Answers::of(run);
        [answers.by_outcome(), answers.by_label(), answers.disagreements()]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
    };
    over_steps(runs).into_iter().chain(runs.iter().flat_map(of_run)).collect()
}

/// Each reward over the steps, and whether it rises with what it is there for.
fn over_steps(runs: &[Run]) -> Option<Table> {
    let mut rows = Vec::new();
    for run in runs {
        for stage in run.stages() {
            let accuracy: BTreeMap<u64, f64> = points(run, stage, "verdict/accuracy_strict");
            for (name, metric) in names(run, stage) {
                let curve = points(run, stage, &metric);
                let values: Vec<f64> = curve.values().copied().collect();
                let (Some(first), Some(last)) = (values.first(), last(&curve)) else { continue };
                let least = values.iter().copied().fold(f64::INFINITY, f64::min);
                let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let both: Vec<(f64, f64)> =
                    curve.iter().filter_map(|(step, value)| Some((*value, *accuracy.get(step)?))).collect();
                let says = match (least == most, correlation(&both)) {
                    (true, _) if values.len() > 1 => ("-".to_string(), "the same at every step"),
                    (_, Some(r)) if r < 0.0 => (format!("{r:.2}"), "falls as answers get better"),
                    (_, Some(r)) => (format!("{r:.2}"), ""),
                    (_, None) => ("-".into(), ""),
                };
                let cells = [*first, least, most, last].map(short);
                let head = [run.name.clone(), stage.to_string(), name];
                rows.push(head.into_iter().chain(cells).chain([says.0, says.1.to_string()]).collect());
            }
        }
    }
    let head =
        ["run", "stage", "reward", "first", "least", "most", "last", "correlation with strict accuracy", ""];
    (!rows.is_empty()).then(|| Table {
        caption: "Means of the steps; the last is smoothed. The correlation (Pearson's) is over the steps: a reward that does not \
                  rise with accuracy pays for something else."
            .into(),
        head: strings(&head),
        rows,
    })
}

/// The whole reward, then its parts where there are several, with their metrics.
fn names(run: &Run, stage: &str) -> Vec<(String, String)> {
    let of_stage = run.steps.iter().filter(|step| step.stage == stage);
    let mut parts: Vec<(String, String)> = of_stage
        .flat_map(|step| step.metrics.keys())
        .filter_map(|metric| {
            let name = metric.strip_prefix("rewards/")?.strip_suffix("/mean")?;
            Some((name.to_string(), metric.clone()))
        })
        .collect();
    parts.sort();
    parts.dedup();
    if parts.len() < 2 {
        parts.clear();
    }
    let whole = (TOTAL.to_string(), TOTAL.to_string());
    if run.curve(stage, TOTAL).is_empty() { parts } else { std::iter::once(whole).chain(parts).collect() }
}

fn points(run: &Run, stage: &str, metric: &str) -> BTreeMap<u64, f64> {
    run.curve(stage, metric).into_iter().map(|(step, value)| (step as u64, value)).collect()
}

fn last(curve: &BTreeMap<u64, f64>) -> Option<f64> {
    let curve: Vec<(f64, f64)> = curve.iter().map(|(step, value)| (*step as f64, *value)).collect();
    smooth(&curve).last().map(|point| point.1)
}

/// Pearson's; None of fewer than three pairs, or where one side does not change.
fn correlation(pairs: &[(f64, f64)]) -> Option<f64> {
    let n = pairs.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| pairs.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|pair| pair.0), mean(|pair| pair.1));
    let sum = |of: &dyn Fn(f64, f64) -> f64| pairs.iter().map(|(a, b)| of(a - x, b - y)).sum::<f64>();
    let (both, xs, ys) = (sum(&|a, b| a * b), sum(&|a, _| a * a), sum(&|_, b| b * b));
    // What sums leave behind of values that are all equal is no change.
    let changes = |squares: f64, mean: f64| squares > 1e-18 * n * (1.0 + mean * mean);
    (pairs.len() > 2 && changes(xs, x) && changes(ys, y)).then(|| both / (xs * ys).sqrt())
}

/// The rollouts that a report has read.
struct Answers<'a> {
    run: &'a Run,
    negative: String,
    /// With the name of their step.
    records: Vec<(&'a str, &'a SampleRecord)>,
    /// Of the whole reward, then of its parts.
    names: Vec<String>,
}

impl<'a> Answers<'a> {
    fn of(run: &'a Run) -> Self {
        let sets = run.answers.sets.iter().filter(|set| set.kind == SampleKind::Rollouts);
        let records: Vec<_> =
            sets.flat_map(|set| set.records.iter().map(|(record, _)| (set.name.as_str(), record))).collect();
        let mut names: Vec<String> =
            records.iter().flat_map(|(_, record)| record.rewards.keys().cloned()).collect();
        names.sort();
        names.dedup();
        names.insert(0, TOTAL.into());
        let labels = run.last_evaluation().map(|e| e.labels()).unwrap_or_default();
        let negative = labels.first().map(|label| label.to_string()).unwrap_or_default();
        Self { run, negative, records, names }
    }

    fn table(&self, what: &str, of: impl Fn(&SampleRecord) -> String) -> Option<Table> {
        let mut sums = BTreeMap::<String, (usize, Vec<f64>)>::new();
        for (_, record) in &self.records {
            let (count, sum) = sums.entry(of(record)).or_insert_with(|| (0, vec![0.0; self.names.len()]));
            *count += 1;
            sum.iter_mut().zip(&self.names).for_each(|(sum, name)| *sum += value(record, name));
        }
        let row = |(name, (count, sums)): (String, (usize, Vec<f64>))| {
            let means = sums.into_iter().map(|sum| short(sum / count as f64));
            [name, count.to_string()].into_iter().chain(means).collect()
        };
        let rows: Vec<Vec<String>> = sums.into_iter().map(row).collect();
        (!rows.is_empty()).then(|| Table {
            caption: format!("{}, rollouts that were read: mean of each reward by {what}", self.run.name),
            head: [what.to_string(), "answers".into()].into_iter().chain(self.names.clone()).collect(),
            rows,
        })
    }

    fn by_outcome(&self) -> Option<Table> {
        self.table("outcome", |record| {
            let (name, _) = outcome(record, &self.negative);
            record.reason.as_ref().map_or(name.to_string(), |reason| format!("{name}, {reason}"))
        })
    }

    fn by_label(&self) -> Option<Table> {
        self.table("gold label", |record| record.gold.clone())
    }

    /// Where one part is above its mean and another below its own: by the smaller of the two distances, in deviations.
    fn disagreements(&self) -> Option<Table> {
        let parts = &self.names[1..];
        if parts.len() < 2 || self.records.is_empty() {
            return None;
        }
        let n = self.records.len() as f64;
        let moments: Vec<(f64, f64)> = parts
            .iter()
            .map(|name| {
                let values = || self.records.iter().map(|(_, record)| value(record, name));
                let mean = values().sum::<f64>() / n;
                (mean, (values().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt())
            })
            .collect();
        let distance = |record: &SampleRecord| {
            let scores = parts.iter().zip(&moments).filter(|(_, (_, std))| *std > 1e-9);
            let scores = scores.map(|(name, (mean, std))| (value(record, name) - mean) / std);
            let (least, most) =
                scores.fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), s| (a.min(s), b.max(s)));
            // Rare mistakes that every part punishes are no disagreement.
            most.min(-least)
        };
        let mut all: Vec<(f64, &(&str, &SampleRecord))> = self
            .records
            .iter()
            .map(|at| (distance(at.1), at))
            .filter(|(far, _)| *far > 0.0 && far.is_finite())
            .collect();
        // The sort is stable: of equals the earlier.
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        let row = |(_, (step, record)): &(f64, &(&str, &SampleRecord))| {
            let said = parts.iter().map(|name| short(value(record, name)));
            let mut text: String = record.completion.chars().take(MOST_CHARACTERS).collect();
            if text.len() < record.completion.len() {
                text.push_str(" ...");
            }
            [step.to_string(), record.line.to_string(), record.gold.clone(), record.verdict.clone()]
                .into_iter()
                .chain(said)
                .chain([text])
                .collect()
        };
        let rows: Vec<Vec<String>> = all.iter().take(DISAGREEMENTS).map(row).collect();
        let head = ["step", "row", "gold", "verdict"].map(String::from).into_iter();
        (!rows.is_empty()).then(|| Table {
            caption: format!(
                "{}: the rollouts in which the rewards disagree most, one far above its mean and another far below",
                self.run.name
            ),
            head: head.chain(parts.iter().cloned()).chain(["completion".to_string()]).collect(),
            rows,
        })
    }
}

/// Of one reward; of a part that the record does not have nothing.
fn value(record: &SampleRecord, name: &str) -> f64 {
    match name {
        TOTAL => record.reward.into(),
        part => record.rewards.get(part).copied().unwrap_or_default().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::answers::Answers as Set;
    use super::super::run::Step;
    use super::*;

    fn step(number: u64, metrics: &[(&str, f64)]) -> Step {
        let metrics = metrics.iter().map(|(name, value)| (name.to_string(), *value)).collect();
        Step { stage: "grpo".into(), step: number, total: number, metrics }
    }

    fn record(gold: &str, verdict: &str, parts: [f32; 2]) -> SampleRecord {
        SampleRecord {
            line: 1,
            gold: gold.into(),
            verdict: verdict.into(),
            reason: None,
            reward: parts.iter().sum(),
            rewards: [("label", parts[0]), ("short", parts[1])].map(|(name, r)| (name.into(), r)).into(),
            advantage: None,
            tokens: None,
            finish: None,
            completion: format!("{gold} as {verdict}"),
        }
    }

    fn run() -> Run {
        let steps = [(0.2, 0.9, 0.1), (0.4, 0.6, 0.2), (0.6, 0.5, 0.3)];
        let steps = steps.iter().enumerate().map(|(i, (label, short, accuracy))| {
            let metrics = [
                ("reward", label + short),
                ("rewards/label/mean", *label),
                ("rewards/short/mean", *short),
                ("rewards/form/mean", 1.0),
                ("verdict/accuracy_strict", *accuracy),
            ];
            step(i as u64 + 1, &metrics)
        });
        let records = [
            record("a", "a", [1.0, 0.0]),
            record("a", "b", [0.0, 1.0]),
            record("b", "b", [1.0, 1.0]),
            record("b", "malformed", [0.0, 0.0]),
        ];
        let mut run = Run { name: "r".into(), steps: steps.collect(), ..Run::default() };
        run.answers.sets = vec![Set {
            kind: SampleKind::Rollouts,
            name: "grpo 3".into(),
            total: 3,
            count: 4,
            records: records.into_iter().map(|record| (record, 0)).collect(),
        }];
        run
    }

    #[test]
    fn a_reward_that_pays_for_something_else_is_named() {
        let table = &rewards(&[run()])[0];
        let row = |name: &str| table.rows.iter().find(|row| row[2] == name).unwrap();
        assert_eq!(row("label")[7..], ["1.00", ""]);
        assert_eq!(row("short")[7..], ["-0.96", "falls as answers get better"]);
        assert_eq!(row("form")[7..], ["-", "the same at every step"]);
    }

    #[test]
    fn rewards_have_means_by_outcome_and_label() {
        let tables = rewards(&[run()]);
        let rows: Vec<Vec<&str>> =
            tables[1].rows.iter().map(|row| row.iter().map(String::as_str).collect()).collect();
        assert_eq!(tables[1].head, ["outcome", "answers", "reward", "label", "short"]);
        assert!(rows.contains(&vec!["right", "2", "1.5", "1", "0.5"]), "{rows:?}");
        assert_eq!(tables[2].rows[0][..3], ["a", "2", "1"]);
    }

    #[test]
    fn the_answers_in_which_rewards_disagree_come_first() {
        let tables = rewards(&[run()]);
        let rows = &tables[3].rows;
        assert_eq!(rows.len(), 2, "where both say the same they do not disagree: {rows:?}");
        assert_eq!(rows[0].last().unwrap(), "a as a");
    }

    #[test]
    fn what_does_not_change_has_no_correlation() {
        assert_eq!(correlation(&[(0.1, 1.0), (0.1, 2.0), (0.1, 3.0)]), None);
        assert_eq!(correlation(&[(0.1, 1.0), (0.2, 2.0)]), None);
        assert_eq!(correlation(&[(0.0, 1.0), (1.0, 0.0), (0.5, 0.5)]).map(|r| r.round()), Some(-1.0));
    }
}
