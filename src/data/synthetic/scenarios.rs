//! The stories of the synthetic logs, before a style writes them down.
//!
//! A risky log and its safe twin tell the same story with the same words and values; only the relation
//! between two lines, or two values, differs.

use crate::rng::Sequential;

/// One thing that happened: a word and its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Event {
    pub what: &'static str,
    pub fields: Vec<(&'static str, &'static str)>,
}

impl Event {
    fn new<const N: usize>(what: &'static str, fields: [(&'static str, &'static str); N]) -> Self {
        Self { what, fields: fields.into() }
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
    /// Safe: the deed falls inside the declared window. Risky: after its close.
    Window,
    /// Two policies follow each other. Safe: the later one allows. Risky: it denies.
    Policy,
    /// Safe: who does the deed outranks the owner. Risky: the owner outranks who does it.
    Rank,
    /// Safe: the rate of the deed is below its limit. Risky: above it.
    Limit,
}

impl Relation {
    pub(super) const ALL: [Self; 5] = [Self::Order, Self::Window, Self::Policy, Self::Rank, Self::Limit];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Order => "order",
            Self::Window => "window",
            Self::Policy => "policy",
            Self::Rank => "rank",
            Self::Limit => "limit",
        }
    }
}

/// A risk and the words for what is done in its logs. Every deed occurs with every relation, and as often
/// on the safe side as on the risky one.
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

/// What a `ref` or a `node` may be called.
const NAMES: [&str; 24] = [
    "atlas", "birch", "cedar", "delta", "ember", "flint", "grove", "haven", "iris", "jade", "kite", "lotus",
    "maple", "nova", "onyx", "pearl", "quartz", "raven", "sable", "tulip", "umber", "violet", "willow",
    "zephyr",
];
/// Names that a risk's training logs never refer to and its test logs only refer to.
const HELD_OUT: usize = 8;
/// Users, from the lowest rank to the highest.
const RANKS: [&str; 3] = ["guest", "user", "root"];
const LOW: [&str; 4] = ["1", "2", "3", "4"];
const HIGH: [&str; 4] = ["6", "7", "8", "9"];

/// Which part of the names a risk may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pool {
    Train,
    HeldOut,
}

/// The names of `RISKS[risk]` in `pool`: disjoint for the two pools, together all names.
fn names(risk: usize, pool: Pool) -> Vec<&'static str> {
    let first = risk % (NAMES.len() / HELD_OUT) * HELD_OUT;
    let held_out = first..first + HELD_OUT;
    let kept = |i: &usize| held_out.contains(i) == (pool == Pool::HeldOut);
    (0..NAMES.len()).filter(kept).map(|i| NAMES[i]).collect()
}

/// What a log is about: all that it shares with its twin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    /// Index into [`RISKS`].
    pub risk: usize,
    pub relation: Relation,
    deed: &'static str,
    /// What the lines of the story refer to.
    name: &'static str,
    /// The lower and the higher of the values compared by `Rank` and `Limit`.
    ranks: [&'static str; 2],
    rates: [&'static str; 2],
}

impl Scenario {
    /// Risk, relation, deed and values are each drawn uniformly.
    pub(super) fn draw(pool: Pool, draws: &mut Sequential) -> Self {
        let risk = draws.below(RISKS.len());
        let low = draws.below(RANKS.len() - 1);
        let high = low + 1 + draws.below(RANKS.len() - 1 - low);
        Self {
            risk,
            relation: *draws.choose(&Relation::ALL),
            deed: *draws.choose(&RISKS[risk].deeds),
            name: *draws.choose(&names(risk, pool)),
            ranks: [RANKS[low], RANKS[high]],
            rates: [*draws.choose(&LOW), *draws.choose(&HIGH)],
        }
    }

    pub(super) fn story(&self, side: Side) -> Vec<Event> {
        let deed = self.deed;
        let named = |what| Event::new(what, [("ref", self.name)]);
        let policy = |mode| Event::new("policy", [("mode", mode)]);
        // Safe logs put the lower value first.
        let placed = |[low, high]: [_; 2]| if side == Side::Safe { [low, high] } else { [high, low] };
        match (self.relation, side) {
            (Relation::Order, Side::Safe) => vec![named("approve"), named(deed)],
            (Relation::Order, Side::Risky) => vec![named(deed), named("approve")],
            (Relation::Window, Side::Safe) => vec![named("open"), named(deed), named("close")],
            (Relation::Window, Side::Risky) => vec![named("open"), named("close"), named(deed)],
            (Relation::Policy, Side::Safe) => vec![policy("deny"), policy("allow"), named(deed)],
            (Relation::Policy, Side::Risky) => vec![policy("allow"), policy("deny"), named(deed)],
            (Relation::Rank, _) => {
                let [owner, by] = placed(self.ranks);
                vec![Event::new(deed, [("owner", owner), ("by", by)])]
            }
            (Relation::Limit, _) => {
                let [rate, limit] = placed(self.rates);
                vec![Event::new(deed, [("rate", rate), ("limit", limit)])]
            }
        }
    }
}

/// A line that every class has and that decides nothing.
pub(super) fn filler(words: &[&'static str], draws: &mut Sequential) -> Event {
    let what = *draws.choose(words);
    match draws.below(2) {
        0 => Event::new(what, [("node", *draws.choose(&NAMES))]),
        _ => Event::new(what, [("state", "ok")]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_risk_never_shares_a_name_between_training_and_test() {
        for risk in 0..RISKS.len() {
            let (train, test) = (names(risk, Pool::Train), names(risk, Pool::HeldOut));
            assert_eq!((train.len(), test.len()), (16, 8));
            assert!(test.iter().all(|name| !train.contains(name)));
        }
        // Risk 1 keeps back the second eight names.
        assert_eq!(names(1, Pool::HeldOut)[0], "iris");
    }

    #[test]
    fn relations_decide_as_documented() {
        let scenario = |relation| Scenario {
            risk: 3,
            relation,
            deed: "chmod",
            name: "kite",
            ranks: ["guest", "root"],
            rates: ["2", "7"],
        };
        let said = |relation, side| -> Vec<String> {
            let line = |e: Event| {
                e.fields.iter().fold(e.what.to_string(), |line, (key, value)| format!("{line} {key}={value}"))
            };
            scenario(relation).story(side).into_iter().map(line).collect()
        };
        assert_eq!(said(Relation::Order, Side::Risky), ["chmod ref=kite", "approve ref=kite"]);
        assert_eq!(
            said(Relation::Window, Side::Risky),
            ["open ref=kite", "close ref=kite", "chmod ref=kite"]
        );
        assert_eq!(
            said(Relation::Policy, Side::Risky),
            ["policy mode=allow", "policy mode=deny", "chmod ref=kite"]
        );
        assert_eq!(said(Relation::Rank, Side::Risky), ["chmod owner=root by=guest"]);
        assert_eq!(said(Relation::Rank, Side::Safe), ["chmod owner=guest by=root"]);
        assert_eq!(said(Relation::Limit, Side::Risky), ["chmod rate=7 limit=2"]);
        assert_eq!(said(Relation::Limit, Side::Safe), ["chmod rate=2 limit=7"]);
    }
}
