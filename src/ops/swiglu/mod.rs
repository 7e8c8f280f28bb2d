//! SwiGLU, Shazeer, arXiv:2002.05202: `act = silu(gate) * up`, gate left and up right in the rows of one product.

mod cpu;
mod cuda;

use candle_core::Tensor;

use crate::error::Result;
use crate::trail;

/// `gate_up_n2f: [N, 2F]` -> `[N, F]`.
///
/// # Errors
/// For tensors that are no operands (see [`crate::ops`]), or when the device fails; so for every function here.
pub fn forward(gate_up_n2f: &Tensor) -> Result<Tensor> {
    trail::begin("swiglu");
    if gate_up_n2f.device().is_cuda() { cuda::forward(gate_up_n2f) } else { cpu::forward(gate_up_n2f) }
}

/// Gradients of gate and up side by side, and the forward's result again (the weight gradient of the next layer needs
/// it).
pub struct Backward {
    /// `[N, F]`
    pub act_nf: Tensor,
    /// `[N, 2F]`
    pub dgate_up_n2f: Tensor,
}

/// `silu'(g) = s + g s (1 - s)` with `s = sigmoid(g)`; one pass computes all outputs. `dact_nf: [N, F]`
pub fn backward(gate_up_n2f: &Tensor, dact_nf: &Tensor) -> Result<Backward> {
    trail::begin("swiglu backward");
    if gate_up_n2f.device().is_cuda() {
        cuda::backward(gate_up_n2f, dact_nf)
    } else {
        cpu::backward(gate_up_n2f, dact_nf)
    }
}
