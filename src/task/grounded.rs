//! `[grounded]`: what a benign answer has to repeat of its row. Any text can pass for an answer where the rules only look for
//! alarms; one that says nothing of the tool's result answers nobody.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::check::Check;
use super::row::RowPath;
use super::words::{self, Word};
use super::{LabelId, Task, Verdict};
use crate::error::Result;
use crate::types::FinishReason;

/// What a benign answer has to repeat, or it is malformed: values of the row, or the words of a reference answer. At least one of
/// values and reference.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct GroundedSection {
    /// Where the values are, such as the tool's result: JSON, whose leaves are the values (of true and false the key), or a text,
    /// whose numbers and capitalised words are.
    values: Option<TextEntry>,
    /// Paths to texts that named values before, such as the user's question: these do not count, unless there are no others.
    #[serde(default)]
    known: Vec<String>,
    /// Share of the values that the answer has to repeat.
    #[schemars(range(min = 0, max = 1))]
    min_share: Option<f64>,
    /// So many repeated values are enough, whatever their share.
    #[schemars(range(max = 1_000_000))]
    min_values: Option<usize>,
    /// Share of the answer's numbers that have to stand in the values or in known. 0: any number will do.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1))]
    min_known_numbers: f64,
    /// Path to an answer to a benign row. One that is near to it is grounded, too.
    reference: Option<String>,
    /// How near: F1 of the words of both.
    #[schemars(range(min = 0, max = 1))]
    min_f1: Option<f64>,
    /// A text that no answer may copy, such as the log.
    not_copied: Option<TextEntry>,
    /// The longest run of its words that is no copy.
    #[schemars(range(max = 1_000_000))]
    max_copied_words: Option<usize>,
}

/// A text of the row.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TextEntry {
    /// Path to a text, or to JSON.
    path: String,
    /// With one capture group: the part of the text, its first match.
    regex: Option<String>,
}

/// A text of the row, whole or what group 1 of a regex matches in it.
#[derive(Clone, Debug)]
struct TextOf {
    path: RowPath,
    regex: Option<Regex>,
}

/// The checked section.
#[derive(Clone, Debug)]
pub(super) struct Grounding {
    values: Option<TextOf>,
    known: Vec<RowPath>,
    bounds: Bounds,
    reference: Option<RowPath>,
    not_copied: Option<TextOf>,
}

/// When an answer is grounded.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    min_share: f64,
    min_values: usize,
    min_known_numbers: f64,
    min_f1: f64,
    max_copied_words: usize,
}

/// What one row gives its benign answers to repeat.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Each as its different words; those that nothing known has named, or else all.
    values: Vec<Vec<String>>,
    /// Numbers of the values and of what is known.
    numbers: BTreeSet<String>,
    /// Words of the reference answer; none of a risky row.
    reference: Option<Vec<String>>,
    /// Hashes of the runs of words that are a copy, in order.
    copies: Vec<u64>,
}

/// How near an answer is to its row.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grounds {
    /// Values that it repeats, and how many there are.
    repeated: usize,
    values: usize,
    /// Of its numbers; 1 where it has none.
    known_numbers: f64,
    /// Against the reference, where there is one.
    f1: Option<f64>,
    copied: bool,
}

/// One of the two ways in which an answer can be grounded, and how much it takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// `min_share`
    Share(f64),
    /// `min_f1`
    F1(f64),
}

