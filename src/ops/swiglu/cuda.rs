//! SwiGLU on a CUDA device: f32 or bf16, all of one type.

use candle_core::Tensor;

use super::{Backward, BackwardHalves};
use crate::error::Result;
use crate::ops::cuda::{Grid, Launch, spread, uninit};
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

/// Column packs and rows of `[N, width]`.
fn halves(rows: usize, width: usize, x: &Tensor) -> Grid {
    let lanes = 16 / x.dtype().size_in_bytes();
    let threads = (width.div_ceil(lanes).next_multiple_of(32)).min(256);
    let blocks = width.div_ceil(lanes * threads.max(1));
    Grid {
        blocks: [blocks as u32, rows.min(65_535) as u32, 1],
        threads: threads.max(32) as u32,
        shared_bytes: 0,
    }
}

/// As [`super::forward_halves`].
///
/// # Errors
/// As [`forward`].
pub fn forward_halves(gate_up_n2f: &Tensor) -> Result<Tensor> {
    let (n, both) = gate_up_n2f.dims2()?;
    let act_nf = uninit(gate_up_n2f.device(), (n, both / 2), gate_up_n2f.dtype())?;
    Launch::typed(gate_up_n2f.device(), "swiglu", "swiglu_halves_forward", gate_up_n2f.dtype())?
        .tensor(gate_up_n2f)?
        .tensor(&act_nf)?
        .u32(n as u32)
        .u32((both / 2) as u32)
        .run(halves(n, both / 2, gate_up_n2f))?;
    Ok(act_nf)
}

/// As [`super::backward_halves`].
///
/// # Errors
/// As [`forward`].
pub fn backward_halves(gate_up_n2f: &Tensor, dact_nf: &Tensor) -> Result<BackwardHalves> {
    let ((n, both), (rows, width)) = (gate_up_n2f.dims2()?, dact_nf.dims2()?);
    if rows != n || 2 * width != both || dact_nf.dtype() != gate_up_n2f.dtype() {
        return Err(fault(format!("swiglu: {:?} beside {:?}", gate_up_n2f.shape(), dact_nf.shape())));
    }
    let (device, dtype) = (dact_nf.device(), dact_nf.dtype());
    let result = BackwardHalves {
        act_nf: uninit(device, (n, width), dtype)?,
        dgate_up_n2f: uninit(device, (n, both), dtype)?,
    };
    Launch::typed(device, "swiglu", "swiglu_halves_backward", dtype)?
        .tensor(gate_up_n2f)?
        .tensor(dact_nf)?
        .tensor(&result.act_nf)?
        .tensor(&result.dgate_up_n2f)?
        .u32(n as u32)
        .u32(width as u32)
        .run(halves(n, width, dact_nf))?;
    Ok(result)
}
