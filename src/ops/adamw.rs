//! One AdamW update of one weight, Loshchilov and Hutter, arXiv:1711.05101, as in `torch.optim.AdamW`.
//!
//! One pass: every operand is read once and written once. Weights are f32, or bf16 with f32 masters or stochastic
//! rounding; moments f32 or one byte an element ([`super::blockwise`]); gradients f32 or bf16.

use std::cell::RefCell;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, Layout, Storage, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::blockwise::{BLOCK, Code};
use super::cpu_range;
use super::simd::vectorize;
use crate::error::{Error, Result};
use crate::rng::Stream;

/// Elements to a task; whole blocks.
const CHUNK: usize = 64 * BLOCK;

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
    /// Of the same kind as `first`.
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
    /// Of the weight's shape.
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
        Ok(Self::F32(Tensor::zeros(weight.shape(), DType::F32, weight.device())?))
    }

    /// Zero, in a byte an element.
    ///
    /// # Errors
    /// When the device has no memory left.
    pub fn zeros_int8(weight: &Tensor) -> Result<Self> {
        let count = weight.elem_count();
        let zeros = |count, dtype, device: &Device| Tensor::zeros(count, dtype, device);
        let codes = zeros(count, DType::U8, weight.device())?;
        Ok(Self::Int8 { codes, scales: zeros(count.div_ceil(BLOCK), DType::F32, weight.device())? })
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
    pub(super) fn check(&self) -> Result<()> {
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
                return Err(Error::Compute(
                    format!("adamw: the {what} do not fit a {:?} weight {shape:?}", self.weight.dtype())
                        .into(),
                ));
            }
        }
        Ok(())
    }
}

/// The scalars of the inner loop:
/// `g = gradient_scale gradient`, `m <- beta1 m + (1 - beta1) g`, `v <- beta2 v + (1 - beta2) g^2`,
/// `w <- decay w - step_size m / (sqrt(v) inverse_sqrt_correction + eps)`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scalars {
    pub decay: f32,
    pub step_size: f32,
    pub inverse_sqrt_correction: f32,
    pub eps: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub gradient_scale: f32,
}

impl Update {
    pub(super) fn scalars(&self) -> Scalars {
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
/// When an operand does not fit the weight.
pub fn update(parameter: &Parameter, update: &Update) -> Result<()> {
    parameter.check()?;
    if super::cuda::on(parameter.weight) {
        return super::cuda::adamw::update(parameter, update);
    }
    let (guard, layout) = parameter.gradient.storage_and_layout();
    let range = cpu_range(layout)?;
    let gradient = match &*guard {
        Storage::Cpu(CpuStorage::F32(values)) => Gradient::F32(&values[range]),
        Storage::Cpu(CpuStorage::BF16(values)) => Gradient::Bf16(&values[range]),
        _ => return Err(Error::Compute("adamw: the gradient is not where the weight is".into())),
    };
    let mut tensors = vec![parameter.weight];
    if let Precision::Master(master) = parameter.precision {
        tensors.push(master);
    }
    tensors.extend(parameter.first.tensors());
    tensors.extend(parameter.second.tensors());
    let scalars = update.scalars();
    Ok(open(&tensors, Vec::new(), &mut |slices| {
        let mut operands = slices.into_iter();
        let mut next = |size| operands.next().map(|s| s.chunks(size)).unwrap_or_default().into_iter();
        let weight = next(CHUNK);
        let mut master = match parameter.precision {
            Precision::Master(_) => Some(next(CHUNK)),
            _ => None,
        };
        let mut moment = |moment: &Moment, code| -> Vec<MomentChunk> {
            let values = next(CHUNK);
            match moment {
                Moment::F32(_) => values.map(MomentChunk::Full).collect(),
                Moment::Int8 { .. } => {
                    values.zip(next(CHUNK / BLOCK)).map(|(c, s)| MomentChunk::Coded(c, s, code)).collect()
                }
            }
        };
        let first = moment(parameter.first, Code::Signed);
        let second = moment(parameter.second, Code::Unsigned);
        let stream = match parameter.precision {
            Precision::Stochastic(stream) => Some(stream),
            _ => None,
        };
        let tasks: Vec<Task> = weight
            .zip(first.into_iter().zip(second))
            .enumerate()
            .map(|(i, (weight, (first, second)))| Task {
                start: i * CHUNK,
                weight,
                master: master.as_mut().and_then(Iterator::next),
                first,
                second,
            })
            .collect();
        tasks.into_par_iter().for_each(|mut task| vectorize!(task.run(gradient, scalars, stream)));
    })?)
}

/// The elements of one tensor, to be changed.
enum Slice<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    U8(&'a mut [u8]),
}

impl<'a> Slice<'a> {
    fn chunks(self, size: usize) -> Vec<Self> {
        match self {
            Self::F32(x) => x.chunks_mut(size).map(Self::F32).collect(),
            Self::Bf16(x) => x.chunks_mut(size).map(Self::Bf16).collect(),
            Self::U8(x) => x.chunks_mut(size).map(Self::U8).collect(),
        }
    }

    /// None of the elements where the type is another; `check` keeps that from happening.
    #[inline(always)]
    fn f32s(&mut self) -> &mut [f32] {
        if let Self::F32(x) = self { x } else { &mut [] }
    }

    #[inline(always)]
    fn bytes(&mut self) -> &mut [u8] {
        if let Self::U8(x) = self { x } else { &mut [] }
    }

    fn len(&self) -> usize {
        match self {
            Self::F32(x) => x.len(),
            Self::Bf16(x) => x.len(),
            Self::U8(x) => x.len(),
        }
    }
}

type Run<'r> = dyn FnMut(Vec<Slice>) + 'r;

/// Opens one tensor after the other for writing and runs `run` with all of them. candle lends a tensor's elements
/// to an in-place op only, so the ops nest.
fn open(tensors: &[&Tensor], opened: Vec<Slice>, run: &mut Run) -> candle_core::Result<()> {
    match tensors.split_first() {
        None => {
            run(opened);
            Ok(())
        }
        Some((next, rest)) => next.inplace_op1(&Open(RefCell::new(Some((rest, opened, run))))),
    }
}

type Waiting<'a> = (&'a [&'a Tensor], Vec<Slice<'a>>, &'a mut Run<'a>);

struct Open<'a>(RefCell<Option<Waiting<'a>>>);

impl InplaceOp1 for Open<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((rest, mut opened, run)) = self.0.take() else { return Ok(()) };
        let range = cpu_range(layout)?;
        opened.push(match storage {
            CpuStorage::F32(x) => Slice::F32(&mut x[range]),
            CpuStorage::BF16(x) => Slice::Bf16(&mut x[range]),
            CpuStorage::U8(x) => Slice::U8(&mut x[range]),
            _ => candle_core::bail!("adamw: operands are f32, bf16 or u8"),
        });
        open(rest, opened, run)
    }
}