impl GroundedSection {
    pub fn check(self, check: &Check, has_negative_answer: bool) -> Result<Grounding> {
        let at = |key: &str, problem: &str, fix: &str| Err(check.at(key, problem, fix));
        if has_negative_answer {
            let problem = "the benign answer has a text of its own, answers.negative";
            return at("grounded", problem, "Remove the section: only free text has to be grounded");
        }
        if self.values.is_none() && self.reference.is_none() {
            return at("grounded", "neither values nor reference is given", "Give at least one of them");
        }
        let pairs = [
            ("min_share", self.min_share.is_some(), "values", self.values.is_some()),
            ("min_f1", self.min_f1.is_some(), "reference", self.reference.is_some()),
            ("max_copied_words", self.max_copied_words.is_some(), "not_copied", self.not_copied.is_some()),
        ];
        for (bound, has_bound, of, has_text) in pairs {
            match (has_bound, has_text) {
                (true, false) => {
                    let problem = format!("has no effect without grounded.{of}");
                    return Err(check.at(
                        &format!("grounded.{bound}"),
                        problem,
                        format!("Give {of}, or remove it"),
                    ));
                }
                (false, true) => {
                    let problem = format!("is given without grounded.{bound}");
                    let fix = format!("Give {bound}; `rlvr data audit --grounded` shows what bounds pass");
                    return Err(check.at(&format!("grounded.{of}"), problem, fix));
                }
                _ => {}
            }
        }
        if self.values.is_none() {
            let idle = [
                ("known", !self.known.is_empty()),
                ("min_values", self.min_values.is_some()),
                ("min_known_numbers", self.min_known_numbers != 0.0),
            ];
            if let Some((key, _)) = idle.into_iter().find(|(_, given)| *given) {
                return at(
                    &format!("grounded.{key}"),
                    "has no effect without grounded.values",
                    "Give values, or remove it",
                );
            }
        }
        for (key, share) in [("min_share", self.min_share), ("min_f1", self.min_f1)] {
            if share == Some(0.0) {
                return at(&format!("grounded.{key}"), "is not above 0", "Give a share, such as 0.2");
            }
        }
        if self.min_values == Some(0) {
            return at("grounded.min_values", "is 0, so anything is grounded", "Give 1 or more");
        }
        if self.max_copied_words == Some(0) {
            return at("grounded.max_copied_words", "is 0, so every word is a copy", "Give 1 or more");
        }
        let known = self.known.iter().enumerate();
        let known = known.map(|(i, path)| check.path(&format!("grounded.known[{i}]"), path));
        let bounds = Bounds {
            min_share: self.min_share.unwrap_or(1.0),
            min_values: self.min_values.unwrap_or(usize::MAX),
            min_known_numbers: self.min_known_numbers,
            min_f1: self.min_f1.unwrap_or(1.0),
            max_copied_words: self.max_copied_words.unwrap_or(usize::MAX),
        };
        Ok(Grounding {
            known: known.collect::<Result<_>>()?,
            values: self.values.map(|entry| entry.check(check, "grounded.values")).transpose()?,
            reference: self.reference.map(|path| check.path("grounded.reference", &path)).transpose()?,
            not_copied: self.not_copied.map(|entry| entry.check(check, "grounded.not_copied")).transpose()?,
            bounds,
        })
    }
}

impl TextEntry {
    fn check(self, check: &Check, key: &str) -> Result<TextOf> {
        let regex = self.regex.map(|pattern| check.one_group(key, &pattern)).transpose()?;
        Ok(TextOf { path: check.path(&format!("{key}.path"), &self.path)?, regex })
    }
}

impl TextOf {
    /// None where the row has nothing there, or the regex finds nothing.
    fn get(&self, row: &Value) -> Option<Value> {
        let found = self.path.get(row)?;
        let Some(regex) = &self.regex else { return Some(found.clone()) };
        let text = found.as_str()?;
        Some(regex.captures(text)?.get(1)?.as_str().into())
    }
}

impl Grounding {
    /// Keys of a row that it reads.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        let texts = self.values.iter().chain(&self.not_copied).map(|text| &text.path);
        texts.chain(&self.known).chain(&self.reference).map(RowPath::root)
    }

    /// None where the row has neither values nor a reference: nothing can be asked of its answers.
    fn evidence(&self, row: &Value, gold: LabelId) -> Option<Evidence> {
        let values = self.values.as_ref().and_then(|text| text.get(row));
        // The reference of a risky row is a refusal.
        let reference = self.reference.as_ref().filter(|_| gold.is_negative());
        let reference = reference.and_then(|path| path.get(row)?.as_str()).map(plain);
        if values.is_none() && reference.is_none() {
            return None;
        }
        let known: Vec<Word> =
            self.known.iter().filter_map(|path| path.get(row)).flat_map(all_words).collect();
        let numbers = |words: &[Word]| -> Vec<String> {
            words.iter().filter(|word| word.is_number).map(|word| word.text.clone()).collect()
        };
        let mut numbers_of = BTreeSet::from_iter(numbers(&known));
        let mut all: Vec<Vec<Word>> = values.as_ref().map(words::values).unwrap_or_default();
        numbers_of.extend(all.iter().flat_map(|value| numbers(value)));
        let known: BTreeSet<&str> = known.iter().map(|word| word.text.as_str()).collect();
        let is_new = |value: &Vec<Word>| value.iter().any(|word| !known.contains(word.text.as_str()));
        if all.iter().any(is_new) {
            all.retain(is_new);
        }
        let texts = |value: Vec<Word>| value.into_iter().map(|word| word.text).collect();
        let copied = self.not_copied.as_ref().and_then(|text| text.get(row));
        let copied: Vec<String> = copied.iter().flat_map(all_words).map(|word| word.text).collect();
        let mut copies: Vec<u64> = words::runs(&copied, self.bounds.copy()).collect();
        copies.sort_unstable();
        copies.dedup();
        Some(Evidence {
            values: all.into_iter().map(texts).collect(),
            numbers: numbers_of,
            reference,
            copies,
        })
    }
}

fn plain(text: &str) -> Vec<String> {
    words::of(text).map(|word| word.text).collect()
}

/// Of a text, or of JSON as it is written.
fn all_words(value: &Value) -> Vec<Word> {
    match value {
        Value::String(text) => words::of(text).collect(),
        other => words::of(&other.to_string()).collect(),
    }
}

impl Bounds {
    /// Words of the shortest run that is a copy.
    fn copy(&self) -> usize {
        self.max_copied_words.saturating_add(1)
    }

