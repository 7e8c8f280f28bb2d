//! How far something long is that is no training step: rows tokenised, rows evaluated.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

/// One sign of life.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Work {
    /// "evaluating grpo 50".
    pub what: String,
    /// What is counted: "rows".
    pub unit: &'static str,
    pub done: usize,
    pub total: usize,
    /// Of the whole work, by what it costs: 0 to 1.
    pub share: f64,
    /// Since it began.
    pub elapsed: Duration,
}

impl Work {
    /// Work whose rows cost about the same.
    pub fn new(what: String, unit: &'static str, done: usize, total: usize, start: Instant) -> Self {
        let share = done as f64 / total.max(1) as f64;
        Self { what, unit, done, total, share, elapsed: start.elapsed() }
    }

    pub fn is_over(&self) -> bool {
        self.done >= self.total
    }

    /// `None` before there is anything to judge by.
    pub fn time_left(&self) -> Option<Duration> {
        let left = (1.0 - self.share).max(0.0) / self.share;
        (self.share > 0.0).then(|| Duration::from_secs_f64(self.elapsed.as_secs_f64() * left))
    }
}

/// `evaluating grpo 50: 12 of 75 rows, 1.2 rows/s, 0:52 left`.
impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let (done, total) = (thousands(self.done as u64), thousands(self.total as u64));
        write!(f, "{}: {done} of {total} {}", self.what, self.unit)?;
        let Some(left) = self.time_left() else { return Ok(()) };
        let rate = self.done as f64 / self.elapsed.as_secs_f64().max(1e-9);
        match rate {
            100.0.. => write!(f, ", {} {}/s", thousands(rate as u64), self.unit)?,
            _ => write!(f, ", {rate:.1} {}/s", self.unit)?,
        }
        if self.is_over() { Ok(()) } else { write!(f, ", {} left", clock(left)) }
    }
}

/// `1:02:03`, or `2:03` below an hour.
pub(super) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// `1234567` as `1,234,567`.
pub(super) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!([0, 999, 1000, 1_234_567].map(thousands), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([9, 75, 3723].map(|s| clock(Duration::from_secs(s))), ["0:09", "1:15", "1:02:03"]);
    }

    #[test]
    fn work_says_its_unit_its_rate_and_what_is_left() {
        let mut work = Work::new("evaluating sft 40".into(), "rows", 0, 75, Instant::now());
        assert_eq!(work.to_string(), "evaluating sft 40: 0 of 75 rows");
        // A third of the rows in 10 s, which are the longer half of the work.
        (work.done, work.share, work.elapsed) = (25, 0.5, Duration::from_secs(10));
        assert_eq!(work.to_string(), "evaluating sft 40: 25 of 75 rows, 2.5 rows/s, 0:10 left");
        (work.done, work.total, work.share) = (2421, 2421, 1.0);
        assert_eq!(work.to_string(), "evaluating sft 40: 2,421 of 2,421 rows, 242 rows/s");
    }
}
