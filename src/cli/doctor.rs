//! `rlvr doctor`: what this machine is, and whether every op gives the right numbers on it.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, bail};
use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::machine;
use crate::check::{self, Finding};
use crate::config::DeviceKind;
use crate::error::Error;
use crate::observe::machine::{Host, disk_free, libraries};
use crate::ops::cuda;

/// Describe this machine, and check every op on fresh random inputs.
///
/// On the CPU an op is held against a naive loop in f64; on a CUDA device, in f32 and bf16, against the op on
/// the CPU. Where results go, memory is poisoned with NaN first. The exit code is 1 when a result is further off
/// than its tolerance or not finite, or an op cannot run.
#[derive(clap::Args)]
#[command(after_help = "Example: rlvr doctor --device cpu")]
pub struct Args {
    /// `auto` checks the CPU, and a CUDA device when the build and the machine have one.
    #[arg(long, value_parser = machine::device(&DeviceKind::ALL), default_value = "auto")]
    device: DeviceKind,
    /// CPU threads; 0 takes all cores.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Inputs of an earlier check again; without it every check has its own.
    #[arg(long)]
    seed: Option<u64>,
    /// Folder that holds run directories, whose free disk space is shown.
    #[arg(long, default_value = "runs")]
    run_root: PathBuf,
    /// Check these ops only; may be given many times. A fault that ends a process then ends one op's check.
    #[arg(long, value_name = "OP")]
    only: Vec<String>,
    /// Print the names of the ops, one a line, and stop.
    #[arg(long)]
    list: bool,
    /// One JSON object on stdout instead of a table.
    #[arg(long)]
    json: bool,
    /// A line of JSON for the machine, one for every finding as it is made, and one with the counts last.
    #[arg(long, conflicts_with = "json")]
    json_lines: bool,
}

/// A device and what the driver says of it, or why there is none.
enum Cuda {
    Open(Device, cuda::Description),
    Absent(String),
}

pub fn run(args: &Args) -> Result<()> {
    if args.list {
        check::ops().iter().for_each(|op| println!("{op}"));
        return Ok(());
    }
    if let Some(unknown) = args.only.iter().find(|op| !check::ops().contains(&op.as_str())) {
        let want = format!("one of {}", check::ops().join(", "));
        return Err(Error::config("--only", unknown, want, "no other op is checked").into());
    }
    super::use_threads(args.threads)?;
    let cuda = match args.device {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda => Some(open()?),
        DeviceKind::Auto => Some(open().unwrap_or_else(|error| Cuda::Absent(error.to_string()))),
    };
    // 53 bits, so that JSON readers keep it.
    let clock = || std::time::UNIX_EPOCH.elapsed().map_or(1, |now| now.as_nanos() as u64 % (1 << 53));
    let seed = args.seed.unwrap_or_else(clock);
    let host = Host::ask();
    let disk = disk_free(&args.run_root);
    let machine = || describe_json(args, &host, disk, cuda.as_ref());
    if args.json_lines {
        say(&json!({ "machine": machine(), "seed": seed }))?;
    } else if !args.json {
        describe(args, &host, disk, cuda.as_ref());
        println!("\nseed      {seed}\n");
    }
    let mut lost = Ok(());
    let mut tell = |finding: &Finding| {
        if args.json_lines && lost.is_ok() {
            lost = say(&object(finding));
        }
    };
    let mut findings = Vec::new();
    for dtype in [DType::F32, DType::BF16] {
        let round = check::Round { seed, dtype, only: &args.only };
        findings.extend(check::on_cpu(round, &mut tell));
        if let Some(Cuda::Open(device, _)) = &cuda {
            findings.extend(check::on_cuda(round, device, &mut tell));
        }
    }
    lost?;
    let failed = findings.iter().filter(|f| !f.passed()).count();
    if args.json_lines {
        say(&json!({ "seed": seed, "failed": failed, "checks": findings.len() }))?;
    } else if args.json {
        let checks: Vec<Value> = findings.iter().map(object).collect();
        println!("{}", json!({ "machine": machine(), "seed": seed, "failed": failed, "checks": checks }));
    } else {
        println!("{}", table(&findings));
    }
    if failed > 0 {
        bail!("{failed} of {} checks failed; repeat them with --seed {seed}", findings.len());
    }
    Ok(())
}

/// A line on stdout, now: what comes after it may end the process.
fn say(line: &Value) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn open() -> crate::error::Result<Cuda> {
    let device = cuda::device(0)?;
    let description = cuda::describe(&device)?;
    Ok(Cuda::Open(device, description))
}

const BUILD: &str = if cfg!(feature = "cuda") { "with CUDA" } else { "without CUDA" };

fn gib(bytes: Option<u64>) -> String {
    bytes.map_or("unknown".into(), |bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64))
}

