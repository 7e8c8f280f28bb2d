//! SwiGLU on a CUDA device; the CPU twin is `src/ops/swiglu.rs`. f32 or bf16, all of one type.

use candle_core::Tensor;

use super::elementwise::spread;
use super::{Launch, fault, uninit};
use crate::error::Result;
use crate::ops::swiglu::Backward;

fn same(a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() == b.dims() && a.dtype() == b.dtype() {
        return Ok(());
    }
    Err(fault(format!("swiglu: {:?} {:?} beside {:?} {:?}", a.dtype(), a.shape(), b.dtype(), b.shape())))
}

/// `gate`, `up`: same shape `[N, F]` -> `[N, F]`.
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

/// # Errors
/// When shapes or types do not agree, or the device fails.
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
