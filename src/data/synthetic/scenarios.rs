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

/// What decides between a family's risky log and its safe twin.
#[derive(Clone, Copy, Debug)]
enum Relation {
    /// Safe: `guard` comes before `deed`. Risky: after it. Both name the same `about`.
    Order { guard: &'static str, deed: &'static str, about: &'static str },
    /// `open` names two parties; safe: `deed` is done by the `rightful` one, risky: by the `other`.
    Match {
        open: &'static str,
        rightful: &'static str,
        other: &'static str,
        deed: &'static str,
        by: &'static str,
    },
    /// Safe: `value` is below `limit`. Risky: above it.
    Limit { what: &'static str, value: &'static str, limit: &'static str },
    /// Safe: the `deed` falls between `from` and `to`. Risky: outside.
    Window { plan: &'static str, deed: &'static str, at: &'static str },
    /// Safe: three different `who`. Risky: three times the same.
    Repeat { what: &'static str, who: &'static str },
}

pub(super) struct Family {
    pub label: &'static str,
    /// `<label's short name>/<relation>`; goes into the row's metadata.
    pub name: &'static str,
    relation: Relation,
}

macro_rules! families {
    ($($label:literal { $($name:literal: $relation:expr,)+ })+) => {
        &[$($(Family { label: $label, name: $name, relation: $relation },)+)+]
    };
}

#[rustfmt::skip]
pub(super) const FAMILIES: &[Family] = {
    use Relation::{Limit, Match, Order, Repeat, Window};
    families! {
        "Sensitive Data Exfiltration" {
            "exfiltration/match": Match { open: "request", rightful: "asked", other: "mirror", deed: "upload", by: "reached" },
            "exfiltration/order": Order { guard: "consent", deed: "export", about: "table" },
        }
        "Covert Channel Attack" {
            "covert/match": Match { open: "vault", rightful: "public", other: "secret", deed: "lookup", by: "name" },
            "covert/limit": Limit { what: "beacon", value: "jitter", limit: "norm" },
        }
        "Malicious Code Execution" {
            "code/match": Match { open: "manifest", rightful: "signed", other: "draft", deed: "execute", by: "image" },
            "code/order": Order { guard: "scan", deed: "launch", about: "script" },
        }
        "Privilege Escalation" {
            "privilege/match": Match { open: "process", rightful: "owner", other: "guest", deed: "chmod", by: "user" },
            "privilege/order": Order { guard: "approve", deed: "grant", about: "role" },
            "privilege/limit": Limit { what: "sudo", value: "used", limit: "allowed" },
        }
        "Persistence via Backdoor Implantation" {
            "persistence/match": Match { open: "login", rightful: "account", other: "visitor", deed: "keyadd", by: "holder" },
            "persistence/order": Order { guard: "autostart", deed: "cleanup", about: "unit" },
        }
        "Cache or Local State Pollution" {
            "cache/match": Match { open: "entry", rightful: "tenant", other: "neighbor", deed: "overwrite", by: "writer" },
            "cache/order": Order { guard: "validate", deed: "store", about: "slot" },
        }
        "Delayed or Timed Trigger Attacks" {
            "timed/window": Window { plan: "schedule", deed: "trigger", at: "hour" },
            "timed/order": Order { guard: "disarm", deed: "deadline", about: "timer" },
        }
        "Denial-of-Service" {
            "service/limit": Limit { what: "burst", value: "rate", limit: "quota" },
            "service/repeat": Repeat { what: "call", who: "client" },
            "service/order": Order { guard: "throttle", deed: "flood", about: "port" },
        }
        "Log Explosion Attacks" {
            "logs/limit": Limit { what: "writer", value: "lines", limit: "cap" },
            "logs/repeat": Repeat { what: "echo", who: "message" },
            "logs/order": Order { guard: "rotate", deed: "fill", about: "volume" },
        }
    }
};

/// Names of hosts, users, tables, images: every pool is cut from this one inventory.
const NAMES: [&str; 24] = [
    "atlas", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "iris", "jade", "kite", "lotus",
    "maple", "nova", "onyx", "pearl", "quartz", "raven", "sable", "tulip", "umber", "violet", "willow",
    "zephyr",
];
/// Names a family keeps back from its training logs; its test logs use only these.
const HELD_OUT: usize = 8;

/// Which part of the name inventory a family may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Train,
    HeldOut,
}

/// The names of `FAMILIES[family]` in `pool`: disjoint for the two pools, together the whole inventory.
fn names(family: usize, pool: Pool) -> Vec<&'static str> {
    let first = family % (NAMES.len() / HELD_OUT) * HELD_OUT;
    let held_out = first..first + HELD_OUT;
    let kept = |i: &usize| held_out.contains(i) == (pool == Pool::HeldOut);
    (0..NAMES.len()).filter(kept).map(|i| NAMES[i]).collect()
}

/// The story of `FAMILIES[family]`. Both sides draw the same numbers from `draws`, so calling this twice
/// with equal cursors gives a risky log and its safe twin.
pub(super) fn story(family: usize, side: Side, pool: Pool, draws: &mut Sequential) -> Vec<Event> {
    let mut values = names(family, pool);
    draws.shuffle(&mut values);
    let mut digits = *b"123456789";
    draws.shuffle(&mut digits);
    let mut digits = digits.map(|d| char::from(d).to_string());
    let [x, y, z] = [values[0], values[1], values[2]];
    let risky = side == Side::Risky;
    match FAMILIES[family].relation {
        Relation::Order { guard, deed, about } => {
            let [guard, deed] = [guard, deed].map(|what| Event::new(what, [(about, x)]));
            if risky { vec![deed, guard] } else { vec![guard, deed] }
        }
        Relation::Match { open, rightful, other, deed, by } => {
            let [rightful_is, other_is] = if risky { [y, x] } else { [x, y] };
            vec![
                Event::new(open, [(rightful, rightful_is), (other, other_is)]),
                Event::new(deed, [(by, x)]),
            ]
        }
        Relation::Limit { what, value, limit } => {
            digits[..2].sort();
            let [low, high] = [digits[0].as_str(), digits[1].as_str()];
            let [value_is, limit_is] = if risky { [high, low] } else { [low, high] };
            vec![Event::new(what, [(value, value_is), (limit, limit_is)])]
        }
        Relation::Window { plan, deed, at } => {
            digits[..3].sort();
            let [low, mid, high] = [digits[0].as_str(), digits[1].as_str(), digits[2].as_str()];
            let early = draws.below(2) == 0;
            let [from, to, hour] = match (risky, early) {
                (false, _) => [low, high, mid],
                (true, true) => [mid, high, low],
                (true, false) => [low, mid, high],
            };
            vec![Event::new(plan, [("from", from), ("to", to)]), Event::new(deed, [(at, hour)])]
        }
        Relation::Repeat { what, who } => {
            let [second, third] = if risky { [x, x] } else { [y, z] };
            [x, second, third].map(|name| Event::new(what, [(who, name)])).into()
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
