//! A LoRA adapter, Hu et al., arXiv:2106.09685: beside the weight W of a linear layer, A `[rank, in]` and
//! B `[out, rank]`, both f32, and `y = W x + scale B A x`. Names are PEFT's, so are the files (`formats::peft`).

use candle_core::{DType, Device, Tensor};

use super::config::ModelConfig;
use super::gradients::Gradients;
use crate::config::lora::LoraConfig;
use crate::error::{Error, Result};
use crate::ops::{linear, memory};
use crate::rng::{Purpose, Stream};

/// What adapters of one kind have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Rows of A.
    pub rank: usize,
    pub alpha: f64,
    /// `scale` is `alpha / sqrt(rank)` instead of `alpha / rank`.
    pub rslora: bool,
    /// Names of [`crate::config::lora::PROJECTIONS`], in that order; every layer has them all.
    pub targets: Vec<&'static str>,
}

impl From<&LoraConfig> for Shape {
    fn from(config: &LoraConfig) -> Self {
        let LoraConfig { rank, alpha, rslora, .. } = *config;
        Self { rank, alpha, rslora, targets: config.targets.names() }
    }
}

/// A weight with an adapter beside it.
pub(super) struct Beside {
    /// The weight's.
    pub name: String,
    out: usize,
    input: usize,
}

impl Shape {
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rslora { rank.sqrt() } else { rank }) as f32
    }

    /// In the order of the forward pass.
    pub(super) fn beside(&self, config: &ModelConfig) -> Vec<Beside> {
        let weight = |(name, shape): (String, Vec<usize>)| {
            let layer = name.strip_suffix(".weight")?.rsplit('.').next()?;
            let [out, input] = shape[..] else { return None };
            self.targets.contains(&layer).then_some(Beside { name, out, input })
        };
        config.parameter_names().into_iter().filter_map(weight).collect()
    }

    /// PEFT's name and the shape of every tensor: A and B of each layer, in the order of the forward pass.
    pub fn tensors(&self, config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let pair = |at: Beside| {
            let [a, b] = peft_names(&at.name);
            [(a, vec![self.rank, at.input]), (b, vec![at.out, self.rank])]
        };
        self.beside(config).into_iter().flat_map(pair).collect()
    }
}

/// PEFT's names of A and B beside the weight of this name.
fn peft_names(weight: &str) -> [String; 2] {
    let layer = weight.strip_suffix(".weight").unwrap_or(weight);
    ["A", "B"].map(|which| format!("base_model.model.{layer}.lora_{which}.weight"))
}

/// An adapter by itself. Clones share the tensors' memory.
#[derive(Clone, Debug)]
pub struct Adapter {
    pub shape: Shape,
    /// As [`Shape::tensors`] lists them, f32.
    pub tensors: Vec<(String, Tensor)>,
}

impl Adapter {
    /// Changes nothing yet: B is zero, A uniform within `1 / sqrt(in)` as PEFT makes it. Adapters of one seed and
    /// different `number` differ.
    pub fn fresh(
        shape: Shape,
        config: &ModelConfig,
        device: &Device,
        seed: u64,
        number: u32,
    ) -> Result<Self> {
        let mut tensors = Vec::new();
        for (i, (name, dims)) in shape.tensors(config).into_iter().enumerate() {
            let tensor = if name.ends_with("lora_A.weight") {
                // Streams of weights have 0 where an adapter has its number and one.
                let stream = Stream::new(seed, Purpose::WeightInit, [i as u32, number + 1, 0]);
                let bound = 1.0 / (dims[1] as f32).sqrt();
                let count = dims.iter().product::<usize>() as u32;
                let values: Vec<f32> = (0..count).map(|e| bound * (2.0 * stream.uniform(e) - 1.0)).collect();
                Tensor::from_vec(values, dims, device)?
            } else {
                Tensor::zeros(dims, DType::F32, device)?
            };
            tensors.push((name, tensor));
        }
        Ok(Self { shape, tensors })
    }

