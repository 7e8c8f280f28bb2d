//! What is wrong with a data file, all of it, and what is in it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::account::Account;
use super::jsonl::Watch;
use super::judged;
use super::limits::{Limits, Targets, TooLong};
use super::lines::{CHUNK, Line, Lines};
use crate::config::distill::DistillConfig;
use crate::error::{Error, Result};
use crate::task::{LabelId, Outcome, Task};
use crate::text::PromptEncoder;
use crate::types::{Conversation, FinishReason, Sample};

/// What a file is checked against.
#[derive(Clone, Copy, Debug)]
pub struct Check<'a> {
    pub task: &'a Task,
    /// Counts tokens; `None` says nothing about them.
    pub encoder: Option<&'a PromptEncoder>,
    /// `max_rows` is not heeded: every row is checked. `targets` says whether a row without one is a problem.
    pub limits: Limits,
    /// Problems to keep; all are counted.
    pub max_problems: usize,
    /// Where a judge's word is looked for.
    pub distill: Option<&'a DistillConfig>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// 1-based.
    pub line: usize,
    /// One line that begins with `file:line`.
    pub text: String,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Lines that are not blank.
    pub rows: usize,
    /// The first of them, in the order of the file.
    pub problems: Vec<Problem>,
    pub problem_count: usize,
    /// Lines without a problem.
    pub good: usize,
    /// Good rows of each label, in the task's order; a row of several labels counts for each.
    pub labels: Vec<(String, usize)>,
    /// Good rows by their number of messages.
    pub turns: BTreeMap<usize, usize>,
    /// Good rows that SFT can learn from.
    pub rows_with_target: usize,
    /// Good rows whose prompt an earlier row has too, with the same label.
    pub duplicates: usize,
    /// Tokens of the prompts and of the targets; only with an encoder, and without those too long by their bytes.
    pub prompt_tokens: Option<Quantiles>,
    pub target_tokens: Option<Quantiles>,
    /// Good rows that a load would keep and drop; only with an encoder.
    pub account: Account,
    /// Good rows whose prompt has more bytes than the budget's tokens can stand for, so that it was not tokenised.
    pub uncounted: usize,
    /// Good rows with a control token in a text, which the model sees as text, and the first such line; only with an
    /// encoder.
    pub control_tokens: Option<(usize, usize)>,
    /// Rows with half of a character, in the place of which is U+FFFD, and the first such line.
    pub half_characters: Option<(usize, usize)>,
    /// Keys of good rows that nothing reads, and in how many rows each is. Those of messages only with an encoder, whose
    /// template might ask for them.
    pub unread: BTreeMap<String, usize>,
}

/// Quantiles of a list of token counts, by nearest rank.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quantiles {
    pub min: usize,
    pub median: usize,
    pub mean: f64,
    pub p95: usize,
    pub p99: usize,
    pub max: usize,
}

impl Quantiles {
    /// `None` for an empty list.
    pub fn of(mut counts: Vec<usize>) -> Option<Self> {
        counts.sort_unstable();
        let (min, max) = (*counts.first()?, *counts.last()?);
        let rank = |percent: usize| counts[(counts.len() * percent).div_ceil(100).max(1) - 1];
        let mean = counts.iter().sum::<usize>() as f64 / counts.len() as f64;
        Some(Self { min, median: rank(50), mean, p95: rank(95), p99: rank(99), max })
    }
}

/// What one good row gives to the report.
struct Facts {
    sample: Sample,
    gold: LabelId,
    /// SHA-256 of the prompt's messages.
    fingerprint: [u8; 32],
    prompt_tokens: Option<usize>,
    target_tokens: Option<usize>,
    too_long: Option<TooLong>,
    has_control_token: bool,
    unread: Vec<String>,
}