fn describe(args: &Args, host: &Host, disk: Option<u64>, cuda: Option<&Cuda>) {
    let libraries: Vec<String> =
        libraries().iter().map(|(name, version)| format!("{name} {version}")).collect();
    println!("rlvr      {}, built {BUILD}", env!("CARGO_PKG_VERSION"));
    println!("libraries {}", libraries.join(", "));
    println!("cpu       {}", host.cpu.as_deref().unwrap_or(std::env::consts::ARCH));
    println!(
        "          {} cores, {} threads; {}",
        host.cores,
        rayon::current_num_threads(),
        host.instructions.join(" ")
    );
    println!("memory    {} free of {}", gib(host.memory_free), gib(host.memory_total));
    if let Some(limit) = &host.memory_limit {
        println!("          at most {} by {}", gib(Some(limit.most)), limit.file.display());
    }
    println!("disk      {} free at {}", gib(disk), args.run_root.display());
    match cuda {
        None => {}
        Some(Cuda::Absent(why)) => println!("cuda      not checked: {why}"),
        Some(Cuda::Open(_, d)) => {
            let (major, minor) = d.compute_capability;
            println!("cuda      {}, sm_{major}{minor}, {} multiprocessors", d.name, d.multiprocessors);
            println!("          driver for CUDA {}, built for {}, cuBLAS {}", d.driver, d.toolkit, d.cublas);
            println!("          {} free of {}", gib(Some(d.memory_free)), gib(Some(d.memory_total)));
        }
    }
}

fn describe_json(args: &Args, host: &Host, disk: Option<u64>, cuda: Option<&Cuda>) -> Value {
    let libraries: serde_json::Map<String, Value> =
        libraries().into_iter().map(|(name, version)| (name.to_string(), version.into())).collect();
    let device = match cuda {
        None => Value::Null,
        Some(Cuda::Absent(why)) => json!({ "absent": why }),
        Some(Cuda::Open(_, d)) => json!({
            "name": d.name, "compute_capability": [d.compute_capability.0, d.compute_capability.1],
            "driver_cuda": d.driver, "built_for_cuda": d.toolkit, "cublas": d.cublas,
            "multiprocessors": d.multiprocessors,
            "memory_free_bytes": d.memory_free, "memory_total_bytes": d.memory_total,
        }),
    };
    json!({
        "rlvr": env!("CARGO_PKG_VERSION"), "cuda_feature": cfg!(feature = "cuda"), "libraries": libraries,
        "cpu": host.cpu, "cores": host.cores, "threads": rayon::current_num_threads(),
        "instructions": host.instructions,
        "memory_free_bytes": host.memory_free, "memory_total_bytes": host.memory_total,
        "memory_limit_bytes": host.memory_limit.as_ref().map(|limit| limit.most),
        "run_root": args.run_root, "disk_free_bytes": disk, "cuda": device,
    })
}

fn object(finding: &Finding) -> Value {
    let difference = finding.difference.as_ref();
    json!({
        "op": finding.op, "part": finding.part, "shape": finding.shape,
        "device": finding.device, "dtype": finding.dtype, "tolerance": finding.tolerance,
        "relative_error": difference.ok().map(|d| d.norm), "max_error": difference.ok().map(|d| d.max),
        "problem": difference.err(), "passed": finding.passed(),
    })
}

/// The worst of an op's trials, a line for each result.
fn table(findings: &[Finding]) -> String {
    let worst = check::worst(findings);
    let width = |f: fn(&Finding) -> &str| worst.iter().map(|w| f(w).len()).max().unwrap_or(0);
    let (op, part) = (width(|f| f.op), width(|f| f.part));
    let mut lines = vec![format!(
        "{:<4}  {:<5}  {:<op$}  {:<part$}  {:>8}  {:>8}  {:>9}",
        "", "dtype", "op", "result", "error", "largest", "tolerance"
    )];
    for f in worst {
        let place = format!("{:<4}  {:<5}  {:<op$}  {:<part$}", f.device, f.dtype, f.op, f.part);
        let verdict = if f.passed() { "ok".into() } else { format!("FAIL at {}", f.shape) };
        lines.push(match &f.difference {
            Ok(d) => format!("{place}  {:>8.1e}  {:>8.1e}  {:>9.1e}  {verdict}", d.norm, d.max, f.tolerance),
            Err(why) => format!("{place}  {verdict}: {why}"),
        });
    }
    let failed = findings.iter().filter(|f| !f.passed()).count();
    let verdict = if failed == 0 { "all ok".into() } else { format!("{failed} FAILED") };
    lines.push(format!("\n{} checks, {verdict}", findings.len()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Difference;

    fn finding(difference: Result<Difference, String>) -> Finding {
        Finding {
            op: "rope",
            part: "forward",
            shape: "4 x 8".into(),
            device: "cpu",
            dtype: "f32",
            tolerance: 1e-5,
            difference,
        }
    }

    #[test]
    fn the_worst_trial_of_a_result_is_shown() {
        let good = || finding(Ok(Difference { norm: 1e-7, max: 2e-7 }));
        let text = table(&[good(), finding(Ok(Difference { norm: 2e-6, max: 3e-6 })), good()]);
        assert!(text.contains("2.0e-6") && text.contains("3 checks, all ok"), "{text}");
        let text = table(&[good(), finding(Err("it is NaN".into())), good()]);
        assert!(text.contains("FAIL at 4 x 8: it is NaN") && text.contains("1 FAILED"), "{text}");
        let text = table(&[good(), finding(Ok(Difference { norm: f64::NAN, max: 0.0 }))]);
        assert!(text.contains("FAIL at 4 x 8") && !text.contains("all ok"), "{text}");
    }
}
