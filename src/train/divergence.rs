//! Signs that training breaks the model: weights beyond numbers, a loss far above its start.

use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::ops::elementwise::sum_squares;

/// A loss above so many times its start, and so much more, is not noise: the model is surer of what is wrong than one that
/// knows nothing.
const TIMES: f64 = 5.0;
const MORE: f64 = 5.0;
/// What `--resume` needs after a run ended here.
const FIX: &str =
    "Lower the learning rate in the run's config.resolved.toml and go on with `rlvr train --resume`";

/// Judges what is trained before it takes the place of a checkpoint. `step`: of the stage.
///
/// # Errors
/// A weight has a NaN or an infinity, or is so large that its norm leaves f32; it is named.
pub fn judge(decoder: &Decoder, step: u64) -> Result<()> {
    for (name, weight) in decoder.trainable() {
        let squares = sum_squares(&[weight])?;
        if !squares.is_finite() || squares > f64::from(f32::MAX) {
            let problem = format!("{name} has become too large or is not finite; it is not written");
            return Err(Error::Diverged { step, problem, fix: format!("{FIX}, from its last checkpoint") });
        }
    }
    Ok(())
}

/// What there is to say of a loss, by the first of the stage.
pub fn far_above(start: f64, loss: f64) -> Option<String> {
    let usual = loss <= TIMES * start.abs() + MORE;
    (!usual).then(|| {
        format!("the loss is {loss:.3e}, and was {start:.3} at the stage's first step: training diverges")
    })
}

/// The end of a run that is to stop where it diverges (`run.stop_on_divergence`).
pub fn halted(step: u64, problem: String) -> Error {
    Error::Halted { step, problem, fix: format!("run.stop_on_divergence is set. {FIX}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_far_above_its_start_only_where_no_noise_brings_it() {
        for (start, loss) in [(6.9, 12.0), (0.01, 5.0), (0.0, -40.0), (-0.2, 3.0), (6.9, 39.0)] {
            assert_eq!(far_above(start, loss), None, "{start} {loss}");
        }
        for (start, loss) in [(6.9, 5.9e6), (0.01, 6.0), (0.0, 5.1), (6.9, f64::NAN), (1.0, f64::INFINITY)] {
            assert!(far_above(start, loss).is_some_and(|text| text.contains("diverges")), "{start} {loss}");
        }
    }
}
