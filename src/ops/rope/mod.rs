//! Rotary position embedding in HF's rotate-half layout, Su et al., arXiv:2104.09864.

mod cpu;
pub mod cuda;

use std::sync::OnceLock;

use candle_core::Tensor;

use self::cuda::DeviceTable;
use crate::error::Result;
use crate::ops::fault::fault;
use crate::ops::indices::{Indices, once};

/// Cosines and sines by position: the angle of pair `j` at position `p` is `p * inverse_frequency[j]`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    half: usize,
    /// `[positions, half]`
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The copy on a device, made by the first rotation there.
    there: OnceLock<DeviceTable>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Forward,
    /// The transpose: the backward pass, and the inverse of a table that is not scaled.
    Inverse,
}

impl RopeTable {
    /// Angles in f64 from `inverse_frequencies` (`head_dim / 2` of them) for positions `0..positions`.
    pub fn new(inverse_frequencies: &[f64], positions: usize) -> Self {
        let half = inverse_frequencies.len();
        let mut table = Self {
            half,
            cos: Vec::with_capacity(positions * half),
            sin: Vec::with_capacity(positions * half),
            there: OnceLock::new(),
        };
        for position in 0..positions {
            for frequency in inverse_frequencies {
                let angle = position as f64 * frequency;
                table.cos.push(angle.cos() as f32);
                table.sin.push(angle.sin() as f32);
            }
        }
        table
    }

    /// Multiplies sines and cosines, and with them every vector that is rotated, in either direction.
    pub fn scaled_by(mut self, factor: f64) -> Self {
        self.there = OnceLock::new();
        for x in self.cos.iter_mut().chain(&mut self.sin) {
            *x = (f64::from(*x) * factor) as f32;
        }
        self
    }

    /// Number of positions the table covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Rotates every head of `x_nd: [N, heads * head_dim]` in place by its row's position.
    ///
    /// # Errors
    /// When a position is past the table, or shapes do not agree.
    pub fn rotate(&self, x_nd: &Tensor, positions: &Indices, direction: Direction) -> Result<()> {
        if let Some(p) = positions.outside(self.positions()) {
            return Err(fault(format!("rope: position {p} is past the table's {}", self.positions())));
        }
        if x_nd.device().is_cuda() {
            let device = x_nd.device();
            let table = once(&self.there, || DeviceTable::new(&self.cos, &self.sin, self.half, device))?;
            table.rotate(x_nd, positions.there(device)?, direction)
        } else {
            cpu::rotate(self, x_nd, positions.as_slice(), direction)
        }
    }
}
