//! What becomes of a file's rows: kept or dropped, by reason and label, and which budget would keep nearly all.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use super::limits::{Limits, TooLong};
use crate::task::{LabelId, Task};

/// Rows of a file that were read, by gold label.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Account {
    labels: BTreeMap<LabelId, Fate>,
    /// Tokens of every prompt and of every target, of dropped rows too; [`usize::MAX`] of a prompt that was not counted.
    prompt_tokens: Vec<usize>,
    target_tokens: Vec<usize>,
    /// Rows with a control token in a text.
    pub(super) control: usize,
    /// Rows whose answer to imitate is not grounded, and those whose answers cannot be held against anything.
    pub(super) hollow: usize,
    pub(super) unasked: usize,
    /// Rows with half of a character.
    pub(super) half_characters: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Fate {
    kept: usize,
    long_prompt: usize,
    long_target: usize,
}

/// Above this share of dropped rows a user is warned.
const MUCH: f64 = 0.1;
/// What the budget that is recommended keeps, percent.
const NEARLY_ALL: usize = 95;
/// Labels that a line names.
const NAMED: usize = 12;

impl AddAssign for Account {
    /// Of another file's rows.
    fn add_assign(&mut self, other: Self) {
        let Self { labels, prompt_tokens, target_tokens, control, hollow, unasked, half_characters } = other;
        for (label, fate) in labels {
            let own = self.labels.entry(label).or_default();
            own.kept += fate.kept;
            own.long_prompt += fate.long_prompt;
            own.long_target += fate.long_target;
        }
        self.prompt_tokens.extend(prompt_tokens);
        self.target_tokens.extend(target_tokens);
        self.control += control;
        self.hollow += hollow;
        self.unasked += unasked;
        self.half_characters += half_characters;
    }
}

impl Account {
    /// `prompt`: none where it is too long by its bytes. `target`: the longest answer, where the row has one.
    pub(super) fn add(
        &mut self,
        gold: LabelId,
        prompt: Option<usize>,
        target: Option<usize>,
        reason: Option<TooLong>,
    ) {
        let fate = self.labels.entry(gold).or_default();
        match reason {
            None => fate.kept += 1,
            Some(TooLong::Prompt) => fate.long_prompt += 1,
            Some(TooLong::Target) => fate.long_target += 1,
        }
        self.prompt_tokens.push(prompt.unwrap_or(usize::MAX));
        self.target_tokens.extend(target);
    }

    fn sum(&self, of: fn(&Fate) -> usize) -> usize {
        self.labels.values().map(of).sum()
    }

    pub fn kept(&self) -> usize {
        self.sum(|fate| fate.kept)
    }

    pub fn dropped(&self) -> usize {
        self.sum(|fate| fate.long_prompt + fate.long_target)
    }

    /// Reasons that occurred, and how many rows each cost.
    pub fn reasons(&self, limits: &Limits) -> Vec<(String, usize)> {
        let all = [
            (TooLong::Prompt, self.sum(|fate| fate.long_prompt)),
            (TooLong::Target, self.sum(|fate| fate.long_target)),
        ];
        all.into_iter().filter(|(_, rows)| *rows > 0).map(|(why, rows)| (why.explain(limits), rows)).collect()
    }

    /// `Safe 300 of 569, ...`: kept rows of each label; empty where nothing is dropped.
    pub fn labels(&self, task: &Task) -> String {
        if self.dropped() == 0 {
            return String::new();
        }
        let mut named: Vec<String> = self
            .labels
            .iter()
            .take(NAMED)
            .map(|(label, fate)| {
                let all = fate.kept + fate.long_prompt + fate.long_target;
                format!("{} {} of {all}", task.label_text(*label), fate.kept)
            })
            .collect();
        if self.labels.len() > NAMED {
            named.push(format!("{} labels more", self.labels.len() - NAMED));
        }
        named.join(", ")
    }

