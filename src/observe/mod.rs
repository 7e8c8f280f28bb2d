//! What a run tells the outside: the loop emits events, sinks render them.

pub mod cgroup;
mod event;
mod growing;
mod jsonl;
pub mod machine;
mod memory;
mod mlflow;
mod printable;
mod progress;
mod status;
mod table;
mod tensorboard;
mod tfrecord;
mod watchdog;
mod work;

pub use event::{
    Event, Metrics, PromptRecord, SampleKind, SampleRecord, TableRow, TokenRecord, TokenRecords,
};
pub use growing::GrowingFile;
pub use jsonl::JsonlSink;
pub use memory::peak_memory_gib;
pub use mlflow::{MlFlow, NOTE as MLFLOW_NOTE};
pub use printable::printable;
pub use progress::{Progress, WorkDisplay};
pub use status::Status;
pub use table::results_table;
pub use tensorboard::{EVENTS_FILE, TensorBoard};
pub use watchdog::{Alarm, Watchdog};
pub use work::Work;

use crate::error::Result;

/// Renders events. Constructors fail when the sink cannot open, which fails the run at its start.
pub trait Sink {
    /// What a warning calls this sink.
    fn name(&self) -> &str;
    fn emit(&mut self, event: &Event) -> Result<()>;
    /// Whether what could not be written is kept, to be written later.
    fn waits(&self) -> bool {
        false
    }
    /// Writes what a full disk made wait.
    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

/// All sinks of a run. A sink that fails while training goes on is reported once, to all sinks; it is still
/// offered every later event.
#[derive(Default)]
pub struct Sinks {
    sinks: Vec<Entry>,
}

struct Entry {
    sink: Box<dyn Sink>,
    failed: bool,
}

impl Sinks {
    pub fn add(&mut self, sink: impl Sink + 'static) {
        self.sinks.push(Entry { sink: Box::new(sink), failed: false });
    }

    pub fn emit(&mut self, event: &Event) {
        let mut warnings = Vec::new();
        for Entry { sink, failed } in &mut self.sinks {
            if let (Err(error), false) = (sink.emit(event), *failed) {
                *failed = true;
                let what = if sink.waits() { "cannot be written now" } else { "stops being complete" };
                warnings.push(format!("{} {what}, training goes on: {error}", sink.name()));
            }
        }
        for text in warnings {
            // A sink that fails on the warning as well has been reported already.
            self.emit(&Event::Warning { text });
        }
    }

    /// [`Sink::flush`] of each.
    pub fn flush(&mut self) -> Result<()> {
        self.sinks.iter_mut().try_for_each(|entry| entry.sink.flush())
    }

    pub fn warn(&mut self, text: impl Into<String>) {
        self.emit(&Event::Warning { text: text.into() });
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use crate::error::Error;

    struct Full;

    impl Sink for Full {
        fn name(&self) -> &str {
            "metrics.jsonl"
        }

        fn emit(&mut self, _: &Event) -> Result<()> {
            Err(Error::io("metrics.jsonl", "write")(std::io::ErrorKind::StorageFull.into()))
        }
    }

    struct Notes(Rc<RefCell<Vec<String>>>);

    impl Sink for Notes {
        fn name(&self) -> &str {
            "notes"
        }

        fn emit(&mut self, event: &Event) -> Result<()> {
            self.0.borrow_mut().push(match event {
                Event::Warning { text } => text.clone(),
                other => serde_json::to_string(other).map_err(|e| Error::Compute(e.into()))?,
            });
            Ok(())
        }
    }

    #[test]
    fn a_sink_that_fails_is_reported_once_and_the_others_go_on() {
        let notes = Rc::default();
        let mut sinks = Sinks::default();
        sinks.add(Full);
        sinks.add(Notes(Rc::clone(&notes)));
        for step in 1..=2 {
            sinks.emit(&Event::Step { stage: "sft".into(), step, metrics: Metrics::default() });
        }
        let notes = notes.borrow();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert_eq!(notes[0], r#"{"event":"step","stage":"sft","step":1}"#);
        assert!(notes[1].starts_with("metrics.jsonl stops being complete") && notes[1].contains("Free some"));
        assert!(notes[2].contains(r#""step":2"#));
    }
}
