//! Sums and copies among the GPUs of several processes, by NVIDIA's NCCL. It is looked for when it is wanted first: the program runs without.
//!
//! # Why this is sound
//! The functions are those of nccl.h, found by their names, with the types that stand there. A communicator is behind a mutex: one thread at a
//! time hands it to the library, and none does after it was given back. Addresses are of live, contiguous tensors of the communicator's
//! device (`launch::address`), and a call reads or writes as many elements as the tensor has. Calls go into the device's one stream, behind
//! the kernels that made the tensors and before those that use them, so that memory which is freed after a call is used again behind it. Other
//! processes write through NCCL's own buffers alone.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::null_mut;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use candle_core::{CudaDevice, DType, Device, Tensor};

use super::launch::{address, cuda};
use crate::error::{Error, Result};
use crate::ops::fault::fault;
use crate::trail;

const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Where RLVR_CUDA_LIBRARY_PATH names no others.
const FOLDERS: &str =
    "/usr/local/cuda/lib64:/usr/local/cuda/targets/x86_64-linux/lib:/usr/local/nvidia/lib64";
const FIX: &str = "Run again with NCCL_DEBUG=INFO, which says why";
/// Bytes of what the ranks of a communicator have in common.
pub const ID_BYTES: usize = 128;

// ncclResult_t, ncclDataType_t, ncclRedOp_t.
const SUCCESS: c_int = 0;
const SYSTEM_ERROR: c_int = 2;
const REMOTE_ERROR: c_int = 6;
const IN_PROGRESS: c_int = 7;
const FLOAT32: c_int = 7;
const BFLOAT16: c_int = 9;
const SUM: c_int = 0;

#[repr(C)]
struct Id([c_char; ID_BYTES]);
/// ncclComm_t and cudaStream_t.
type Handle = *mut c_void;
type ReduceFn =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, c_int, Handle, Handle) -> c_int;
type BroadcastFn =
    unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, Handle, Handle) -> c_int;

struct Library {
    version: unsafe extern "C" fn(*mut c_int) -> c_int,
    unique_id: unsafe extern "C" fn(*mut Id) -> c_int,
    init_rank: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> c_int,
    abort: unsafe extern "C" fn(Handle) -> c_int,
    async_error: unsafe extern "C" fn(Handle, *mut c_int) -> c_int,
    group_start: unsafe extern "C" fn() -> c_int,
    group_end: unsafe extern "C" fn() -> c_int,
    reduce: ReduceFn,
    broadcast: BroadcastFn,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    last_error: unsafe extern "C" fn(Handle) -> *const c_char,
}

impl Library {
    /// Opened for the life of the process.
    fn open() -> std::result::Result<Self, String> {
        let folders = std::env::var_os("RLVR_CUDA_LIBRARY_PATH").unwrap_or_else(|| FOLDERS.into());
        let placed = std::env::split_paths(&folders).flat_map(|folder| NAMES.map(|name| folder.join(name)));
        let mut paths = NAMES.iter().map(PathBuf::from).chain(placed);
        // SAFETY: what the library does when it is loaded is NVIDIA's; this program relies on nothing that it could change.
        let opened = paths.find_map(|path| unsafe { libloading::Library::new(path) }.ok());
        let library: &libloading::Library = Box::leak(Box::new(opened.ok_or("libnccl.so.2 was not found")?));
        macro_rules! function {
            ($name:literal) => {
                // SAFETY: the field's type is that of the function of this name in nccl.h.
                *unsafe { library.get($name) }
                    .map_err(|error| format!("libnccl is older than 2.13 or damaged ({error})"))?
            };
        }
        Ok(Self {
            version: function!(b"ncclGetVersion\0"),
            unique_id: function!(b"ncclGetUniqueId\0"),
            init_rank: function!(b"ncclCommInitRank\0"),
            abort: function!(b"ncclCommAbort\0"),
            async_error: function!(b"ncclCommGetAsyncError\0"),
            group_start: function!(b"ncclGroupStart\0"),
            group_end: function!(b"ncclGroupEnd\0"),
            reduce: function!(b"ncclReduce\0"),
            broadcast: function!(b"ncclBroadcast\0"),
            error_string: function!(b"ncclGetErrorString\0"),
            last_error: function!(b"ncclGetLastError\0"),
        })
    }

