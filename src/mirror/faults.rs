//! What can go wrong between here and a store.

use std::fmt;

use super::place::Place;
use crate::error::Error;

/// A request that did not come to what was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// There is no such object.
    Missing,
    /// It is not as the condition of a write has it.
    Changed,
    /// May pass: no connection, a cut one, a busy store. A clause about the store.
    Passing(String),
    /// Stays until somebody does something.
    Refused { what: String, fix: String },
    /// The disk of this machine has no room left.
    Full,
    /// On this side: a file that cannot be read or written, a wish to stop, a lease that is lost.
    Here(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("has no such object"),
            Self::Changed => f.write_str("was written by another at the same time"),
            Self::Full => f.write_str("the disk here is full"),
            Self::Passing(what) | Self::Here(what) | Self::Refused { what, .. } => f.write_str(what),
        }
    }
}

impl Fault {
    pub(super) fn of(error: object_store::Error, place: &Place) -> Self {
        use object_store::Error as Theirs;
        // Some answers are pages.
        let said = chain(&error);
        match error {
            Theirs::NotFound { .. } if said.contains("NoSuchBucket") => Self::Refused {
                what: format!("there is no bucket {}", place.bucket),
                fix: "Make the bucket, or correct run.mirror".into(),
            },
            Theirs::NotFound { .. } => Self::Missing,
            Theirs::AlreadyExists { .. } | Theirs::Precondition { .. } | Theirs::NotModified { .. } => {
                Self::Changed
            }
            _ if said.contains("RequestTimeTooSkewed") => Self::Refused {
                what: "it refuses this machine's clock (RequestTimeTooSkewed)".into(),
                fix: "Set the clock: requests are signed with the time".into(),
            },
            Theirs::PermissionDenied { .. } | Theirs::Unauthenticated { .. } => Self::Refused {
                what: format!("it refuses access ({said})"),
                fix: format!("Check {}, and what they are allowed", place.access()),
            },
            Theirs::InvalidPath { .. } | Theirs::NotSupported { .. } | Theirs::NotImplemented { .. } => {
                Self::Refused { what: said, fix: "Choose another run.mirror".into() }
            }
            _ => Self::Passing(said),
        }
    }

    /// For a mirror that a command cannot do without, at its start.
    pub(super) fn at_start(self, place: &Place) -> Error {
        match self {
            Self::Refused { what, fix } => Error::input(place, what, fix),
            _ => Error::Io {
                path: place.to_string().into(),
                action: "reach the run's mirror",
                source: std::io::Error::other(self.to_string()),
                fix: "Check the network and the store's variables, and run the same command again; or leave run.mirror out",
            },
        }
    }
}

/// An error and what it is from, on one line, without what is said twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !said.contains(&text) {
            said = format!("{said}: {text}");
        }
        next = cause.source();
    }
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    match said.char_indices().nth(400) {
        Some((at, _)) => format!("{}...", &said[..at]),
        None => said,
    }
}
