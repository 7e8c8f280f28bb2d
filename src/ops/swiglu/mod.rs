//! SwiGLU, Shazeer, arXiv:2002.05202: `act = silu(gate) * up`.

mod cpu;
mod cuda;

use candle_core::Tensor;

use crate::error::Result;

/// `gate`, `up`: same shape `[N, F]` -> `[N, F]`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn forward(gate_nf: &Tensor, up_nf: &Tensor) -> Result<Tensor> {
    if gate_nf.device().is_cuda() { cuda::forward(gate_nf, up_nf) } else { cpu::forward(gate_nf, up_nf) }
}

/// Gradients of gate and up, and the forward's result again (the weight gradient of the next layer needs it).
pub struct Backward {
    pub act_nf: Tensor,
    pub dgate_nf: Tensor,
    pub dup_nf: Tensor,
}

/// `silu'(g) = s + g s (1 - s)` with `s = sigmoid(g)`; one pass computes all three outputs.
pub fn backward(gate_nf: &Tensor, up_nf: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
    if gate_nf.device().is_cuda() {
        cuda::backward(gate_nf, up_nf, dact_nf)
    } else {
        cpu::backward(gate_nf, up_nf, dact_nf)
    }
}

/// [`forward`] of `gate_up_n2f: [N, 2F]`, gate left and up right, as one product of both layers makes them. `[N, F]`
pub fn forward_halves(gate_up_n2f: &Tensor) -> Result<Tensor> {
    if gate_up_n2f.device().is_cuda() {
        return cuda::forward_halves(gate_up_n2f);
    }
    let [gate, up] = apart(gate_up_n2f)?;
    cpu::forward(&gate, &up)
}

/// What [`backward`] gives, the gradients of gate and up side by side. `[N, F]`, `[N, 2F]`
pub struct BackwardHalves {
    pub act_nf: Tensor,
    pub dgate_up_n2f: Tensor,
}

/// [`backward`] of gate and up side by side.
pub fn backward_halves(gate_up_n2f: &Tensor, dact_nf: &Tensor) -> Result<BackwardHalves> {
    if gate_up_n2f.device().is_cuda() {
        return cuda::backward_halves(gate_up_n2f, dact_nf);
    }
    let [gate, up] = apart(gate_up_n2f)?;
    let Backward { act_nf, dgate_nf, dup_nf } = cpu::backward(&gate, &up, dact_nf)?;
    Ok(BackwardHalves { act_nf, dgate_up_n2f: Tensor::cat(&[dgate_nf, dup_nf], 1)? })
}

fn apart(gate_up_n2f: &Tensor) -> Result<[Tensor; 2]> {
    let width = gate_up_n2f.dim(1)? / 2;
    Ok([gate_up_n2f.narrow(1, 0, width)?.contiguous()?, gate_up_n2f.narrow(1, width, width)?.contiguous()?])
}