    /// What the library says of a status; `comm` is null where there is none.
    fn words(&self, status: c_int, comm: Handle) -> String {
        let text = |words: *const c_char| match words.is_null() {
            true => String::new(),
            // SAFETY: both functions return null or a text that ends with a zero and stays until the next call.
            false => unsafe { CStr::from_ptr(words) }.to_string_lossy().trim().to_string(),
        };
        // SAFETY: a status is a number; a communicator is live or null.
        let (what, last) = unsafe { (text((self.error_string)(status)), text((self.last_error)(comm))) };
        if last.is_empty() { what } else { format!("{what}: {last}") }
    }
}

fn library() -> std::result::Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<std::result::Result<Library, String>> = OnceLock::new();
    LIBRARY.get_or_init(Library::open).as_ref().map_err(String::as_str)
}

fn needed() -> Result<&'static Library> {
    library().map_err(|why| Error::input("NCCL", why, FIX))
}

/// Its version, `2.28.9`, or why it cannot be used here.
pub fn nccl_version() -> std::result::Result<String, String> {
    let library = library()?;
    let mut version = 0;
    // SAFETY: writes one int.
    match unsafe { (library.version)(&mut version) } {
        SUCCESS => Ok(format!("{}.{}.{}", version / 10_000, version % 10_000 / 100, version % 100)),
        status => Err(library.words(status, null_mut())),
    }
}

/// What all ranks of one communicator make it with; one of them asks for it.
///
/// # Errors
/// NCCL finds no network.
pub fn nccl_id() -> Result<Vec<u8>> {
    let library = needed()?;
    let mut id = Id([0; ID_BYTES]);
    // SAFETY: writes the struct.
    match unsafe { (library.unique_id)(&mut id) } {
        SUCCESS => Ok(id.0.map(|byte| byte as u8).to_vec()),
        status => Err(beginning(library.words(status, null_mut()))),
    }
}

fn beginning(words: String) -> Error {
    Error::input("NCCL", format!("does not start: {words}"), FIX)
}

/// Freed by nobody else.
struct Comm(Handle);
// SAFETY: NCCL binds a communicator to no thread; the mutex around it lets one at a time use it.
unsafe impl Send for Comm {}

/// This process among those that exchange tensors of their GPUs. All make the same calls in the same order.
pub struct Communicator {
    library: &'static Library,
    comm: Mutex<Comm>,
    device: CudaDevice,
    rank: usize,
}

/// Elements that go to `root`, or come from there.
struct Call {
    from: u64,
    to: u64,
    count: usize,
    dtype: c_int,
    root: c_int,
}

impl Communicator {
    /// Returns when all `size` ranks have called this with the same `id`.
    ///
    /// # Errors
    /// NCCL is not there, or refuses: two ranks on one GPU, no network between them.
    pub fn new(device: &Device, rank: usize, size: usize, id: &[u8]) -> Result<Self> {
        let (library, device) = (needed()?, cuda(device)?.clone());
        let id: [u8; ID_BYTES] =
            id.try_into().map_err(|_| fault(format!("NCCL: an id of {} bytes", id.len())))?;
        bind(&device)?;
        let mut comm = null_mut();
        trail::begin("nccl init");
        // SAFETY: writes the handle; the device's context is this thread's.
        let status = unsafe {
            (library.init_rank)(&mut comm, size as c_int, Id(id.map(|byte| byte as c_char)), rank as c_int)
        };
        match status {
            SUCCESS => Ok(Self { library, comm: Mutex::new(Comm(comm)), device, rank }),
            status => Err(beginning(library.words(status, null_mut()))),
        }
    }

    /// Sums over the ranks, many in one go: what all give as the first of each goes to the rank that the third names, which has room for it, the
    /// second. f32 or bf16.
    ///
    /// # Errors
    /// Tensors that are not contiguous, differ or lie elsewhere; what NCCL refuses; a rank that is gone.
    pub fn reduce(&self, sums: &[(Tensor, Option<Tensor>, usize)]) -> Result<()> {
        trail::begin("nccl reduce");
        let calls = sums.iter().map(|(from, to, root)| {
            let fits = to
                .as_ref()
                .is_none_or(|to| (to.elem_count(), to.dtype()) == (from.elem_count(), from.dtype()));
            if !fits || to.is_some() != (*root == self.rank) {
                return Err(fault("NCCL: the sum has no place of its size at its root"));
            }
            let to = to.as_ref().map_or(Ok(0), |to| address(to, &self.device))?;
            self.call(from, to, *root)
        });
        self.run("sum", &calls.collect::<Result<Vec<_>>>()?, |call, comm, stream| {
            let (from, to) = (call.from as *const c_void, call.to as *mut c_void);
            // SAFETY: see the head of this file.
            unsafe { (self.library.reduce)(from, to, call.count, call.dtype, SUM, call.root, comm, stream) }
        })
    }

