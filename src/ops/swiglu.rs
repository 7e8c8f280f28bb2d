//! SwiGLU, Shazeer, arXiv:2002.05202: `act = silu(gate) * up`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::simd::{sigmoid, vectorize};
use super::{View, cuda, tensor_as};
use crate::error::Result;

const CHUNK: usize = 1 << 13;

/// `gate`, `up`: same shape `[N, F]` -> `[N, F]`.
pub fn forward(gate_nf: &Tensor, up_nf: &Tensor) -> Result<Tensor> {
    if cuda::on(gate_nf) {
        return cuda::swiglu::forward(gate_nf, up_nf);
    }
    let (gate, up) = (View::new(gate_nf)?, View::new(up_nf)?);
    let mut act = vec![0f32; gate.len()];
    act.par_chunks_mut(CHUNK).zip(gate.par_chunks(CHUNK)).zip(up.par_chunks(CHUNK)).for_each(
        |((act, gate), up)| {
            vectorize!({
                for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
                    *a = g * sigmoid(*g) * u;
                }
            });
        },
    );
    tensor_as(act, gate_nf.shape(), gate_nf.dtype())
}

/// Gradients of gate and up, and the forward's result again (the weight gradient of the next layer needs it).
pub struct Backward {
    pub act_nf: Tensor,
    pub dgate_nf: Tensor,
    pub dup_nf: Tensor,
}

/// `silu'(g) = s + g s (1 - s)` with `s = sigmoid(g)`; one pass computes all three outputs.
pub fn backward(gate_nf: &Tensor, up_nf: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
    if cuda::on(gate_nf) {
        return cuda::swiglu::backward(gate_nf, up_nf, dact_nf);
    }
    let (gate, up, dact) = (View::new(gate_nf)?, View::new(up_nf)?, View::new(dact_nf)?);
    let n = gate.len();
    let (mut act, mut dgate, mut dup) = (vec![0f32; n], vec![0f32; n], vec![0f32; n]);
    act.par_chunks_mut(CHUNK)
        .zip(dgate.par_chunks_mut(CHUNK))
        .zip(dup.par_chunks_mut(CHUNK))
        .zip(gate.par_chunks(CHUNK).zip(up.par_chunks(CHUNK)).zip(dact.par_chunks(CHUNK)))
        .for_each(|(((act, dgate), dup), ((gate, up), dact))| {
            vectorize!({
                for j in 0..act.len() {
                    let (g, u, d) = (gate[j], up[j], dact[j]);
                    let s = sigmoid(g);
                    let silu = g * s;
                    act[j] = silu * u;
                    dup[j] = d * silu;
                    dgate[j] = d * u * (s + silu * (1.0 - s));
                }
            });
        });
    let result = |values| tensor_as(values, gate_nf.shape(), gate_nf.dtype());
    Ok(Backward { act_nf: result(act)?, dgate_nf: result(dgate)?, dup_nf: result(dup)? })
}
