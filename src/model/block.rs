//! One decoder block, forward and backward by hand: two norms, grouped-query attention, SwiGLU, two residuals.
//!
//! The oracle of the backward pass is candle's autograd over plain candle operations, in
//! `tests/suite/families.rs`.

use candle_core::Tensor;

use super::gradients::Gradients;
use super::joined::Joined;
use super::projection::{Projection, Projections};
use crate::error::{Error, Result};
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

/// The weights of one block that lie together: on a CUDA device, which fewer and larger products fill better. The CPU's
/// product shares its packed input between layers anyway.
#[derive(Clone)]
pub(super) struct Together {
    qkv: Joined,
    gate_up: Joined,
}

impl Together {
    /// Moves the block's weights together; `weights` become views. `None` on the CPU.
    pub fn new(weights: &mut [Tensor], at: &BlockParameters) -> Result<Option<Self>> {
        if !weights[at.q.weight].device().is_cuda() {
            return Ok(None);
        }
        let mut joined = |layers: &[Projection]| {
            let indices: Vec<usize> = layers.iter().map(|layer| layer.weight).collect();
            let biases: Option<Vec<usize>> = layers.iter().map(|layer| layer.bias).collect();
            Joined::new(weights, &indices, biases.as_deref())
        };
        Ok(Some(Self { qkv: joined(&[at.q, at.k, at.v])?, gate_up: joined(&[at.gate, at.up])? }))
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
    pub gate_up: GateUp,
}

/// What the layers gate and up gave.
#[derive(Clone)]
pub enum GateUp {
    Apart {
        gate: Tensor,
        up: Tensor,
    },
    /// Side by side, where one product made both. `[T, 2 intermediate]`
    Together(Tensor),
}

impl GateUp {
    fn product(&self) -> Result<Tensor> {
        match self {
            Self::Apart { gate, up } => swiglu::forward(gate, up),
            Self::Together(gate_up) => swiglu::forward_halves(gate_up),
        }
    }
}

impl Activations {
    /// All tensors, `[T, width]` each.
    pub fn tensors(&self) -> Vec<&Tensor> {
        let Self { x, q, k, v, attended, lse, x_mid, gate_up } = self;
        let mut all = vec![x, q, k, v, attended, lse, x_mid];
        match gate_up {
            GateUp::Apart { gate, up } => all.extend([gate, up]),
            GateUp::Together(gate_up) => all.push(gate_up),
        }
        all
    }

