//! The GGUF container, versions 2 and 3: metadata, the list of tensors, and one tensor at a time as f32.
//! Layout: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{TensorInfo, Value};
use candle_core::{Device, Shape, Tensor};

use crate::error::{Error, Result};
use crate::formats::file::reason;
use crate::formats::gguf::tensor_type::TensorType;

const MAX_DIMENSIONS: u32 = 4;
const MAX_NESTING: usize = 4;
const FETCH_AGAIN: &str = "The download or copy was probably cut short: fetch the file again";

/// An open GGUF file whose header has been read, and the tensors of the files that were appended.
pub struct Gguf {
    path: PathBuf,
    files: Vec<Data>,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, Stored>,
}

struct Data {
    file: File,
    /// Byte where tensor data starts.
    offset: u64,
}

struct Stored {
    /// Rows first, as everywhere outside ggml.
    shape: Vec<usize>,
    kind: TensorType,
    /// Which of the files has it.
    file: usize,
    /// Bytes from the start of that file's data.
    offset: u64,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(Error::io(path, "open"))?;
        let size = file.metadata().map_err(Error::io(path, "read"))?.len();
        let mut header = Header { path, input: BufReader::new(&file), at: 0, size };
        if header.take::<4>().ok() != Some(*b"GGUF") {
            return Err(header.broken("not a GGUF file (it does not start with GGUF)", "Give a .gguf file"));
        }
        let version = header.u32()?;
        if !matches!(version, 2 | 3) {
            return Err(header.broken(
                &format!("GGUF version {version} is not supported"),
                "Convert the model with a current version of llama.cpp, little-endian",
            ));
        }
        let (tensor_count, metadata_count) = (header.u64()?, header.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..metadata_count {
            let key = header.text()?;
            let kind = header.u32()?;
            metadata.insert(key, header.value(kind, 0)?);
        }
        let mut tensors = BTreeMap::new();
        for _ in 0..tensor_count {
            let name = header.text()?;
            let dimensions = header.u32()?;
            if dimensions > MAX_DIMENSIONS {
                return Err(header.broken(&format!("tensor {name} has {dimensions} dimensions"), FETCH_AGAIN));
            }
            let mut shape = Vec::new();
            for _ in 0..dimensions {
                shape.push(usize::try_from(header.u64()?).unwrap_or(usize::MAX));
            }
            shape.reverse();
            let stored =
                Stored { shape, kind: TensorType::of(header.u32()?), file: 0, offset: header.u64()? };
            if tensors.insert(name.clone(), stored).is_some() {
                return Err(
                    header.broken(&format!("tensor {name} is stored twice"), "Convert the model again")
                );
            }
        }
        let end = header.at;
        let mut gguf = Self { path: path.into(), files: Vec::new(), metadata, tensors };
        let alignment = gguf.size("general.alignment")?.unwrap_or(32) as u64;
        if alignment == 0 || alignment > 1 << 20 {
            let problem = format!("{alignment} is not an alignment in bytes");
            return Err(gguf.wrong("general.alignment", problem, "Convert the model again"));
        }
        gguf.files.push(Data { file, offset: end.next_multiple_of(alignment) });
        Ok(gguf)
    }

    /// Takes the tensors of another part of the same model; its metadata are left.
    pub fn append(&mut self, other: Self) -> Result<()> {
        let first = self.files.len();
        for (name, mut stored) in other.tensors {
            if self.tensors.contains_key(&name) {
                let fix = "Put the parts of one model into a folder of their own, under their names";
                let place = format!("{}: {name}", other.path.display());
                return Err(Error::input(place, "an earlier part has this tensor too", fix));
            }
            stored.file += first;
            self.tensors.insert(name, stored);
        }
        self.files.extend(other.files);
        Ok(())
    }

    /// The file's path, for errors.
    pub fn place(&self) -> String {
        self.path.display().to_string()
    }

    /// An error about one metadata key or tensor.
    pub fn wrong(&self, what: &str, problem: impl ToString, fix: &str) -> Error {
        Error::input(format!("{}: {what}", self.path.display()), problem, fix)
    }

    /// A count or an id, stored as any kind of integer.
    pub fn size(&self, key: &str) -> Result<Option<usize>> {
        let number = match self.metadata.get(key) {
            None => return Ok(None),
            Some(&Value::U8(n)) => Some(n.into()),
            Some(&Value::U16(n)) => Some(n.into()),
            Some(&Value::U32(n)) => Some(n.into()),
            Some(&Value::U64(n)) => Some(n),
            Some(&Value::I8(n)) => u64::try_from(n).ok(),
            Some(&Value::I16(n)) => u64::try_from(n).ok(),
            Some(&Value::I32(n)) => u64::try_from(n).ok(),
            Some(&Value::I64(n)) => u64::try_from(n).ok(),
            Some(_) => None,
        };
        let number = number.and_then(|n| usize::try_from(n).ok());
        number.map(Some).ok_or_else(|| {
            self.wrong(
                key,
                "not one number counting from 0",
                "Only models with the same value in every layer import",
            )
        })
    }

    /// [`Gguf::size`] of a key that must be there.
    pub fn required_size(&self, key: &str) -> Result<usize> {
        self.size(key)?.ok_or_else(|| self.wrong(key, "missing", "Convert the model again"))
    }

