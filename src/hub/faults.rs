//! What can go wrong between here and the hub.

use std::fmt;
use std::io;
use std::path::Path;

use crate::error::Error;

/// A failed request.
#[derive(Debug)]
pub(super) enum Fault {
    /// May pass: no connection, a cut one, a busy server. `what` is a clause about the hub.
    Passing { what: String, endpoint: String },
    /// Stays until the user does something.
    Final(Error),
}

impl Fault {
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Passing { .. })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passing { what, .. } => f.write_str(what),
            Self::Final(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Final(error)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Passing { what, endpoint } => {
                let fix = "Check the network, HF_ENDPOINT and HTTPS_PROXY, and run the command again: what has come is \
                           kept";
                Self::input(endpoint, what, fix)
            }
            Fault::Final(error) => error,
        }
    }
}

/// For files of the cache: a full or read-only disk is something the user can move away from.
pub(super) fn disk(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> Error {
    move |source| {
        let (problem, fix) = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (
                "the disk is full".to_string(),
                "Free some space, or set HF_HOME to a folder on another disk; what has come is kept",
            ),
            _ => (
                format!("cannot {action}: {source}"),
                "Set HF_HOME to a folder that can be written, or correct this one",
            ),
        };
        Error::input(path.display(), problem, fix)
    }
}
