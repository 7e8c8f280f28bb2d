//! Failed tensor operations as errors of this crate.

use crate::error::Error;

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // candle appends a backtrace over many lines; the first says what happened.
        let text = error.to_string();
        Self::Compute(text.lines().next().unwrap_or("unknown candle error").to_string().into())
    }
}

/// What an op or the device finds wrong.
pub(super) fn fault(what: impl Into<String>) -> Error {
    Error::Compute(what.into().into())
}
