//! AdamW on the CPU: a few blocks of every operand a task.

use std::cell::RefCell;

use candle_core::{CpuStorage, InplaceOp1, Layout, Storage, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::blockwise::{BLOCK, Code};
use super::{Moment, Parameter, Precision, Scalars};
use crate::error::Result;
use crate::ops::cpu::simd::vectorize;
use crate::ops::cpu::widened::cpu_range;
use crate::ops::fault::fault;
use crate::rng::Stream;

/// Elements to a task; whole blocks.
const CHUNK: usize = 64 * BLOCK;

/// As [`super::update`], with operands that have been checked.
pub(super) fn update(parameter: &Parameter, scalars: Scalars) -> Result<()> {
    let (guard, layout) = parameter.gradient.storage_and_layout();
    let range = cpu_range(layout)?;
    let gradient = match &*guard {
        Storage::Cpu(CpuStorage::F32(values)) => Gradient::F32(&values[range]),
        Storage::Cpu(CpuStorage::BF16(values)) => Gradient::Bf16(&values[range]),
        _ => return Err(fault("adamw: the gradient is not where the weight is")),
    };
    let mut tensors = vec![parameter.weight];
    if let Precision::Master(master) = parameter.precision {
        tensors.push(master);
    }
    tensors.extend(parameter.first.tensors());
    tensors.extend(parameter.second.tensors());
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
