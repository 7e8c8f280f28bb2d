//! AdamW over what is trained of a decoder, with the clip by global norm folded into the update.

use candle_core::{DType, Tensor};

use crate::config::optim::{Bf16WeightsConfig, MomentsConfig, OptimConfig};
use crate::dist::Share;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::gradients::Gradients;
use crate::ops::adamw::blockwise::BLOCK;
use crate::ops::adamw::{Moment, Parameter, Precision, Update, update};
use crate::ops::elementwise::sum_squares;
use crate::ops::memory;
use crate::rng::{Purpose, Stream};

/// The state of every weight that is trained, in the order of `Decoder::trainable`, or of one rank's part of each.
pub struct AdamW {
    share: Share,
    first: Vec<Moment>,
    second: Vec<Moment>,
    /// f32 copies of the bf16 weights, unless those are rounded stochastically.
    masters: Vec<Option<Tensor>>,
    /// Keys stochastic rounding.
    seed: u64,
    /// Updates made so far.
    step: u64,
}

/// How bf16 weights keep small updates; f32 weights need nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bf16Weights {
    /// An f32 copy of each: 4 bytes a weight.
    Masters,
    /// Rounded up or down at random, keyed by this seed, the step, the weight and the element.
    StochasticRounding { seed: u64 },
}

impl Bf16Weights {
    /// `seed` keys stochastic rounding.
    pub fn new(config: Bf16WeightsConfig, seed: u64) -> Self {
        match config {
            Bf16WeightsConfig::Masters => Self::Masters,
            Bf16WeightsConfig::Auto | Bf16WeightsConfig::StochasticRounding => {
                Self::StochasticRounding { seed }
            }
        }
    }
}

impl AdamW {
    /// Moments in f32, bf16 weights with masters.
    pub fn new(decoder: &Decoder) -> Result<Self> {
        Self::with(decoder, MomentsConfig::F32, Bf16Weights::Masters)
    }

    pub fn with(decoder: &Decoder, moments: MomentsConfig, bf16_weights: Bf16Weights) -> Result<Self> {
        Self::of_share(decoder, moments, bf16_weights, Share::WHOLE)
    }

    /// The state of `share` alone.
    pub fn of_share(
        decoder: &Decoder,
        moments: MomentsConfig,
        bf16_weights: Bf16Weights,
        share: Share,
    ) -> Result<Self> {
        let zeros = || -> Result<Vec<Moment>> {
            let zero = |weight: &Tensor| match moments {
                MomentsConfig::F32 => Moment::zeros(weight),
                MomentsConfig::Int8 => Moment::zeros_int8(weight),
            };
            decoder.trainable().map(|(_, weight)| zero(&share.of(weight)?)).collect()
        };
        let master = |(_, weight): (&str, &Tensor)| -> Result<Option<Tensor>> {
            let needed = weight.dtype() == DType::BF16 && bf16_weights == Bf16Weights::Masters;
            Ok(if needed { Some(memory::cast(&share.of(weight)?, DType::F32)?) } else { None })
        };
        let masters = decoder.trainable().map(master).collect::<Result<_>>()?;
        let seed = match bf16_weights {
            Bf16Weights::Masters => 0,
            Bf16Weights::StochasticRounding { seed } => seed,
        };
        Ok(Self { share, first: zeros()?, second: zeros()?, masters, seed, step: 0 })
    }

    /// One update of every weight in place. Returns the L2 norm of all gradients before the clip.
    ///
    /// # Errors
    /// A gradient that is not finite, named: a step that would corrupt the weights is not taken.
    pub fn step(
        &mut self,
        decoder: &mut Decoder,
        gradients: &Gradients,
        config: &OptimConfig,
        learning_rate: f64,
    ) -> Result<f64> {
        let grad_norm = gradients.norm()?;
        if !grad_norm.is_finite() {
            let culprit = decoder
                .trainable()
                .zip(gradients.tensors())
                .find(|(_, g)| !g.as_ref().is_ok_and(|g| sum_squares(&[g]).is_ok_and(f64::is_finite)));
            let name = culprit.map_or("all weights together", |((name, _), _)| name);
            return Err(Self::refusal(name, self.step + 1));
        }
        self.apply(decoder, gradients.tensors(), grad_norm, config, learning_rate)?;
        decoder.adapter_changed()?;
        Ok(grad_norm)
    }

    /// A step that would corrupt the weights is not taken.
    pub fn refusal(name: &str, step: u64) -> Error {
        Error::Diverged {
            step,
            problem: format!("the gradient of {name} is not finite"),
            fix: "Lower the learning rate, or set max_grad_norm; the last checkpoint is intact".into(),
        }
    }

    /// One update of the share's part of every weight, in place, from its part of every gradient. `grad_norm`: of all gradients of all
    /// shares. The caller sees to the other parts, and then to `Decoder::adapter_changed`.
    pub fn apply(
        &mut self,
        decoder: &Decoder,
        gradients: impl Iterator<Item = Result<Tensor>>,
        grad_norm: f64,
        config: &OptimConfig,
        learning_rate: f64,
    ) -> Result<()> {
        let clip = config.max_grad_norm;
        self.step += 1;
        let numbers = Update {
            learning_rate,
            beta1: config.betas[0],
            beta2: config.betas[1],
            eps: config.eps,
            weight_decay: config.weight_decay,
            step: self.step,
            // torch.nn.utils.clip_grad_norm_ adds 1e-6 too.
            gradient_scale: if clip > 0.0 { (clip / (grad_norm + 1e-6)).min(1.0) } else { 1.0 },
        };
        for (i, ((_, weight), gradient)) in decoder.trainable().zip(gradients).enumerate() {
            let weight = &self.share.of(weight)?;
            if weight.elem_count() == 0 {
                continue;
            }
            let parameter = Parameter {
                weight,
                precision: self.precision(i, weight),
                gradient: &gradient?,
                first: &self.first[i],
                second: &self.second[i],
            };
            update(&parameter, &numbers)?;
        }
        Ok(())
    }

