//! Sums and copies of tensors among ranks, which are machines of one byte order, the lowest first.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use half::bf16;
use half::slice::HalfFloatSliceExt;
use half::vec::HalfBitsVecExt;

use super::share::part;
use super::wire::{Call, Wire, differs, exchange};
use crate::error::{Error, Result};
use crate::ops::{cuda, memory};

/// Every rank makes the same calls in the same order, with tensors of the same shapes and types: f32 or bf16, contiguous. A rank's part of a
/// tensor is [`part`] of its elements, flat.
pub trait Engine: Send + Sync {
    fn name(&self) -> &'static str;
    /// This rank's part of each tensor's sum over the ranks, in the tensor's type. Over a wire they are added in f32 and in the order of the
    /// ranks, by NCCL in the order of its rings, each sum of two rounded to the type.
    fn reduce_scatter(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>>;
    /// Each tensor holds its own rank's part on entry and all parts when this returns.
    fn all_gather(&self, tensors: &[Tensor]) -> Result<()>;
    /// What was asked for before is done. An engine that works beside the host says here what went wrong.
    fn finish(&self) -> Result<()> {
        Ok(())
    }
    /// On rank 0 the parts of all ranks put together, flat and on the host; elsewhere nothing. Bytes may be gathered too, and ranks
    /// may give parts of any length.
    fn gather(&self, parts: &[Tensor]) -> Result<Option<Vec<Tensor>>>;
}

/// Tensors in host memory, over a wire.
pub struct HostEngine {
    rank: usize,
    size: usize,
    wire: Arc<dyn Wire>,
}

impl HostEngine {
    pub fn new(rank: usize, size: usize, wire: Arc<dyn Wire>) -> Self {
        Self { rank, size, wire }
    }

    fn part(&self, tensor: &Tensor, rank: usize) -> Range<usize> {
        part(tensor.elem_count(), rank, self.size)
    }
}

/// The elements of a range, as they lie in memory.
fn bytes_of(tensor: &Tensor, range: Range<usize>, out: &mut Vec<u8>) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let values = memory::to_host(&tensor.flatten_all()?.narrow(0, range.start, range.len())?)?;
    match values.dtype() {
        DType::F32 => out.extend_from_slice(bytemuck::cast_slice(&values.to_vec1::<f32>()?)),
        DType::BF16 => {
            out.extend_from_slice(bytemuck::cast_slice(values.to_vec1::<bf16>()?.reinterpret_cast()));
        }
        DType::U8 => out.extend(values.to_vec1::<u8>()?),
        other => return Err(Error::Compute(format!("ranks exchange no {other:?}").into())),
    }
    Ok(())
}

fn numbers_of<T: bytemuck::Pod>(bytes: &[u8]) -> Vec<T> {
    let mut numbers = vec![T::zeroed(); bytes.len() / size_of::<T>()];
    bytemuck::cast_slice_mut(&mut numbers).copy_from_slice(bytes);
    numbers
}

fn bf16s(bytes: &[u8]) -> Vec<bf16> {
    numbers_of::<u16>(bytes).reinterpret_into()
}

fn f32s(bytes: &[u8], dtype: DType) -> Vec<f32> {
    match dtype {
        DType::BF16 => bf16s(bytes).iter().map(|value| value.to_f32()).collect(),
        _ => numbers_of(bytes),
    }
}

fn tensor_of(bytes: Vec<u8>, dtype: DType) -> Result<Tensor> {
    let count = bytes.len() / dtype.size_in_bytes();
    Ok(match dtype {
        DType::U8 => Tensor::from_vec(bytes, count, &Device::Cpu)?,
        DType::BF16 => Tensor::from_vec(bf16s(&bytes), count, &Device::Cpu)?,
        _ => Tensor::from_vec(f32s(&bytes, dtype), count, &Device::Cpu)?,
    })
}

/// The next `count` elements of what came from a rank.
fn take<'a>(from: &mut &'a [u8], count: usize, dtype: DType) -> Result<&'a [u8]> {
    from.split_off(..count * dtype.size_in_bytes()).ok_or_else(differs)
}

