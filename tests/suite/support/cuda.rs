//! What tests of the CUDA path start from. They run on a GPU where there is one, else on the twin of the driver
//! (`tests/doubles/cuda-driver/twin.sh --run cargo test --features cuda ...`); with neither, each says so and passes.

use std::cell::RefCell;

use candle_core::{DType, Device, Tensor};
use rlvr::ops::cuda;
use rlvr::rng::{Purpose, Sequential, Stream};

use super::seed;

pub const TYPES: [DType; 2] = [DType::F32, DType::BF16];

/// The first device, opened once a thread: tests run on threads of their own.
pub fn device() -> Option<Device> {
    match cuda::device(0) {
        Ok(device) => Some(device),
        Err(error) => {
            let text = error.to_string();
            eprintln!("CUDA is not checked here: {text}");
            assert!(text.starts_with("device cuda:0: ") && text.contains("Install"), "{text}");
            None
        }
    }
}

pub fn on_twin(device: &Device) -> bool {
    cuda::describe(device).unwrap().name.contains("twin")
}

/// What one test needs: a device and random values.
pub struct Bench {
    pub device: Device,
    pub seed: u64,
    random: RefCell<Sequential>,
}

impl Bench {
    pub fn new() -> Option<Self> {
        let seed = seed::of_test();
        let random = RefCell::new(Stream::new(seed, Purpose::Bench, [0; 3]).sequential());
        Some(Self { device: device()?, seed, random })
    }

    pub fn below(&self, end: usize) -> usize {
        self.random.borrow_mut().below(end)
    }

    /// Values in [-1, 1) on the device, a view some elements into a larger storage, and the same values in f64.
    pub fn matrix(&self, rows: usize, cols: usize, dtype: DType) -> (Tensor, Vec<f64>) {
        let before = self.below(3);
        let all: Vec<f32> =
            (0..(rows + before) * cols).map(|_| self.random.borrow_mut().uniform() * 2. - 1.).collect();
        let host =
            Tensor::from_vec(all, (rows + before, cols), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        let there = match host.elem_count() {
            0 => cuda::uninit(&self.device, host.shape(), dtype).unwrap(), // candle cannot
            _ => host.to_device(&self.device).unwrap(),
        };
        let tensor = there.narrow(0, before, rows).unwrap();
        (tensor, values(&host.narrow(0, before, rows).unwrap()))
    }

    pub fn poison(&self, rows: usize, cols: usize, dtype: DType) -> Tensor {
        let nan = Tensor::full(f32::NAN, (rows, cols), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        nan.to_device(&self.device).unwrap()
    }
}

/// In f64.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    let host = tensor.to_device(&Device::Cpu).unwrap().to_dtype(DType::F64).unwrap();
    host.flatten_all().unwrap().to_vec1().unwrap()
}
