//! A rank's share of gradients that are summed block by block, while the backward pass goes on to the block before (ZeRO-2, Rajbhandari et
//! al., arXiv:1910.02054): no more than one block's are whole at a time.

use candle_core::{DType, Tensor};

use crate::dist::{Engine, Share};
use crate::error::Result;
use crate::model::decoder::Decoder;
use crate::model::gradients::Gradients;
use crate::ops::elementwise::add_assign;
use crate::ops::memory;

pub struct Summed {
    /// Numbers of the trained weights by block; then those outside of blocks.
    blocks: Vec<Vec<usize>>,
    rest: Vec<usize>,
    /// This rank's part of each sum, f32 and flat. `None`: nothing was added.
    parts: Vec<Option<Tensor>>,
}

impl Summed {
    pub fn new(decoder: &Decoder) -> Self {
        let mut blocks = vec![Vec::new(); decoder.config.num_hidden_layers];
        let mut rest = Vec::new();
        let mut count = 0;
        for (at, (name, _)) in decoder.trainable().enumerate() {
            count += 1;
            let of_block = block_of(name).and_then(|block| blocks.get_mut(block));
            of_block.unwrap_or(&mut rest).push(at);
        }
        Self { blocks, rest, parts: vec![None; count] }
    }

    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// Sums what all ranks have of a block, and keeps the own part.
    pub fn add(&mut self, engine: &dyn Engine, layer: usize, gradients: &mut Gradients) -> Result<()> {
        let numbers = std::mem::take(&mut self.blocks[layer]);
        let added = self.add_all(engine, &numbers, gradients);
        self.blocks[layer] = numbers;
        added
    }

    /// The same of what is in no block.
    pub fn add_rest(&mut self, engine: &dyn Engine, gradients: &mut Gradients) -> Result<()> {
        let numbers = std::mem::take(&mut self.rest);
        let added = self.add_all(engine, &numbers, gradients);
        self.rest = numbers;
        added
    }

    fn add_all(&mut self, engine: &dyn Engine, numbers: &[usize], gradients: &mut Gradients) -> Result<()> {
        let parts = engine.reduce_scatter(&gradients.take(numbers)?)?;
        for (at, part) in numbers.iter().zip(parts).filter(|(_, part)| part.elem_count() > 0) {
            let part = part.to_dtype(DType::F32)?;
            match &self.parts[*at] {
                Some(sum) => add_assign(sum, &part)?,
                None => self.parts[*at] = Some(part),
            }
        }
        Ok(())
    }

    /// This rank's part of every gradient; zeros where nothing was added.
    pub fn take(&mut self, decoder: &Decoder, share: Share) -> Result<Vec<Tensor>> {
        let part = |((_, weight), part): ((&str, &Tensor), &mut Option<Tensor>)| match part.take() {
            Some(part) => Ok(part),
            None => {
                let count = share.range(weight.elem_count()).len();
                memory::zeros(weight.device(), count, DType::F32)
            }
        };
        decoder.trainable().zip(&mut self.parts).map(part).collect()
    }

    /// Forgets a step that was not finished.
    pub fn clear(&mut self) {
        self.parts.fill(None);
    }
}

/// The block of a weight, or of an adapter's tensor, by its name.
fn block_of(name: &str) -> Option<usize> {
    name.split_once("layers.")?.1.split('.').next()?.parse().ok()
}
