//! TensorBoard event files: `tensorboard --logdir runs` shows every run beside the others.
//!
//! A file is a run of TFRecords, each a protobuf `Event`. The first names the version, the second has the config's keys for
//! the page of hyperparameters, and then there is one for each step and each evaluation in metrics.jsonl. Steps are those
//! of the whole run, the stages' one after another. Tags are `<stage>/<metric>`; evaluations of all stages are
//! `eval/<metric>`, and some of their answers the text `eval/answers`. Bounds of intervals are left to metrics.jsonl.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::tfrecord::{frame, records};
use super::{Event, Metrics, SampleKind, SampleRecord, Sink};
use crate::error::{Error, Result};

/// TensorBoard looks for `tfevents` in a file's name.
pub const EVENTS_FILE: &str = "events.out.tfevents.rlvr";

/// What TensorBoard's plugin looks for.
const HPARAMS: &str = "_hparams_/session_start_info";
/// Answers shown of an evaluation, and characters of each.
const ANSWERS: usize = 12;
const ANSWER_CHARACTERS: usize = 1000;

/// Appends a record for each step and each evaluation.
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    /// Length of the file up to its last whole record.
    whole_bytes: u64,
    torn: bool,
    /// Steps of the stages before the present one.
    before: u64,
    /// Answers of the evaluation that comes next, in Markdown.
    answers: Option<String>,
}

impl TensorBoard {
    /// Starts `events.out.tfevents.rlvr` in the folder of a run, or an earlier one anew.
    ///
    /// `config`: keys and values as TOML writes them.
    pub fn create(folder: &Path, config: &BTreeMap<String, String>) -> Result<Self> {
        let mut sink = Self::open(folder, 0)?;
        let version = [double(1, now()), bytes(3, b"brain.Event:2")].concat();
        let start = [frame(&version), frame(&event(0, &hparams(config), now()))].concat();
        sink.append(&start).map_err(Error::io(&sink.path, "write the TensorBoard file"))?;
        Ok(sink)
    }

    /// Goes on after the records of the first `keep_lines` lines of metrics.jsonl; those of steps that will be made
    /// again are cut off. Without an earlier file a new one begins.
    pub fn resume(folder: &Path, keep_lines: usize, config: &BTreeMap<String, String>) -> Result<Self> {
        let path = folder.join(EVENTS_FILE);
        let records = match std::fs::read(&path) {
            Ok(content) => {
                let ends = records(&content);
                // Earlier versions began without the config.
                let second = ends.get(..2).map_or(&[][..], |ends| &content[ends[0]..ends[1]]);
                let has_config = second.windows(HPARAMS.len()).any(|part| part == HPARAMS.as_bytes());
                ends.into_iter().take(keep_lines + 1 + usize::from(has_config)).next_back()
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(&path, "read the TensorBoard file")(error)),
        };
        match records {
            Some(end) => Self::open(folder, end),
            None => Self::create(folder, config),
        }
    }

