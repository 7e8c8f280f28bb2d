//! SwiGLU on a CUDA device: f32 or bf16, all of one type.

use candle_core::Tensor;

use super::Backward;
use crate::error::Result;
use crate::ops::cuda::{Launch, spread, uninit};
use crate::ops::fault::fault;

fn same(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() == b.dims() && a.dtype() == b.dtype() {
        return Ok(());
    }
    Err(fault(format!("swiglu: {:?} {:?} beside {:?} {:?}", a.dtype(), a.shape(), b.dtype(), b.shape())))
}

/// As [`super::forward`].
///
/// # Errors
/// When shapes or types do not agree, or the device fails.
pub fn forward(gate_nf: &Tensor, up_nf: &Tensor) -> Result<Tensor> {
    same(gate_nf, up_nf)?;
    let (device, dtype) = (gate_nf.device(), gate_nf.dtype());
    let act_nf = uninit(device, gate_nf.shape(), dtype)?;
    Launch::typed(device, "swiglu", "swiglu_forward", dtype)?
        .tensor(gate_nf)?
        .tensor(up_nf)?
        .tensor(&act_nf)?
        .u64(gate_nf.elem_count() as u64)
        .run(spread(gate_nf)?)?;
    Ok(act_nf)
}

/// As [`super::backward`].
///
/// # Errors
/// As [`forward`].
pub fn backward(gate_nf: &Tensor, up_nf: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
    same(gate_nf, up_nf)?;
    same(gate_nf, dact_nf)?;
    let (device, dtype) = (gate_nf.device(), gate_nf.dtype());
    let like = || uninit(device, gate_nf.shape(), dtype);
    let result = Backward { act_nf: like()?, dgate_nf: like()?, dup_nf: like()? };
    Launch::typed(device, "swiglu", "swiglu_backward", dtype)?
        .tensor(gate_nf)?
        .tensor(up_nf)?
        .tensor(dact_nf)?
        .tensor(&result.act_nf)?
        .tensor(&result.dgate_nf)?
        .tensor(&result.dup_nf)?
        .u64(gate_nf.elem_count() as u64)
        .run(spread(gate_nf)?)?;
    Ok(result)
}
