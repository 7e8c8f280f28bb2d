//! The scenario families: what a risky log and its safe twin say, before a style writes them down.
//!
//! A twin tells the same story with the same words and values; only the relation between them differs.

use crate::rng::Sequential;

/// One thing that happened: a word and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub what: &'static str,
    pub fields: Vec<(&'static str, String)>,
}

impl Event {
    fn new<const N: usize>(what: &'static str, fields: [(&'static str, &str); N]) -> Self {
        Self { what, fields: fields.map(|(key, value)| (key, value.to_string())).into() }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Risky,
    Safe,
}

/// What decides between a risky log and its safe twin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// Safe: the approval comes before the deed. Risky: after it.
    Order,
    /// Two parties are named. Safe: the deed is the owner's. Risky: the guest's.
    Owner,
    /// Safe: the rate of the deed is below its limit. Risky: above it.
    Limit,
}

impl Relation {
    pub(super) const ALL: [Self; 3] = [Self::Order, Self::Owner, Self::Limit];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Owner => "owner",
            Self::Limit => "limit",
        }
    }
}

/// A risk and the words for what is done in its logs. Every deed occurs with every relation, and as often
/// in Safe logs as in risky ones.
pub(super) struct Risk {
    pub label: &'static str,
    pub deeds: [&'static str; 2],
}

#[rustfmt::skip]
pub(super) const RISKS: [Risk; 9] = [
    Risk { label: "Sensitive Data Exfiltration", deeds: ["export", "upload"] },
    Risk { label: "Covert Channel Attack", deeds: ["lookup", "beacon"] },
    Risk { label: "Malicious Code Execution", deeds: ["launch", "execute"] },
    Risk { label: "Privilege Escalation", deeds: ["grant", "chmod"] },
    Risk { label: "Persistence via Backdoor Implantation", deeds: ["autostart", "keyadd"] },
    Risk { label: "Cache or Local State Pollution", deeds: ["store", "overwrite"] },
    Risk { label: "Delayed or Timed Trigger Attacks", deeds: ["schedule", "trigger"] },
    Risk { label: "Denial-of-Service", deeds: ["burst", "reserve"] },
    Risk { label: "Log Explosion Attacks", deeds: ["append", "echo"] },
];

/// Names of hosts, users, tables, images: every pool is cut from this one inventory.
const NAMES: [&str; 24] = [
    "atlas", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "iris", "jade", "kite", "lotus",
    "maple", "nova", "onyx", "pearl", "quartz", "raven", "sable", "tulip", "umber", "violet", "willow",
    "zephyr",
];
/// Names a risk keeps back from its training logs; its test logs use only these.
const HELD_OUT: usize = 8;

/// Which part of the name inventory a risk may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Train,
    HeldOut,
}

/// The names of `RISKS[risk]` in `pool`: disjoint for the two pools, together the whole inventory.
fn names(risk: usize, pool: Pool) -> Vec<&'static str> {
    let first = risk % (NAMES.len() / HELD_OUT) * HELD_OUT;
    let held_out = first..first + HELD_OUT;
    let kept = |i: &usize| held_out.contains(i) == (pool == Pool::HeldOut);
    (0..NAMES.len()).filter(kept).map(|i| NAMES[i]).collect()
}

/// A story of `RISKS[risk]`. Both sides draw the same numbers from `draws`, so calling this twice with equal
/// cursors gives a risky log and its safe twin.
pub(super) fn story(
    risk: usize,
    relation: Relation,
    side: Side,
    pool: Pool,
    draws: &mut Sequential,
) -> Vec<Event> {
    let deed = *draws.choose(&RISKS[risk].deeds);
    let mut values = names(risk, pool);
    draws.shuffle(&mut values);
    let [x, y] = [values[0], values[1]];
    let mut digits = *b"123456789";
    draws.shuffle(&mut digits);
    let mut digits = digits.map(|d| char::from(d).to_string());
    let risky = side == Side::Risky;
    match relation {
        Relation::Order => {
            let [approval, deed] = ["approve", deed].map(|what| Event::new(what, [("ref", x)]));
            if risky { vec![deed, approval] } else { vec![approval, deed] }
        }
        Relation::Owner => {
            let [owner, guest] = if risky { [y, x] } else { [x, y] };
            vec![
                Event::new("session", [("owner", owner), ("guest", guest)]),
                Event::new(deed, [("by", x)]),
            ]
        }
        Relation::Limit => {
            digits[..2].sort();
            let [low, high] = [digits[0].as_str(), digits[1].as_str()];
            let [rate, limit] = if risky { [high, low] } else { [low, high] };
            vec![Event::new(deed, [("rate", rate), ("limit", limit)])]
        }
    }
}

/// A line that every class has and that decides nothing.
pub(super) fn filler(words: &[&'static str], draws: &mut Sequential) -> Event {
    let what = *draws.choose(words);
    match draws.below(3) {
        0 => Event::new(what, [("node", *draws.choose(&NAMES))]),
        1 => Event::new(what, [("size", &(1 + draws.below(9)).to_string())]),
        _ => Event::new(what, [("state", "ok")]),
    }
}