    /// How many of these lines of metrics.jsonl have a record of their own here: warnings have none.
    pub fn events_in(metrics: &[u8]) -> usize {
        let lines = metrics.split_inclusive(|byte| *byte == b'\n');
        lines.filter(|line| line.ends_with(b"\n") && !line.starts_with(br#"{"event":"warning""#)).count()
    }

    fn open(folder: &Path, keep_bytes: usize) -> Result<Self> {
        let path = folder.join(EVENTS_FILE);
        let file = File::options().append(true).create(true).open(&path);
        let file = file.map_err(Error::io(&path, "open the TensorBoard file"))?;
        let whole_bytes = keep_bytes as u64;
        file.set_len(whole_bytes).map_err(Error::io(&path, "write the TensorBoard file"))?;
        Ok(Self { path, file, whole_bytes, torn: false, before: 0, answers: None })
    }

    fn append(&mut self, record: &[u8]) -> std::io::Result<()> {
        if self.torn {
            self.file.set_len(self.whole_bytes)?;
        }
        self.torn = true;
        self.file.write_all(record)?;
        self.torn = false;
        self.whole_bytes += record.len() as u64;
        Ok(())
    }
}

impl Sink for TensorBoard {
    fn name(&self) -> &str {
        "the TensorBoard file"
    }

    fn emit(&mut self, event: &Event) -> Result<()> {
        let (prefix, step, metrics) = match event {
            Event::StageStarted { before, .. } => {
                self.before = *before;
                return Ok(());
            }
            Event::Samples { kind: SampleKind::Evaluation, samples, .. } => {
                self.answers = Some(answers(samples));
                return Ok(());
            }
            Event::Step { stage, step, metrics } => (stage.as_str(), *step, metrics),
            Event::Evaluation { step, metrics, .. } => ("eval", *step, metrics),
            _ => return Ok(()),
        };
        let mut summary = scalars(prefix, metrics);
        if let (Event::Evaluation { .. }, Some(text)) = (event, self.answers.take()) {
            summary.extend(text_value("eval/answers", &text));
        }
        let record = frame(&self::event(self.before + step, &summary, now()));
        let path = self.path.clone();
        self.append(&record).map_err(Error::io(path, "write the TensorBoard file"))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `Event {1: wall_time, 2: step, 5: Summary}`.
fn event(step: u64, summary: &[u8], time: f64) -> Vec<u8> {
    [double(1, time), [vec![2 << 3], varint(step)].concat(), bytes(5, summary)].concat()
}

/// A `Summary {1: Value {1: tag, 2: simple_value}}`. Numbers that are not finite are left out.
fn scalars(prefix: &str, metrics: &Metrics) -> Vec<u8> {
    let value = |(tag, value): (String, f64)| {
        let tag = bytes(1, tag.as_bytes());
        let number = [&[2 << 3 | 5][..], &(value as f32).to_le_bytes()].concat();
        bytes(1, &[tag, number].concat())
    };
    tagged(prefix, metrics).filter(|(_, value)| value.is_finite()).flat_map(value).collect()
}

/// Numbers by `<prefix>/<metric>`, without the bounds of intervals.
pub(super) fn tagged(prefix: &str, metrics: &Metrics) -> impl Iterator<Item = (String, f64)> {
    let is_bound =
        |name: &str| name.starts_with("verdict/") && (name.ends_with("_low") || name.ends_with("_high"));
    let shown = metrics.iter().filter(move |(name, _)| !is_bound(name));
    shown.map(move |(name, value)| (format!("{prefix}/{name}"), value))
}

/// A `Summary` of a text: `Value {1: tag, 8: TensorProto {1: DT_STRING, 2: no dimensions, 8: text}, 9: metadata}`.
fn text_value(tag: &str, text: &str) -> Vec<u8> {
    let tensor = [&[1 << 3, 7][..], &bytes(2, &[]), &bytes(8, text.as_bytes())].concat();
    // {1: PluginData {1: name}, 4: DATA_CLASS_TENSOR}
    let metadata = [&bytes(1, &bytes(1, b"text"))[..], &[4 << 3, 2]].concat();
    bytes(1, &[bytes(1, tag.as_bytes()), bytes(8, &tensor), bytes(9, &metadata)].concat())
}

/// A `Summary` whose value carries `HParamsPluginData {3: SessionStartInfo {1: map<string, Value>, 5: seconds}}`, and
/// an empty tensor, because TensorBoard wants one.
fn hparams(config: &BTreeMap<String, String>) -> Vec<u8> {
    let entry = |(key, text): (&String, &String)| {
        let value = match (text.as_str(), text.replace('_', "").parse::<f64>()) {
            ("true", _) => vec![4 << 3, 1],
            ("false", _) => vec![4 << 3, 0],
            (_, Ok(number)) if number.is_finite() => double(2, number),
            (text, _) => bytes(3, text.trim_matches('"').as_bytes()),
        };
        bytes(1, &[bytes(1, key.as_bytes()), bytes(2, &value)].concat())
    };
    let start: Vec<u8> = config.iter().flat_map(entry).chain(double(5, now())).collect();
    let plugin = [bytes(1, b"hparams"), bytes(2, &bytes(3, &start))].concat();
    // {1: DT_FLOAT, 2: one dimension of size 0}
    let tensor = [&[1 << 3, 1][..], &bytes(2, &bytes(2, &[1 << 3, 0]))].concat();
    bytes(1, &[bytes(1, HPARAMS.as_bytes()), bytes(8, &tensor), bytes(9, &bytes(1, &plugin))].concat())
}

/// Some answers as Markdown, from all over the rows. What others wrote stands in code blocks alone: every line of it is
/// indented, so that none can end its block.
fn answers(samples: &[SampleRecord]) -> String {
    let shown = samples.len().min(ANSWERS);
    let block = |text: &str| {
        let mut text: String = text.chars().take(ANSWER_CHARACTERS).collect();
        text.retain(|c| !c.is_control() || c == '\n');
        text.split('\n').map(|line| format!("    {line}\n")).collect::<String>()
    };
    let answer = |i: usize| {
        let sample = &samples[i * samples.len() / shown];
        let SampleRecord { line, gold, verdict, reward, completion, .. } = sample;
        let head = format!("gold: {gold}\nverdict: {verdict}");
        format!("Row {line}, reward {reward}:\n\n{}\n{}\n", block(&head), block(completion))
    };
    format!("{shown} of {} answers.\n\n{}", samples.len(), (0..shown).map(answer).collect::<String>())
}

fn double(field: u8, value: f64) -> Vec<u8> {
    [&[field << 3 | 1][..], &value.to_le_bytes()].concat()
}

fn bytes(field: u8, content: &[u8]) -> Vec<u8> {
    [&[field << 3 | 2][..], &varint(content.len() as u64), content].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_the_bytes_that_protobuf_writes() {
        let metrics = [("loss", 0.5), ("kl", f64::NAN)].into_iter().collect();
        let event = event(300, &scalars("sft", &metrics), 1.0);
        // By hand from the .proto: double 1.0; step 300 = ac 02; summary of 17 bytes, value of 15, tag of 8.
        let mut want =
            vec![0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0x10, 0xac, 0x02, 0x2a, 17, 0x0a, 15, 0x0a, 8];
        want.extend(b"sft/loss");
        want.extend([0x15, 0, 0, 0, 0x3f]);
        assert_eq!(event, want);
    }

    /// As `tensorboard.summary.writer.record_writer` of tensorboard 2.21 writes it, at wall time 1.
    #[test]
    fn a_frame_has_the_checksums_of_tensorboards_own_writer() {
        let record = frame(&[double(1, 1.0), bytes(3, b"brain.Event:2")].concat());
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        let data = "09000000000000f03f1a0d627261696e2e4576656e743a32";
        assert_eq!(hex, format!("1800000000000000a37f4b22{data}86bf577a"));
    }

    fn step(step: u64) -> Event {
        Event::Step { stage: "sft".into(), step, metrics: [("loss", 0.5)].into_iter().collect() }
    }

    #[test]
    fn a_resume_cuts_off_what_will_be_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(EVENTS_FILE);
        let config = BTreeMap::from([("seed".to_string(), "1".to_string())]);
        let mut sink = TensorBoard::create(folder.path(), &config).unwrap();
        (1..=3).for_each(|i| sink.emit(&step(i)).unwrap());
        drop(sink);
        // A kill within a write.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&[9; 5]).unwrap();
        let before = std::fs::read(&path).unwrap();
        let ends = records(&before);
        assert_eq!(ends.len(), 5);
        TensorBoard::resume(folder.path(), 2, &config).unwrap().emit(&step(3)).unwrap();
        let after = std::fs::read(&path).unwrap();
        assert_eq!(records(&after).len(), 5);
        assert_eq!(after[..ends[3]], before[..ends[3]]);
        // Without a file of its own a run gets one.
        std::fs::remove_file(&path).unwrap();
        TensorBoard::resume(folder.path(), 2, &config).unwrap();
        assert_eq!(records(&std::fs::read(&path).unwrap()).len(), 2);
    }

    #[test]
    fn stages_share_an_axis_and_an_evaluation_shows_answers_without_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut sink = TensorBoard::create(folder.path(), &BTreeMap::new()).unwrap();
        let sample = SampleRecord {
            line: 7,
            gold: "Safe".into(),
            verdict: "malformed".into(),
            reason: None,
            reward: 0.0,
            rewards: Default::default(),
            advantage: None,
            tokens: None,
            finish: None,
            completion: "one\n<b>two</b>".into(),
        };
        let stage = "grpo".to_string();
        let metrics: Metrics =
            [("verdict/accuracy_strict", 0.5), ("verdict/accuracy_strict_low", 0.25)].into_iter().collect();
        let kind = SampleKind::Evaluation;
        sink.emit(&Event::StageStarted { stage: stage.clone(), steps: 5, done: 0, before: 128 }).unwrap();
        sink.emit(&Event::Samples { kind, stage: stage.clone(), step: 1, samples: vec![sample] }).unwrap();
        sink.emit(&Event::Evaluation { stage, step: 1, metrics, report: serde_json::Value::Null }).unwrap();
        let content = std::fs::read(folder.path().join(EVENTS_FILE)).unwrap();
        let ends = records(&content);
        assert_eq!(ends.len(), 3);
        let last = &content[ends[1]..ends[2]];
        let has = |part: &[u8]| last.windows(part.len()).any(|window| window == part);
        // Field 2, step 129.
        assert!(has(&[0x10, 0x81, 0x01, 0x2a]) && has(b"eval/verdict/accuracy_strict"));
        assert!(has(b"    one\n    <b>two</b>\n") && has(b"eval/answers"));
        assert!(!has(b"accuracy_strict_low"));
    }
}