#[derive(Clone, Copy)]
enum Gradient<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

enum MomentChunk<'a> {
    Full(Slice<'a>),
    /// Codes and scales.
    Coded(Slice<'a>, Slice<'a>, Code),
}

impl MomentChunk<'_> {
    /// The values of one block, in `room` unless they lie in memory as they are.
    #[inline(always)]
    fn load<'m>(&'m mut self, block: usize, room: &'m mut [f32]) -> &'m mut [f32] {
        let start = block * BLOCK;
        match self {
            Self::Full(values) => &mut values.f32s()[start..start + room.len()],
            Self::Coded(codes, scales, code) => {
                code.decode(&codes.bytes()[start..start + room.len()], scales.f32s()[block], room);
                room
            }
        }
    }

    #[inline(always)]
    fn store(&mut self, block: usize, room: &[f32]) {
        if let Self::Coded(codes, scales, code) = self {
            let start = block * BLOCK;
            scales.f32s()[block] = code.encode(room, &mut codes.bytes()[start..start + room.len()]);
        }
    }
}

/// One chunk of every operand that is written.
struct Task<'a> {
    /// First element.
    start: usize,
    weight: Slice<'a>,
    master: Option<Slice<'a>>,
    first: MomentChunk<'a>,
    second: MomentChunk<'a>,
}

impl Task<'_> {
    #[inline(always)]
    fn run(&mut self, gradient: Gradient, scalars: Scalars, stream: Option<Stream>) {
        let count = self.weight.len();
        let mut rooms = [[0f32; BLOCK]; 4];
        let [w_room, g_room, m_room, v_room] = &mut rooms;
        for block in 0..count.div_ceil(BLOCK) {
            let start = block * BLOCK;
            let here = start..(start + BLOCK).min(count);
            let len = here.len();
            let g = match gradient {
                Gradient::F32(g) => &g[self.start + start..][..len],
                Gradient::Bf16(g) => {
                    let g = &g[self.start + start..][..len];
                    g_room.iter_mut().zip(g).for_each(|(to, g)| *to = g.to_f32());
                    &g_room[..len]
                }
            };
            let w = match (&mut self.weight, &mut self.master) {
                (Slice::F32(w), _) => &mut w[here.clone()],
                (_, Some(master)) => &mut master.f32s()[here.clone()],
                (Slice::Bf16(w), None) => {
                    w_room.iter_mut().zip(&w[here.clone()]).for_each(|(to, w)| *to = w.to_f32());
                    &mut w_room[..len]
                }
                (Slice::U8(_), None) => &mut w_room[..len],
            };
            let m = self.first.load(block, &mut m_room[..len]);
            let v = self.second.load(block, &mut v_room[..len]);
            step(w, g, m, v, scalars);
            if let Slice::Bf16(to) = &mut self.weight {
                let to = &mut to[here.clone()];
                match (&mut self.master, stream) {
                    (Some(master), _) => {
                        let master = &master.f32s()[here];
                        to.iter_mut().zip(master).for_each(|(to, w)| *to = bf16::from_f32(*w));
                    }
                    (None, Some(stream)) => round_up_or_down(w_room, to, stream, self.start + start),
                    (None, None) => {}
                }
            }
            self.first.store(block, &m_room[..len]);
            self.second.store(block, &v_room[..len]);
        }
    }
}

#[inline(always)]
fn step(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], s: Scalars) {
    let (rest1, rest2) = (1.0 - s.beta1, 1.0 - s.beta2);
    for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * s.gradient_scale;
        *m = s.beta1 * *m + rest1 * g;
        *v = s.beta2 * *v + rest2 * g * g;
        *w = s.decay * *w - s.step_size * *m / (v.sqrt() * s.inverse_sqrt_correction + s.eps);
    }
}

/// Adds 16 random bits below the last bit kept, and cuts: up with the probability of the part cut off.
#[inline(always)]
fn round_up_or_down(from: &[f32], to: &mut [bf16], stream: Stream, start: usize) {
    for (i, (from, to)) in from.chunks(8).zip(to.chunks_mut(8)).enumerate() {
        let words = stream.block((start / 8 + i) as u32);
        for (j, (from, to)) in from.iter().zip(to).enumerate() {
            let random = (words[j / 2] >> (16 * (j % 2))) & 0xffff;
            *to = if from.is_finite() {
                bf16::from_bits((from.to_bits().wrapping_add(random) >> 16) as u16)
            } else {
                bf16::from_f32(*from)
            };
        }
    }
}
