//! Cards that are rented, as their maker describes them.

use candle_core::DType;

use crate::error::{Error, Result};
use crate::plan::cards::FREE;
use crate::plan::cost::Rates;

/// One card. Rates are peaks: no work reaches them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// What `--gpu` calls it.
    pub name: &'static str,
    /// Part of the name that the driver gives it.
    driver_name: &'static str,
    /// FLOP/s of dense bf16 products with f32 sums.
    bf16: f64,
    /// FLOP/s in f32 outside of the tensor cores: f32 operands are not rounded to TF32 (`ops/cuda/gemm.rs`).
    f32: f64,
    /// Bytes/s of the card's memory.
    bandwidth: f64,
    /// Of the memory, 10^9 bytes, as it is sold.
    gigabytes: u64,
    /// Bytes/s of NVLink in one direction, where it has it.
    pub nvlink: Option<f64>,
}

/// From NVIDIA's pages, all without sparsity: "H100 Tensor Core GPU" datasheet (SXM column), "H200 Tensor Core GPU"
/// datasheet (SXM), "A100 Tensor Core GPU" datasheet (80GB SXM), "L40S" datasheet, "NVIDIA Ada GPU Architecture"
/// whitepaper (appendix A, RTX 4090), "HGX B200" datasheet (an eighth of a board; half of what it gives with sparsity). They give NVLink's rate for both directions together.
pub const GPUS: [Gpu; 6] = [
    Gpu::new("h100", "H100", [989e12, 67e12, 3.35e12], 80, Some(450e9)),
    Gpu::new("h200", "H200", [989e12, 67e12, 4.8e12], 141, Some(450e9)),
    Gpu::new("a100-80", "A100", [312e12, 19.5e12, 2.039e12], 80, Some(300e9)),
    Gpu::new("l40s", "L40S", [362e12, 91.6e12, 0.864e12], 48, None),
    Gpu::new("4090", "RTX 4090", [165.2e12, 82.6e12, 1.008e12], 24, None),
    Gpu::new("b200", "B200", [2250e12, 75e12, 8e12], 180, Some(900e9)),
];

impl Gpu {
    const fn new(
        name: &'static str,
        driver_name: &'static str,
        [bf16, f32, bandwidth]: [f64; 3],
        gigabytes: u64,
        nvlink: Option<f64>,
    ) -> Self {
        Self { name, driver_name, bf16, f32, bandwidth, gigabytes, nvlink }
    }

    /// # Errors
    /// None has this name.
    pub fn find(flag: &str, name: &str) -> Result<Self> {
        GPUS.into_iter().find(|gpu| gpu.name == name).ok_or_else(|| {
            let known = GPUS.map(|gpu| gpu.name).join(", ");
            Error::config(flag, name, format!("one of {known}"), "a card's rates have to be known")
        })
    }

    /// The card that the driver calls `name`.
    pub fn of_driver(name: &str) -> Option<Self> {
        GPUS.into_iter().find(|gpu| name.contains(gpu.driver_name))
    }

    pub fn rates(&self, dtype: DType) -> Rates {
        let flops = if dtype == DType::BF16 { self.bf16 } else { self.f32 };
        Rates { flops, bandwidth: self.bandwidth }
    }

    /// Bytes of its memory.
    pub fn memory(&self) -> u64 {
        self.gigabytes * 1_000_000_000
    }

    /// Bytes that a run can have of it.
    pub fn room(&self) -> u64 {
        self.memory() - FREE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_by_its_name_and_by_its_drivers() {
        assert_eq!(Gpu::find("--gpu", "l40s").unwrap().room(), 48_000_000_000 - FREE);
        let error = Gpu::find("--gpu", "v100").unwrap_err().to_string();
        assert!(error.contains("h100, h200, a100-80, l40s, 4090, b200"), "{error}");
        for (driver, name) in
            [("NVIDIA H100 80GB HBM3", "h100"), ("NVIDIA GeForce RTX 4090", "4090"), ("NVIDIA L40S", "l40s")]
        {
            assert_eq!(Gpu::of_driver(driver).unwrap().name, name);
        }
        assert_eq!(Gpu::of_driver("Tesla T4"), None);
    }
}