    /// The same values in memory of their own.
    pub fn deep_copy(&self) -> Result<Self> {
        let copy = |(name, tensor): &(String, Tensor)| Ok((name.clone(), memory::duplicate(tensor)?));
        let tensors = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { shape: self.shape.clone(), tensors })
    }

    /// [`Self::deep_copy`] in host memory.
    pub fn host_copy(&self) -> Result<Self> {
        let copy = |(name, tensor): &(String, Tensor)| Ok((name.clone(), memory::host_copy(tensor)?));
        let tensors = self.tensors.iter().map(copy).collect::<Result<_>>()?;
        Ok(Self { shape: self.shape.clone(), tensors })
    }

    /// One adapter that does what both do together: the As one below the other, the Bs side by side, alpha grown
    /// with the rank so that the scale stays. On the CPU.
    ///
    /// # Errors
    /// When they stand beside different layers, or scale differently.
    pub fn and(&self, other: &Self) -> Result<Self> {
        let (mine, others) = (&self.shape, &other.shape);
        let same = mine.targets == others.targets && mine.rslora == others.rslora;
        if !same || mine.scale() != others.scale() {
            return Err(Error::Compute("adapters of different kinds do not add up to one".into()));
        }
        let rank = mine.rank + others.rank;
        let growth = rank as f64 / mine.rank as f64;
        let growth = if mine.rslora { growth.sqrt() } else { growth };
        let shape = Shape { rank, alpha: growth * mine.alpha, ..mine.clone() };
        let both = |((name, one), (_, two)): (&(String, Tensor), &(String, Tensor))| {
            let along = usize::from(name.ends_with("lora_B.weight"));
            let parts = [one.to_device(&Device::Cpu)?, two.to_device(&Device::Cpu)?];
            Ok((name.clone(), Tensor::cat(&parts, along)?))
        };
        let tensors = self.tensors.iter().zip(&other.tensors).map(both).collect::<Result<_>>()?;
        Ok(Self { shape, tensors })
    }
}

/// Where a layer's A and B stand among the model's parameters.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    pub a: usize,
    pub b: usize,
    pub scale: f32,
    /// Of A among the adapter's tensors; B follows.
    pub nth: usize,
}

/// The adapter's tensors as products read them: on a CUDA device of the model's type, whose tensor cores multiply them
/// with f32 sums; on the CPU f32, as they are.
pub(super) fn operands(tensors: &[Tensor], model: DType) -> Result<Vec<Tensor>> {
    let cast = |tensor: &Tensor| match tensor.device().is_cuda() {
        true => memory::cast(tensor, model),
        false => Ok(tensor.clone()),
    };
    tensors.iter().map(cast).collect()
}

/// What goes in, in the type of the [`operands`].
fn like(x: &Tensor, operand: &Tensor) -> Result<Tensor> {
    memory::cast(x, operand.dtype())
}

impl LowRank {
    /// Adds `scale B A x` to `y_no`, in place. `operands`: those of all layers, so for every method.
    pub(super) fn add_output(self, operands: &[Tensor], x_nh: &Tensor, y_no: &Tensor) -> Result<()> {
        linear::add_forward(y_no, &self.inner(operands, x_nh)?, &operands[self.nth + 1])
    }

    /// Adds `scale A^T B^T dy` to `dx_nh`, in place.
    pub(super) fn add_input_gradient(
        self,
        operands: &[Tensor],
        dy_no: &Tensor,
        dx_nh: &Tensor,
    ) -> Result<()> {
        linear::add_backward_input(dx_nh, &self.inner_gradient(operands, dy_no)?, &operands[self.nth])
    }

    /// `dA += scale (B^T dy) x^T` and `dB += scale dy (A x)^T`. What the forward pass had between A and B is
    /// computed again: it costs rank / in of the layer's product.
    pub(super) fn add_gradients(
        self,
        operands: &[Tensor],
        dy_no: &Tensor,
        x_nh: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let (x, dy) = (like(x_nh, &operands[self.nth])?, like(dy_no, &operands[self.nth])?);
        gradients.add_product(self.b, &dy, &self.inner(operands, &x)?)?;
        gradients.add_product(self.a, &self.inner_gradient(operands, &dy)?, &x)
    }

    /// `scale A x`, `[N, rank]`
    fn inner(self, operands: &[Tensor], x_nh: &Tensor) -> Result<Tensor> {
        let a = &operands[self.nth];
        linear::forward_scaled(&like(x_nh, a)?, a, self.scale)
    }

    /// `scale B^T dy`, `[N, rank]`
    fn inner_gradient(self, operands: &[Tensor], dy_no: &Tensor) -> Result<Tensor> {
        let b = &operands[self.nth + 1];
        linear::backward_input_scaled(&like(dy_no, b)?, b, self.scale)
    }
}
