//! TensorBoard event files: `tensorboard --logdir runs` shows every run beside the others.
//!
//! A file is a run of TFRecords: length (u64), its masked CRC-32C, data, the data's masked CRC-32C, all little-endian.
//! The data is a protobuf `Event`; after the first, which names the version, there is one for each line of
//! metrics.jsonl. Tags are `<stage>/<metric>`, those of evaluations `<stage>/eval/<metric>`; steps are the stage's.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use super::{Event, Metrics, Sink};
use crate::error::{Error, Result};

/// TensorBoard looks for `tfevents` in a file's name.
pub const EVENTS_FILE: &str = "events.out.tfevents.rlvr";

/// Bytes of a record besides its data: length, two checksums.
const FRAME: usize = 16;

/// Appends a record for each step and each evaluation.
pub struct TensorBoard {
    path: PathBuf,
    file: File,
    /// Length of the file up to its last whole record.
    whole_bytes: u64,
    torn: bool,
}

impl TensorBoard {
    /// Starts `events.out.tfevents.rlvr` in the folder of a run, or an earlier one anew.
    pub fn create(folder: &Path) -> Result<Self> {
        let mut sink = Self::open(folder, 0)?;
        let version = [double(1, now()), bytes(3, b"brain.Event:2")].concat();
        sink.append(&frame(&version)).map_err(Error::io(&sink.path, "write the TensorBoard file"))?;
        Ok(sink)
    }

    /// Goes on after the records of the first `keep_lines` lines of metrics.jsonl; those of steps that will be made
    /// again are cut off. Without an earlier file a new one begins.
    pub fn resume(folder: &Path, keep_lines: usize) -> Result<Self> {
        let path = folder.join(EVENTS_FILE);
        let records = match std::fs::read(&path) {
            Ok(content) => records(&content).into_iter().take(keep_lines + 1).next_back(),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(Error::io(&path, "read the TensorBoard file")(error)),
        };
        match records {
            Some(end) => Self::open(folder, end),
            None => Self::create(folder),
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
        Ok(Self { path, file, whole_bytes, torn: false })
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
            Event::Step { stage, step, metrics } => (stage.clone(), *step, metrics),
            Event::Evaluation { stage, step, metrics, .. } => (format!("{stage}/eval"), *step, metrics),
            _ => return Ok(()),
        };
        let record = frame(&scalars(&prefix, step, metrics, now()));
        let path = self.path.clone();
        self.append(&record).map_err(Error::io(path, "write the TensorBoard file"))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// `Event {1: wall_time, 2: step, 5: Summary {1: Value {1: tag, 2: simple_value}}}`. Numbers that are not finite are
/// left out.
fn scalars(prefix: &str, step: u64, metrics: &Metrics, time: f64) -> Vec<u8> {
    let values = metrics.iter().filter(|(_, value)| value.is_finite()).map(|(name, value)| {
        let tag = bytes(1, format!("{prefix}/{name}").as_bytes());
        let number = [&[2 << 3 | 5][..], &(value as f32).to_le_bytes()].concat();
        bytes(1, &[tag, number].concat())
    });
    let summary: Vec<u8> = values.flatten().collect();
    [double(1, time), [vec![2 << 3], varint(step)].concat(), bytes(5, &summary)].concat()
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

fn frame(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let sum = |part: &[u8]| masked_crc32c(part).to_le_bytes();
    [&length[..], &sum(&length), data, &sum(data)].concat()
}

/// Where each whole record ends; the first damaged one ends the list.
fn records(content: &[u8]) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut at = 0;
    while let Some((length, rest)) = content[at..].split_first_chunk::<8>() {
        let Ok(size) = usize::try_from(u64::from_le_bytes(*length)) else { break };
        let Some(data) = rest.get(4..).and_then(|rest| rest.get(..size)) else { break };
        let end = at + FRAME + size;
        if content.get(at..end).is_none_or(|record| record != frame(data)) {
            break;
        }
        ends.push(end);
        at = end;
    }
    ends
}

/// The checksum of TFRecords: CRC-32C, rotated by 15 bits, plus a constant.
fn masked_crc32c(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 with Castagnoli's polynomial, reflected. RFC 3720, appendix B.4.
fn crc32c(data: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg()))
    };
    !data.iter().fold(!0, step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_of_the_rfcs_examples() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    #[test]
    fn a_step_is_the_bytes_that_protobuf_writes() {
        let metrics = [("loss", 0.5), ("kl", f64::NAN)].into_iter().collect();
        let event = scalars("sft", 300, &metrics, 1.0);
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
        let mut sink = TensorBoard::create(folder.path()).unwrap();
        (1..=3).for_each(|i| sink.emit(&step(i)).unwrap());
        drop(sink);
        // A kill within a write.
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(&[9; 5]).unwrap();
        let before = std::fs::read(&path).unwrap();
        let ends = records(&before);
        assert_eq!(ends.len(), 4);
        TensorBoard::resume(folder.path(), 2).unwrap().emit(&step(3)).unwrap();
        let after = std::fs::read(&path).unwrap();
        assert_eq!(records(&after).len(), 4);
        assert_eq!(after[..ends[2]], before[..ends[2]]);
        // Without a file of its own a run gets one.
        std::fs::remove_file(&path).unwrap();
        TensorBoard::resume(folder.path(), 2).unwrap();
        assert_eq!(records(&std::fs::read(&path).unwrap()).len(), 1);
    }
}
