//! RMSNorm on the CPU.

use candle_core::{CpuStorage, InplaceOp2, Layout, Tensor};
use rayon::prelude::*;

use super::Input;
use crate::error::Result;
use crate::ops::cpu::simd::{dot, vectorize};
use crate::ops::cpu::widened::{View, slice, slice_mut, tensor, tensor_as};
use crate::ops::elementwise::add_assign;

/// Rows whose weight gradient is summed together before the fixed-order sum over chunks.
const CHUNK_ROWS: usize = 64;

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

pub(super) fn forward(x_nh: &Tensor, w_h: &Tensor, eps: f32) -> Result<Tensor> {
    let (n, h) = x_nh.dims2()?;
    let (x, w) = (View::new(x_nh)?, View::new(w_h)?);
    let mut y = vec![0f32; n * h];
    y.par_chunks_mut(h * CHUNK_ROWS).zip(x.par_chunks(h * CHUNK_ROWS)).for_each(|(y, x)| {
        vectorize!({
            for (y, x) in y.chunks_exact_mut(h).zip(x.chunks_exact(h)) {
                let r = inverse_rms(x, eps);
                for ((y, x), w) in y.iter_mut().zip(x).zip(&*w) {
                    *y = x * r * w;
                }
            }
        });
    });
    tensor_as(y, (n, h), x_nh.dtype())
}

pub(super) fn backward(norm: Input, dy_nh: &Tensor, dx_nh: &Tensor, dw_h: Option<&Tensor>) -> Result<()> {
    let (n, h) = dy_nh.dims2()?;
    {
        let (x, w) = (View::new(norm.x_nh)?, View::new(norm.w_h)?);
        dx_nh.inplace_op2(dy_nh, &AddInputGradient { x: &x, w: &w, eps: norm.eps })?;
    }
    debug_assert_eq!(n, dx_nh.dim(0)?);
    let Some(dw_h) = dw_h else { return Ok(()) };
    let dw = {
        let x = View::new(norm.x_nh)?;
        let dy = View::new(dy_nh)?;
        let chunk = h * CHUNK_ROWS;
        let partial: Vec<Vec<f32>> = x
            .par_chunks(chunk)
            .zip(dy.par_chunks(chunk))
            .map(|(x, dy)| {
                vectorize!({
                    let mut dw = vec![0f32; h];
                    for (x, dy) in x.chunks_exact(h).zip(dy.chunks_exact(h)) {
                        let r = inverse_rms(x, norm.eps);
                        for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                            *dw += dy * x * r;
                        }
                    }
                    dw
                })
            })
            .collect();
        let mut dw = vec![0f32; h];
        for part in partial {
            dw.iter_mut().zip(part).for_each(|(dw, p)| *dw += p);
        }
        dw
    };
    add_assign(dw_h, &tensor(dw, h)?)
}

struct AddInputGradient<'a> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
}

impl InplaceOp2 for AddInputGradient<'_> {
    fn name(&self) -> &'static str {
        "rms-norm-backward"
    }

    fn cpu_fwd(
        &self,
        dx: &mut CpuStorage,
        l_dx: &Layout,
        dy: &CpuStorage,
        l_dy: &Layout,
    ) -> candle_core::Result<()> {
        let h = self.w.len();
        let (mut dx, dy) = (slice_mut(dx, l_dx)?, slice(dy, l_dy)?);
        let chunk = h * CHUNK_ROWS;
        dx.par_chunks_mut(chunk).zip(dy.par_chunks(chunk)).zip(self.x.par_chunks(chunk)).for_each(
            |((dx, dy), x)| {
                vectorize!({
                    for ((dx, dy), x) in dx.chunks_exact_mut(h).zip(dy.chunks_exact(h)).zip(x.chunks_exact(h))
                    {
                        let r = inverse_rms(x, self.eps);
                        let mut gx = 0f32;
                        for j in 0..h {
                            gx += dy[j] * self.w[j] * x[j];
                        }
                        let c = gx * r * r * r / h as f32;
                        for j in 0..h {
                            dx[j] += dy[j] * self.w[j] * r - x[j] * c;
                        }
                    }
                });
            },
        );
        Ok(())
    }
}