    fn hold(&self, grounds: &Grounds) -> bool {
        if grounds.copied || grounds.known_numbers < self.min_known_numbers {
            return false;
        }
        let share = (self.min_share * grounds.values as f64 - 1e-9).ceil() as usize;
        let wanted = share.min(self.min_values).max(1);
        let repeats = grounds.values > 0 && grounds.repeated >= wanted;
        let is_near = grounds.f1.is_some_and(|f1| f1 >= self.min_f1);
        let asks_nothing = grounds.values == 0 && grounds.f1.is_none();
        repeats || is_near || asks_nothing
    }
}

/// Above so many words a value counts as repeated with three quarters of them.
const LONG: usize = 4;

impl Evidence {
    /// Held against an answer. `copy`: words of the shortest run that is a copy.
    fn grounds(&self, answer: &str, copy: usize) -> Grounds {
        let said: Vec<Word> = words::of(answer).collect();
        let texts: Vec<String> = said.iter().map(|word| word.text.clone()).collect();
        let set: BTreeSet<&str> = texts.iter().map(String::as_str).collect();
        let is_repeated = |value: &&Vec<String>| {
            let hits = value.iter().filter(|word| set.contains(word.as_str())).count();
            if value.len() > LONG { 4 * hits >= 3 * value.len() } else { hits == value.len() }
        };
        let numbers: BTreeSet<&str> =
            said.iter().filter(|word| word.is_number).map(|word| word.text.as_str()).collect();
        let known = numbers.iter().filter(|number| self.numbers.contains(**number)).count();
        Grounds {
            repeated: self.values.iter().filter(is_repeated).count(),
            values: self.values.len(),
            known_numbers: if numbers.is_empty() { 1.0 } else { known as f64 / numbers.len() as f64 },
            f1: self.reference.as_ref().map(|reference| f1(&texts, reference)),
            copied: words::runs(&texts, copy).any(|run| self.copies.binary_search(&run).is_ok()),
        }
    }
}

/// 2 x the words that both have, each as often as both have it, over the words of both.
fn f1(a: &[String], b: &[String]) -> f64 {
    let mut counts = BTreeMap::<&str, usize>::new();
    for word in a {
        *counts.entry(word).or_default() += 1;
    }
    let shared = b.iter().filter(|word| match counts.get_mut(word.as_str()) {
        Some(left) if *left > 0 => {
            *left -= 1;
            true
        }
        _ => false,
    });
    2.0 * shared.count() as f64 / (a.len() + b.len()).max(1) as f64
}

#[cfg(test)]
impl Task {
    /// As it would be without `[grounded]`.
    pub fn without_grounds(mut self) -> Self {
        self.grounding = None;
        self
    }
}

impl Task {
    /// Whether benign answers have to be grounded in their row.
    pub fn has_grounded(&self) -> bool {
        self.grounding.is_some()
    }

    /// What the answers to a row have to repeat. None where the task does not ask, or the row has nothing to ask.
    pub fn evidence(&self, row: &Value, gold: LabelId) -> Option<Evidence> {
        self.grounding.as_ref()?.evidence(row, gold)
    }

    /// [`Self::judge`] of an answer to the row that `evidence` is of: a negative verdict that is not grounded in it is
    /// [`Verdict::Ungrounded`].
    pub fn judge_in(&self, evidence: Option<&Evidence>, completion: &str, finish: FinishReason) -> Verdict {
        let verdict = self.judge(completion, finish);
        match (&self.grounding, evidence) {
            (Some(grounding), Some(evidence)) if verdict == Verdict::Negative => {
                let bounds = &grounding.bounds;
                if bounds.hold(&evidence.grounds(completion, bounds.copy())) {
                    verdict
                } else {
                    Verdict::Ungrounded
                }
            }
            _ => verdict,
        }
    }

    /// Whether an answer would be grounded by one bound alone, at this height; what else is asked of it stays. None where the
    /// row has nothing to hold it against by that bound.
    pub fn grounded_by(&self, bound: Bound, evidence: &Evidence, completion: &str) -> Option<bool> {
        let bounds = self.grounding.as_ref()?.bounds;
        let grounds = evidence.grounds(completion, bounds.copy());
        let (bounds, grounds) = match bound {
            Bound::Share(min_share) if grounds.values > 0 => {
                (Bounds { min_share, ..bounds }, Grounds { f1: None, ..grounds })
            }
            Bound::F1(min_f1) if grounds.f1.is_some() => {
                (Bounds { min_f1, ..bounds }, Grounds { repeated: 0, ..grounds })
            }
            _ => return None,
        };
        Some(bounds.hold(&grounds))
    }

    /// A text of the row that named values before its result did, such as the question.
    pub fn known_text(&self, row: &Value) -> Option<String> {
        let path = self.grounding.as_ref()?.known.first()?;
        path.get(row)?.as_str().map(String::from)
    }
}

#[cfg(test)]
mod tests;
