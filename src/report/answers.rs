//! A run's answers: which of its sample files a report reads, and how much of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use crate::observe::{PromptRecord, SampleKind, SampleRecord};
use crate::run::{SampleSet, prompts_file, sample_sets};

/// Evaluations, and steps of rollouts, whose answers are read.
const MOST_EVALUATIONS: usize = 20;
const MOST_ROLLOUTS: usize = 12;
/// Answers kept of one of them.
pub const MOST_ANSWERS: usize = 1000;

/// The answers of an evaluation, or of a training step's rollouts.
#[derive(Clone, Debug)]
pub struct Answers {
    pub kind: SampleKind,
    /// "sft 400".
    pub name: String,
    /// Step of the whole run.
    pub total: u64,
    /// Answers in the file, more than there are `records` where it was cut.
    pub count: usize,
    /// Of several to one prompt, the second number says which.
    pub records: Vec<(SampleRecord, usize)>,
}

/// As an evaluation is called.
fn name(set: &SampleSet) -> String {
    if set.step == 0 { set.stage.clone() } else { format!("{} {}", set.stage, set.step) }
}

/// `None` where the file cannot be read. Lines that are cut or damaged are passed over.
fn answers(set: &SampleSet, total: u64) -> Option<Answers> {
    let text = set.read().ok()?;
    let mut seen = BTreeMap::<usize, usize>::new();
    let records: Vec<(SampleRecord, usize)> = text
        .lines()
        .filter_map(|line| serde_json::from_str::<SampleRecord>(line).ok())
        .map(|record| {
            let sample = seen.entry(record.line).or_default();
            *sample += 1;
            let number = *sample - 1;
            (record, number)
        })
        .collect();
    let count = records.len();
    let records = thinned(records, set.kind, MOST_ANSWERS);
    Some(Answers { kind: set.kind, name: name(set), total, count, records })
}

/// From all over the rows of an evaluation, the same ones in each; of rollouts the first, so that groups stay whole.
pub fn thinned<T>(all: Vec<T>, kind: SampleKind, most: usize) -> Vec<T> {
    let count = all.len();
    if count <= most {
        return all;
    }
    if kind == SampleKind::Rollouts {
        return all.into_iter().take(most).collect();
    }
    let kept: BTreeSet<usize> = (0..most).map(|i| i * count / most).collect();
    all.into_iter().enumerate().filter(|(i, _)| kept.contains(i)).map(|(_, one)| one).collect()
}

/// Those that must stay, and others evenly spaced between, the last among them.
fn spread(must: &[bool], most: usize) -> Vec<usize> {
    let count = must.len();
    let mut kept: BTreeSet<usize> = (0..count).filter(|i| must[*i]).collect();
    let free = most.saturating_sub(kept.len()).max(1);
    kept.extend((1..=free.min(count)).map(|i| i * count / free.min(count) - 1));
    if count <= most { (0..count).collect() } else { kept.into_iter().collect() }
}

/// What a report shows of a run's answers.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// In the order of the run.
    pub sets: Vec<Answers>,
    /// By line, of the evaluations and of the rollouts.
    prompts: [BTreeMap<usize, String>; 2],
    /// What was left out.
    pub notes: Vec<String>,
}

impl Found {
    /// `total`: the step of the run at a stage's step. `must`: names of evaluations that are not left out.
    pub fn read(samples: &Path, total: impl Fn(&str, u64) -> u64, must: &[&str]) -> Self {
        let mut sets = sample_sets(samples).unwrap_or_default();
        sets.sort_by_cached_key(|set| (total(&set.stage, set.step), set.path().to_path_buf()));
        let mut found = Self::default();
        for (kind, most, what) in [
            (SampleKind::Evaluation, MOST_EVALUATIONS, "evaluations"),
            (SampleKind::Rollouts, MOST_ROLLOUTS, "steps of rollouts"),
        ] {
            let of_kind: Vec<&SampleSet> = sets.iter().filter(|set| set.kind == kind).collect();
            let stays = |set: &&SampleSet| {
                kind == SampleKind::Evaluation && (set.step == 0 || must.contains(&name(set).as_str()))
            };
            let kept = spread(&of_kind.iter().map(stays).collect::<Vec<_>>(), most);
            if kept.len() < of_kind.len() {
                found.notes.push(format!("answers of {} of {} {what}", kept.len(), of_kind.len()));
            }
            let chosen = kept.into_iter().map(|i| of_kind[i]);
            found.sets.extend(chosen.filter_map(|set| answers(set, total(&set.stage, set.step))));
            found.read_prompts(samples, kind);
        }
        found
    }

    fn read_prompts(&mut self, samples: &Path, kind: SampleKind) {
        let sets = self.sets.iter().filter(|set| set.kind == kind);
        let wanted: BTreeSet<usize> =
            sets.flat_map(|set| set.records.iter().map(|(record, _)| record.line)).collect();
        if wanted.is_empty() {
            return;
        }
        let lines = File::open(prompts_file(samples, kind)).map(|file| BufReader::new(file).lines());
        let records = lines.into_iter().flatten().map_while(|line| line.ok());
        let records = records.filter_map(|line| serde_json::from_str::<PromptRecord>(&line).ok());
        let kept = records.filter(|record| wanted.contains(&record.line));
        let prompts: BTreeMap<_, _> = kept.map(|record| (record.line, record.prompt)).collect();
        if prompts.is_empty() {
            let what = if kind == SampleKind::Evaluation { "evaluations" } else { "rollouts" };
            self.notes.push(format!("no prompts: the run did not record those of its {what}"));
        }
        self.prompts[usize::from(kind == SampleKind::Rollouts)] = prompts;
    }

    pub fn prompt(&self, kind: SampleKind, line: usize) -> Option<&str> {
        self.prompts[usize::from(kind == SampleKind::Rollouts)].get(&line).map(String::as_str)
    }

    /// The last set of a kind.
    pub fn last(&self, kind: SampleKind) -> Option<&Answers> {
        self.sets.iter().rfind(|set| set.kind == kind)
    }
}

/// What came of an answer, and the page's class for it. `negative`: the label that flags nothing.
pub fn outcome(sample: &SampleRecord, negative: &str) -> (&'static str, &'static str) {
    let (gold, verdict) = (sample.gold.as_str(), sample.verdict.as_str());
    match verdict {
        _ if verdict == gold => ("right", "exact"),
        "malformed" => ("malformed", "malformed"),
        _ if gold == negative => ("false alarm", "wrong"),
        _ if verdict == negative => ("missed risk", "wrong"),
        _ => ("another label", "wrong"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_stay_stays_and_the_rest_is_spread_to_the_last() {
        assert_eq!(spread(&[false; 4], 4), [0, 1, 2, 3]);
        assert_eq!(spread(&[true, false, false, false, false, false, false], 3), [0, 2, 6]);
        assert_eq!(spread(&[true; 5], 2), [0, 1, 2, 3, 4]);
        assert!(spread(&[], 3).is_empty());
    }

    #[test]
    fn evaluations_are_thinned_over_all_rows_and_rollouts_keep_groups() {
        let all = || (0..10).collect::<Vec<_>>();
        assert_eq!(thinned(all(), SampleKind::Evaluation, 4), [0, 2, 5, 7]);
        assert_eq!(thinned(all(), SampleKind::Rollouts, 4), [0, 1, 2, 3]);
        assert_eq!(thinned(all(), SampleKind::Evaluation, 10), all());
    }
}