    /// Copies to all ranks, many in one go: each tensor is on every rank what it is on the rank beside it. f32 or bf16.
    ///
    /// # Errors
    /// As [`Self::reduce`].
    pub fn broadcast(&self, copies: &[(Tensor, usize)]) -> Result<()> {
        trail::begin("nccl broadcast");
        let calls =
            copies.iter().map(|(tensor, root)| self.call(tensor, address(tensor, &self.device)?, *root));
        self.run("broadcast", &calls.collect::<Result<Vec<_>>>()?, |call, comm, stream| {
            let (from, to) = (call.from as *const c_void, call.to as *mut c_void);
            // SAFETY: see the head of this file; NCCL allows both places to be one.
            unsafe { (self.library.broadcast)(from, to, call.count, call.dtype, call.root, comm, stream) }
        })
    }

    fn call(&self, from: &Tensor, to: u64, root: usize) -> Result<Call> {
        let dtype = match from.dtype() {
            DType::F32 => FLOAT32,
            DType::BF16 => BFLOAT16,
            other => return Err(fault(format!("NCCL is given no {other:?}"))),
        };
        Ok(Call {
            from: address(from, &self.device)?,
            to,
            count: from.elem_count(),
            dtype,
            root: root as c_int,
        })
    }

    fn run(&self, what: &str, calls: &[Call], one: impl Fn(&Call, Handle, Handle) -> c_int) -> Result<()> {
        if calls.is_empty() {
            return Ok(());
        }
        let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
        bind(&self.device)?;
        let stream = self.device.cuda_stream();
        // SAFETY: takes nothing; whatever happens in between, the group is ended.
        let mut status = unsafe { (self.library.group_start)() };
        for call in calls {
            if status == SUCCESS {
                status = one(call, comm.0, stream.cu_stream().cast());
            }
        }
        // SAFETY: as above.
        let ended = unsafe { (self.library.group_end)() };
        match if status == SUCCESS { ended } else { status } {
            SUCCESS | IN_PROGRESS => Ok(()),
            status => Err(self.failed(what, status, &comm)),
        }
    }

    /// Waits until all that was asked for is done on this rank.
    ///
    /// # Errors
    /// What NCCL found meanwhile, a rank that it cannot reach for one; a device that is lost.
    pub fn wait(&self) -> Result<()> {
        trail::begin("nccl wait");
        let lost =
            |error: &dyn std::fmt::Display| fault(format!("the device failed at earlier work: {error}"));
        let done = self.device.cuda_stream().record_event(None).map_err(|e| lost(&e))?;
        while !done.try_is_complete().map_err(|e| lost(&e))? {
            let comm = self.comm.lock().unwrap_or_else(PoisonError::into_inner);
            let mut found = SUCCESS;
            // SAFETY: a live communicator; writes one int.
            let status = unsafe { (self.library.async_error)(comm.0, &mut found) };
            if let Some(status) = [status, found].into_iter().find(|s| ![SUCCESS, IN_PROGRESS].contains(s)) {
                return Err(self.failed("go on", status, &comm));
            }
            drop(comm);
            std::thread::sleep(Duration::from_micros(50));
        }
        Ok(())
    }

    fn failed(&self, what: &str, status: c_int, comm: &Comm) -> Error {
        let problem = format!("NCCL cannot {what}: {}. {FIX}", self.library.words(status, comm.0));
        match status {
            SYSTEM_ERROR | REMOTE_ERROR => Error::RankLost { problem },
            _ => fault(problem),
        }
    }
}

fn bind(device: &CudaDevice) -> Result<()> {
    let bound = device.cuda_stream().context().bind_to_thread();
    bound.map_err(|error| fault(format!("the device cannot be used: {error}")))
}

impl Drop for Communicator {
    /// Aborted, not waited for: a rank that ends for an error has others waiting in it.
    fn drop(&mut self) {
        let comm = self.comm.get_mut().unwrap_or_else(PoisonError::into_inner);
        if bind(&self.device).is_ok() {
            // SAFETY: a live communicator, of which this is the last use.
            unsafe { (self.library.abort)(comm.0) };
        }
    }
}
