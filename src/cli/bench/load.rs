//! `rlvr bench load`: how long a model's weights take from disk to where they compute, and the memory meanwhile.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bench;
use crate::cli::hub::folder;
use crate::cli::machine;
use crate::config::DeviceKind;
use crate::config::model::DtypeKind;
use crate::error::Error;
use crate::hub::Parts;
use crate::plan::shapes;
use crate::train::place;

const GIB: f64 = (1u64 << 30) as f64;

/// Load weights, and nothing else: seconds, GB/s and peak memory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: rlvr bench load --model smollm2-135m-instruct")]
pub struct Args {
    /// Load this model: a folder, short name or hub name.
    #[arg(long, conflicts_with_all = ["preset", "random_weights"], required_unless_present = "preset")]
    model: Option<PathBuf>,
    /// Shape of the model: smollm2-135m, smollm2-360m, llama-3.2-1b, llama-3.2-3b, qwen3-4b, llama-3.1-8b,
    /// qwen3-14b, or tiny to try the command.
    #[arg(long, requires = "random_weights")]
    preset: Option<String>,
    /// Write random weights of that shape in bf16, load them in a process of its own, and remove them.
    #[arg(long, requires = "preset")]
    random_weights: bool,
    /// Where the random weights are written. Default: the folder for temporary files.
    #[arg(long, value_name = "DIR", requires = "random_weights")]
    dir: Option<PathBuf>,
    /// Largest shard that is written, in GB (10^9 bytes).
    #[arg(long, default_value_t = 5.0, requires = "random_weights")]
    shard_gb: f64,
    #[arg(long, value_parser = machine::device(&[DeviceKind::Cpu, DeviceKind::Cuda]), default_value = "cpu")]
    device: DeviceKind,
    /// What the weights become. Default: bf16 on a GPU, f32 on the CPU.
    #[arg(long, value_parser = machine::dtype(&[DtypeKind::F32, DtypeKind::Bf16]))]
    dtype: Option<DtypeKind>,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    crate::cli::use_threads(args.threads)?;
    match (&args.model, &args.preset) {
        (Some(model), _) => load(args, &folder(model, Parts::Model)?.dir),
        (None, Some(preset)) => write_and_load(args, preset),
        (None, None) => Err(Error::input("rlvr bench load", "has nothing to load", "Add --model DIR").into()),
    }
}

/// Removed with what is in it.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write_and_load(args: &Args, preset: &str) -> Result<()> {
    let config = shapes::find(preset)?;
    if !(args.shard_gb > 0.0 && args.shard_gb < 1e6) {
        return Err(Error::config("--shard-gb", args.shard_gb, "above 0", "a shard holds something").into());
    }
    let root = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch(root.join(format!("rlvr-bench-load-{}", std::process::id())));
    let start = Instant::now();
    let bytes = bench::load::write_random(&scratch.0, &config, (args.shard_gb * 1e9) as u64)?;
    let seconds = start.elapsed().as_secs_f64();
    eprintln!("wrote {:.2} GB of random bf16 weights in {seconds:.1} s", bytes as f64 / 1e9);
    // Another process, so that making the weights is no part of the peak.
    let mut again = Command::new(std::env::current_exe().context("cannot find this program's own file")?);
    again.args(["bench", "load", "--model"]).arg(&scratch.0).args(["--device", args.device.name()]);
    again.arg("--threads").arg(args.threads.to_string());
    if let Some(dtype) = args.dtype {
        again.args(["--dtype", dtype.name()]);
    }
    if args.json {
        again.arg("--json");
    }
    let status = again.status().context("cannot start the loading process")?;
    if !status.success() {
        return Err(Error::Compute(format!("the loading process ended with {status}").into()).into());
    }
    Ok(())
}

fn load(args: &Args, dir: &Path) -> Result<()> {
    let place = place::open(args.device, args.dtype.unwrap_or(DtypeKind::Auto))?.place;
    let (found, dtype) = (bench::load::load(dir, &place.device, place.dtype)?, place.dtype.as_str());
    let stored = found.file_bytes();
    if args.json {
        let json = json!({
            "bench": "load", "device": args.device.name(), "dtype": dtype, "parameters": found.parameters,
            "files": found.files.len(), "file_bytes": stored, "largest_file_bytes": found.largest_file(),
            "weight_bytes": found.weight_bytes, "seconds": found.seconds,
            "gb_per_second": stored / 1e9 / found.seconds, "host_peak_gib": found.peak_gib,
            "host_gib_before": found.before_gib, "host_gib_beside_weights": found.beside_gib(),
        });
        println!("{json}");
        return Ok(());
    }
    println!("{:<9} {:.3} billion parameters as {}", "weights", found.parameters as f64 / 1e9, dtype);
    println!(
        "{:<9} {:.2} GB in {} files, the largest {:.2} GB",
        "files",
        stored / 1e9,
        found.files.len(),
        found.largest_file() / 1e9
    );
    println!("{:<9} {:.2} s, {:.2} GB/s", "load", found.seconds, stored / 1e9 / found.seconds);
    if let (Some(peak), Some(beside)) = (found.peak_gib, found.beside_gib()) {
        let on_host = found.on_host_gib;
        println!("{:<9} {peak:.3} GiB peak of the host, {on_host:.3} GiB of it weights", "memory");
        let share = 100.0 * beside * GIB / found.largest_file();
        println!("{:<9} {beside:.3} GiB came on top while loading: {share:.1} % of the largest file", "");
    }
    Ok(())
}
