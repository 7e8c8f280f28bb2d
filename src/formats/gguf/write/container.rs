//! Writing a GGUF file, version 3: the header first, then one tensor's data at a time.
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::io::Write;
use std::path::Path;

use candle_core::quantized::gguf_file::Value;
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::formats::file::write_aside;
use crate::formats::gguf::tensor_type::type_number;

/// Every tensor's data start at a multiple of this; what a file without `general.alignment` means.
const ALIGNMENT: u64 = 32;
/// Values turned into their stored form at a time: bounds the memory beside the tensor itself.
const SLAB_VALUES: usize = 1 << 24;

/// A tensor of a file that is about to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedTensor {
    /// GGUF's name.
    pub name: String,
    /// Rows first; the last is a multiple of the type's block.
    pub shape: Vec<usize>,
    pub dtype: GgmlDType,
}

impl PlannedTensor {
    fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes of its data, without the gap behind them.
    pub fn bytes(&self) -> u64 {
        (self.values() / self.dtype.block_size() * self.dtype.type_size()) as u64
    }
}

/// Writes `path`: aside, synced and renamed. `make` is called once a tensor, with its place in `tensors`, and gives
/// its values; no two are held. Returns the bytes of tensor data.
///
/// # Errors
/// When the disk does not take the file, or a tensor does not fit its plan.
pub fn write(
    path: &Path,
    metadata: &[(String, Value)],
    tensors: &[PlannedTensor],
    mut make: impl FnMut(usize) -> Result<Tensor>,
) -> Result<u64> {
    let mut header = Vec::from(*b"GGUF");
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        put_text(&mut header, key);
        header.extend(kind_of(value).to_le_bytes());
        put_value(&mut header, value);
    }
    let mut offset = 0;
    for tensor in tensors {
        put_text(&mut header, &tensor.name);
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        for &size in tensor.shape.iter().rev() {
            header.extend((size as u64).to_le_bytes());
        }
        header.extend(type_number(tensor.dtype).to_le_bytes());
        header.extend(u64::to_le_bytes(offset));
        offset += tensor.bytes().next_multiple_of(ALIGNMENT);
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);

    write_aside(path, |out| {
        let mut put = |bytes: &[u8]| out.write_all(bytes).map_err(Error::io(path, "write"));
        put(&header)?;
        for (at, planned) in tensors.iter().enumerate() {
            let tensor = make(at)?;
            if tensor.dims() != planned.shape {
                let problem = format!("{}: shape {:?} for {:?}", planned.name, tensor.dims(), planned.shape);
                return Err(Error::Compute(problem.into()));
            }
            let values = planned.values();
            let flat = tensor.flatten_all()?;
            for start in (0..values).step_by(SLAB_VALUES) {
                let slab = flat.narrow(0, start, SLAB_VALUES.min(values - start))?;
                for bytes in stored(&slab, planned.dtype)? {
                    put(&bytes)?;
                }
            }
            let gap = planned.bytes().next_multiple_of(ALIGNMENT) - planned.bytes();
            put(&vec![0; gap as usize])?;
        }
        Ok(())
    })?;
    Ok(offset)
}

/// Values in their stored form, in pieces that were made in parallel. Blocks do not reach over a piece's end: pieces
/// and slabs are whole multiples of every block size.
fn stored(slab: &Tensor, dtype: GgmlDType) -> candle_core::Result<Vec<Vec<u8>>> {
    const PIECE: usize = 1 << 16;
    let values = slab.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.to_vec1::<f32>()?;
    // Tensors of their own: candle quantises the whole storage behind a view.
    let one = |piece: &[f32]| {
        let piece = Tensor::from_slice(piece, piece.len(), &Device::Cpu)?;
        Ok(QTensor::quantize(&piece, dtype)?.data()?.into_owned())
    };
    values.par_chunks(PIECE).map(one).collect()
}

fn kind_of(value: &Value) -> u32 {
    match value {
        Value::U8(_) => 0,
        Value::I8(_) => 1,
        Value::U16(_) => 2,
        Value::I16(_) => 3,
        Value::U32(_) => 4,
        Value::I32(_) => 5,
        Value::F32(_) => 6,
        Value::Bool(_) => 7,
        Value::String(_) => 8,
        Value::Array(_) => 9,
        Value::U64(_) => 10,
        Value::I64(_) => 11,
        Value::F64(_) => 12,
    }
}

/// An array's entries are of the kind of its first.
fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.extend(n.to_le_bytes()),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
        Value::Bool(flag) => out.push((*flag).into()),
        Value::String(text) => put_text(out, text),
        Value::Array(values) => {
            out.extend(values.first().map_or(4, kind_of).to_le_bytes());
            out.extend((values.len() as u64).to_le_bytes());
            values.iter().for_each(|value| put_value(out, value));
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}
