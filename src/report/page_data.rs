//! What the page's script shows, as JSON within the page: answers of every evaluation, and confusion over the run.

use std::collections::HashMap;

use serde::Serialize;

use super::answers::{Answers, outcome, thinned};
use super::run::Run;
use super::svg::visible;
use crate::error::{Error, Result};
use crate::observe::SampleKind;

/// Of the JSON. A page stays one that a browser opens and a mail takes.
const MOST_BYTES: usize = 12 << 20;
/// Answers of a set, and characters of a text; the first that fits is taken, or else the last.
const LIMITS: [Limits; 6] = [
    Limits { answers: 1000, characters: 8000 },
    Limits { answers: 500, characters: 8000 },
    Limits { answers: 250, characters: 4000 },
    Limits { answers: 100, characters: 2000 },
    Limits { answers: 50, characters: 1000 },
    Limits { answers: 20, characters: 500 },
];
/// Evaluations whose confusion is shown.
const MOST_CONFUSIONS: usize = 100;

#[derive(Clone, Copy)]
struct Limits {
    answers: usize,
    characters: usize,
}

#[derive(Serialize)]
struct PageData {
    /// What rows point at: labels, prompts, completions, each once.
    texts: Vec<String>,
    runs: Vec<RunData>,
}

#[derive(Serialize)]
struct RunData {
    name: String,
    confusions: Vec<Confusion>,
    sets: Vec<Set>,
}

#[derive(Serialize)]
struct Confusion {
    name: String,
    rows: Vec<Vec<u64>>,
}

#[derive(Serialize)]
struct Set {
    name: String,
    kind: SampleKind,
    /// Answers that were recorded.
    count: usize,
    rows: Vec<Row>,
}

/// Line, number among the answers to it, outcome, gold, verdict, reward, advantage, tokens, completion, prompt; texts by
/// their index.
type Row = (usize, usize, usize, usize, usize, f32, Option<f32>, Option<usize>, usize, Option<usize>);

struct Texts {
    all: Vec<String>,
    known: HashMap<String, usize>,
    characters: usize,
    /// A text was longer than that.
    clipped: bool,
}

impl Texts {
    fn index(&mut self, text: &str) -> usize {
        let text = self.clip(text);
        let next = self.all.len();
        *self.known.entry(text).or_insert_with_key(|text| {
            self.all.push(text.clone());
            next
        })
    }

    /// Its beginning and its end, where both do not meet.
    fn clip(&mut self, text: &str) -> String {
        let count = text.chars().count();
        if count <= self.characters {
            return text.chars().map(visible).collect();
        }
        self.clipped = true;
        let half = self.characters / 2;
        let start: String = text.chars().take(half).map(visible).collect();
        let end: String = text.chars().skip(count - half).map(visible).collect();
        format!("{start}\n[... {} characters left out ...]\n{end}", count - 2 * half)
    }
}

/// JSON that can stand in a `script` element, and what was left out to keep it small.
///
/// # Errors
/// The data cannot be written as JSON.
pub fn page_data(runs: &[Run]) -> Result<(String, Vec<String>)> {
    let mut built = build(runs, LIMITS[0])?;
    for limits in &LIMITS[1..] {
        if built.0.len() <= MOST_BYTES {
            break;
        }
        built = build(runs, *limits)?;
    }
    Ok(built)
}

fn build(runs: &[Run], limits: Limits) -> Result<(String, Vec<String>)> {
    let characters = limits.characters;
    let mut texts = Texts { all: Vec::new(), known: HashMap::new(), characters, clipped: false };
    let mut is_cut = false;
    let mut all = Vec::new();
    for run in runs {
        let labels = run.last_evaluation().map(|e| e.labels()).unwrap_or_default();
        let negative = labels.first().copied().unwrap_or_default();
        let mut sets = Vec::new();
        for set in &run.answers.sets {
            let rows = thinned(set.records.iter().collect(), set.kind, limits.answers);
            is_cut |= rows.len() < set.count;
            let row = |(record, sample): &(_, usize)| row(&mut texts, run, set, record, *sample, negative);
            let rows = rows.into_iter().map(row).collect();
            sets.push(Set { name: set.name.clone(), kind: set.kind, count: set.count, rows });
        }
        all.push(RunData { name: run.name.clone(), confusions: confusions(run), sets });
    }
    let mut notes = Vec::new();
    if is_cut {
        let most = limits.answers;
        notes.push(format!("at most {most} answers of an evaluation or a step, from all over its rows"));
    }
    if texts.clipped {
        notes.push(format!("at most {characters} characters of a text"));
    }
    let data = PageData { texts: texts.all, runs: all };
    let json = serde_json::to_string(&data).map_err(|e| Error::Compute(e.into()))?;
    Ok((for_a_script(&json), notes))
}