impl Engine for HostEngine {
    fn name(&self) -> &'static str {
        self.wire.name()
    }

    fn reduce_scatter(&self, tensors: &[Tensor]) -> Result<Vec<Tensor>> {
        let mut out = vec![Vec::new(); self.size];
        for (rank, bytes) in out.iter_mut().enumerate() {
            for tensor in tensors {
                bytes_of(tensor, self.part(tensor, rank), bytes)?;
            }
            bytes.push(Call::Sum as u8);
        }
        let all = exchange(&*self.wire, Call::Sum, &out.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        let mut rest: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
        let mut sums = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let (count, dtype) = (self.part(tensor, self.rank).len(), tensor.dtype());
            let mut sum = vec![0f32; count];
            for from in &mut rest {
                let values = f32s(take(from, count, dtype)?, dtype);
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
            }
            let sum = Tensor::from_vec(sum, count, &Device::Cpu)?.to_dtype(dtype)?;
            sums.push(memory::to_device(&sum, tensor.device())?);
        }
        if rest.iter().all(|from| from.is_empty()) { Ok(sums) } else { Err(differs()) }
    }

    fn all_gather(&self, tensors: &[Tensor]) -> Result<()> {
        let mut own = Vec::new();
        for tensor in tensors {
            bytes_of(tensor, self.part(tensor, self.rank), &mut own)?;
        }
        own.push(Call::Parts as u8);
        let all = exchange(&*self.wire, Call::Parts, &vec![own.as_slice(); self.size])?;
        for (rank, bytes) in all.iter().enumerate().filter(|(rank, _)| *rank != self.rank) {
            let mut rest = bytes.as_slice();
            for tensor in tensors {
                let range = self.part(tensor, rank);
                if range.is_empty() {
                    continue;
                }
                let bytes = take(&mut rest, range.len(), tensor.dtype())?.to_vec();
                let values = tensor_of(bytes, tensor.dtype())?.to_device(tensor.device())?;
                let whole = tensor.flatten_all()?;
                match tensor.device().is_cuda() {
                    true => cuda::overwrite(&whole.narrow(0, range.start, range.len())?, &values)?,
                    false => whole.slice_set(&values, 0, range.start)?,
                }
            }
        }
        Ok(())
    }

    fn gather(&self, parts: &[Tensor]) -> Result<Option<Vec<Tensor>>> {
        let mut own: Vec<u8> =
            parts.iter().flat_map(|part| (part.elem_count() as u64).to_le_bytes()).collect();
        for part in parts {
            bytes_of(part, 0..part.elem_count(), &mut own)?;
        }
        own.push(Call::Whole as u8);
        let nothing = [Call::Whole as u8];
        let mut out = vec![nothing.as_slice(); self.size];
        out[0] = &own;
        let all = exchange(&*self.wire, Call::Whole, &out)?;
        if self.rank > 0 {
            return Ok(None);
        }
        let lengths = 8 * parts.len();
        let split = all.iter().map(|bytes| bytes.split_at_checked(lengths).ok_or_else(differs));
        let mut split = split.collect::<Result<Vec<(&[u8], &[u8])>>>()?;
        let whole = |(index, tensor): (usize, &Tensor)| {
            let dtype = tensor.dtype();
            let mut whole = Vec::new();
            for (counts, rest) in &mut split {
                let count =
                    counts.as_chunks::<8>().0.get(index).map_or(0, |count| u64::from_le_bytes(*count));
                whole.extend_from_slice(take(rest, count as usize, dtype)?);
            }
            tensor_of(whole, dtype)
        };
        parts.iter().enumerate().map(whole).collect::<Result<Vec<_>>>().map(Some)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::dist::env::Place;
    use crate::dist::mesh;
    use crate::dist::wire::Tcp;

    /// What every rank of `size` gives, by rank; each is a thread.
    fn ranks<T: Send>(size: usize, work: impl Fn(&HostEngine, usize) -> T + Sync) -> Vec<T> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let place = |rank| Place {
            rank,
            size,
            local_rank: rank,
            local_size: size,
            address: "127.0.0.1".into(),
            port,
            job: "test".into(),
            launcher: "test",
        };
        let rank = |rank| {
            let joined = mesh::join(&place(rank)).unwrap();
            assert_eq!(joined.hosts.len(), size);
            assert_eq!(joined.control.len(), if rank == 0 { size - 1 } else { 1 });
            let wire = Arc::new(Tcp::new(rank, joined.data));
            work(&HostEngine::new(rank, size, wire), rank)
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..size).map(|number| scope.spawn(move || rank(number))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// A tensor of whole numbers, so that sums are exact in bf16 too; a view behind other elements.
    fn numbers(count: usize, of: usize, dtype: DType) -> Tensor {
        let values: Vec<f32> = (0..count + 3).map(|i| ((i * 7 + of * 3) % 11) as f32 - 5.0).collect();
        let whole = Tensor::from_vec(values, count + 3, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
        whole.narrow(0, 3, count).unwrap()
    }

    fn floats(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn sums_parts_and_wholes_are_right_for_any_number_of_ranks() {
        // No element for the last ranks, an odd end, several blocks.
        let counts = [1, 255, 257, 3000];
        for size in 2..=4 {
            for dtype in [DType::F32, DType::BF16] {
                let of = |rank: usize| counts.map(|count| numbers(count, rank, dtype));
                let want: Vec<Vec<f32>> = (0..counts.len())
                    .map(|i| {
                        (0..size)
                            .map(|rank| floats(&of(rank)[i]))
                            .reduce(|a, b| a.iter().zip(b).map(|(a, b)| a + b).collect())
                            .unwrap()
                    })
                    .collect();
                let all = ranks(size, |engine, rank| {
                    let sums = engine.reduce_scatter(&of(rank)).unwrap();
                    // Each its part of fresh tensors, and then all of them.
                    let whole = counts.map(|count| Tensor::zeros(count, dtype, &Device::Cpu).unwrap());
                    for (tensor, part) in whole.iter().zip(&sums).filter(|(_, part)| part.elem_count() > 0) {
                        tensor.slice_set(part, 0, engine.part(tensor, rank).start).unwrap();
                    }
                    engine.all_gather(&whole).unwrap();
                    let gathered = engine.gather(&sums).unwrap();
                    assert_eq!(gathered.is_some(), rank == 0);
                    let on_first = gathered.unwrap_or_default().iter().map(floats).collect::<Vec<_>>();
                    (whole.iter().map(floats).collect::<Vec<_>>(), on_first)
                });
                for (rank, (whole, on_first)) in all.iter().enumerate() {
                    assert_eq!(whole, &want, "{size} ranks, rank {rank}, {dtype:?}");
                    assert!(rank > 0 || on_first == &want, "{size} ranks, {dtype:?}");
                }
            }
        }
    }

    #[test]
    fn ranks_at_different_calls_find_out() {
        let tensor = |count| [numbers(count, 0, DType::F32)];
        for odd in 0..3 {
            let all = ranks(3, |engine, rank| match (rank == odd, odd) {
                (false, _) => engine.reduce_scatter(&tensor(3000)).map(|_| ()),
                (true, 0) => engine.all_gather(&tensor(3000)),
                (true, 1) => engine.reduce_scatter(&tensor(900)).map(|_| ()),
                (true, _) => engine.gather(&tensor(3000)).map(|_| ()),
            });
            for (rank, result) in all.iter().enumerate() {
                let error = result.as_ref().unwrap_err().to_string();
                assert!(error.contains("ranks disagree"), "rank {rank}, rank {odd} is elsewhere: {error}");
            }
        }
    }

    #[test]
    fn a_peer_that_is_gone_is_an_error() {
        let all = ranks(2, |engine, rank| match rank {
            0 => engine.reduce_scatter(&[numbers(10, 0, DType::F32)]).map(|_| ()),
            _ => Ok(()),
        });
        let error = all[0].as_ref().unwrap_err();
        assert!(matches!(error, Error::RankLost { .. }) && error.to_string().contains("rank 1"), "{error}");
    }
}
