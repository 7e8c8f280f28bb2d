//! Runs kernel files on the CPU, one fiber a CUDA thread (tests/doubles/kernel-shim).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use candle_core::DType;
use half::bf16;
use regex::Regex;
use rlvr::check::rounding;
use sha2::{Digest, Sha256};

use super::{project, seed};

/// The type of a kernel's elements; everything else is f32.
#[derive(Clone, Copy, Debug)]
pub enum Element {
    F32,
    Bf16,
}

impl Element {
    pub const ALL: [Self; 2] = [Self::F32, Self::Bf16];

    pub fn kernel(self, name: &str) -> String {
        format!("{name}_{}", if matches!(self, Self::F32) { "f32" } else { "bf16" })
    }

    pub fn bytes(self, values: &[f64]) -> Vec<u8> {
        match self {
            Self::F32 => values.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect(),
            // By way of f32: `bf16::from_f64` drops low bits before it rounds, and so takes more for ties than are.
            Self::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v as f32).to_le_bytes()).collect(),
        }
    }

    pub fn values(self, bytes: &[u8]) -> Vec<f64> {
        match self {
            Self::F32 => {
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect()
            }
            Self::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f64()).collect(),
        }
    }

    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::Bf16 => DType::BF16,
        }
    }
}

pub enum Argument {
    /// An array that comes back.
    Array(Vec<u8>),
    Null,
    Scalar(Vec<u8>),
}

pub fn array(element: Element, values: &[f64]) -> Argument {
    Argument::Array(element.bytes(values))
}

/// An array that the kernel must fill.
pub fn poison(element: Element, count: usize) -> Argument {
    array(element, &vec![f64::NAN; count])
}

pub fn f32s(values: &[f64]) -> Argument {
    array(Element::F32, values)
}