impl Check<'_> {
    /// Reads every line. Problems in rows are in the report.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn run(&self, path: &Path) -> Result<Report> {
        self.run_watched(path, &mut |_, _| ())
    }

    /// [`Self::run`], telling `watch` how many of how many lines are done.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_watched(&self, path: &Path, watch: Watch) -> Result<Report> {
        let (mut lines, total) = Lines::open_counted(path)?;
        let mut tally = Tally::new(self, path);
        loop {
            let chunk = lines.next_chunk(CHUNK)?;
            if chunk.is_empty() {
                break;
            }
            let rows: Vec<_> = chunk.par_iter().map(|line| self.row(line)).collect();
            for (line, row) in chunk.iter().zip(rows) {
                if line.has_half_characters() {
                    tally.report.half_characters.get_or_insert((0, line.number)).0 += 1;
                }
                tally.add(line, row);
            }
            watch(tally.report.rows, total);
        }
        Ok(tally.finish())
    }

    /// Keys of the row that the task does not read, and of its messages that the template does not ask for.
    fn unread_keys(&self, row: &Value, conversation: &Conversation) -> Vec<String> {
        let mut unread = self.task.unread_keys(row);
        let judge = self.distill.and_then(|distill| distill.column.split('.').next());
        unread.retain(|key| Some(key.as_str()) != judge);
        let Some(encoder) = self.encoder else { return unread };
        for (message, key) in
            conversation.messages.iter().flat_map(|m| m.more.keys().map(move |key| (m, key)))
        {
            let name = format!("{key} of {} messages", message.role);
            if !encoder.template().names(key) && !unread.contains(&name) {
                unread.push(name);
            }
        }
        unread
    }

    fn row(&self, line: &Line) -> Result<Facts> {
        let (path, number, row) = (&line.place.file, line.place.line, line.parse()?);
        let sample = self.task.sample(&row, path, number)?;
        let error = |problem: String, fix: &str| {
            Err(Error::input(format!("{}:{number}", path.display()), problem, fix))
        };
        let Some(gold) = self.task.label_id(&sample.gold) else {
            return error(format!("label `{}` is not in the task", sample.gold), "Add it to the task file");
        };
        if let Some(answer) = &sample.target {
            let outcome = Outcome::of(gold, self.task.judge(answer, FinishReason::Stop));
            if !outcome.is_exact() {
                let problem =
                    format!("the target is judged {}, but the label is `{}`", name(outcome), sample.gold);
                return error(problem, "Correct the target or the label, or the rules of the task");
            }
        }
        if let Some(distill) = self.distill {
            judged::read(self.task, distill, &row, (path, number))?;
        }
        if sample.target.is_none() && self.limits.targets == Targets::Required {
            return Err(super::jsonl::no_target(path, number));
        }
        let mut facts = Facts {
            gold,
            fingerprint: fingerprint(&sample.conversation),
            prompt_tokens: None,
            target_tokens: None,
            too_long: None,
            has_control_token: self
                .encoder
                .is_some_and(|encoder| !encoder.control_texts(&sample.conversation).is_empty()),
            unread: self.unread_keys(&row, &sample.conversation),
            sample,
        };
        if let Some(encoder) = self.encoder {
            let at = |e| super::jsonl::at_line(path, number, e);
            let conversation = &facts.sample.conversation;
            let Limits { max_prompt_tokens, max_target_tokens, .. } = self.limits;
            let prompt = encoder.encode_prompt_within(conversation, max_prompt_tokens).map_err(at)?;
            let Some(prompt) = prompt else {
                facts.too_long = Some(TooLong::Prompt);
                return Ok(facts);
            };
            facts.prompt_tokens = Some(prompt.token_ids.len());
            let answer = facts.sample.target.as_deref();
            if answer.is_some_and(|answer| encoder.is_beyond(answer, max_target_tokens)) {
                facts.too_long = TooLong::of(&self.limits, &prompt, None).or(Some(TooLong::Target));
                return Ok(facts);
            }
            let encode = |answer: &str| encoder.encode_target_after(&prompt, conversation, answer);
            let target = answer.map(encode).transpose().map_err(at)?;
            facts.too_long = TooLong::of(&self.limits, &prompt, target.as_deref());
            facts.target_tokens = target.map(|ids| ids.len());
        }
        Ok(facts)
    }
}

fn name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::ExactPositive | Outcome::ExactNegative => "exact",
        Outcome::WrongLabel => "as another label",
        Outcome::FalsePositive => "a flag",
        Outcome::FalseNegative => "no flag",
        Outcome::Malformed => "malformed",
    }
}

pub(super) fn fingerprint(conversation: &Conversation) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        // With the lengths, no two conversations give the same bytes.
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    for message in &conversation.messages {
        add(&message.role);
        add(&message.text());
        message.more.iter().for_each(|(key, value)| add(&format!("{key}: {value}")));
    }
    conversation.tools.iter().for_each(|tools| add(&tools.to_string()));
    hash.finalize().into()
}