    /// Where much is dropped: the budgets that would keep nearly all.
    pub fn advice(&self, limits: &Limits) -> Option<String> {
        let rows = self.kept() + self.dropped();
        let share = self.dropped() as f64 / rows.max(1) as f64;
        if share <= MUCH {
            return None;
        }
        let budgets = [
            ("data.max_prompt_tokens", &self.prompt_tokens, limits.max_prompt_tokens),
            ("data.max_target_tokens", &self.target_tokens, limits.max_target_tokens),
        ];
        let wanted = budgets.into_iter().filter_map(|(key, lengths, budget)| {
            let mut lengths = lengths.clone();
            lengths.sort_unstable();
            let rank = (lengths.len() * NEARLY_ALL).div_ceil(100).max(1) - 1;
            let needed = lengths.get(rank).filter(|needed| **needed > budget)?;
            (*needed < usize::MAX).then(|| format!("{key} = {needed}"))
        });
        let wanted: Vec<String> = wanted.collect();
        let mut said = format!("{:.0}% of the rows are dropped", 100.0 * share);
        if !wanted.is_empty() {
            said.push_str(&format!("; {} would keep {NEARLY_ALL}%", wanted.join(" and ")));
        }
        Some(said)
    }

    /// What a run says first of the file `what`: a line, and whether it is a warning.
    pub fn say(&self, what: &str, task: &Task, limits: &Limits) -> (String, bool) {
        let (kept, dropped) = (self.kept(), self.dropped());
        if dropped == 0 {
            return (format!("{what}: {kept} rows, none too long{}", self.remarks()), false);
        }
        let reasons = self.reasons(limits).into_iter().map(|(why, rows)| format!("{rows}: {why}"));
        let mut text = format!(
            "{what}: {kept} of {} rows kept ({}); {}",
            kept + dropped,
            reasons.collect::<Vec<_>>().join("; "),
            self.labels(task)
        );
        let advice = self.advice(limits);
        if let Some(advice) = &advice {
            text.push_str(". ");
            text.push_str(advice);
        }
        text.push_str(&self.remarks());
        (text, advice.is_some())
    }

    /// Whether something was done to texts, which [`Self::say`] says.
    pub fn has_remarks(&self) -> bool {
        self.control + self.half_characters + self.hollow + self.unasked > 0
    }

    /// What was done to texts.
    fn remarks(&self) -> String {
        let said = [
            (self.control, "rows have a control token in a text, which stays text"),
            (self.half_characters, "rows have half of a character, which became U+FFFD"),
            (self.hollow, "rows have a target that [grounded] takes for malformed"),
            (
                self.unasked,
                "rows have nothing at [grounded]'s paths, so their benign answers are not held against it",
            ),
        ];
        said.into_iter()
            .filter(|(rows, _)| *rows > 0)
            .map(|(rows, what)| format!("; {rows} {what}"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Targets;

    const LIMITS: Limits =
        Limits { max_prompt_tokens: 100, max_target_tokens: 9, max_rows: 0, targets: Targets::Required };

    #[test]
    fn little_is_a_note_and_much_a_warning_with_the_budget_that_helps() {
        let task = Task::load("riskcue").unwrap();
        let mut account = Account::default();
        for i in 1..=18 {
            account.add(LabelId(0), Some(5 * i), Some(3), None);
        }
        assert_eq!(
            account.say("data.valid", &task, &LIMITS),
            ("data.valid: 18 rows, none too long".into(), false)
        );
        account.add(LabelId(0), Some(400), Some(3), Some(TooLong::Prompt));
        let (text, much) = account.say("data.train", &task, &LIMITS);
        let want =
            "data.train: 18 of 19 rows kept (1: prompt longer than max_prompt_tokens = 100); Safe 18 of 19";
        assert_eq!((text.as_str(), much), (want, false));
        account.add(LabelId(1), Some(120), Some(3), Some(TooLong::Prompt));
        account.add(LabelId(1), Some(70), Some(12), Some(TooLong::Target));
        let (text, much) = account.say("data.train", &task, &LIMITS);
        // 20 of 21 prompts, the 95th percentile by nearest rank, have 120 tokens at most; of the targets 9 is enough.
        let want = "14% of the rows are dropped; data.max_prompt_tokens = 120 would keep 95%";
        assert!(much && text.ends_with(want), "{text}");
        assert!(text.contains("Safe 18 of 19, Sensitive Data Exfiltration 0 of 2. "), "{text}");
        // Where no number is known that would help, none is said.
        for _ in 0..2 {
            account.add(LabelId(1), None, None, Some(TooLong::Prompt));
        }
        assert_eq!(account.advice(&LIMITS).unwrap(), "22% of the rows are dropped");
    }
}
