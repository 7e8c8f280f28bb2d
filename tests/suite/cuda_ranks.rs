//! Ranks with a GPU each, over NCCL: what they make is what one makes. On the driver's twin, with its stand-in for NCCL; one rank alone also on a
//! GPU, by whatever NCCL is there.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use rlvr::dist::wire::Tcp;
use rlvr::dist::{Engine, HostEngine, Nccl, part};
use rlvr::ops::cuda::{self, Communicator};

use crate::support::cuda::{device, on_twin, values};
use crate::support::ranks::{as_one, by_hand, cut, ended, lively, train};
use crate::support::small::{Small, left, said};

fn twin() -> Option<Device> {
    device().filter(on_twin)
}

/// One test that is else ignored, in a process of its own that sees so many devices.
fn child(test: &str, devices: usize) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("cuda_ranks::{test}"), "--exact", "--ignored", "--nocapture"]);
    command.env("RLVR_TWIN_DEVICES", devices.to_string()).output().unwrap()
}

/// A connection between every two of so many ranks, by rank.
fn wires(size: usize) -> Vec<Arc<Tcp>> {
    let mut streams: Vec<Vec<Option<TcpStream>>> =
        (0..size).map(|_| (0..size).map(|_| None).collect()).collect();
    for (a, b) in (0..size).flat_map(|a| (0..a).map(move |b| (a, b))) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        streams[a][b] = Some(TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        streams[b][a] = Some(listener.accept().unwrap().0);
    }
    streams.into_iter().enumerate().map(|(rank, streams)| Arc::new(Tcp::new(rank, streams))).collect()
}

