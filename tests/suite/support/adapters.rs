//! LoRA adapters on small models.

use candle_core::Tensor;
use rlvr::config::lora::PROJECTIONS;
use rlvr::model::adapter::{Adapter, Shape};
use rlvr::model::decoder::Decoder;
use rlvr::rng::{Purpose, Stream};

/// An adapter of `rank` beside `targets`.
pub fn shape(rank: usize, targets: &[&'static str]) -> Shape {
    Shape { rank, alpha: 6.0, rslora: false, targets: targets.to_vec() }
}

/// An adapter whose B is not zero any more.
pub fn trained(decoder: &Decoder, shape: Shape, seed: u64) -> Adapter {
    let mut adapter = Adapter::fresh(shape, &decoder.config, decoder.device(), seed, 0).unwrap();
    for (i, (name, tensor)) in adapter.tensors.iter_mut().enumerate() {
        if name.ends_with("lora_B.weight") {
            let stream = Stream::new(seed, Purpose::Check, [i as u32, 0, 0]);
            let values: Vec<f32> = (0..tensor.elem_count() as u32).map(|e| 0.2 * stream.normal(e)).collect();
            *tensor = Tensor::from_vec(values, tensor.dims(), decoder.device()).unwrap();
        }
    }
    adapter
}

/// `decoder` with a trained adapter beside every linear layer.
pub fn with_adapter(mut decoder: Decoder, seed: u64) -> Decoder {
    let shape = shape(4, &PROJECTIONS);
    decoder.attach(trained(&decoder, shape, seed)).unwrap();
    decoder
}
