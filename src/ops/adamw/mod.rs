//! One AdamW update of one weight, Loshchilov and Hutter, arXiv:1711.05101, as in `torch.optim.AdamW`.
//!
//! One pass: every operand is read once and written once. Weights are f32, or bf16 with f32 masters or stochastic
//! rounding; moments f32 or one byte an element ([`blockwise`]); gradients f32 or bf16.

pub mod blockwise;
mod cpu;
mod cuda;

use candle_core::{DType, Tensor};

use self::blockwise::BLOCK;
use crate::error::Result;
use crate::ops::fault::fault;
use crate::ops::memory;
use crate::rng::Stream;
use crate::trail;

/// Numbers of one update.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    pub learning_rate: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// 1 for the first update.
    pub step: u64,
    /// Factor on the gradient: the clip by global norm, without a second copy of the gradients.
    pub gradient_scale: f64,
}

/// One weight, and what its update reads and writes. All have the weight's elements.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a> {
    pub weight: &'a Tensor,
    pub precision: Precision<'a>,
    /// f32 or bf16.
    pub gradient: &'a Tensor,
    pub first: &'a Moment,
    /// Second moment, of the same kind as `first`.
    pub second: &'a Moment,
}

/// How a weight keeps updates that are smaller than its last bit.
#[derive(Clone, Copy, Debug)]
pub enum Precision<'a> {
    /// The weight is f32.
    Full,
    /// The weight is bf16, and the rounding of these f32 values, which are what is updated.
    Master(&'a Tensor),
    /// The weight is bf16 and rounded up or down at random, so that its expected value is exact. 16 bits an
    /// element: of word `e % 8 / 2` of the stream's block `e / 8`, the low half for an even element.
    Stochastic(Stream),
}

/// One moment of one weight.
#[derive(Clone, Debug)]
pub enum Moment {
    /// One number an element, of the weight's shape.
    F32(Tensor),
    /// A byte an element, `[elements]`, and a scale for each 256, `[ceil(elements / 256)]` f32.
    Int8 { codes: Tensor, scales: Tensor },
}

impl Moment {
    /// Zero, in f32, for `weight`.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn zeros(weight: &Tensor) -> Result<Self> {
        Ok(Self::F32(memory::zeros(weight.device(), weight.shape(), DType::F32)?))
    }

    /// Zero, in a byte an element.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn zeros_int8(weight: &Tensor) -> Result<Self> {
        let count = weight.elem_count();
        let zeros = |count: usize, dtype| memory::zeros(weight.device(), count, dtype);
        Ok(Self::Int8 { codes: zeros(count, DType::U8)?, scales: zeros(count.div_ceil(BLOCK), DType::F32)? })
    }

    fn tensors(&self) -> Vec<&Tensor> {
        match self {
            Self::F32(values) => vec![values],
            Self::Int8 { codes, scales } => vec![codes, scales],
        }
    }

    fn fits(&self, count: usize) -> bool {
        match self {
            Self::F32(values) => values.elem_count() == count && values.dtype() == DType::F32,
            Self::Int8 { codes, scales } => {
                (codes.elem_count(), codes.dtype()) == (count, DType::U8)
                    && (scales.elem_count(), scales.dtype()) == (count.div_ceil(BLOCK), DType::F32)
            }
        }
    }
}

impl Parameter<'_> {
    /// Says which operand is of the wrong size or type.
    fn check(&self) -> Result<()> {
        let count = self.weight.elem_count();
        let float = |t: &Tensor| matches!(t.dtype(), DType::F32 | DType::BF16) && t.elem_count() == count;
        let precise = match self.precision {
            Precision::Full => self.weight.dtype() == DType::F32,
            Precision::Master(m) => {
                self.weight.dtype() == DType::BF16 && m.dtype() == DType::F32 && m.elem_count() == count
            }
            Precision::Stochastic(_) => self.weight.dtype() == DType::BF16,
        };
        let same_kind = matches!(
            (self.first, self.second),
            (Moment::F32(_), Moment::F32(_)) | (Moment::Int8 { .. }, Moment::Int8 { .. })
        );
        let moments = self.first.fits(count) && self.second.fits(count) && same_kind;
        for (fits, what) in [(float(self.gradient), "gradient"), (precise, "precision"), (moments, "moments")]
        {
            if !fits {
                let shape = self.weight.shape();
                let dtype = self.weight.dtype();
                return Err(fault(format!("adamw: the {what} do not fit a {dtype:?} weight {shape:?}")));
            }
        }
        Ok(())
    }
}

/// The scalars of the inner loop:
/// `g = gradient_scale gradient`, `m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g^2`,
/// `w <- decay w - step_size m / (sqrt(v) inverse_sqrt_correction + eps)`.
#[derive(Clone, Copy, Debug)]
struct Scalars {
    decay: f32,
    step_size: f32,
    inverse_sqrt_correction: f32,
    eps: f32,
    beta1: f32,
    beta2: f32,
    gradient_scale: f32,
}

impl Update {
    fn scalars(&self) -> Scalars {
        let correction = |beta: f64| 1.0 - beta.powi(i32::try_from(self.step).unwrap_or(i32::MAX));
        Scalars {
            decay: (1.0 - self.learning_rate * self.weight_decay) as f32,
            step_size: (self.learning_rate / correction(self.beta1)) as f32,
            inverse_sqrt_correction: (1.0 / correction(self.beta2).sqrt()) as f32,
            eps: self.eps as f32,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            gradient_scale: self.gradient_scale as f32,
        }
    }
}

/// Updates a weight, its master and its moments in place.
///
/// # Errors
/// When an operand does not fit the weight, or the device fails.
pub fn update(parameter: &Parameter, update: &Update) -> Result<()> {
    trail::begin("adamw");
    parameter.check()?;
    let scalars = update.scalars();
    if parameter.weight.device().is_cuda() {
        cuda::update(parameter, scalars)
    } else {
        cpu::update(parameter, scalars)
    }
}