/// Small whole numbers, whose sums every type holds: a view some elements into a larger tensor.
fn numbers(rank: usize, count: usize, dtype: DType) -> Tensor {
    let all: Vec<f32> = (0..count + 5).map(|i| ((i * 7 + rank * 13) % 17) as f32 - 8.).collect();
    Tensor::from_vec(all, count + 5, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

/// Elements of tensors whose parts are equal, unequal, and none for some ranks.
const COUNTS: [usize; 6] = [3 * 512, 1000, 5, 256, 257, 4096];

/// All that an engine does, on so many devices, by NCCL and over the wire.
fn nccl_does_what_the_wire_does(size: usize) {
    let id = cuda::nccl_id().unwrap();
    std::thread::scope(|scope| {
        for (rank, wire) in wires(size).into_iter().enumerate() {
            let id = &id;
            scope.spawn(move || {
                let device = cuda::device(rank).unwrap();
                let nccl = Nccl::new(&device, (rank, size), wire.clone(), id).unwrap();
                let host = HostEngine::new(rank, size, wire);
                for dtype in [DType::F32, DType::BF16] {
                    let made = |on: &Device| -> Vec<Tensor> {
                        let whole = COUNTS.map(|count| numbers(rank, count, dtype).to_device(on).unwrap());
                        whole.iter().zip(COUNTS).map(|(t, count)| t.narrow(0, 5, count).unwrap()).collect()
                    };
                    let (there, here) = (made(&device), made(&Device::Cpu));
                    let sums = nccl.reduce_scatter(&there).unwrap();
                    nccl.finish().unwrap();
                    for sums_of in [host.reduce_scatter(&here).unwrap(), host.reduce_scatter(&there).unwrap()]
                    {
                        for ((sum, of_host), count) in sums.iter().zip(&sums_of).zip(COUNTS) {
                            assert_eq!(sum.elem_count(), part(count, rank, size).len());
                            assert_eq!((sum.dtype(), values(sum)), (dtype, values(of_host)), "{count}");
                        }
                    }
                    nccl.all_gather(&there).unwrap();
                    nccl.finish().unwrap();
                    host.all_gather(&here).unwrap();
                    let over_wire = made(&device);
                    host.all_gather(&over_wire).unwrap();
                    for ((got, want), slow) in there.iter().zip(&here).zip(&over_wire) {
                        assert_eq!(values(got), values(want));
                        assert_eq!(values(slow), values(want));
                    }
                    let whole = nccl.gather(&sums).unwrap();
                    assert_eq!(whole.is_some(), rank == 0);
                    if let (Some(whole), true) = (whole, size > 1) {
                        assert_eq!(whole[1].elem_count(), 1000);
                    }
                }
                let turned = Tensor::zeros((4, 3), DType::F32, &device).unwrap().t().unwrap();
                assert!(nccl.all_gather(&[turned]).unwrap_err().to_string().contains("contiguous"));
            });
        }
    });
}

#[test]
fn nccl_of_one_rank_does_what_the_wire_does() {
    if device().is_none() {
        return;
    }
    match cuda::nccl_version() {
        Ok(version) => eprintln!("NCCL {version}"),
        Err(why) => return eprintln!("NCCL is not checked here: {why}"),
    }
    nccl_does_what_the_wire_does(1);
}

#[test]
fn nccl_of_three_ranks_does_what_the_wire_does() {
    if twin().is_some() {
        let output = child("three_ranks", 3);
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
#[ignore = "run by nccl_of_three_ranks_does_what_the_wire_does"]
fn three_ranks() {
    nccl_does_what_the_wire_does(3);
}

#[test]
fn calls_that_would_hang_are_found() {
    if twin().is_none() {
        return;
    }
    let output = child("ranks_at_odds", 2);
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    for part in [
        "rank 0: ncclReduce of 512 f32, root 0; rank 1: ncclReduce of 256 f32, root 0",
        "rank 0: ncclReduce of 512 f32, root 0; rank 1: ncclReduce of 512 f32, root 1",
        "rank 0: ncclReduce of 512 f32, root 0; rank 1: ncclReduce of 512 bf16, root 0",
        "rank 0: ncclReduce of 512 f32, root 0; rank 1: ncclBroadcast of 512 f32, root 0",
        "rank 0 makes 1 calls, rank 1 makes 2",
        "ranks 0 and 1 are both on device 0",
    ] {
        assert!(said.contains(part), "no `{part}`: {said}");
    }
}

#[test]
#[ignore = "run by calls_that_would_hang_are_found"]
fn ranks_at_odds() {
    type Calls = fn(&Communicator, usize, &Device) -> rlvr::error::Result<()>;
    fn some(rank: usize, count: usize, dtype: DType, device: &Device) -> Tensor {
        numbers(rank, count - 5, dtype).to_device(device).unwrap()
    }
    fn sum(from: Tensor, of: &Communicator, rank: usize, root: usize) -> rlvr::error::Result<()> {
        let place = |_| cuda::uninit(from.device(), from.elem_count(), from.dtype()).unwrap();
        let to = (rank == root).then_some(()).map(place);
        of.reduce(&[(from, to, root)])
    }
    let at_odds: [Calls; 5] = [
        |of, rank, on| sum(some(rank, [512, 256][rank], DType::F32, on), of, rank, 0),
        |of, rank, on| sum(some(rank, 512, DType::F32, on), of, rank, rank),
        |of, rank, on| sum(some(rank, 512, [DType::F32, DType::BF16][rank], on), of, rank, 0),
        |of, rank, on| match rank {
            0 => sum(some(rank, 512, DType::F32, on), of, rank, 0),
            _ => of.broadcast(&[(some(rank, 512, DType::F32, on), 0)]),
        },
        |of, rank, on| of.broadcast(&vec![(some(rank, 512, DType::F32, on), 0); rank + 1]),
    ];
    for calls in at_odds {
        let id = cuda::nccl_id().unwrap();
        let ranks: Vec<_> = (0..2)
            .map(|rank| {
                let id = id.clone();
                std::thread::spawn(move || {
                    let device = cuda::device(rank).unwrap();
                    let of = Communicator::new(&device, rank, 2, &id).unwrap();
                    calls(&of, rank, &device).unwrap_err().to_string()
                })
            })
            .collect();
        for rank in ranks {
            let text = rank.join().unwrap();
            assert!(text.contains("NCCL cannot") && text.contains("invalid usage"), "{text}");
            assert!(text.contains("NCCL_DEBUG=INFO"), "{text}");
        }
    }
    let id = cuda::nccl_id().unwrap();
    let ranks = [0, 1].map(|rank| {
        let id = id.clone();
        std::thread::spawn(move || Communicator::new(&cuda::device(0).unwrap(), rank, 2, &id).map(drop))
    });
    for rank in ranks {
        let text = rank.join().unwrap().unwrap_err().to_string();
        assert!(text.starts_with("NCCL: does not start: invalid usage"), "{text}");
    }
}

#[test]
fn gpus_train_as_one() {
    if twin().is_none() {
        return;
    }
    for (kind, sets, bound) in [
        ("full", &["model.dtype=f32"][..], 1e-4),
        ("lora", &["model.dtype=f32", "lora.rank=4"], 1e-4),
        // Rounding at random has draws of each share's own; masters have none.
        (
            "bf16",
            &["model.dtype=bf16", "sft.optim.bf16_weights=masters", "grpo.optim.bf16_weights=masters"],
            1e-3,
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let task = lively(dir.path());
        let small = Small::new(
            dir.path(),
            &[sets, &["device=cuda", "checkpoint.every_steps=2", "checkpoint.keep_last=9", &task]].concat(),
        );
        assert!(small.train("one", None).status.success());
        let one = dir.path().join("one");
        for ranks in [2, 3] {
            let name = format!("of-{ranks}");
            let output = train(&small, &name, ranks);
            assert!(output.status.success(), "{kind}, {ranks} ranks: {}", said(&output));
            let text = said(&output);
            let ways = text.matches(&format!("{ranks} ranks exchange by NCCL 2.28.9")).count();
            assert_eq!(ways, 1, "rank 0 alone says it: {text}");
            as_one(&one, &dir.path().join(&name), bound);
        }
        // Three wrote it, and others go on.
        let moved = dir.path().join("of-3");
        let whole = left(&moved);
        for (step, ranks) in [(4, 2), (6, 1), (2, 3)] {
            cut(&moved, step);
            let output = train(&small, "of-3", ranks);
            assert!(output.status.success(), "{kind} from {step} with {ranks}: {}", said(&output));
            as_one(&one, &moved, bound);
        }
        assert!(left(&moved) == whole, "{kind}: three ranks that go on are not three to the bit");
    }
}

#[test]
fn a_rank_that_is_killed_ends_all() {
    if twin().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["device=cuda", "model.dtype=f32"]);
    let all = ended(by_hand(&small, "run", 3, |rank, command| {
        if rank == 1 {
            command.env("RLVR_SIGNAL_AT", "9:150");
        }
    }));
    assert_eq!(all[1].0, None, "{all:#?}");
    for (code, said) in [&all[0], &all[2]] {
        assert_eq!(*code, Some(75), "{all:#?}");
        assert!(said.contains("rank 1 "), "{all:#?}");
    }
    let output = train(&small, "run", 2);
    assert!(output.status.success(), "{}", said(&output));
}

/// The twin's libraries without the stand-in for NCCL.
fn without_nccl(into: &Path) {
    let from = std::env::var("RLVR_CUDA_LIBRARY_PATH").unwrap();
    for name in ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10", "kernels"] {
        std::os::unix::fs::symlink(Path::new(&from).join(name), into.join(name)).unwrap();
    }
}

#[test]
fn ranks_without_nccl_say_so_and_train() {
    if twin().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let libraries = dir.path().join("libraries");
    std::fs::create_dir(&libraries).unwrap();
    without_nccl(&libraries);
    let small = Small::new(dir.path(), &["device=cuda", "model.dtype=bf16"]);
    let output = train(&small, "with", 2);
    assert!(output.status.success(), "{}", said(&output));
    let mut command = small.command("without", None);
    command.args(["--ranks", "2"]);
    command.env("RLVR_CUDA_LIBRARY_PATH", &libraries).env("LD_LIBRARY_PATH", &libraries);
    let output = command.output().unwrap();
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("2 ranks exchange over TCP") && text.contains("libnccl.so.2 was not found"),
        "{text}"
    );
    // Of two numbers there is one sum.
    let [with, without] = ["with", "without"].map(|run| left(&dir.path().join(run)));
    assert!(with == without, "two ranks are not the same to the bit");
}

#[test]
fn two_ranks_on_one_gpu_are_told() {
    if twin().is_none() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let small = Small::new(dir.path(), &["device=cuda"]);
    let mut command = small.command("run", None);
    let output = command.args(["--ranks", "2"]).env("RLVR_TWIN_DEVICES", "1").output().unwrap();
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("ranks 0 and 1 on ") && text.contains("have the same GPU (0000:01:00)"), "{text}");
    assert!(text.contains("no more ranks on a host than it has GPUs"), "{text}");
}
