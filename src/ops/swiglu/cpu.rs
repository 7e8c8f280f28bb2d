//! SwiGLU on the CPU.

use candle_core::Tensor;
use rayon::prelude::*;

use super::Backward;
use crate::error::Result;
use crate::ops::cpu::simd::{sigmoid, vectorize};
use crate::ops::cpu::widened::{View, tensor_as};

const CHUNK: usize = 1 << 13;

pub(super) fn forward(gate_nf: &Tensor, up_nf: &Tensor) -> Result<Tensor> {
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

pub(super) fn backward(gate_nf: &Tensor, up_nf: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
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
