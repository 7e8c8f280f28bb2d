//! Opening a CUDA device, and what can be asked of it.

use std::time::Instant;

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent, DriverError, sys};
use candle_core::{CudaDevice, Device};

use super::description::Description;
use super::gemm;
use super::launch::{cuda, driver_version, forget_events, pool_attribute, set_pool_attribute, version};
use crate::error::{Error, Result};
use crate::ops::fault::fault;

/// The CUDA device `ordinal`, counted from zero among those that CUDA_VISIBLE_DEVICES leaves.
///
/// Memory that tensors give back stays with this program for the next ones until it ends.
///
/// # Errors
/// When there is no driver, no such device, or one of CUDA's libraries cannot be loaded; the error says the fix.
pub fn device(ordinal: usize) -> Result<Device> {
    let place = format!("device cuda:{ordinal}");
    let count = CudaContext::device_count().map_err(|e| no_driver(&place, e))?;
    if ordinal >= count as usize {
        let seen = match count {
            1 => "the driver shows one device, cuda:0".to_string(),
            n => format!("the driver shows {n} devices"),
        };
        return Err(Error::input(place, seen, "Choose one of those, or check CUDA_VISIBLE_DEVICES"));
    }
    let device = Device::new_cuda_with_stream(ordinal).map_err(|e| {
        let text = e.to_string();
        let what = text.lines().next().unwrap_or("unknown error").to_string();
        let fix = if what.to_lowercase().contains("cublas") || what.to_lowercase().contains("curand") {
            "Install the CUDA libraries cuBLAS and cuRAND, version 12 or 13, and where they are in no usual place \
             set RLVR_CUDA_LIBRARY_PATH to their folder"
        } else {
            "Check with nvidia-smi that the device is free and healthy"
        };
        Error::input(&place, format!("cannot be opened: {what}"), fix)
    })?;
    let inner = cuda(&device)?;
    forget_events(inner);
    if inner.cuda_stream().context().has_async_alloc() {
        set_pool_attribute(inner, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, u64::MAX)?;
    }
    gemm::prepare(inner)?;
    Ok(device)
}

/// The device of the rank with this number on its host. Launchers that show each process its own GPU alone have it as device 0.
pub fn of_local_rank(local_rank: usize) -> usize {
    match CudaContext::device_count() {
        Ok(1) => 0,
        _ => local_rank,
    }
}

/// Where on the host's bus the device is: the same from every process, whatever CUDA_VISIBLE_DEVICES shows it.
///
/// # Errors
/// When `device` is no CUDA device or is lost.
pub fn bus_id(device: &Device) -> Result<String> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_PCI_BUS_ID, CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID, CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
    };
    let stream = cuda(device)?.cuda_stream();
    let asked = |attribute| {
        let found = stream.context().attribute(attribute);
        found.map_err(|e| fault(format!("the device cannot be asked: {e}")))
    };
    let domain = asked(CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID)?;
    let (bus, slot) = (asked(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID)?, asked(CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID)?);
    Ok(format!("{domain:04x}:{bus:02x}:{slot:02x}"))
}

fn no_driver(place: &str, error: DriverError) -> Error {
    use sys::CUresult::*;
    let (problem, fix) = match error.0 {
        CUDA_ERROR_STUB_LIBRARY => (
            "no NVIDIA driver was found (libcuda.so.1)".to_string(),
            "Install the driver, in a container start it with --gpus all, or choose the device cpu",
        ),
        CUDA_ERROR_NO_DEVICE => (
            "the NVIDIA driver shows no device".to_string(),
            "Check nvidia-smi and CUDA_VISIBLE_DEVICES, or choose the device cpu",
        ),
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE => (
            format!("the NVIDIA driver's parts do not fit together ({error})"),
            "Restart the machine after a driver update, or reinstall the driver",
        ),
        _ => (
            format!("the NVIDIA driver does not start: {error}"),
            "Check with nvidia-smi, or choose the device cpu",
        ),
    };
    Error::input(place, problem, fix)
}

