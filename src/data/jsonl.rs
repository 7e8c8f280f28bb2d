//! JSONL rows to token ids. A bad row fails the load with `file:line`; a row that is too long is dropped and
//! counted, never truncated.

use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use serde_json::Value;

use super::account::Account;
use super::judged;
use super::limits::{Limits, Targets, TooLong};
use super::lines::{self, CHUNK, Line, Lines, Place};
use super::told::Told;
use crate::config::distill::DistillConfig;
use crate::config::mix::DataFile;
use crate::error::{Error, Result};
use crate::stop;
use crate::task::{Answer, Evidence, LabelId, Task, Verdict};
use crate::text::PromptEncoder;
use crate::types::{FinishReason, Prompt, Sample};

/// Hears how many rows of how many are done.
pub type Watch<'a> = &'a mut dyn FnMut(usize, usize);

/// One row, ready for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedRow {
    /// 1-based line of the file, counted on through those of a data set, and through those that a config trains or evaluates on.
    pub line: usize,
    /// Which of several files of a config it is of.
    pub source: Option<Arc<str>>,
    /// Empty where its text has more bytes than the budget's tokens can stand for: it is too long, and not tokenised.
    pub prompt: Prompt,
    pub gold: LabelId,
    /// The answer SFT imitates and its end token. Absent with [`Targets::Ignored`].
    pub target: Option<Vec<u32>>,
    /// [`Sample::attack_succeeded`].
    pub attack_succeeded: Option<bool>,
    /// What a benign answer has to repeat; None where the task does not ask, or the row has nothing to ask.
    pub evidence: Option<Arc<Evidence>>,
    /// The exact answers of the task's labels, with [`Targets::Answers`] or beside `judge`; else none.
    pub answers: Vec<EncodedAnswer>,
    /// Control tokens that stand in the row's conversation as text, and were encoded as text.
    pub control_texts: Vec<String>,
    /// Where the task asks somebody what a completion earns.
    pub told: Option<Arc<Told>>,
    /// Log-probs of the task's labels that a judge gave, with [`Source::distill`], where the row has them. `[labels]`
    pub judge: Option<Arc<[f64]>>,
}

/// One label's answer and its end token.
#[derive(Clone, Debug, PartialEq)]
pub struct EncodedAnswer {
    pub label: LabelId,
    pub token_ids: Vec<u32>,
}

/// The rows of a data file that a run uses, at least one.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    /// In the order of the file.
    pub rows: Vec<EncodedRow>,
    /// Reasons that occurred, and how many rows each cost.
    pub dropped: Vec<(String, usize)>,
    /// Kept and dropped rows by label, and how long all of them are.
    pub account: Account,
}

impl Dataset {
    pub fn dropped_rows(&self) -> usize {
        self.dropped.iter().map(|(_, count)| count).sum()
    }
}

/// How rows are read: by which task, into which model's tokens, within which limits.
#[derive(Clone, Copy, Debug)]
pub struct Source<'a> {
    pub task: &'a Task,
    pub encoder: &'a PromptEncoder,
    pub limits: Limits,
    /// Where a judge's word is read from rows with targets.
    pub distill: Option<&'a DistillConfig>,
}

