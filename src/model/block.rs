//! One decoder block, forward and backward by hand: two norms, grouped-query attention, SwiGLU, two residuals.
//!
//! The oracle of the backward pass is candle's autograd over plain candle operations, in
//! `tests/suite/families.rs`.

use candle_core::Tensor;

use super::gradients::Gradients;
use super::joined::Joined;
use super::projection::{Projection, Projections};
use crate::error::Result;
use crate::ops::attention::{self, AttentionLayout, Heads, Inputs, Upstream};
use crate::ops::indices::Indices;
use crate::ops::rope::{Direction, RopeTable};
use crate::ops::{rms_norm, swiglu};

/// Where a block's weights stand among the model's parameters.
#[derive(Clone, Copy, Debug)]
pub struct BlockParameters {
    pub input_norm: usize,
    pub q: Projection,
    pub k: Projection,
    pub v: Projection,
    pub qk_norm: Option<QkNorm>,
    pub o: Projection,
    pub post_norm: usize,
    pub gate: Projection,
    pub up: Projection,
    pub down: Projection,
}

impl BlockParameters {
    /// In the order of the forward pass.
    pub fn projections(&self) -> [Projection; 7] {
        [self.q, self.k, self.v, self.o, self.gate, self.up, self.down]
    }

    pub fn projections_mut(&mut self) -> [&mut Projection; 7] {
        [&mut self.q, &mut self.k, &mut self.v, &mut self.o, &mut self.gate, &mut self.up, &mut self.down]
    }
}

/// The weights of one block that lie together, so that layers that read the same input are one product.
#[derive(Clone)]
pub(super) struct Together {
    qkv: Joined,
    gate_up: Joined,
}

impl Together {
    /// Moves the block's weights together; `weights` become views.
    pub fn new(weights: &mut [Tensor], at: &BlockParameters) -> Result<Self> {
        let mut joined = |layers: &[Projection]| {
            let indices: Vec<usize> = layers.iter().map(|layer| layer.weight).collect();
            let biases: Option<Vec<usize>> = layers.iter().map(|layer| layer.bias).collect();
            Joined::new(weights, &indices, biases.as_deref())
        };
        Ok(Self { qkv: joined(&[at.q, at.k, at.v])?, gate_up: joined(&[at.gate, at.up])? })
    }
}

/// The RMSNorms over each head's queries and keys, `[head_dim]` each.
#[derive(Clone, Copy, Debug)]
pub struct QkNorm {
    pub q: usize,
    pub k: usize,
}

/// What every block of one pass shares.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    pub layout: &'a AttentionLayout,
    pub positions: &'a Indices,
    pub rope: &'a RopeTable,
    pub heads: Heads,
    pub eps: f32,
}

/// What the backward pass reads. The norms and the SwiGLU product are cheap and are computed again.
#[derive(Clone)]
pub struct Activations {
    /// Block input `[T, H]`
    pub x: Tensor,
    /// Rotated queries; in a block with [`QkNorm`] the queries before norm and rotation, which are computed again.
    /// `[T, query width]`
    pub q: Tensor,
    /// Keys, as `q`. `[T, key/value width]`
    pub k: Tensor,
    pub v: Tensor,
    pub attended: Tensor,
    pub lse: Tensor,
    /// Input of the MLP half `[T, H]`
    pub x_mid: Tensor,
    /// What gate and up gave, side by side. `[T, 2 intermediate]`
    pub gate_up: Tensor,
}

impl Activations {
    /// All tensors, `[T, width]` each.
    pub fn tensors(&self) -> [&Tensor; 8] {
        let Self { x, q, k, v, attended, lse, x_mid, gate_up } = self;
        [x, q, k, v, attended, lse, x_mid, gate_up]
    }

    /// The inverse of [`Self::tensors`].
    pub fn from_tensors([x, q, k, v, attended, lse, x_mid, gate_up]: [Tensor; 8]) -> Self {
        Self { x, q, k, v, attended, lse, x_mid, gate_up }
    }
}

/// A block over borrowed weights.
pub struct Block<'a> {
    pub weights: &'a [Tensor],
    pub at: BlockParameters,
    /// The adapter's.
    pub(super) operands: &'a [Tensor],
    /// Layers that read the same input.
    pub(super) together: &'a Together,
}

