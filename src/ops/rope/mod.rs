//! Rotary position embedding in HF's rotate-half layout, Su et al., arXiv:2104.09864.

mod cpu;
pub mod cuda;

use std::sync::OnceLock;

use candle_core::{Device, Tensor};

use self::cuda::{CacheRows, DeviceTable};
use crate::error::Result;
use crate::ops::embedding;
use crate::ops::fault::fault;
use crate::ops::indices::{Indices, once};
use crate::trail;

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
        trail::begin("rope");
        self.check(positions)?;
        let device = x_nd.device();
        if device.is_cuda() {
            self.there(device)?.rotate(x_nd, positions.there(device)?, direction)
        } else {
            cpu::rotate(self, x_nd, positions.as_slice(), direction)
        }
    }

    /// Queries, keys and values out of the rows of one product, `qkv_nd: [N, q + 2 k]` with `widths` of q and k;
    /// queries and keys rotated, where there are positions.
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub fn split(
        &self,
        qkv_nd: &Tensor,
        widths: [usize; 2],
        positions: Option<&Indices>,
    ) -> Result<[Tensor; 3]> {
        trail::begin("rope");
        let device = qkv_nd.device();
        positions.map_or(Ok(()), |positions| self.check(positions))?;
        if device.is_cuda() {
            let positions = positions.map(|positions| positions.there(device)).transpose()?;
            let (q, kv) = self.there(device)?.split(qkv_nd, widths, positions, None)?;
            let [k, v] = kv.ok_or_else(|| fault("rope: keys and values went to no cache"))?;
            return Ok([q, k, v]);
        }
        cpu::split(self, qkv_nd, widths, positions.map(Indices::as_slice))
    }

    /// [`Self::split`] with rotated keys and values written to rows `slots` of two caches, `[rows, k]` each; the queries
    /// are returned.
    ///
    /// # Errors
    /// As [`Self::rotate`], and for a slot outside the cache.
    pub fn split_into(
        &self,
        qkv_nd: &Tensor,
        widths: [usize; 2],
        positions: &Indices,
        [k, v]: [&Tensor; 2],
        slots: &Indices,
    ) -> Result<Tensor> {
        trail::begin("rope");
        let (device, rows) = (qkv_nd.device(), k.dim(0)?.min(v.dim(0)?));
        if !device.is_cuda() {
            let [q, new_k, new_v] = self.split(qkv_nd, widths, Some(positions))?;
            embedding::scatter(k, slots, &new_k)?;
            embedding::scatter(v, slots, &new_v)?;
            return Ok(q);
        }
        self.check(positions)?;
        if let Some(slot) = slots.outside(rows) {
            return Err(fault(format!("rope: slot {slot} of a cache of {rows} rows")));
        }
        let cache = CacheRows { k, v, slots_n: slots.there(device)? };
        Ok(self.there(device)?.split(qkv_nd, widths, Some(positions.there(device)?), Some(cache))?.0)
    }

    /// The transpose of [`Self::split`]: gradients by q, k and v side by side. `[N, q + 2 k]`
    ///
    /// # Errors
    /// As [`Self::rotate`].
    pub fn join(&self, dqkv: [&Tensor; 3], positions: Option<&Indices>) -> Result<Tensor> {
        trail::begin("rope backward");
        let device = dqkv[0].device();
        positions.map_or(Ok(()), |positions| self.check(positions))?;
        if device.is_cuda() {
            let positions = positions.map(|positions| positions.there(device)).transpose()?;
            return self.there(device)?.join(dqkv, positions);
        }
        cpu::join(self, dqkv, positions.map(Indices::as_slice))
    }

    /// Cosines and sines of one position.
    fn angles(&self, position: u32) -> (&[f32], &[f32]) {
        let at = position as usize * self.half..(position as usize + 1) * self.half;
        (&self.cos[at.clone()], &self.sin[at])
    }

    fn check(&self, positions: &Indices) -> Result<()> {
        match positions.outside(self.positions()) {
            Some(p) => Err(fault(format!("rope: position {p} is past the table's {}", self.positions()))),
            None => Ok(()),
        }
    }

    fn there(&self, device: &Device) -> Result<&DeviceTable> {
        once(&self.there, || DeviceTable::new(&self.cos, &self.sin, self.half, device))
    }
}