impl Source<'_> {
    /// Reads the file line by line; blank lines are skipped.
    ///
    /// # Errors
    /// The file cannot be read; the first bad row, as `file:line`; no row is left.
    pub fn load(&self, path: &Path) -> Result<Dataset> {
        self.load_watched(path, &mut |_, _| ())
    }

    /// [`Self::load`], telling `watch` of the lines that are done.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_watched(&self, path: &Path, watch: Watch) -> Result<Dataset> {
        let (mut lines, all) = Lines::open_counted(path)?;
        let total = if self.limits.max_rows == 0 { all } else { all.min(self.limits.max_rows) };
        let mut done = 0;
        let next = || {
            let chunk = lines.next_chunk(CHUNK)?;
            watch(done.min(total), total);
            done += chunk.len();
            Ok(chunk)
        };
        let parse = |line: &Line| Ok((line.number, line.place.clone(), line.parse()?));
        self.collect(path, next, parse, Line::has_half_characters)
    }

    /// Rows of several files one after the other, each with the name of its own; `watch` hears of file after file.
    ///
    /// # Errors
    /// As [`Self::load`], of any of them.
    pub fn load_all(&self, files: &[DataFile], watch: Watch) -> Result<Dataset> {
        let mut all = Dataset { rows: Vec::new(), dropped: Vec::new(), account: Account::default() };
        let mut before = 0;
        for file in files {
            let mut dataset = self.load_watched(file.path, watch)?;
            let source: Option<Arc<str>> = file.source.as_deref().map(Arc::from);
            for row in &mut dataset.rows {
                row.line += before;
                row.source.clone_from(&source);
            }
            if files.len() > 1 {
                before += lines::last_number(file.path)?;
            }
            all.rows.append(&mut dataset.rows);
            all.account += dataset.account;
        }
        all.dropped = all.account.reasons(&self.limits);
        Ok(all)
    }

    /// As [`Self::load`], for rows that are already in memory. `name` is what errors call them; rows count
    /// as lines from 1.
    ///
    /// # Errors
    /// The first bad row; no row is left.
    pub fn encode(&self, name: &Path, rows: &[Value]) -> Result<Dataset> {
        let mut chunks = rows.chunks(CHUNK).enumerate();
        let next = || {
            let Some((chunk, rows)) = chunks.next() else { return Ok(Vec::new()) };
            Ok(rows.iter().enumerate().map(|(i, row)| (chunk * CHUNK + i + 1, row)).collect())
        };
        let file: Arc<Path> = name.into();
        let place = |line: usize| Place { file: Arc::clone(&file), line };
        self.collect(name, next, |(line, row)| Ok((*line, place(*line), (*row).clone())), |_| false)
    }

    /// `next` gives the next lines, none at the end.
    fn collect<L: Sync + Send>(
        &self,
        path: &Path,
        mut next: impl FnMut() -> Result<Vec<L>>,
        parse: impl Fn(&L) -> Result<(usize, Place, Value)> + Sync,
        has_half_characters: impl Fn(&L) -> bool + Sync,
    ) -> Result<Dataset> {
        let mut kept = Vec::new();
        let mut account = Account::default();
        let wanted = if self.limits.max_rows == 0 { usize::MAX } else { self.limits.max_rows };
        while kept.len() < wanted {
            stop::look()?;
            let lines = next()?;
            if lines.is_empty() {
                break;
            }
            let encode = |read: &L| {
                let (number, Place { file, line }, row) = parse(read)?;
                let judge = match (self.distill, self.limits.targets) {
                    (Some(distill), Targets::Required) => {
                        judged::read(self.task, distill, &row, (&file, line))?
                    }
                    _ => None,
                };
                let answers = match self.limits.targets == Targets::Answers || judge.is_some() {
                    true => self.task.answers(&row, &file, line)?,
                    false => Vec::new(),
                };
                let sample = self.task.sample(&row, &file, line)?;
                let told = Told::where_asked(self.task, &sample, &row, &file);
                let (encoded, too_long) = self.encode_row(&file, &sample, &answers)?;
                let evidence = self.task.evidence(&row, encoded.gold).map(Arc::new);
                let hollow =
                    sample.target.as_deref().filter(|_| encoded.gold.is_negative()).is_some_and(|answer| {
                        self.task.judge_in(evidence.as_deref(), answer, FinishReason::Stop)
                            == Verdict::Ungrounded
                    });
                let encoded = EncodedRow { line: number, evidence, told, judge, ..encoded };
                Ok((encoded, too_long, has_half_characters(read), hollow))
            };
            // All of a chunk is encoded before any error is raised: errors come in the order of the file.
            let encoded: Vec<Result<_>> = lines.par_iter().map(encode).collect();
            for row in encoded {
                let (row, too_long, has_half, hollow) = row?;
                account.half_characters += usize::from(has_half);
                account.hollow += usize::from(hollow && self.limits.targets == Targets::Required);
                account.unasked += usize::from(self.task.has_grounded() && row.evidence.is_none());
                account.control += usize::from(!row.control_texts.is_empty());
                let lengths = row.target.iter().chain(row.answers.iter().map(|answer| &answer.token_ids));
                let longest = lengths.map(Vec::len).max();
                let prompt = Some(row.prompt.token_ids.len()).filter(|tokens| *tokens > 0);
                account.add(row.gold, prompt, longest, too_long);
                if too_long.is_none() {
                    kept.push(row);
                }
                if kept.len() == wanted {
                    break;
                }
            }
        }
        let dataset = Dataset { rows: kept, dropped: account.reasons(&self.limits), account };
        if dataset.rows.is_empty() { Err(empty(path, &dataset)) } else { Ok(dataset) }
    }

    fn encode_row(
        &self,
        path: &Path,
        sample: &Sample,
        answers: &[Answer],
    ) -> Result<(EncodedRow, Option<TooLong>)> {
        let at = |e| at_line(path, sample.line, e);
        let Limits { max_prompt_tokens, max_target_tokens, targets, .. } = self.limits;
        if targets == Targets::Required && sample.target.is_none() {
            return Err(no_target(path, sample.line));
        }
        let gold = self.task.label_id(&sample.gold).ok_or_else(|| {
            let place = format!("{}:{}", path.display(), sample.line);
            Error::input(
                place,
                format!("label `{}` is not in the task", sample.gold),
                "Add it to the task file",
            )
        })?;
        let mut row = EncodedRow {
            line: sample.line,
            source: None,
            prompt: Prompt::default(),
            gold,
            target: None,
            attack_succeeded: sample.attack_succeeded,
            evidence: None,
            answers: Vec::new(),
            control_texts: self.encoder.control_texts(&sample.conversation),
            told: None,
            judge: None,
        };
        let prompt =
            self.encoder.encode_prompt_within(&sample.conversation, max_prompt_tokens).map_err(at)?;
        let Some(prompt) = prompt else { return Ok((row, Some(TooLong::Prompt))) };
        let encode = |answer: &str| {
            self.encoder.encode_target_after(&prompt, &sample.conversation, answer).map_err(at)
        };
        if let Some(answer) = sample.target.as_deref().filter(|_| targets == Targets::Required) {
            if self.encoder.is_beyond(answer, max_target_tokens) {
                let too_long = TooLong::of(&self.limits, &prompt, None).unwrap_or(TooLong::Target);
                row.prompt = prompt;
                return Ok((row, Some(too_long)));
            }
            row.target = Some(encode(answer)?);
        }
        let encode =
            |answer: &Answer| Ok(EncodedAnswer { label: answer.label, token_ids: encode(&answer.text)? });
        row.answers = answers.iter().map(encode).collect::<Result<Vec<_>>>()?;
        let answers = row.answers.iter().map(|answer| &answer.token_ids).chain(&row.target);
        let longest = answers.map(Vec::as_slice).max_by_key(|ids| ids.len());
        let too_long = TooLong::of(&self.limits, &prompt, longest);
        row.prompt = prompt;
        Ok((row, too_long))
    }
}