    fn precision(&self, index: usize, weight: &Tensor) -> Precision<'_> {
        match &self.masters[index] {
            Some(master) => Precision::Master(master),
            None if weight.dtype() == DType::F32 => Precision::Full,
            None => {
                // Each part is rounded by draws of its own.
                let ids = [self.step as u32, index as u32, self.share.rank as u32];
                Precision::Stochastic(Stream::new(self.seed, Purpose::Rounding, ids))
            }
        }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.step
    }

    /// For a checkpoint: the number of updates, and tensors named `<what>.<weight>`, where `<what>` is `first` and
    /// `second` for f32 moments, `first_codes`, `first_scales` and so on for coded ones, and `master`; and
    /// `rounding_seed` where a weight is rounded stochastically. Of a share they are its parts, flat.
    pub fn state(&self, decoder: &Decoder) -> (u64, Vec<(String, Tensor)>) {
        let mut state = Vec::new();
        for (which, moments) in [("first", &self.first), ("second", &self.second)] {
            for ((name, _), moment) in decoder.trainable().zip(moments) {
                match moment {
                    Moment::F32(values) => state.push((format!("{which}.{name}"), values.clone())),
                    Moment::Int8 { codes, scales } => {
                        state.push((format!("{which}_codes.{name}"), codes.clone()));
                        state.push((format!("{which}_scales.{name}"), scales.clone()));
                    }
                }
            }
        }
        for ((name, _), master) in decoder.trainable().zip(&self.masters) {
            state.extend(master.iter().map(|master| (format!("master.{name}"), master.clone())));
        }
        if self.masters.iter().zip(decoder.trainable()).any(|(m, (_, w))| m.is_none() && is_bf16(w)) {
            let words = [self.seed as u32, (self.seed >> 32) as u32];
            state.extend(
                Tensor::new(&words, &candle_core::Device::Cpu).map(|seed| (ROUNDING_SEED.to_string(), seed)),
            );
        }
        (self.step, state)
    }

    /// The inverse of [`AdamW::state`]; `find` gives a tensor by name.
    ///
    /// # Errors
    /// When a tensor is missing or does not fit its weight.
    pub fn restore(decoder: &Decoder, step: u64, find: impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        Self::restore_share(decoder, step, find, Share::WHOLE)
    }

    /// [`Self::restore`] of `share`; `find` gives whole tensors.
    pub fn restore_share(
        decoder: &Decoder,
        step: u64,
        find: impl Fn(&str) -> Result<Tensor>,
        share: Share,
    ) -> Result<Self> {
        let load = |name: String, dims: &[usize], weight: &Tensor| -> Result<Tensor> {
            let tensor = find(&name)?;
            if tensor.dims() != dims {
                return Err(Error::input(
                    name,
                    format!("has shape {:?}, and {dims:?} fits the weight", tensor.dims()),
                    "Resume with the config the run was started with",
                ));
            }
            let own = match share.is_whole() {
                true => tensor,
                // A scale for each block, where a part begins and ends.
                false => {
                    let range = share.range(weight.elem_count());
                    let per = if tensor.elem_count() == weight.elem_count() { 1 } else { BLOCK };
                    let range = range.start.div_ceil(per)..range.end.div_ceil(per);
                    // In memory of its own: the whole is let go.
                    tensor.flatten_all()?.narrow(0, range.start, range.len())?.force_contiguous()?
                }
            };
            memory::to_device(&own, weight.device())
        };
        let moments = |which: &str| -> Result<Vec<Moment>> {
            decoder
                .trainable()
                .map(|(name, weight)| {
                    let codes = format!("{which}_codes.{name}");
                    if find(&codes).is_err() {
                        return Ok(Moment::F32(load(format!("{which}.{name}"), weight.dims(), weight)?));
                    }
                    let count = weight.elem_count();
                    let scales = [count.div_ceil(BLOCK)];
                    Ok(Moment::Int8 {
                        codes: load(codes, &[count], weight)?,
                        scales: load(format!("{which}_scales.{name}"), &scales, weight)?,
                    })
                })
                .collect()
        };
        let seed = match find(ROUNDING_SEED) {
            Ok(words) => match words.to_vec1::<u32>()?.as_slice() {
                [low, high] => Some(u64::from(*low) | u64::from(*high) << 32),
                _ => None,
            },
            Err(_) => None,
        };
        let master = |(name, weight): (&str, &Tensor)| -> Result<Option<Tensor>> {
            let needed = is_bf16(weight) && seed.is_none();
            needed.then(|| load(format!("master.{name}"), weight.dims(), weight)).transpose()
        };
        let masters = decoder.trainable().map(master).collect::<Result<_>>()?;
        Ok(Self {
            share,
            first: moments("first")?,
            second: moments("second")?,
            masters,
            seed: seed.unwrap_or(0),
            step,
        })
    }
}

/// The tensor of the optimiser's state that is no weight's.
pub const ROUNDING_SEED: &str = "rounding_seed";

fn is_bf16(weight: &Tensor) -> bool {
    weight.dtype() == DType::BF16
}