pub fn u32s(values: &[u32]) -> Argument {
    Argument::Array(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

pub fn scalar(value: u32) -> Argument {
    Argument::Scalar(value.to_le_bytes().to_vec())
}

pub fn real(value: f64) -> Argument {
    Argument::Scalar((value as f32).to_le_bytes().to_vec())
}

/// Fibers jump from one stack to another, which some compilers' FORTIFY takes for a fault.
const FLAGS: [&str; 3] = ["-std=c++20", "-O1", "-U_FORTIFY_SOURCE"];

/// A kernel file compiled for the CPU, with every kernel it declares.
#[derive(Clone)]
pub struct Program(PathBuf);

impl Program {
    /// `None`, said on stderr, where no C++20 compiler is installed.
    pub fn of_file(kernel: &str) -> Option<Self> {
        static COMPILED: Mutex<BTreeMap<String, Option<Program>>> = Mutex::new(BTreeMap::new());
        let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
        let compile = || {
            let file = project().join("kernels").join(format!("{kernel}.cu"));
            Self::compile(kernel, &std::fs::read_to_string(file).unwrap())
        };
        compiled.entry(kernel.into()).or_insert_with(compile).clone()
    }

    /// Compiles where this source, these headers and this compiler were not together the last time.
    pub fn compile(name: &str, source: &str) -> Option<Self> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let version = Command::new(&compiler).arg("--version").output().map(|out| out.stdout);
        let declared =
            Regex::new(r#"extern "C" __global__ void\s+(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("#).unwrap();
        let entries: Vec<String> =
            declared.captures_iter(source).map(|c| format!("on_cpu::entry(\"{0}\", {0})", &c[1])).collect();
        let serve = format!(
            "\n#include \"serve.h\"\nint main() {{ return on_cpu::serve({{{}}}); }}\n",
            entries.join(", ")
        );
        let code = [source, &serve].concat();
        let includes = ["kernels", "tests/doubles/kernel-shim"].map(|folder| project().join(folder));
        let mut hash = Sha256::new();
        hash.update(version.unwrap_or_default());
        hash.update(FLAGS.concat());
        hash.update(&code);
        includes.iter().flat_map(|folder| headers(folder)).for_each(|header| hash.update(header));
        let key: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();

        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-shim").join(name);
        let program = folder.join(key);
        if program.is_file() {
            return Some(Self(program));
        }
        let probe =
            Command::new(&compiler).args(["-std=c++20", "-x", "c++", "-fsyntax-only", "/dev/null"]).output();
        if !probe.is_ok_and(|p| p.status.success()) {
            eprintln!("{name}: no C++20 compiler ({compiler}): kernel not checked on the CPU");
            return None;
        }
        std::fs::create_dir_all(&folder).unwrap();
        // Aside, for another process may be at it too.
        let aside = tempfile::tempdir_in(&folder).unwrap();
        let (file, made) = (aside.path().join(format!("{name}.cpp")), aside.path().join(name));
        std::fs::write(&file, code).unwrap();
        let done = Command::new(compiler)
            .args(FLAGS)
            .args(includes.iter().flat_map(|folder| [OsStr::new("-I"), folder.as_os_str()]))
            .arg("-o")
            .args([&made, &file])
            .output()
            .unwrap();
        assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
        for old in std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            let _ = std::fs::remove_file(old);
        }
        std::fs::rename(made, &program).unwrap();
        Some(Self(program))
    }

    /// Runs one launch and returns every array argument's bytes, in order.
    #[track_caller]
    pub fn launch(
        &self,
        kernel: &str,
        grid: [u32; 3],
        threads: u32,
        arguments: Vec<Argument>,
    ) -> Vec<Vec<u8>> {
        self.launch_shared(kernel, grid, (threads, 0), arguments)
    }

    /// As `launch`, for `(threads, bytes of dynamic shared memory)` a block.
    #[track_caller]
    pub fn launch_shared(
        &self,
        kernel: &str,
        grid: [u32; 3],
        (threads, shared_bytes): (u32, u32),
        arguments: Vec<Argument>,
    ) -> Vec<Vec<u8>> {
        let out = self.output(kernel, [grid, [threads, 1, 1]], shared_bytes, &arguments);
        assert!(out.status.success(), "{kernel}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        let mut rest = out.stdout.as_slice();
        arguments
            .iter()
            .filter_map(|a| if let Argument::Array(bytes) = a { Some(bytes.len()) } else { None })
            .map(|bytes| rest.split_off(..bytes).expect("the arrays come back whole").to_vec())
            .collect()
    }

    /// Runs one launch of `[grid, block]`.
    pub fn output(
        &self,
        kernel: &str,
        sizes: [[u32; 3]; 2],
        shared_bytes: u32,
        arguments: &[Argument],
    ) -> Output {
        let mut input = (kernel.len() as u32).to_le_bytes().to_vec();
        input.extend(kernel.bytes());
        input.extend(sizes.into_iter().flatten().chain([shared_bytes]).flat_map(u32::to_le_bytes));
        for argument in arguments {
            match argument {
                Argument::Array(bytes) => {
                    input.extend((bytes.len() as u64).to_le_bytes());
                    input.extend(bytes);
                }
                Argument::Null => input.extend(u64::MAX.to_le_bytes()),
                Argument::Scalar(bytes) => input.extend(bytes),
            }
        }
        let mut child = Command::new(&self.0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The program reads all of its input before it writes any output.
        child.stdin.take().unwrap().write_all(&input).unwrap();
        child.wait_with_output().unwrap()
    }
}

/// Contents of a folder's headers, by name.
fn headers(folder: &Path) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        files.filter(|file| file.extension().is_some_and(|e| e == "h" || e == "cuh")).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// SplitMix64 of the test's seed.
pub struct Random {
    pub seed: u64,
    state: Cell<u64>,
}

impl Random {
    pub fn new() -> Self {
        let seed = seed::of_test();
        Self { seed, state: Cell::new(seed) }
    }

    fn next(&self) -> u64 {
        self.state.set(self.state.get().wrapping_add(0x9e3779b97f4a7c15));
        let mut z = self.state.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58476d1ce4e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d049bb133111eb);
        z ^ (z >> 31)
    }

    pub fn below(&self, end: u32) -> u32 {
        (self.next() % u64::from(end)) as u32
    }

    /// In [-size, size), and exactly representable in `element`.
    pub fn values(&self, element: Element, count: usize, size: f64) -> Vec<f64> {
        let raw: Vec<f64> = (0..count).map(|_| (self.next() as f64 / 2f64.powi(63) - 1.) * size).collect();
        element.values(&element.bytes(&raw))
    }
}

/// Relative error of a few f32 operations.
pub const F32_ERROR: f64 = 2e-6;

/// `got`, kept as `e`, is `want` but for an error of the f32 arithmetic of at most `error`, relative to the larger of
/// `want` and 1, and for the rounding to bf16.
#[track_caller]
pub fn close(what: &str, e: Element, got: &[f64], want: &[f64], error: f64) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let allowed = error * w.abs().max(1.) + rounding(e.dtype(), *w);
        let difference = (g - w).abs();
        assert!(
            difference <= allowed,
            "{what}[{i}] = {g}, want {w} (off by {difference:.2e}, {allowed:.2e} allowed)"
        );
    }
}