    /// The inverse of [`Self::tensors`]; `None` where it gave other tensors.
    pub fn from_tensors(tensors: Vec<Tensor>) -> Option<Self> {
        let mut all = tensors.into_iter();
        let mut next = || all.next();
        let [x, q, k, v] = [next()?, next()?, next()?, next()?];
        let [attended, lse, x_mid, gate] = [next()?, next()?, next()?, next()?];
        let gate_up = match next() {
            Some(up) => GateUp::Apart { gate, up },
            None => GateUp::Together(gate),
        };
        Some(Self { x, q, k, v, attended, lse, x_mid, gate_up })
    }
}

/// A block over borrowed weights.
pub struct Block<'a> {
    pub weights: &'a [Tensor],
    pub at: BlockParameters,
    /// The adapter's.
    pub(super) operands: &'a [Tensor],
    /// Where layers that read the same input are one product.
    pub(super) together: Option<&'a Together>,
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
    gate_up: GateUp,
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
        let layers = [at.q, at.k, at.v];
        let [q, k, v] = match self.together {
            None => self.projections().forward_all(&normed, layers)?,
            Some(together) => {
                let qkv = self.projections().forward_joined(&normed, &together.qkv, layers)?;
                // What is normed first is rotated after it.
                let rotated = at.qk_norm.is_none();
                let [q, k, v] = rope.split(&qkv, self.widths()?, rotated.then_some(positions))?;
                if rotated {
                    return Ok(Projected { normed, q, k, v, raw: None });
                }
                [q, k, v]
            }
        };
        let raw = at.qk_norm.map(|_| [q.clone(), k.clone()]);
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
        let Some(together) = self.together.filter(|_| at.qk_norm.is_none()) else { return Ok(None) };
        let normed = rms_norm::forward(x, self.w(at.input_norm), eps)?;
        let qkv = self.projections().forward_joined(&normed, &together.qkv, [at.q, at.k, at.v])?;
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
        let gate_up = match self.together {
            Some(both) => {
                GateUp::Together(self.projections().forward_joined(&normed, &both.gate_up, layers)?)
            }
            None => {
                let [gate, up] = self.projections().forward_all(&normed, layers)?;
                GateUp::Apart { gate, up }
            }
        };
        Ok(Middle { x_mid, normed, gate_up })
    }

    /// The block's output. `[T, H]`
    fn output(&self, Middle { x_mid, gate_up, .. }: &Middle) -> Result<Tensor> {
        self.projections().forward_add(x_mid, &gate_up.product()?, self.at.down)
    }

    /// Everything after attention. Returns the block's output and, for the backward pass, x_mid, and gate and up.
    pub fn finish(&self, x: &Tensor, attended: &Tensor, eps: f32) -> Result<(Tensor, Tensor, GateUp)> {
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
        let dout = layers.backward_input([(&dy, at.o)])?;
        layers.add_gradients(at.o, &dy, &attended, gradients)?;
        let upstream = Upstream { out: &attended, lse: &lse, dout: &dout };
        let d = self.attention_backward(pass, [&q, &k, &v], upstream, gradients)?;
        drop((dout, q, k, v, attended, lse));
        let n1 = normed(n1, &x, at.input_norm)?;
        let dn1 = match (d, self.together) {
            (Dqkv::Together(dqkv), Some(together)) => {
                layers.backward_joined(&together.qkv, [at.q, at.k, at.v], &dqkv, &n1, gradients)?
            }
            (Dqkv::Apart([dq, dk, dv]), _) => {
                let upstream = [(&dq, at.q), (&dk, at.k), (&dv, at.v)];
                for (dy, projection) in upstream {
                    layers.add_gradients(projection, dy, &n1, gradients)?;
                }
                layers.backward_input(upstream)?
            }
            (Dqkv::Together(_), None) => return Err(not_together()),
        };
        let norm = rms_norm::Input { x_nh: &x, w_h: self.w(at.input_norm), eps };
        rms_norm::backward(norm, &dn1, &dy, gradients.at(at.input_norm)?)?;
        Ok(dy)
    }

    /// The gradient by the MLP's normed input, which `n2` gives.
    fn mlp_backward(
        &self,
        gate_up: GateUp,
        n2: impl FnOnce() -> Result<Tensor>,
        dy: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<Tensor> {
        let (at, layers) = (self.at, self.projections());
        let dact = layers.backward_input([(dy, at.down)])?;
        match (gate_up, self.together) {
            (GateUp::Together(gate_up), Some(together)) => {
                let mlp = swiglu::backward_halves(&gate_up, &dact)?;
                drop((dact, gate_up));
                layers.add_gradients(at.down, dy, &mlp.act_nf, gradients)?;
                let dgate_up = mlp.dgate_up_n2f;
                drop(mlp.act_nf);
                layers.backward_joined(&together.gate_up, [at.gate, at.up], &dgate_up, &n2()?, gradients)
            }
            (GateUp::Apart { gate, up }, _) => {
                let mlp = swiglu::backward(&gate, &up, &dact)?;
                drop((dact, gate, up));
                layers.add_gradients(at.down, dy, &mlp.act_nf, gradients)?;
                let n2 = n2()?;
                layers.add_gradients(at.gate, &mlp.dgate_nf, &n2, gradients)?;
                layers.add_gradients(at.up, &mlp.dup_nf, &n2, gradients)?;
                drop(n2);
                layers.backward_input([(&mlp.dgate_nf, at.gate), (&mlp.dup_nf, at.up)])
            }
            (GateUp::Together(_), None) => Err(not_together()),
        }
    }

    /// Gradients by what the projections gave, before norm and rotation; `[q, k, v]` as [`Activations`] has them.
    fn attention_backward(
        &self,
        pass: Pass,
        [q, k, v]: [&Tensor; 3],
        upstream: Upstream,
        gradients: &mut Gradients,
    ) -> Result<Dqkv> {
        let Pass { layout, positions, rope, heads, eps } = pass;
        let [rotated_q, rotated_k] = match self.at.qk_norm {
            None => [q.clone(), k.clone()],
            Some(_) => self.rotated([q.clone(), k.clone()], positions, rope, eps)?,
        };
        let inputs = Inputs { layout, heads, q: &rotated_q, k: &rotated_k, v };
        let mut d = attention::backward(inputs, upstream)?;
        if self.together.is_some() && self.at.qk_norm.is_none() {
            return rope.join([&d.dq, &d.dk, &d.dv], Some(positions)).map(Dqkv::Together);
        }
        rope.rotate(&d.dq, positions, Direction::Inverse)?;
        rope.rotate(&d.dk, positions, Direction::Inverse)?;
        if let Some(norm) = self.at.qk_norm {
            d.dq = self.norm_heads_backward(q, norm.q, eps, &d.dq, gradients)?;
            d.dk = self.norm_heads_backward(k, norm.k, eps, &d.dk, gradients)?;
        }
        match self.together {
            Some(_) => rope.join([&d.dq, &d.dk, &d.dv], None).map(Dqkv::Together),
            None => Ok(Dqkv::Apart([d.dq, d.dk, d.dv])),
        }
    }
}

/// Gradients by the outputs of q, k and v.
enum Dqkv {
    Apart([Tensor; 3]),
    Together(Tensor),
}

fn not_together() -> Error {
    Error::Compute("activations of layers together, weights of layers apart".into())
}

/// `[N, heads * head_dim]` -> `[N * heads, head_dim]`, the same memory. `w_h: [head_dim]`
fn by_head(x_nd: &Tensor, w_h: &Tensor) -> Result<Tensor> {
    let dim = w_h.elem_count();
    Ok(x_nd.reshape((x_nd.elem_count() / dim.max(1), dim))?)
}