/// Where a decode step's keys and values go: rows `slots` of a layer's cache, `[rows, key/value width]` each.
#[derive(Clone, Copy)]
pub struct CacheRows<'a> {
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    pub slots: &'a Indices,
}

/// Rotated queries and keys, and values, of one attention layer.
pub struct Projected {
    /// The block's input after its norm.
    normed: Tensor,
    pub q: Tensor,
    pub k: Tensor,
    pub v: Tensor,
    /// Queries and keys before their norm, in a block that has it.
    raw: Option<[Tensor; 2]>,
}

impl Projected {
    /// `q`, `k` and `v` of [`Activations`].
    pub fn into_kept(self) -> [Tensor; 3] {
        let [q, k] = self.raw.unwrap_or([self.q, self.k]);
        [q, k, self.v]
    }
}

/// The MLP half before its product with the down projection.
struct Middle {
    x_mid: Tensor,
    /// `x_mid` after its norm.
    normed: Tensor,
    gate_up: Tensor,
}

/// What a block's forward pass gives.
pub struct Passed {
    /// `[T, H]`
    pub y: Tensor,
    /// Rotated keys `[T, key/value width]`
    pub k: Tensor,
    pub activations: Activations,
}

impl Block<'_> {
    fn w(&self, index: usize) -> &Tensor {
        &self.weights[index]
    }

    fn projections(&self) -> Projections<'_> {
        Projections { weights: self.weights, operands: self.operands }
    }

    /// Norm, projections and rotation; shared by the packed pass and the decode step.
    pub fn project(&self, x: &Tensor, positions: &Indices, rope: &RopeTable, eps: f32) -> Result<Projected> {
        let normed = rms_norm::forward(x, self.w(self.at.input_norm), eps)?;
        let at = self.at;
        let qkv = self.projections().forward_joined(&normed, &self.together.qkv, [at.q, at.k, at.v])?;
        // What is normed first is rotated after it.
        let positions_now = at.qk_norm.is_none().then_some(positions);
        let [q, k, v] = rope.split(&qkv, self.widths()?, positions_now)?;
        if at.qk_norm.is_none() {
            return Ok(Projected { normed, q, k, v, raw: None });
        }
        let raw = Some([q.clone(), k.clone()]);
        let [q, k] = self.rotated([q, k], positions, rope, eps)?;
        Ok(Projected { normed, q, k, v, raw })
    }

    /// Those of queries, and of keys.
    fn widths(&self) -> Result<[usize; 2]> {
        Ok([self.w(self.at.q.weight).dim(0)?, self.w(self.at.k.weight).dim(0)?])
    }

    /// [`Self::project`] of a decode step whose keys and values nothing but the cache wants: the rotated queries; the
    /// others go to the cache as they are made. `None` where the block's layers do not allow it.
    pub fn project_into(
        &self,
        x: &Tensor,
        positions: &Indices,
        rope: &RopeTable,
        eps: f32,
        cache: CacheRows,
    ) -> Result<Option<Tensor>> {
        let at = self.at;
        if at.qk_norm.is_some() {
            return Ok(None);
        }
        let normed = rms_norm::forward(x, self.w(at.input_norm), eps)?;
        let qkv = self.projections().forward_joined(&normed, &self.together.qkv, [at.q, at.k, at.v])?;
        rope.split_into(&qkv, self.widths()?, positions, [cache.k, cache.v], cache.slots).map(Some)
    }

    /// Queries and keys as attention reads them, from those that were projected: in place where there is no norm.
    fn rotated(
        &self,
        [q, k]: [Tensor; 2],
        positions: &Indices,
        rope: &RopeTable,
        eps: f32,
    ) -> Result<[Tensor; 2]> {
        let [q, k] = match self.at.qk_norm {
            None => [q, k],
            Some(norm) => [self.norm_heads(&q, norm.q, eps)?, self.norm_heads(&k, norm.k, eps)?],
        };
        rope.rotate(&q, positions, Direction::Forward)?;
        rope.rotate(&k, positions, Direction::Forward)?;
        Ok([q, k])
    }

    /// The RMSNorm of each head of `x_nd: [N, heads * head_dim]`.
    fn norm_heads(&self, x_nd: &Tensor, weight: usize, eps: f32) -> Result<Tensor> {
        let w = self.w(weight);
        Ok(rms_norm::forward(&by_head(x_nd, w)?, w, eps)?.reshape(x_nd.shape())?)
    }

    /// The gradient by `x_nd` of [`Self::norm_heads`]; that of the weight is added to `gradients`.
    fn norm_heads_backward(
        &self,
        x_nd: &Tensor,
        weight: usize,
        eps: f32,
        dy_nd: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let w = self.w(weight);
        let dx = x_nd.zeros_like()?;
        let norm = rms_norm::Input { x_nh: &by_head(x_nd, w)?, w_h: w, eps };
        rms_norm::backward(norm, &by_head(dy_nd, w)?, &by_head(&dx, w)?, gradients.at(weight)?)?;
        Ok(dx)
    }

    /// After attention up to the gated product: what the backward pass reads of it.
    fn middle(&self, x: &Tensor, attended: &Tensor, eps: f32) -> Result<Middle> {
        let x_mid = self.projections().forward_add(x, attended, self.at.o)?;
        let normed = rms_norm::forward(&x_mid, self.w(self.at.post_norm), eps)?;
        let layers = [self.at.gate, self.at.up];
        let gate_up = self.projections().forward_joined(&normed, &self.together.gate_up, layers)?;
        Ok(Middle { x_mid, normed, gate_up })
    }

    /// The block's output. `[T, H]`
    fn output(&self, Middle { x_mid, gate_up, .. }: &Middle) -> Result<Tensor> {
        self.projections().forward_add(x_mid, &swiglu::forward(gate_up)?, self.at.down)
    }

    /// Everything after attention. Returns the block's output and, for the backward pass, x_mid, and gate and up.
    pub fn finish(&self, x: &Tensor, attended: &Tensor, eps: f32) -> Result<(Tensor, Tensor, Tensor)> {
        let middle = self.middle(x, attended, eps)?;
        Ok((self.output(&middle)?, middle.x_mid, middle.gate_up))
    }

    /// `x: [T, H]`
    pub fn forward(&self, pass: Pass, x: Tensor) -> Result<Passed> {
        let projected = self.project(&x, pass.positions, pass.rope, pass.eps)?;
        let Projected { q, k, v, .. } = &projected;
        let (attended, lse) = attention::forward(Inputs { layout: pass.layout, heads: pass.heads, q, k, v })?;
        let rotated_k = k.clone();
        let [q, k, v] = projected.into_kept();
        let (y, x_mid, gate_up) = self.finish(&x, &attended, pass.eps)?;
        let activations = Activations { x, q, k, v, attended, lse, x_mid, gate_up };
        Ok(Passed { y, k: rotated_k, activations })
    }

    /// [`Self::backward`] of a block whose input alone was kept, `x: [T, H]`. What the backward pass reads is computed
    /// again, and no output: neither the gated product nor the down projection.
    pub fn backward_from_input(
        &self,
        pass: Pass,
        x: Tensor,
        dy: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let projected = self.project(&x, pass.positions, pass.rope, pass.eps)?;
        let Projected { q, k, v, .. } = &projected;
        let (attended, lse) = attention::forward(Inputs { layout: pass.layout, heads: pass.heads, q, k, v })?;
        let n1 = projected.normed.clone();
        let [q, k, v] = projected.into_kept();
        let Middle { x_mid, normed: n2, gate_up } = self.middle(&x, &attended, pass.eps)?;
        let activations = Activations { x, q, k, v, attended, lse, x_mid, gate_up };
        self.backward_normed(pass, activations, Some([n1, n2]), dy, gradients)
    }

    /// `dy: [T, H]` is consumed: it becomes `dx`. Weight gradients are added to `gradients`.
    pub fn backward(
        &self,
        pass: Pass,
        a: Activations,
        dy: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        self.backward_normed(pass, a, None, dy, gradients)
    }

    /// `normed`: what the norms made of x and x_mid, where it is at hand.
    fn backward_normed(
        &self,
        pass: Pass,
        a: Activations,
        normed: Option<[Tensor; 2]>,
        dy: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let eps = pass.eps;
        let (at, layers) = (self.at, self.projections());
        let (n1, n2) = normed.map(|[n1, n2]| (n1, n2)).unzip();
        let normed = |known: Option<Tensor>, x: &Tensor, weight: usize| match known {
            Some(normed) => Ok(normed),
            None => rms_norm::forward(x, self.w(weight), eps),
        };
        let Activations { x, q, k, v, attended, lse, x_mid, gate_up } = a;
        // MLP half: y = x_mid + down(swiglu(gate(n2), up(n2))).
        let dn2 = self.mlp_backward(gate_up, || normed(n2, &x_mid, at.post_norm), &dy, gradients)?;
        let norm = rms_norm::Input { x_nh: &x_mid, w_h: self.w(at.post_norm), eps };
        rms_norm::backward(norm, &dn2, &dy, gradients.at(at.post_norm)?)?;
        drop((dn2, x_mid));
        // Attention half: x_mid = x + o(attention(rope(q(n1)), rope(k(n1)), v(n1))). dy now is dx_mid.
        let dout = layers.backward_input(&dy, at.o)?;
        layers.add_gradients(at.o, &dy, &attended, gradients)?;
        let upstream = Upstream { out: &attended, lse: &lse, dout: &dout };
        let dqkv = self.attention_backward(pass, [&q, &k, &v], upstream, gradients)?;
        drop((dout, q, k, v, attended, lse));
        let n1 = normed(n1, &x, at.input_norm)?;
        let qkv = [at.q, at.k, at.v];
        let dn1 = layers.backward_joined(&self.together.qkv, qkv, &dqkv, &n1, gradients)?;
        let norm = rms_norm::Input { x_nh: &x, w_h: self.w(at.input_norm), eps };
        rms_norm::backward(norm, &dn1, &dy, gradients.at(at.input_norm)?)?;
        Ok(dy)
    }

    /// The gradient by the MLP's normed input, which `n2` gives.
    fn mlp_backward(
        &self,
        gate_up: Tensor,
        n2: impl FnOnce() -> Result<Tensor>,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (at, layers) = (self.at, self.projections());
        let dact = layers.backward_input(dy, at.down)?;
        let swiglu::Backward { act_nf, dgate_up_n2f } = swiglu::backward(&gate_up, &dact)?;
        drop((dact, gate_up));
        layers.add_gradients(at.down, dy, &act_nf, gradients)?;
        drop(act_nf);
        layers.backward_joined(&self.together.gate_up, [at.gate, at.up], &dgate_up_n2f, &n2()?, gradients)
    }

    /// Gradients by what the projections gave, before norm and rotation, side by side; `[q, k, v]` as [`Activations`] has
    /// them.
    fn attention_backward(
        &self,
        pass: Pass,
        [q, k, v]: [&Tensor; 3],
        upstream: Upstream,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let Pass { layout, positions, rope, heads, eps } = pass;
        let [rotated_q, rotated_k] = match self.at.qk_norm {
            None => [q.clone(), k.clone()],
            Some(_) => self.rotated([q.clone(), k.clone()], positions, rope, eps)?,
        };
        let inputs = Inputs { layout, heads, q: &rotated_q, k: &rotated_k, v };
        let d = attention::backward(inputs, upstream)?;
        let Some(norm) = self.at.qk_norm else {
            return rope.join([&d.dq, &d.dk, &d.dv], Some(positions));
        };
        rope.rotate(&d.dq, positions, Direction::Inverse)?;
        rope.rotate(&d.dk, positions, Direction::Inverse)?;
        let dq = self.norm_heads_backward(q, norm.q, eps, &d.dq, gradients)?;
        let dk = self.norm_heads_backward(k, norm.k, eps, &d.dk, gradients)?;
        rope.join([&dq, &dk, &d.dv], None)
    }
}

/// `[N, heads * head_dim]` -> `[N * heads, head_dim]`, the same memory. `w_h: [head_dim]`
fn by_head(x_nd: &Tensor, w_h: &Tensor) -> Result<Tensor> {
    let dim = w_h.elem_count();
    Ok(x_nd.reshape((x_nd.elem_count() / dim.max(1), dim))?)
}
