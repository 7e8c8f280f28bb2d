//! With feature `cuda`: compiles every `kernels/*.cu` to `$OUT_DIR/<name>.fatbin`, and lists them in
//! `$OUT_DIR/kernel_images.rs`: a slice of (name, machine code). Without: nothing.

use std::env;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Machine code for A100 (sm_80) and H100/H200 (sm_90a), and PTX that the driver of any later card translates.
const CODE: [&str; 2] =
    ["-gencode=arch=compute_80,code=[sm_80,compute_80]", "-gencode=arch=compute_90a,code=sm_90a"];

const FLAGS: [&str; 4] = ["-fatbin", "-O3", "-std=c++17", "-lineinfo"];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=build.rs");
    say_what_is_built();
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

/// For `rlvr --version`: the commit, the features, and what kernels are compiled with.
fn say_what_is_built() {
    let cuda = env::var_os("CARGO_FEATURE_CUDA").is_some();
    let compiler = Command::new(nvcc()).arg("--version").output().ok().filter(|_| cuda);
    let release = compiler.and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Some(text.split_once("release ")?.1.split(',').next()?.to_string())
    });
    let built = match (cuda, release) {
        (false, _) => "not built in; cargo build --release --features cuda".to_string(),
        (true, Some(release)) => format!("kernels by nvcc {release} for sm_80, sm_90a, later cards by PTX"),
        (true, None) => "built in".to_string(),
    };
    println!("cargo::rustc-env=RLVR_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
    println!("cargo::rustc-env=RLVR_FEATURES={}", if cuda { "cuda" } else { "none" });
    println!("cargo::rustc-env=RLVR_CUDA={built}");
}

/// Of the clone, and whether it was built with edits; or of the package.
fn commit() -> Option<String> {
    let git = |words: &[&str]| {
        let output =
            Command::new("git").args(words).output().ok().filter(|output| output.status.success())?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_string())
    };
    // A package that was unpacked inside of some other clone is not of that clone.
    let whole = git(&["ls-files", "--error-unmatch", "build.rs"]).and_then(|_| git(&["rev-parse", "HEAD"]));
    let Some(whole) = whole else {
        let packaged = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
        return Some(packaged.split_once("\"sha1\": \"")?.1.get(..12)?.to_string());
    };
    let built_from = ["src", "kernels", "configs", "tasks", "Cargo.toml", "Cargo.lock"];
    for path in built_from {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]).filter(|log| Path::new(log).exists()) {
        println!("cargo::rerun-if-changed={log}");
    }
    let edits = git(&[&["status", "--porcelain", "--"], &built_from[..]].concat()).unwrap_or_default();
    let edited = if edits.is_empty() { "" } else { " and edits" };
    Some(format!("{}{edited}", whole.get(..12)?))
}

fn compile_all() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: run this through cargo")?);
    let nvcc = nvcc();
    let folder = std::fs::read_dir("kernels").map_err(|e| format!("kernels: cannot list the folder: {e}"))?;
    let mut files: Vec<PathBuf> = folder
        .map(|entry| entry.map(|e| e.path()).map_err(|e| format!("kernels: cannot list the folder: {e}")))
        .collect::<Result<_, _>>()?;
    files.sort();
    let (mut images, mut headers) = (String::new(), Vec::new());
    for path in files.iter().filter(|path| path.extension().is_some_and(|e| e == "cuh")) {
        headers.push(std::fs::read(path).map_err(|e| format!("{}: cannot read: {e}", path.display()))?);
    }
    for kernel in files.iter().filter(|path| path.extension().is_some_and(|e| e == "cu")) {
        let source = std::fs::read(kernel).map_err(|e| format!("{}: cannot read: {e}", kernel.display()))?;
        let mut key = DefaultHasher::new();
        (&nvcc, FLAGS, CODE, &headers, source).hash(&mut key);
        images += &compile(&nvcc, kernel, &out, key.finish())?;
    }
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

/// Compiles a kernel, unless what went into it is what went into it the last time: the `key`. Returns its line in
/// the list of images.
fn compile(nvcc: &OsString, kernel: &Path, out: &Path, key: u64) -> Result<String, String> {
    let name = kernel.file_stem().and_then(|n| n.to_str()).ok_or("kernels: a file name that is not UTF-8")?;
    let fatbin = out.join(name).with_extension("fatbin");
    let (made_from, key) = (out.join(name).with_extension("key"), key.to_string());
    let line = format!("({name:?}, include_bytes!({fatbin:?})),\n");
    if fatbin.is_file() && std::fs::read_to_string(&made_from).is_ok_and(|of| of == key) {
        return Ok(line);
    }
    let _ = std::fs::remove_file(&made_from); // an interrupted compiler leaves half a file
    let status =
        Command::new(nvcc).args(FLAGS).args(CODE).arg("-o").arg(&fatbin).arg(kernel).status().map_err(
            |e| {
                format!(
                    "feature cuda needs the compiler nvcc, and {} did not start: {e}. Run \
                 scripts/cuda/setup-cuda.sh and source the env.sh it names (no GPU needed), set NVCC, \
                 or build without --features cuda",
                    Path::new(nvcc).display()
                )
            },
        )?;
    if !status.success() {
        return Err(format!("{}: nvcc failed ({status}); its messages are above", kernel.display()));
    }
    std::fs::write(&made_from, key).map_err(|e| format!("{}: cannot write: {e}", made_from.display()))?;
    Ok(line)
}
