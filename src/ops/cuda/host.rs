//! Copies from a device that are waited for: through a buffer of pinned memory, then out of it.
//!
//! A copy into memory that the driver cannot pin is made by the driver through a buffer of its own, and that it has
//! ended when the call returns is a habit of drivers, not a promise. Here the stream is waited for before a byte is read.
//!
//! # Why this is sound
//! The buffer is as large as a copy at most, is not freed, and is behind a mutex from before the copy until its bytes
//! have been taken. The address is of a live tensor of the device (`launch::address`), whose elements are of type `T`.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::cudarc::driver::result;
use candle_core::{DType, Device, Tensor, WithDType};
use half::bf16;

use super::launch::{address, cuda};
use crate::error::Result;
use crate::ops::fault::fault;

/// Bytes of the buffer; larger tensors go through it piece by piece.
const BUFFER: usize = 4 << 20;
/// Pinned for every context of the process.
const PORTABLE: u32 = 1;

struct Pinned(*mut c_void);
// SAFETY: memory of the process, reached by one thread at a time through the mutex.
unsafe impl Send for Pinned {}

static PINNED: Mutex<Option<Pinned>> = Mutex::new(None);

/// The elements of a contiguous tensor on a CUDA device, in order.
///
/// # Errors
/// When `T` is not the tensor's type, or earlier work on the device failed: a fault inside a kernel shows here.
pub fn read<T: WithDType>(tensor: &Tensor) -> Result<Vec<T>> {
    if tensor.dtype() != T::DTYPE {
        return Err(fault(format!("a {:?} tensor is read as {:?}", tensor.dtype(), T::DTYPE)));
    }
    let device = cuda(tensor.device())?;
    let (from, count) = (address(tensor, device)?, tensor.elem_count());
    let stream = device.cuda_stream();
    let failed = |e: &dyn std::fmt::Display| fault(format!("copying {count} elements to the host: {e}"));
    stream.context().bind_to_thread().map_err(|e| failed(&e))?;
    let mut pinned = PINNED.lock().unwrap_or_else(PoisonError::into_inner);
    let buffer = match pinned.take() {
        Some(buffer) => pinned.insert(buffer),
        // SAFETY: kept for the life of the process.
        None => {
            pinned.insert(Pinned(unsafe { result::malloc_host(BUFFER, PORTABLE) }.map_err(|e| failed(&e))?))
        }
    };
    let mut values: Vec<T> = Vec::with_capacity(count);
    let step = BUFFER / size_of::<T>();
    for start in (0..count).step_by(step) {
        let elements = step.min(count - start);
        let bytes = elements * size_of::<T>();
        // SAFETY: the buffer has BUFFER bytes, which any values are for a byte; source and length lie in the tensor. After
        // the wait they are `elements` values of T, for which `values` has room from `start` on.
        unsafe {
            let piece = std::slice::from_raw_parts_mut(buffer.0.cast::<u8>(), bytes);
            result::memcpy_dtoh_async(piece, from + (start * size_of::<T>()) as u64, stream.cu_stream())
                .map_err(|e| failed(&e))?;
            stream.synchronize().map_err(|e| failed(&e))?;
            std::ptr::copy_nonoverlapping(buffer.0.cast::<T>(), values.as_mut_ptr().add(start), elements);
            values.set_len(start + elements);
        }
    }
    Ok(values)
}

/// The tensor in host memory. Of a view, its own elements go over, not all of what it is a view of.
///
/// # Errors
/// As [`read`]; for other types than numbers of weights, activations and indices.
pub fn to_host(tensor: &Tensor) -> Result<Tensor> {
    let shape = tensor.shape().clone();
    Ok(match tensor.dtype() {
        DType::F32 => Tensor::from_vec(read::<f32>(tensor)?, shape, &Device::Cpu)?,
        DType::BF16 => Tensor::from_vec(read::<bf16>(tensor)?, shape, &Device::Cpu)?,
        DType::U32 => Tensor::from_vec(read::<u32>(tensor)?, shape, &Device::Cpu)?,
        DType::U8 => Tensor::from_vec(read::<u8>(tensor)?, shape, &Device::Cpu)?,
        dtype => return Err(fault(format!("a {dtype:?} tensor is none that is read back"))),
    })
}
