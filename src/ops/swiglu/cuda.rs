//! SwiGLU on a CUDA device: f32 or bf16, all of one type.

use candle_core::Tensor;

use super::Backward;
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, uninit};
use crate::ops::fault::fault;

/// Column packs and rows of `[N, width]`.
fn grid(rows: usize, width: usize, x: &Tensor) -> Grid {
    let lanes = 16 / x.dtype().size_in_bytes();
    let threads = width.div_ceil(lanes).next_multiple_of(32).clamp(32, 256);
    let blocks = [width.div_ceil(lanes * threads) as u32, rows.min(65_535) as u32, 1];
    Grid { blocks, threads: threads as u32, shared_bytes: 0 }
}

/// As [`super::forward`].
///
/// # Errors
/// When shapes or types do not agree, or the device fails.
pub fn forward(gate_up_n2f: &Tensor) -> Result<Tensor> {
    let (n, both) = gate_up_n2f.dims2()?;
    let act_nf = uninit(gate_up_n2f.device(), (n, both / 2), gate_up_n2f.dtype())?;
    Launch::typed(gate_up_n2f.device(), "swiglu", "swiglu_forward", gate_up_n2f.dtype())?
        .tensor(gate_up_n2f)?
        .tensor(&act_nf)?
        .u32(n as u32)
        .u32((both / 2) as u32)
        .run(grid(n, both / 2, gate_up_n2f))?;
    Ok(act_nf)
}

/// As [`super::backward`].
///
/// # Errors
/// As [`forward`].
pub fn backward(gate_up_n2f: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
    let ((n, both), (rows, width)) = (gate_up_n2f.dims2()?, dact_nf.dims2()?);
    if rows != n || 2 * width != both || dact_nf.dtype() != gate_up_n2f.dtype() {
        return Err(fault(format!("swiglu: {:?} beside {:?}", gate_up_n2f.shape(), dact_nf.shape())));
    }
    let (device, dtype) = (dact_nf.device(), dact_nf.dtype());
    let result = Backward {
        act_nf: uninit(device, (n, width), dtype)?,
        dgate_up_n2f: uninit(device, (n, both), dtype)?,
    };
    Launch::typed(device, "swiglu", "swiglu_backward", dtype)?
        .tensor(gate_up_n2f)?
        .tensor(dact_nf)?
        .tensor(&result.act_nf)?
        .tensor(&result.dgate_up_n2f)?
        .u32(n as u32)
        .u32(width as u32)
        .run(grid(n, width, dact_nf))?;
    Ok(result)
}
