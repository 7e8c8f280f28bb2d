//! What rewards that look at the text, or ask somebody, pay to who does not do the task.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

use super::audit::probe_texts;
use crate::data::told::{Told, first_rows};
use crate::error::{Error, Result};
use crate::reward::{Judges, Question};
use crate::task::{Answered, LabelId, NamedReward, Outcome, Task};
use crate::types::FinishReason;

/// On the first rows of a file.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RewardAudit {
    pub rows: usize,
    /// Names of the task's rewards, `[reward]` first.
    pub rewards: Vec<String>,
    /// The right answers first, where their texts are known.
    pub strategies: Vec<Paid>,
    pub warnings: Vec<String>,
}

/// What one way to answer earns.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Paid {
    pub name: String,
    /// Mean over the rows of the weighted sum of the parts that are known.
    pub reward: f64,
    /// Mean of each reward, unweighted; null where it takes tokens, which nothing counts here.
    pub parts: Vec<Option<f64>>,
}

const RIGHT: &str = "the right answers";

/// One way to answer, and its text for each row.
struct Way {
    name: String,
    texts: Vec<String>,
}

/// A row, its gold label and what is told of it.
struct Row {
    value: Value,
    told: Arc<Told>,
    gold: LabelId,
    target: Option<String>,
}

/// Of a task whose rewards are not all tables of outcomes; `None` of another. The first `rows` rows of `data` are taken.
///
/// # Errors
/// A row cannot be mapped; somebody who is asked cannot answer, whatever `on_error` says.
pub fn audit_rewards(task: &Task, data: &Path, rows: usize) -> Result<Option<RewardAudit>> {
    if task.is_by_outcome() {
        return Ok(None);
    }
    let mut read = Vec::new();
    for (value, sample, told) in first_rows(task, data, rows)? {
        let unknown = || Error::input(&told.place, "has no label of the task", "Correct the row");
        let gold = task.label_id(&sample.gold).ok_or_else(unknown)?;
        read.push(Row { value, told, gold, target: sample.target });
    }
    let ways = ways(task, &read);
    let mut judges = Judges::open(task)?;
    if let Some(judges) = &mut judges {
        judges.stop_on_error();
        let all = ways.iter().flat_map(|way| way.texts.iter().zip(&read));
        for (number, (text, row)) in all.enumerate() {
            judges.ask(Question::about(format!("audit.{number}"), task, &row.told, row.gold, text));
        }
    }
    let said = judges.as_mut().map_or(Ok(Default::default()), Judges::take).map_err(Error::as_input)?.0;
    let mut said = said.into_iter();
    let strategies: Vec<Paid> = ways
        .iter()
        .map(|way| {
            let earned = way.texts.iter().zip(&read).map(|(text, row)| {
                let said = said.next().unwrap_or_default();
                let outcome = Outcome::of(row.gold, task.judge(text, FinishReason::Stop));
                let answered = Answered { text, tokens: None, outcome };
                let of_others = |at: usize| said.iter().find(|said| said.index == at).map(|said| said.value);
                let values = task.rewards().iter().enumerate();
                values.map(|(at, named)| named.of(answered).or(of_others(at))).collect::<Vec<_>>()
            });
            paid(task, &way.name, &earned.collect::<Vec<_>>())
        })
        .collect();
    let warnings = judges.map_or(Vec::new(), Judges::finish).into_iter().chain(warnings(task, &strategies));
    let rewards = task.rewards().iter().map(|named| named.name.clone()).collect();
    Ok(Some(RewardAudit { rows: read.len(), rewards, warnings: warnings.collect(), strategies }))
}

/// Only such as have a text for every row.
fn ways(task: &Task, rows: &[Row]) -> Vec<Way> {
    let way = |name: String, text: &dyn Fn(&Row) -> Option<String>| {
        Some(Way { name, texts: rows.iter().map(text).collect::<Option<_>>()? })
    };
    let right = |row: &Row| row.target.clone().or_else(|| task.text_of(&row.value, row.gold));
    let labels = task.labels().iter().enumerate().filter_map(|(at, name)| {
        let label = LabelId(at as u16);
        let name =
            if label.is_negative() { format!("always {name}") } else { format!("always flag: {name}") };
        way(name, &|row| task.text_of(&row.value, label))
    });
    let refusal = rows.iter().find(|row| !row.gold.is_negative());
    let refusal = refusal.and_then(|row| Some((right(row)?, task.label_text(row.gold))));
    let refusal = refusal.as_ref().map(|(text, label)| (text.as_str(), label.as_str()));
    let probes = probe_texts(refusal).into_iter();
    let probes = probes.filter_map(|(name, text)| way(name.into(), &|_| Some(text.clone())));
    way(RIGHT.into(), &right).into_iter().chain(labels).chain(probes).collect()
}

/// `earned`: by row and reward.
fn paid(task: &Task, name: &str, earned: &[Vec<Option<f32>>]) -> Paid {
    let count = earned.len().max(1) as f64;
    let mean = |at: usize| {
        let values = earned.iter().map(|row| row.get(at).copied().flatten().map(f64::from));
        Some(values.sum::<Option<f64>>()? / count)
    };
    let parts: Vec<Option<f64>> = (0..task.rewards().len()).map(mean).collect();
    let weighed = |(named, part): (&NamedReward, &Option<f64>)| Some(f64::from(named.weight) * (*part)?);
    let reward = task.rewards().iter().zip(&parts).filter_map(weighed).sum();
    Paid { name: name.into(), reward, parts }
}

fn warnings(task: &Task, strategies: &[Paid]) -> Vec<String> {
    let mut warnings = Vec::new();
    let tables = |named: &NamedReward| matches!(named.kind, crate::task::RewardKind::Outcomes(_));
    for (at, named) in task.rewards().iter().enumerate().filter(|(_, named)| !tables(named)) {
        let part = |paid: &Paid| paid.parts.get(at).copied().flatten();
        let mut all = strategies.iter().filter_map(part);
        if let Some(first) = all.next()
            && all.all(|other| other == first)
        {
            warnings.push(format!("`{}` says {first} of everything that is shown here", named.name));
        }
    }
    let right = strategies.iter().find(|paid| paid.name == RIGHT);
    let fools = right.into_iter().flat_map(|right| {
        let others = strategies.iter().filter(|paid| paid.name != RIGHT && paid.reward >= right.reward);
        others.map(|paid| {
            format!("`{}` earns {:.3}, the right answers {:.3}", paid.name, paid.reward, right.reward)
        })
    });
    warnings.extend(fools);
    warnings
}
