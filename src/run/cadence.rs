//! When a checkpoint is due, and whether the chosen interval is a good one.

use std::time::Duration;

use crate::config::CheckpointConfig;

/// Between two stops of a rented machine, assumed: nobody knows it beforehand.
const BETWEEN_STOPS: Duration = Duration::from_secs(24 * 3600);
/// A chosen interval that is off by less is fine.
const FAR_OFF: f64 = 5.0;
/// And one that costs less of the time than this.
const SMALL_SHARE: f64 = 0.01;

/// By steps, by time, or by whichever comes first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cadence {
    every_steps: u64,
    every: Option<Duration>,
}

impl From<&CheckpointConfig> for Cadence {
    fn from(config: &CheckpointConfig) -> Self {
        let every =
            (config.every_minutes > 0.0).then(|| Duration::from_secs_f64(60.0 * config.every_minutes));
        Self { every_steps: config.every_steps as u64, every }
    }
}

impl Cadence {
    /// `steps`: those of the stage so far. `since`: time since the last checkpoint, or since the run began or went on.
    pub fn is_due(&self, steps: u64, since: Duration) -> bool {
        let by_steps = self.every_steps > 0 && steps.is_multiple_of(self.every_steps);
        by_steps || self.every.is_some_and(|every| since >= every)
    }

    /// What to say where `interval` between checkpoints that take `write` is far from the best, and costs something: the
    /// interval with the least lost time is `sqrt(2 write between_stops)` (Young, CACM 17(9), 1974; Daly, FGCS 22(3), 2006).
    pub fn advice(write: Duration, interval: Duration) -> Option<String> {
        let (write, interval) = (write.as_secs_f64(), interval.as_secs_f64());
        let between = BETWEEN_STOPS.as_secs_f64();
        let best = (2.0 * write * between).sqrt();
        let share = write / (write + interval) + interval / (2.0 * between);
        let off = (interval / best).max(best / interval);
        (off > FAR_OFF && share > SMALL_SHARE).then(|| {
            let (interval, share, best) = (clock(interval), 100.0 * share, (best / 60.0).ceil());
            format!(
                "a checkpoint takes {write:.1} s and comes every {interval}: with a stop a day that costs {share:.0}% of the time, \
                 and checkpoint.every_minutes = {best:.0} the least (Young/Daly)"
            )
        })
    }
}

fn clock(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.0} min", seconds / 60.0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_and_minutes_make_a_checkpoint_due() {
        let due = |every_steps, every_minutes, steps, seconds| {
            let config = CheckpointConfig { every_steps, every_minutes, ..CheckpointConfig::default() };
            Cadence::from(&config).is_due(steps, Duration::from_secs(seconds))
        };
        assert!(due(3, 0.0, 6, 0) && !due(3, 0.0, 7, 1_000_000));
        assert!(!due(0, 10.0, 6, 599) && due(0, 10.0, 6, 600));
        assert!(due(3, 10.0, 6, 0) && due(3, 10.0, 7, 600) && !due(3, 10.0, 7, 599));
        assert!(!due(0, 0.0, 6, 1_000_000));
        let by_default = Cadence::from(&CheckpointConfig::default());
        assert!(by_default.is_due(1, Duration::from_secs(600)), "a run loses ten minutes at most");
    }

    #[test]
    fn an_interval_that_is_far_off_is_named() {
        let advice =
            |write, interval| Cadence::advice(Duration::from_secs(write), Duration::from_secs(interval));
        // sqrt(2 * 20 * 86,400) s = 31 min.
        assert_eq!(advice(20, 600), None, "a third of the best is near enough");
        let often = advice(20, 60).unwrap();
        assert!(often.contains("costs 25% of the time") && often.contains("every_minutes = 31 "), "{often}");
        let rarely = advice(2, 6 * 3600).unwrap();
        assert!(rarely.contains("costs 13%") && rarely.contains("every_minutes = 10 "), "{rarely}");
        assert_eq!(advice(0, 600), None, "what costs nothing needs no advice");
    }
}