/// The report in the making.
struct Tally<'a> {
    check: &'a Check<'a>,
    path: &'a Path,
    report: Report,
    first_seen: HashMap<[u8; 32], (usize, LabelId)>,
    prompt_tokens: Vec<usize>,
    target_tokens: Vec<usize>,
}

impl<'a> Tally<'a> {
    fn new(check: &'a Check<'a>, path: &'a Path) -> Self {
        let labels = check.task.labels().iter().map(|label| (label.clone(), 0)).collect();
        let report = Report { labels, ..Report::default() };
        let (prompt_tokens, target_tokens) = (Vec::new(), Vec::new());
        Self { check, path, report, first_seen: HashMap::new(), prompt_tokens, target_tokens }
    }

    fn add(&mut self, line: &Line, row: Result<Facts>) {
        self.report.rows += 1;
        match row {
            Ok(facts) => self.add_good(line, &facts),
            Err(error) => self.add_problem(line.number, error),
        }
    }

    fn add_problem(&mut self, line: usize, error: Error) {
        self.report.problem_count += 1;
        if self.report.problems.len() < self.check.max_problems {
            self.report.problems.push(Problem { line, text: error.to_string() });
        }
    }

    fn add_good(&mut self, row: &Line, facts: &Facts) {
        let line = row.number;
        let first = *self.first_seen.entry(facts.fingerprint).or_insert((line, facts.gold));
        if first.1 != facts.gold {
            let task = self.check.task;
            let (ours, theirs) = (task.label_text(facts.gold), task.label_text(first.1));
            let problem =
                format!("the prompt of line {} again, labelled `{ours}` here and `{theirs}` there", first.0);
            let place = format!("{}:{}", row.place.file.display(), row.place.line);
            self.add_problem(line, Error::input(place, problem, "Keep one of the two labels"));
            return;
        }
        let report = &mut self.report;
        report.duplicates += usize::from(first.0 != line);
        facts.gold.members().for_each(|label| report.labels[label].1 += 1);
        report.good += 1;
        *report.turns.entry(facts.sample.conversation.messages.len()).or_default() += 1;
        report.rows_with_target += usize::from(facts.sample.target.is_some());
        self.prompt_tokens.extend(facts.prompt_tokens);
        self.target_tokens.extend(facts.target_tokens);
        for key in &facts.unread {
            *report.unread.entry(key.clone()).or_default() += 1;
        }
        if facts.has_control_token {
            report.control_tokens.get_or_insert((0, line)).0 += 1;
        }
        if self.check.encoder.is_some() {
            report.uncounted += usize::from(facts.prompt_tokens.is_none());
            report.account.add(facts.gold, facts.prompt_tokens, facts.target_tokens, facts.too_long);
        }
    }

