//! Failed tensor operations as errors of this crate.

use crate::error::Error;

/// What the CUDA driver says where a device is gone, or what it has computed is not to be trusted (cuda.h, `CUresult`). Codes that a
/// wrong kernel brings about as well, such as CUDA_ERROR_ILLEGAL_ADDRESS and CUDA_ERROR_LAUNCH_FAILED, are not among them: those
/// would come again.
const LOST: [&str; 10] = [
    "CUDA_ERROR_DEVICE_UNAVAILABLE",
    "CUDA_ERROR_ECC_UNCORRECTABLE",
    "CUDA_ERROR_NVLINK_UNCORRECTABLE",
    "CUDA_ERROR_ILLEGAL_STATE",
    "CUDA_ERROR_LAUNCH_TIMEOUT",
    "CUDA_ERROR_CONTEXT_IS_DESTROYED",
    "CUDA_ERROR_HARDWARE_STACK_ERROR",
    "CUDA_ERROR_CONTAINED",
    "CUDA_ERROR_DEINITIALIZED",
    // Of a device that has fallen off the bus.
    "CUDA_ERROR_UNKNOWN",
];

impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        // candle appends a backtrace over many lines; the first says what happened.
        let text = error.to_string();
        fault(text.lines().next().unwrap_or("unknown candle error"))
    }
}

/// What an op or the device finds wrong.
pub(super) fn fault(what: impl Into<String>) -> Error {
    let problem = what.into();
    match LOST.iter().any(|code| names(&problem, code)) {
        true => Error::DeviceLost { problem },
        false => Error::Compute(problem.into()),
    }
}

/// Whether the word `code` stands in `text`.
fn names(text: &str, code: &str) -> bool {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).any(|word| word == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As cudarc writes the driver's errors.
    fn said(code: &str) -> String {
        format!("DriverError({code}, \"words of the driver\")")
    }

    #[test]
    fn a_device_that_is_gone_is_told_from_a_fault() {
        for code in LOST {
            let of_op = fault(format!("the device failed at earlier work: {}", said(code)));
            let of_candle = Error::from(candle_core::Error::Msg(said(code)));
            for error in [of_op, of_candle] {
                assert!(
                    matches!(&error, Error::DeviceLost { problem } if problem.contains(code)),
                    "{error:?}"
                );
                let text = error.to_string();
                assert!(text.starts_with("the device is lost: ") && !error.is_input(), "{text}");
            }
        }
        for code in [
            "CUDA_ERROR_OUT_OF_MEMORY",
            "CUDA_ERROR_ILLEGAL_ADDRESS",
            "CUDA_ERROR_LAUNCH_FAILED",
            "CUDA_ERROR_INVALID_VALUE",
            "CUDA_ERROR_UNKNOWN_KERNEL",
        ] {
            assert!(matches!(fault(said(code)), Error::Compute(_)), "{code}");
        }
    }
}