    /// A number; the f32 `9.9999997e-6` reads as the `1e-5` it was written for.
    pub fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::F32(x)) if x.is_finite() => Ok(x.to_string().parse().ok()),
            Some(Value::F64(x)) if x.is_finite() => Ok(Some(*x)),
            Some(_) => Err(self.wrong(key, "not a finite number", "Convert the model again")),
        }
    }

    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(_) => Err(self.wrong(key, "neither true nor false", "Convert the model again")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(key, "not a text", "Convert the model again")),
        }
    }

    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let Some(Value::Array(values)) = self.metadata.get(key) else {
            return Err(self.wrong(key, "missing, or not a list", "Convert the model again"));
        };
        let texts = values.iter().map(|value| match value {
            Value::String(text) => Some(text.as_str()),
            _ => None,
        });
        let texts = texts.collect::<Option<_>>();
        texts.ok_or_else(|| self.wrong(key, "not a list of texts", "Convert the model again"))
    }

    /// A list of i32 or u32, such as `tokenizer.ggml.token_type`; absent reads as `None`.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        let values = match self.metadata.get(key) {
            None => return Ok(None),
            Some(Value::Array(values)) => &values[..],
            Some(_) => &[Value::Bool(false)],
        };
        let integers = values.iter().map(|value| match *value {
            Value::I32(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            _ => None,
        });
        let integers = integers.collect::<Option<_>>();
        integers.map(Some).ok_or_else(|| self.wrong(key, "not a list of integers", "Convert the model again"))
    }

    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn shape(&self, tensor: &str) -> Option<&[usize]> {
        self.tensors.get(tensor).map(|stored| &stored.shape[..])
    }

    /// ggml's name of how the tensor is stored, and whether [`Gguf::dequantise`] can read it.
    pub fn kind(&self, tensor: &str) -> Option<(String, bool)> {
        self.tensors.get(tensor).map(|Stored { kind, .. }| (kind.label(), kind.dtype.is_some()))
    }

    /// One tensor in f32 on the CPU, rows first. Only one tensor's bytes are in memory.
    pub fn dequantise(&self, tensor: &str) -> Result<Tensor> {
        let stored = self.tensors.get(tensor);
        let readable =
            stored.and_then(|stored| Some((stored, self.files.get(stored.file)?, stored.kind.dtype?)));
        let Some((stored, data, dtype)) = readable else {
            return Err(self.wrong(tensor, "not a tensor that can be read", "Convert the model again"));
        };
        let shape = Shape::from(&stored.shape[..]);
        let info = TensorInfo { ggml_dtype: dtype, shape, offset: stored.offset };
        info.read(&mut &data.file, data.offset, &Device::Cpu)
            .and_then(|quantised| quantised.dequantize(&Device::Cpu))
            .map_err(|e| self.wrong(tensor, reason(&e), FETCH_AGAIN))
            .and_then(|values| match values.flatten_all()?.to_vec1::<f32>()?.iter().all(|x| x.is_finite()) {
                true => Ok(values),
                false => Err(self.wrong(tensor, "holds a NaN or an infinity", FETCH_AGAIN)),
            })
    }
}

/// Reads the header front to back. No length is trusted before the file is known to be that long.
struct Header<'a> {
    path: &'a Path,
    input: BufReader<&'a File>,
    /// Bytes read so far.
    at: u64,
    /// Bytes of the file.
    size: u64,
}

impl Header<'_> {
    fn broken(&self, problem: &str, fix: &str) -> Error {
        Error::input(self.path.display(), problem, fix)
    }

    /// The next `count` bytes.
    fn bytes(&mut self, count: u64) -> Result<Vec<u8>> {
        if count > self.size - self.at {
            return Err(self.broken("the file ends inside its header", FETCH_AGAIN));
        }
        let mut bytes = vec![0; count as usize];
        self.input.read_exact(&mut bytes).map_err(Error::io(self.path, "read"))?;
        self.at += count;
        Ok(bytes)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        if N as u64 > self.size - self.at {
            return Err(self.broken("the file ends inside its header", FETCH_AGAIN));
        }
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(Error::io(self.path, "read"))?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u64()?;
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map_err(|_| self.broken("a text in the header is not UTF-8", FETCH_AGAIN))
    }

    fn value(&mut self, kind: u32, nesting: usize) -> Result<Value> {
        Ok(match kind {
            0 => Value::U8(u8::from_le_bytes(self.take()?)),
            1 => Value::I8(i8::from_le_bytes(self.take()?)),
            2 => Value::U16(u16::from_le_bytes(self.take()?)),
            3 => Value::I16(i16::from_le_bytes(self.take()?)),
            4 => Value::U32(self.u32()?),
            5 => Value::I32(i32::from_le_bytes(self.take()?)),
            6 => Value::F32(f32::from_le_bytes(self.take()?)),
            7 => Value::Bool(self.take::<1>()? != [0]),
            8 => Value::String(self.text()?),
            9 if nesting < MAX_NESTING => {
                let kind = self.u32()?;
                let length = self.u64()?;
                // Grown as it is read: a false length runs into the end of the file, not out of memory.
                let mut values = Vec::new();
                for _ in 0..length {
                    values.push(self.value(kind, nesting + 1)?);
                }
                Value::Array(values)
            }
            10 => Value::U64(self.u64()?),
            11 => Value::I64(i64::from_le_bytes(self.take()?)),
            12 => Value::F64(f64::from_le_bytes(self.take()?)),
            other => {
                return Err(self.broken(&format!("metadata of an unknown kind ({other})"), FETCH_AGAIN));
            }
        })
    }
}