/// Name, versions and memory.
///
/// # Errors
/// When `device` is no CUDA device or is lost.
pub fn describe(device: &Device) -> Result<Description> {
    let device = cuda(device)?;
    let stream = device.cuda_stream();
    let context = stream.context();
    let lost = |e: DriverError| fault(format!("the device cannot be asked: {e}"));
    let (memory_free, memory_total) = context.mem_get_info().map_err(lost)?;
    let (major, minor) = context.compute_capability().map_err(lost)?;
    Ok(Description {
        name: context.name().map_err(lost)?,
        compute_capability: (major as u32, minor as u32),
        driver: version(driver_version()?, 1000, 10),
        toolkit: version(sys::CUDA_VERSION, 1000, 10),
        cublas: version(gemm::library_version(device)?, 10_000, 100),
        memory_free: memory_free as u64,
        memory_total: memory_total as u64,
        multiprocessors: count_multiprocessors(device)?,
    })
}

/// How many multiprocessors (SMs) the device has.
///
/// # Errors
/// When `device` is no CUDA device or is lost.
pub fn multiprocessors(device: &Device) -> Result<usize> {
    count_multiprocessors(cuda(device)?)
}

fn count_multiprocessors(device: &CudaDevice) -> Result<usize> {
    let count = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let found = device.cuda_stream().context().attribute(count);
    Ok(found.map_err(|e| fault(format!("the device cannot be asked: {e}")))? as usize)
}

/// Waits until the device has done all it was given. A fault inside a kernel shows here.
///
/// # Errors
/// When `device` is no CUDA device, or a kernel failed.
pub fn synchronize(device: &Device) -> Result<()> {
    let waited = cuda(device)?.cuda_stream().synchronize();
    waited.map_err(|e| fault(format!("the device failed at earlier work: {e}")))
}

/// Bytes that tensors hold now, and 32 MiB that products work in; the driver's own memory is not in it.
///
/// # Errors
/// When `device` is no CUDA device, or one without memory pools.
pub fn memory_in_use(device: &Device) -> Result<u64> {
    pool_attribute(cuda(device)?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT)
}

/// The most bytes of [`memory_in_use`] at once, since the start or [`reset_memory_peak`].
///
/// # Errors
/// As there.
pub fn memory_peak(device: &Device) -> Result<u64> {
    pool_attribute(cuda(device)?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH)
}

/// Lets [`memory_peak`] begin again at what is in use now.
///
/// # Errors
/// As there.
pub fn reset_memory_peak(device: &Device) -> Result<()> {
    set_pool_attribute(cuda(device)?, sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH, 0)
}

/// Time that work takes on a device, without waiting for it: two marks in the stream. On the CPU, a clock.
pub struct Timer(Marks);

enum Marks {
    Clock { start: Instant, seconds: Option<f64> },
    Stream { device: CudaDevice, start: CudaEvent, stop: Option<CudaEvent> },
}

impl Timer {
    /// Work given to the device from now on counts.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn start(device: &Device) -> Result<Self> {
        Ok(Self(match device {
            Device::Cuda(device) => {
                Marks::Stream { device: device.clone(), start: mark(device)?, stop: None }
            }
            _ => Marks::Clock { start: Instant::now(), seconds: None },
        }))
    }

    /// Work given to the device after this does not count.
    ///
    /// # Errors
    /// When the device is lost.
    pub fn stop(&mut self) -> Result<()> {
        match &mut self.0 {
            Marks::Clock { start, seconds } => *seconds = Some(start.elapsed().as_secs_f64()),
            Marks::Stream { device, stop, .. } => *stop = Some(mark(device)?),
        }
        Ok(())
    }

    /// Seconds between start and stop; waits until the device is there.
    ///
    /// # Errors
    /// Before [`Timer::stop`], or when a kernel failed.
    pub fn seconds(&self) -> Result<f64> {
        let unstopped = || fault("a timer was read before it was stopped");
        match &self.0 {
            Marks::Clock { seconds, .. } => seconds.ok_or_else(unstopped),
            Marks::Stream { start, stop, .. } => {
                let milliseconds = start.elapsed_ms(stop.as_ref().ok_or_else(unstopped)?);
                Ok(f64::from(milliseconds.map_err(|e| fault(format!("timing on the device: {e}")))?) / 1e3)
            }
        }
    }
}

fn mark(device: &CudaDevice) -> Result<CudaEvent> {
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    device.cuda_stream().record_event(timed).map_err(|e| fault(format!("timing on the device: {e}")))
}
