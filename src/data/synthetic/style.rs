//! How a log is written down. Training logs mix three styles; test logs have one of their own.

use super::scenarios::{self, Event, Pool};
use crate::rng::Sequential;
use serde_json::{Map, Value};

/// Which generator writes the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StyleSet {
    /// `key=value`, colon and JSON-object lines in equal shares.
    Train,
    /// Call-like lines, `event(key=value; key=value)`, with other filler lines and, in every family, names
    /// that its training logs never use.
    Test,
}

/// One way to write a line. `Text` puts the marks around event, keys and values; `Object` is a JSON object.
#[derive(Clone, Copy, Debug)]
enum Line {
    Text { after_event: &'static str, after_key: &'static str, between: &'static str, end: &'static str },
    Object,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub name: &'static str,
    line: Line,
    fillers: &'static [&'static str],
}

const TRAIN_FILLERS: &[&str] = &["heartbeat", "sync", "probe", "flush", "renew"];
const TEST_FILLERS: &[&str] = &["probe", "renew"];

const TRAIN: [Style; 3] = [
    Style {
        name: "key-value",
        line: Line::Text { after_event: " ", after_key: "=", between: " ", end: "" },
        fillers: TRAIN_FILLERS,
    },
    Style {
        name: "colon",
        line: Line::Text { after_event: ": ", after_key: ":", between: ", ", end: "" },
        fillers: TRAIN_FILLERS,
    },
    Style { name: "object", line: Line::Object, fillers: TRAIN_FILLERS },
];

const TEST: [Style; 1] = [Style {
    name: "mixed",
    line: Line::Text { after_event: ": ", after_key: "=", between: ", ", end: "" },
    fillers: TEST_FILLERS,
}];

impl StyleSet {
    pub(super) fn draw(self, draws: &mut Sequential) -> Style {
        match self {
            Self::Train => *draws.choose(&TRAIN),
            Self::Test => *draws.choose(&TEST),
        }
    }

    pub(super) fn pool(self) -> Pool {
        match self {
            Self::Train => Pool::Train,
            Self::Test => Pool::HeldOut,
        }
    }
}

impl Style {
    /// The log: the story with one or two filler lines put somewhere into it, one JSON value a line.
    pub(super) fn write(&self, mut story: Vec<Event>, draws: &mut Sequential) -> Value {
        for _ in 0..1 + draws.below(2) {
            let filler = scenarios::filler(self.fillers, draws);
            story.insert(draws.below(story.len() + 1), filler);
        }
        Value::Array(story.into_iter().map(|event| self.line(event)).collect())
    }

    fn line(&self, event: Event) -> Value {
        match self.line {
            Line::Text { after_event, after_key, between, end } => {
                let fields: Vec<_> =
                    event.fields.iter().map(|(key, value)| format!("{key}{after_key}{value}")).collect();
                format!("{}{after_event}{}{end}", event.what, fields.join(between)).into()
            }
            Line::Object => {
                let mut object = Map::new();
                object.insert("event".into(), event.what.into());
                object.extend(event.fields.into_iter().map(|(key, value)| (key.into(), value.into())));
                Value::Object(object)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{Purpose, Stream};
    use serde_json::json;

    #[test]
    fn each_style_writes_a_line_its_own_way() {
        let event = || Event { what: "chmod", fields: vec![("owner", "root"), ("by", "guest")] };
        let lines: Vec<_> = TRAIN.iter().chain(&TEST).map(|style| style.line(event())).collect();
        assert_eq!(lines[0], "chmod owner=root by=guest");
        assert_eq!(lines[1], "chmod: owner:root, by:guest");
        assert_eq!(lines[2], json!({"event": "chmod", "owner": "root", "by": "guest"}));
        assert_eq!(lines[3], "chmod: owner=root, by=guest");
    }

    #[test]
    fn filler_lines_leave_the_story_in_order() {
        for seed in 0..50 {
            let mut draws = Stream::new(seed, Purpose::Synthetic, [0; 3]).sequential();
            let story = ["approve", "export"].map(|what| Event { what, fields: vec![("ref", "kite")] });
            let log = TEST[0].write(story.into(), &mut draws);
            let told: Vec<_> = log.as_array().unwrap().iter().filter_map(Value::as_str).collect();
            assert!((3..=4).contains(&told.len()), "{told:?}");
            let story: Vec<_> = told.into_iter().filter(|line| line.ends_with("ref=kite")).collect();
            assert_eq!(story, ["approve: ref=kite", "export: ref=kite"]);
        }
    }
}
