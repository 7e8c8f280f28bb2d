//! AdamW over all parameters of a decoder, with the clip by global norm folded into the update.

use candle_core::Tensor;

use crate::config::optim::OptimConfig;
use crate::error::{Error, Result};
use crate::model::decoder::Decoder;
use crate::model::gradients::Gradients;
use crate::ops::adamw::{Update, update};

/// Moments in f32, one pair a parameter, in parameter order.
pub struct AdamW {
    first: Vec<Tensor>,
    second: Vec<Tensor>,
    /// Updates made so far.
    step: u64,
}

impl AdamW {
    pub fn new(decoder: &Decoder) -> Result<Self> {
        let zeros = || decoder.parameters().map(|(_, w)| Ok(w.zeros_like()?)).collect::<Result<Vec<_>>>();
        Ok(Self { first: zeros()?, second: zeros()?, step: 0 })
    }

    /// One update of every weight in place. Returns the L2 norm of all gradients before the clip.
    ///
    /// # Errors
    /// A gradient that is not finite, named: a step that would corrupt the weights is not taken.
    pub fn step(
        &mut self,
        decoder: &Decoder,
        gradients: &Gradients,
        config: &OptimConfig,
        learning_rate: f64,
    ) -> Result<f64> {
        let grad_norm = gradients.norm()?;
        if !grad_norm.is_finite() {
            let culprit = decoder.parameters().zip(gradients.tensors()).find(|(_, g)| {
                !g.as_ref().is_ok_and(|g| crate::ops::sum_squares(g).is_ok_and(f64::is_finite))
            });
            let name = culprit.map_or("all weights together", |((name, _), _)| name);
            return Err(Error::Diverged {
                step: self.step + 1,
                problem: format!("the gradient of {name} is not finite"),
                fix: "Lower the learning rate, or set max_grad_norm; the last checkpoint is intact".into(),
            });
        }
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
        let moments = self.first.iter().zip(&self.second);
        for (((_, weight), gradient), (first, second)) in
            decoder.parameters().zip(gradients.tensors()).zip(moments)
        {
            update(weight, gradient?, first, second, &numbers)?;
        }
        Ok(grad_norm)
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.step
    }

    /// Moments under the names `first.<weight>` and `second.<weight>`, for a checkpoint.
    pub fn state(&self, decoder: &Decoder) -> (u64, Vec<(String, Tensor)>) {
        let named = |prefix: &str, tensors: &[Tensor]| {
            let names = decoder.parameters().map(|(name, _)| format!("{prefix}.{name}"));
            names.zip(tensors.iter().cloned()).collect::<Vec<_>>()
        };
        let mut state = named("first", &self.first);
        state.extend(named("second", &self.second));
        (self.step, state)
    }

    /// The inverse of [`AdamW::state`]; `find` gives a tensor by name.
    pub fn restore(decoder: &Decoder, step: u64, find: impl Fn(&str) -> Result<Tensor>) -> Result<Self> {
        let load = |prefix: &str| {
            decoder
                .parameters()
                .map(|(name, weight)| {
                    let name = format!("{prefix}.{name}");
                    let tensor = find(&name)?;
                    if tensor.dims() != weight.dims() {
                        return Err(Error::input(
                            name,
                            format!("has shape {:?}, the weight {:?}", tensor.dims(), weight.dims()),
                            "Resume with the config the run was started with",
                        ));
                    }
                    Ok(tensor)
                })
                .collect::<Result<Vec<_>>>()
        };
        Ok(Self { first: load("first")?, second: load("second")?, step })
    }
}