fn row(
    texts: &mut Texts,
    run: &Run,
    set: &Answers,
    record: &crate::observe::SampleRecord,
    sample: usize,
    negative: &str,
) -> Row {
    let prompt = run.answers.prompt(set.kind, record.line);
    (
        record.line,
        sample,
        texts.index(outcome(record, negative).0),
        texts.index(&record.gold),
        texts.index(&record.verdict),
        record.reward,
        record.advantage,
        record.tokens,
        texts.index(&record.completion),
        prompt.map(|prompt| texts.index(prompt)),
    )
}

/// Of the evaluations with the labels of the last; evenly spaced where there are many.
fn confusions(run: &Run) -> Vec<Confusion> {
    let Some(last) = run.last_evaluation() else { return Vec::new() };
    let while_training = run.evaluations.iter().filter(|e| e.total.is_some());
    let all: Vec<_> = while_training.filter(|e| e.labels() == last.labels()).collect();
    let every = all.len().div_ceil(MOST_CONFUSIONS).max(1);
    let kept = all.iter().rev().step_by(every).rev();
    kept.map(|e| Confusion { name: e.name.clone(), rows: e.confusion() }).collect()
}

/// No text within the JSON can end the element that it stands in, or begin a comment there.
fn for_a_script(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::SampleRecord;

    fn run(count: usize, completion: &str) -> Run {
        let record = |line| SampleRecord {
            line,
            gold: "Safe".into(),
            verdict: "malformed".into(),
            reason: None,
            reward: 0.0,
            rewards: Default::default(),
            advantage: Some(-1.0),
            tokens: Some(3),
            finish: None,
            completion: format!("{completion}{line}"),
        };
        let mut run = Run { name: "a".into(), ..Run::default() };
        run.answers.sets = vec![Answers {
            kind: SampleKind::Evaluation,
            name: "sft 1".into(),
            total: 1,
            count,
            records: (0..count).map(|line| (record(line), 0)).collect(),
        }];
        run
    }

    #[test]
    fn foreign_text_stays_within_its_string() {
        let text = "</script><script>alert(1)</script><!-- & \u{2028}\u{1b}\u{202e}";
        let (json, notes) = page_data(&[run(1, text)]).unwrap();
        for part in ["<", ">", "&", "\u{2028}"] {
            assert!(!json.contains(part), "{part}: {json}");
        }
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        let row = &read["runs"][0]["sets"][0]["rows"][0];
        let completion = &read["texts"][row[8].as_u64().unwrap() as usize];
        assert_eq!(completion, "</script><script>alert(1)</script><!-- & \u{2028}\u{fffd}\u{fffd}0");
        assert!(notes.is_empty(), "{notes:?}");
    }

    #[test]
    fn a_large_run_is_cut_and_says_so() {
        let (json, notes) = page_data(&[run(1000, &"long ".repeat(8000))]).unwrap();
        assert!(json.len() <= MOST_BYTES, "{}", json.len());
        assert!(json.contains("characters left out"));
        assert!(notes[0].starts_with("at most 1000 answers") || notes.len() == 1, "{notes:?}");
        let wide: Vec<Run> = (0..20).map(|_| run(1000, &"x".repeat(1500))).collect();
        let mut wide = wide;
        for (i, run) in wide.iter_mut().enumerate() {
            run.answers.sets[0].records.iter_mut().for_each(|(r, _)| r.completion.push_str(&i.to_string()));
        }
        let (json, notes) = page_data(&wide).unwrap();
        assert!(json.len() <= MOST_BYTES, "{}", json.len());
        assert!(notes[0].starts_with("at most 250 answers"), "{notes:?}");
    }
}