pub(super) fn no_target(path: &Path, line: usize) -> Error {
    let fix = "Add the answer to imitate, or [sft] to the task file, or use the file for GRPO only";
    let place = format!("{}:{line}", path.display());
    Error::input(place, "the row has no target, so SFT has nothing to learn", fix)
}

/// The same error, with the row's place before its own.
pub fn at_line(path: &Path, line: usize, error: Error) -> Error {
    match error {
        Error::Input { place, problem, fix } => {
            Error::input(format!("{}:{line}", path.display()), format!("{place} {problem}"), fix)
        }
        other => other,
    }
}

fn empty(path: &Path, dataset: &Dataset) -> Error {
    if dataset.dropped.is_empty() {
        return Error::input(path.display(), "has no rows", "Write one JSON object a line");
    }
    let reasons: Vec<_> = dataset.dropped.iter().map(|(reason, n)| format!("{n}: {reason}")).collect();
    let problem = format!("all {} rows are dropped ({})", dataset.dropped_rows(), reasons.join("; "));
    Error::input(path.display(), problem, "Raise the limit under [data], or give shorter rows")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{EncoderFiles, byte_tokenizer};

    fn encoder() -> PromptEncoder {
        let dir = tempfile::tempdir().unwrap();
        let tokenizer = byte_tokenizer::build([].into_iter(), &[], 259).unwrap();
        byte_tokenizer::save_pretrained(&tokenizer, dir.path()).unwrap();
        PromptEncoder::load(&EncoderFiles::of(dir.path())).unwrap()
    }

    const REFUSAL: &str =
        r#"Unsafe MCP Server:{\"ServerName\":\"s\", \"ToolName\":\"t\", \"Reason\":\"Denial-of-Service\"}"#;

    fn row(content: &str, label: &str, answer: &str) -> String {
        let prompt = format!(r#"[{{"role": "user", "content": "{content}"}}]"#);
        format!(r#"{{"prompt": {prompt}, "security_type": ["{label}"], "chosen": "{answer}"}}"#)
    }

    fn limits() -> Limits {
        Limits { max_prompt_tokens: 100, max_target_tokens: 100, max_rows: 0, targets: Targets::Required }
    }

    fn load(bytes: impl AsRef<[u8]>, limits: Limits) -> Result<Dataset> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, bytes).unwrap();
        let (task, encoder) = (Task::load("riskcue").unwrap(), encoder());
        Source { task: &task, encoder: &encoder, limits, distill: None }.load(&path)
    }

    #[test]
    fn a_row_becomes_prompt_gold_and_target() {
        let rows =
            [row("a", "Safe", "ok"), String::new(), row("b", "Denial-of-Service", REFUSAL)].join("\r\n");
        let dataset = load(format!("\u{FEFF}{rows}"), limits()).unwrap();
        assert_eq!(dataset.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 3]);
        let safe = &dataset.rows[0];
        // <|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n: 3 special tokens and 4+1+1+1+9+1 bytes.
        assert_eq!(safe.prompt.token_ids.len(), 20);
        assert_eq!(safe.target.as_deref(), Some(&[3 + 111, 3 + 107, 2][..]));
        assert!(safe.gold.is_negative() && !dataset.rows[1].gold.is_negative());
        assert_eq!(dataset.dropped, []);
        let no_targets = load(rows, Limits { targets: Targets::Ignored, ..limits() }).unwrap();
        assert!(no_targets.rows.iter().all(|row| row.target.is_none()));
    }

    #[test]
    fn rows_that_are_too_long_are_dropped_and_counted_never_cut() {
        // Prompts are 19 tokens and their content; targets their text and one end token.
        let exact = row(&"a".repeat(81), "Safe", &"b".repeat(99));
        let long_prompt = row(&"a".repeat(82), "Safe", "ok");
        let long_target = row("a", "Safe", &"b".repeat(100));
        let rows = [&long_prompt, &exact, &long_target, &long_target].map(String::as_str).join("\n");
        let dataset = load(&rows, limits()).unwrap();
        assert_eq!(dataset.rows.len(), 1);
        assert_eq!(dataset.rows[0].prompt.token_ids.len(), 100);
        assert_eq!(dataset.rows[0].target.as_ref().unwrap().len(), 100);
        let reason = |what: &str, n| (format!("{what} longer than max_{what}_tokens = 100"), n);
        assert_eq!(dataset.dropped, [reason("prompt", 1), reason("target", 2)]);
        assert_eq!(dataset.dropped_rows(), 3);
    }

    /// The longest token, `<|endoftext|>`, has 13 bytes, so 100 tokens have 1300 at most.
    #[test]
    fn what_is_too_long_by_its_bytes_is_dropped_as_what_is_too_long_by_its_tokens() {
        let long = |n: usize| row(&"a".repeat(n), "Safe", "ok");
        let rows =
            [long(81), long(1000), long(2000), row("a", "Safe", &"b".repeat(2000)), long(3)].join("\n");
        let dataset = load(&rows, limits()).unwrap();
        assert_eq!(dataset.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 5]);
        let dropped = dataset.dropped.iter().map(|(_, rows)| *rows).collect::<Vec<_>>();
        assert_eq!(dropped, [2, 1]);
        // Only those that were counted have a length to recommend.
        assert_eq!(dataset.account.advice(&limits()).unwrap(), "60% of the rows are dropped");
        let all =
            load(&rows, Limits { max_prompt_tokens: 9999, max_target_tokens: 9999, ..limits() }).unwrap();
        assert_eq!(all.rows.len(), 5);
        assert_eq!(all.rows[0], dataset.rows[0]);
    }

    #[test]
    fn max_rows_takes_the_first_that_fit_and_reads_no_further() {
        let long = row(&"a".repeat(82), "Safe", "ok");
        let rows = [&long, &row("1", "Safe", "ok"), &row("2", "Safe", "ok"), "broken"].map(String::from);
        let dataset = load(rows.join("\n"), Limits { max_rows: 2, ..limits() }).unwrap();
        assert_eq!(dataset.rows.iter().map(|row| row.line).collect::<Vec<_>>(), [2, 3]);
        assert_eq!(dataset.dropped_rows(), 1);
    }

    #[test]
    fn long_files_keep_their_order_across_chunks() {
        let rows: Vec<_> = (0..600).map(|i| row(&format!("{i:03}"), "Safe", "ok")).collect();
        let dataset = load(rows.join("\n"), limits()).unwrap();
        assert!(dataset.rows.iter().enumerate().all(|(i, row)| row.line == i + 1));
        // The content's last digit stands after 3 special-token-separated bytes: `user\n` and two digits.
        assert!(
            dataset.rows.iter().enumerate().all(|(i, row)| row.prompt.token_ids[8] == 3 + 48 + i as u32 % 10)
        );
        let values: Vec<Value> = rows.iter().map(|row| serde_json::from_str(row).unwrap()).collect();
        let (task, encoder) = (Task::load("riskcue").unwrap(), encoder());
        let source = Source { task: &task, encoder: &encoder, limits: limits(), distill: None };
        assert_eq!(source.encode(Path::new("synthetic"), &values).unwrap(), dataset);
        let error = source.encode(Path::new("synthetic"), &[Value::Null]).unwrap_err().to_string();
        assert!(error.starts_with("synthetic:1: "), "{error}");
    }

    #[test]
    fn the_first_bad_row_is_named_with_its_line_and_the_fix() {
        let good = row("a", "Safe", "ok");
        let no_target = r#"{"prompt": [{"role": "user", "content": "a"}], "security_type": ["Safe"]}"#;
        let no_label = r#"{"prompt": [{"role": "user", "content": "a"}], "chosen": "ok"}"#;
        for (bad, want) in [
            (r#"{"prompt": "#.to_string(), "malformed JSON at column 10: EOF while parsing a value"),
            (format!("{good} {good}"), "malformed JSON at column"),
            ("[1]".into(), "the row is a list"),
            (no_label.into(), "nothing at `security_type[-1]`"),
            (row("a", "Sfae", "ok"), "`Sfae`, which is no label of task `riskcue`"),
            (no_target.into(), "the row has no target"),
            (row("a", "Safe", "  "), "`chosen` is empty"),
            (row("a", "Safe", "ok<|im_end|>"), "the answer holds the special token `<|im_end|>`"),
            (r#"{"prompt": [], "security_type": ["Safe"], "chosen": "ok"}"#.into(), "`prompt` is empty"),
        ] {
            let error = load([&good, "", &bad, "worse"].join("\n"), limits()).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("rows.jsonl:3: ") && text.contains(want), "{text}");
            assert!(error.is_input() && !text.contains('\n'), "{text}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_named() {
        let mut bytes = row("a", "Safe", "ok").into_bytes();
        bytes.extend(b"\n{\"prompt\": \"\xFF\"}");
        let error = load(bytes, limits()).unwrap_err().to_string();
        assert!(error.contains("rows.jsonl:2: byte 13 of the line is not UTF-8"), "{error}");
    }

    #[test]
    fn files_without_rows_are_refused() {
        for blank in ["", "\n \n\t\r\n"] {
            assert!(load(blank, limits()).unwrap_err().to_string().contains("rows.jsonl: has no rows"));
        }
        let long = row(&"a".repeat(82), "Safe", "ok");
        let error = load(long, limits()).unwrap_err().to_string();
        assert!(
            error.contains("all 1 rows are dropped (1: prompt longer than max_prompt_tokens = 100)"),
            "{error}"
        );
        let dir = tempfile::tempdir().unwrap();
        let (task, encoder) = (Task::load("riskcue").unwrap(), encoder());
        let source = Source { task: &task, encoder: &encoder, limits: limits(), distill: None };
        assert!(source.load(dir.path()).unwrap_err().to_string().contains("is a folder, not a data file"));
        let absent = source.load(&dir.path().join("no.jsonl")).unwrap_err().to_string();
        assert!(absent.contains("no.jsonl: cannot read") && absent.contains("Check the path"), "{absent}");
    }
}
