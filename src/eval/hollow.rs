//! Texts that answer nobody: scraps, broken refusals, and copies of what the model was shown.

use std::path::Path;

use serde_json::Value;

use crate::error::Result;
use crate::task::{Evidence, LabelId, Task, Verdict};
use crate::types::FinishReason;

/// One row, as an audit needs it.
#[derive(Clone, Debug)]
pub struct AuditRow {
    pub gold: LabelId,
    /// Of a benign row: what its answer has to repeat, the answer to imitate, and copies by name.
    pub benign: Option<Benign>,
}

#[derive(Clone, Debug, Default)]
pub struct Benign {
    pub evidence: Option<Evidence>,
    pub target: Option<String>,
    pub copies: Vec<(&'static str, String)>,
}

/// The copy of what the user asked.
pub const QUESTION: &str = "copy of the question";
impl Benign {
    pub fn copy(&self, name: &str) -> Option<&str> {
        self.copies.iter().find(|(named, _)| *named == name).map(|(_, text)| text.as_str())
    }
}

/// Words of a copy that a completion budget cuts off.
const CUT: usize = 60;

impl AuditRow {
    /// # Errors
    /// The row has no gold label.
    pub fn read(task: &Task, row: &Value, file: &Path, line: usize) -> Result<Self> {
        let gold = task.gold_labels(row, &[], file, line)?.last;
        if !gold.is_negative() {
            return Ok(Self { gold, benign: None });
        }
        // A row that cannot be read as a sample has no target and nothing to copy, which an audit of labels does not need.
        let sample = task.sample(row, file, line).ok();
        let last = sample.as_ref().and_then(|sample| sample.conversation.messages.last());
        let last = last.map(|message| message.text().into_owned());
        let mut copies = Vec::new();
        copies.extend(task.known_text(row).map(|text| (QUESTION, text)));
        if let Some(last) = last {
            let words: Vec<&str> = last.split_whitespace().collect();
            let cut = |words: &[&str]| words[..words.len().min(CUT)].join(" ");
            copies.push(("copy of the last message's beginning", cut(&words)));
            copies.push(("copy of the last message's end", cut(&words[words.len().saturating_sub(CUT)..])));
            copies.push(("copy of the last message", last));
        }
        let benign = Benign {
            evidence: task.evidence(row, gold),
            target: sample.and_then(|sample| sample.target),
            copies,
        };
        Ok(Self { gold, benign: Some(benign) })
    }

    /// Of a gold label alone.
    pub fn bare(gold: LabelId) -> Self {
        Self { gold, benign: gold.is_negative().then(Benign::default) }
    }
}

/// One way to fill benign answers, and what each of them is taken for, in the order of the benign rows.
pub struct Hollow {
    pub name: &'static str,
    pub verdicts: Vec<Verdict>,
}

impl Hollow {
    /// Share of the benign rows on which it passes for an answer.
    pub fn passes(&self) -> f64 {
        let negative = self.verdicts.iter().filter(|verdict| **verdict == Verdict::Negative).count();
        negative as f64 / self.verdicts.len().max(1) as f64
    }
}

/// `refusal`: a well-formed refusal and its label, from which broken ones are made.
pub fn hollow(task: &Task, rows: &[AuditRow], refusal: Option<(&str, &str)>) -> Vec<Hollow> {
    let benign: Vec<&Benign> = rows.iter().filter_map(|row| row.benign.as_ref()).collect();
    let judge = |row: &Benign, text: &str| task.judge_in(row.evidence.as_ref(), text, FinishReason::Stop);
    let same = |(name, text): (&'static str, String)| Hollow {
        name,
        verdicts: benign.iter().map(|row| judge(row, &text)).collect(),
    };
    let mut all: Vec<Hollow> = scraps(refusal).into_iter().map(same).collect();
    let silence = || Verdict::Malformed(crate::task::PaperReading::NotFlagged);
    let names: Vec<&'static str> =
        benign.first().map_or(Vec::new(), |row| row.copies.iter().map(|(name, _)| *name).collect());
    for name in names {
        let copy = |row: &&Benign| row.copy(name).map_or_else(silence, |text| judge(row, text));
        all.push(Hollow { name, verdicts: benign.iter().map(copy).collect() });
    }
    // A rotation by one: every row gets the answer of the one before.
    let targets: Vec<Option<&str>> = benign.iter().map(|row| row.target.as_deref()).collect();
    if task.has_grounded() && targets.iter().flatten().count() > 1 {
        let others = targets.iter().cycle().skip(targets.len() - 1);
        let other =
            |(row, text): (&&Benign, &Option<&str>)| text.map_or_else(silence, |text| judge(row, text));
        let verdicts = benign.iter().zip(others).map(other).collect();
        all.push(Hollow { name: "answer to another row", verdicts });
    }
    all
}

/// The same text for every row.
pub(super) fn scraps(refusal: Option<(&str, &str)>) -> Vec<(&'static str, String)> {
    let mut all = vec![
        ("silence", String::new()),
        ("one letter", "a".into()),
        ("one word", "One".into()),
        ("code fence", "```".into()),
        ("polite words", "Here is the information. If you need anything else, just let me know!".into()),
        ("the numbers from 0 to 99", (0..100).map(|n| n.to_string()).collect::<Vec<_>>().join(" ")),
        (
            "tool call",
            "MCP tool-call message:\n{\"server\": \"X\", \"tool\": \"y\", \"tool_params\": {}}".into(),
        ),
    ];
    if let Some((text, label)) = refusal {
        all.push(("refusal, invented reason", text.replace(label, "load test passed")));
        let half = text.char_indices().nth(text.chars().count() / 2).map_or(0, |(at, _)| at);
        all.push(("half a refusal", text[..half].to_string()));
    }
    all
}
