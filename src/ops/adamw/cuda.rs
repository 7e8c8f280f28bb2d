//! AdamW on a CUDA device.

use candle_core::DType;

use super::blockwise::BLOCK;
use super::{Moment, Parameter, Precision, Scalars};
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, multiprocessors};

/// As [`super::update`], with operands that have been checked.
pub(super) fn update(parameter: &Parameter, s: Scalars) -> Result<()> {
    let Parameter { weight, precision, gradient, first, second } = *parameter;
    let (device, count) = (weight.device(), weight.elem_count());
    let bits = if weight.dtype() == DType::F32 { "w32" } else { "w16" };
    let moments = if matches!(first, Moment::F32(_)) { "m32" } else { "m8" };
    let mut launch = Launch::typed(device, "adamw", &format!("adamw_{bits}_{moments}"), gradient.dtype())?;
    launch = launch.tensor(weight)?;
    let (mut key, mut ids) = ([0; 2], [0; 3]);
    launch = match precision {
        Precision::Full => launch.null(),
        Precision::Master(master) => launch.tensor(master)?,
        Precision::Stochastic(stream) => {
            (key, ids) = stream.words();
            launch.null()
        }
    };
    launch = launch.tensor(gradient)?;
    for moment in [first, second] {
        launch = match moment {
            Moment::F32(values) => launch.tensor(values)?,
            Moment::Int8 { codes, scales } => launch.tensor(codes)?.tensor(scales)?,
        };
    }
    for number in [s.decay, s.step_size, s.inverse_sqrt_correction, s.eps, s.beta1, s.beta2, s.gradient_scale]
    {
        launch = launch.f32(number);
    }
    for word in key.into_iter().chain(ids) {
        launch = launch.u32(word);
    }
    // Eight warps a block, one block of 256 elements a warp and round.
    let blocks = count.div_ceil(8 * BLOCK).min(16 * multiprocessors(device)?);
    launch.u64(count as u64).run(Grid::line(blocks as u32, 256))
}
