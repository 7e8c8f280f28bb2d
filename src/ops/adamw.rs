//! One AdamW update of one weight, Loshchilov and Hutter, arXiv:1711.05101, as in `torch.optim.AdamW`.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::simd::vectorize;
use super::{slice, slice_mut};
use crate::error::Result;

const CHUNK: usize = 1 << 14;

/// Numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// 1 for the first update.
    pub step: u64,
    /// Factor on the gradient: the clip by global norm, without a second copy of the gradients.
    pub gradient_scale: f64,
}

/// Updates `weight` and its moments in place. `gradient`, `first_moment`, `second_moment`: same shape, f32.
pub fn update(
    weight: &Tensor,
    gradient: &Tensor,
    first_moment: &Tensor,
    second_moment: &Tensor,
    update: &Update,
) -> Result<()> {
    let scale = update.gradient_scale as f32;
    let moment = |beta: f64, square: Square| Moment { beta: beta as f32, scale, square };
    first_moment.inplace_op2(gradient, &moment(update.beta1, Square::No))?;
    second_moment.inplace_op2(gradient, &moment(update.beta2, Square::Yes))?;
    let correction = |beta: f64| 1.0 - beta.powi(i32::try_from(update.step).unwrap_or(i32::MAX));
    let apply = Apply {
        decay: (1.0 - update.learning_rate * update.weight_decay) as f32,
        step_size: (update.learning_rate / correction(update.beta1)) as f32,
        inverse_sqrt_correction: (1.0 / correction(update.beta2).sqrt()) as f32,
        eps: update.eps as f32,
    };
    Ok(weight.inplace_op3(first_moment, second_moment, &apply)?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Square {
    No,
    Yes,
}

/// `m <- beta m + (1 - beta) (scale g)^(1 or 2)`
struct Moment {
    beta: f32,
    scale: f32,
    square: Square,
}

impl InplaceOp2 for Moment {
    fn name(&self) -> &'static str {
        "adamw-moment"
    }

    fn cpu_fwd(
        &self,
        m: &mut CpuStorage,
        l_m: &Layout,
        g: &CpuStorage,
        l_g: &Layout,
    ) -> candle_core::Result<()> {
        let (m, g) = (slice_mut(m, l_m)?, slice(g, l_g)?);
        let (beta, scale, rest) = (self.beta, self.scale, 1.0 - self.beta);
        m.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(m, g)| {
            vectorize(|| match self.square {
                Square::No => m.iter_mut().zip(g).for_each(|(m, g)| *m = beta * *m + rest * (g * scale)),
                Square::Yes => m.iter_mut().zip(g).for_each(|(m, g)| {
                    let g = g * scale;
                    *m = beta * *m + rest * g * g;
                }),
            });
        });
        Ok(())
    }
}

/// `w <- decay w - step_size m / (sqrt(v) inverse_sqrt_correction + eps)`
struct Apply {
    decay: f32,
    step_size: f32,
    inverse_sqrt_correction: f32,
    eps: f32,
}

impl candle_core::InplaceOp3 for Apply {
    fn name(&self) -> &'static str {
        "adamw-apply"
    }

    fn cpu_fwd(
        &self,
        w: &mut CpuStorage,
        l_w: &Layout,
        m: &CpuStorage,
        l_m: &Layout,
        v: &CpuStorage,
        l_v: &Layout,
    ) -> candle_core::Result<()> {
        let (w, m, v) = (slice_mut(w, l_w)?, slice(m, l_m)?, slice(v, l_v)?);
        let Self { decay, step_size, inverse_sqrt_correction, eps } = *self;
        w.par_chunks_mut(CHUNK).zip(m.par_chunks(CHUNK)).zip(v.par_chunks(CHUNK)).for_each(|((w, m), v)| {
            vectorize(|| {
                for ((w, m), v) in w.iter_mut().zip(m).zip(v) {
                    *w = decay * *w - step_size * m / (v.sqrt() * inverse_sqrt_correction + eps);
                }
            });
        });
        Ok(())
    }
}
