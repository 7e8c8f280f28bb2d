//! SwiGLU on the CPU.

use candle_core::Tensor;
use rayon::prelude::*;

use super::Backward;
use crate::error::Result;
use crate::ops::cpu::simd::{sigmoid, vectorize};
use crate::ops::cpu::widened::{View, tensor_as};
use crate::ops::fault::fault;

/// Elements of one task at least.
const CHUNK: usize = 1 << 13;

pub(super) fn forward(gate_up_n2f: &Tensor) -> Result<Tensor> {
    let (n, both) = gate_up_n2f.dims2()?;
    let (f, gate_up) = (both / 2, View::new(gate_up_n2f)?);
    let mut act = vec![0f32; n * f];
    let rows = act.par_chunks_mut(f.max(1)).zip(gate_up.par_chunks(both.max(1)));
    rows.with_min_len(CHUNK.div_ceil(f.max(1))).for_each(|(act, row)| {
        let (gate, up) = row.split_at(f);
        vectorize!({
            for ((a, g), u) in act.iter_mut().zip(gate).zip(up) {
                *a = g * sigmoid(*g) * u;
            }
        });
    });
    tensor_as(act, (n, f), gate_up_n2f.dtype())
}

pub(super) fn backward(gate_up_n2f: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
    let (n, f) = dact_nf.dims2()?;
    if gate_up_n2f.dims() != [n, 2 * f] {
        return Err(fault(format!("swiglu: {:?} beside {:?}", gate_up_n2f.shape(), dact_nf.shape())));
    }
    let (gate_up, dact) = (View::new(gate_up_n2f)?, View::new(dact_nf)?);
    let (mut act, mut dgate_up) = (vec![0f32; n * f], vec![0f32; 2 * n * f]);
    let width = f.max(1);
    let results = act.par_chunks_mut(width).zip(dgate_up.par_chunks_mut(2 * width));
    let rows = results.zip(gate_up.par_chunks(2 * width).zip(dact.par_chunks(width)));
    rows.with_min_len(CHUNK.div_ceil(width)).for_each(|((act, dgate_up), (gate_up, dact))| {
        let ((gate, up), (dgate, dup)) = (gate_up.split_at(f), dgate_up.split_at_mut(f));
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
    let dtype = gate_up_n2f.dtype();
    Ok(Backward {
        act_nf: tensor_as(act, (n, f), dtype)?,
        dgate_up_n2f: tensor_as(dgate_up, (n, 2 * f), dtype)?,
    })
}