    fn finish(mut self) -> Report {
        if self.report.rows == 0 {
            let fix = "Write one JSON object a line";
            self.add_problem(0, Error::input(self.path.display(), "has no rows", fix));
        }
        self.report.prompt_tokens = Quantiles::of(self.prompt_tokens);
        self.report.target_tokens = Quantiles::of(self.target_tokens);
        self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{EncoderFiles, byte_tokenizer};
    use crate::types::Message;

    const LIMITS: Limits =
        Limits { max_prompt_tokens: 25, max_target_tokens: 90, max_rows: 0, targets: Targets::Ignored };

    fn row(content: &str, label: &str, answer: &str) -> String {
        serde_json::json!({
            "prompt": [{"role": "user", "content": content}], "security_type": [label], "chosen": answer,
        })
        .to_string()
    }

    fn refusal(label: &str) -> String {
        format!(r#"Unsafe MCP Server:{{"ServerName":"s", "ToolName":"t", "Reason":"{label}"}}"#)
    }

    fn check(rows: &[String], encoder: Option<&PromptEncoder>, max_problems: usize) -> Report {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, rows.join("\n")).unwrap();
        let task = Task::load("riskcue").unwrap();
        Check { task: &task, encoder, limits: LIMITS, max_problems, distill: None }.run(&path).unwrap()
    }

    fn encoder() -> PromptEncoder {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
        PromptEncoder::load(&EncoderFiles::of(dir.path())).unwrap()
    }

    #[test]
    fn every_problem_is_counted_and_the_first_are_shown() {
        let rows = [
            row("a", "Safe", "ok"),
            "{".into(),
            row("b", "Sfae", "ok"),
            row("c", "Denial-of-Service", "ok"),
            row("d", "Denial-of-Service", &refusal("Log Explosion Attacks")),
            row("e", "Safe", &refusal("Denial-of-Service")),
            row("f", "Denial-of-Service", &refusal("load test")),
            row("a", "Denial-of-Service", &refusal("Denial-of-Service")),
        ];
        let report = check(&rows, None, 100);
        let found: Vec<_> = report.problems.iter().map(|p| (p.line, p.text.as_str())).collect();
        let want = [
            (2, "malformed JSON"),
            (3, "`Sfae`, which is no label"),
            (4, "the target is judged no flag, but the label is `Denial-of-Service`"),
            (5, "the target is judged as another label"),
            (6, "the target is judged a flag, but the label is `Safe`"),
            (7, "the target is judged malformed"),
            (8, "the prompt of line 1 again, labelled `Denial-of-Service` here and `Safe` there"),
        ];
        assert_eq!(found.len(), want.len(), "{found:?}");
        for ((line, text), (want_line, want)) in found.into_iter().zip(want) {
            assert!(line == want_line && text.contains(&format!("rows.jsonl:{line}: ")), "{text}");
            assert!(text.contains(want), "{text}");
        }
        assert_eq!((report.rows, report.problem_count), (8, 7));
        assert_eq!(report.labels.iter().map(|(_, rows)| rows).sum::<usize>(), 1);

        let short = check(&rows, None, 2);
        assert_eq!((short.problems.len(), short.problem_count), (2, 7));
        assert_eq!(short.problems.iter().map(|p| p.line).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn what_is_in_a_file_is_counted() {
        let long = row(&"x".repeat(7), "Safe", "ok");
        let hidden = row("<|im_end|>", "Safe", "no");
        let dos = row("b", "Denial-of-Service", &refusal("Denial-of-Service"));
        let without =
            r#"{"prompt": [{"role": "user", "content": "c"}], "security_type": ["Safe"]}"#.to_string();
        let report = check(&[long.clone(), hidden, dos, without, long], Some(&encoder()), 9);
        assert_eq!(report.problem_count, 0, "{:?}", report.problems);
        let counted: Vec<_> = report.labels.iter().filter(|(_, n)| *n > 0).cloned().collect();
        assert_eq!(counted, [("Safe".to_string(), 4), ("Denial-of-Service".to_string(), 1)]);
        assert_eq!((report.rows_with_target, report.duplicates), (4, 1));
        assert_eq!(report.turns, BTreeMap::from([(1, 5)]));
        assert_eq!(report.control_tokens, Some((1, 2)));
        // Prompts are 19 tokens and the content, which is 7, 10, 1, 1 and 7 tokens.
        let prompts = Quantiles { min: 20, median: 26, mean: 24.2, p95: 29, p99: 29, max: 29 };
        assert_eq!(report.prompt_tokens, Some(prompts));
        // `ok` and `no` are 3 with the end token; the refusal is 82 bytes and the end token.
        assert_eq!(report.target_tokens.map(|q| (q.min, q.max)), Some((3, 83)));
        let dropped = report.account.reasons(&LIMITS);
        assert_eq!(dropped, [("prompt longer than max_prompt_tokens = 25".to_string(), 3)]);
    }

    #[test]
    fn an_empty_file_is_a_problem_and_an_absent_one_an_error() {
        let report = check(&[], None, 9);
        assert_eq!(report.problem_count, 1);
        assert!(report.problems[0].text.contains("has no rows"));
        let task = Task::load("riskcue").unwrap();
        let check = Check { task: &task, encoder: None, limits: LIMITS, max_problems: 9, distill: None };
        assert!(check.run(Path::new("no/such.jsonl")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn quantiles_are_nearest_ranks() {
        let q = Quantiles::of((1..=200).rev().collect()).unwrap();
        assert_eq!(q, Quantiles { min: 1, median: 100, mean: 100.5, p95: 190, p99: 198, max: 200 });
        assert_eq!(Quantiles::of(vec![7]).map(|q| (q.median, q.p99)), Some((7, 7)));
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn conversations_that_differ_only_in_their_cut_are_not_the_same() {
        let talk = |role: &str, content: &str| Conversation::from(vec![Message::new(role, content)]);
        assert_ne!(fingerprint(&talk("user", "a")), fingerprint(&talk("use", "ra")));
    }
}
