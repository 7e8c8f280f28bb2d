//! With feature `cuda`: compiles every `kernels/*.cu` to `$OUT_DIR/<name>.fatbin`, and lists them in
//! `$OUT_DIR/kernel_images.rs`: a slice of (name, machine code). Without: nothing.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Machine code for A100 (sm_80) and H100/H200 (sm_90a), and PTX that the driver of any later card translates.
const CODE: [&str; 2] =
    ["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    println!("cargo::rerun-if-changed=kernels");
    for variable in ["NVCC", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    match compile_all() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            println!("cargo::error={message}");
            ExitCode::FAILURE
        }
    }
}

fn compile_all() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let nvcc = nvcc();
    let folder = std::fs::read_dir("kernels").map_err(|e| format!("kernels: cannot list the folder: {e}"))?;
    let mut kernels: Vec<PathBuf> = folder
        .map(|entry| entry.map(|e| e.path()).map_err(|e| format!("kernels: cannot list the folder: {e}")))
        .collect::<Result<_, _>>()?;
    kernels.retain(|path| path.extension().is_some_and(|e| e == "cu"));
    kernels.sort();
    let images = kernels.iter().map(|kernel| compile(&nvcc, kernel, &out)).collect::<Result<String, _>>()?;
    let list = out.join("kernel_images.rs");
    std::fs::write(&list, format!("&[{images}]"))
        .map_err(|e| format!("{}: cannot write: {e}", list.display()))
}

/// `$NVCC`, else the compiler of `$CUDA_HOME`, else the one on `PATH`.
fn nvcc() -> OsString {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc;
    }
    match env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc")) {
        Some(nvcc) if nvcc.is_file() => nvcc.into(),
        _ => "nvcc".into(),
    }
}

/// Returns the kernel's line in the list of images.
fn compile(nvcc: &OsString, kernel: &Path, out: &Path) -> Result<String, String> {
    let name = kernel.file_stem().and_then(|n| n.to_str()).ok_or("kernels: a file name that is not UTF-8")?;
    let fatbin = out.join(name).with_extension("fatbin");
    let status = Command::new(nvcc)
        .args(["-fatbin", "-O3", "-std=c++17", "-lineinfo"])
        .args(CODE)
        .arg("-o")
        .arg(&fatbin)
        .arg(kernel)
        .status()
        .map_err(|e| {
            format!(
                "feature cuda needs the compiler nvcc, and {} did not start: {e}. Run \
                 scripts/cuda/setup-cuda.sh and source the env.sh it names (no GPU needed), set NVCC, \
                 or build without --features cuda",
                Path::new(nvcc).display()
            )
        })?;
    if !status.success() {
        return Err(format!("{}: nvcc failed ({status}); its messages are above", kernel.display()));
    }
    Ok(format!("({name:?}, include_bytes!({fatbin:?})),\n"))
}
