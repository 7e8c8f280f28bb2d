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
