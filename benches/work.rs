//! `cargo bench`: the work of `rlvr bench` in small shapes, compared with the last run by criterion.
//!
//! For figures to report use `rlvr bench`, which knows the machine's ceilings; this says what a change did.

use std::hint::black_box;
use std::time::Duration;

use candle_core::{DType, Device};
use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main,
};
use rlvr::bench::ops::{self, Maker, Run};
use rlvr::bench::step::StepShape;
use rlvr::bench::timing::{MOST_SETS, input_sets};
use rlvr::config::ActivationMemory;
use rlvr::config::optim::OptimConfig;
use rlvr::data::synthetic::{self, Spec, Split};
use rlvr::model::decoder::Placement;
use rlvr::ops::token_logprob::CPU_CHUNK_BYTES;
use rlvr::plan::cost::{GroupShape, Groups};
use rlvr::plan::shapes;
use rlvr::task::Task;
use rlvr::text::{EncoderFiles, PromptEncoder, byte_tokenizer};

const MODEL: &str = "smollm2-135m";

/// A group of criterion's that takes about a second for each function.
fn short<'a>(c: &'a mut Criterion, name: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = c.benchmark_group(name);
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    group.warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_millis(500));
    group
}

/// Every op in f32 on the CPU, in the shapes of one model and a small GRPO group. Throughput counts FLOP, or bytes of an
/// op that computes nothing.
fn ops(c: &mut Criterion) {
    let config = shapes::find(MODEL).expect("a shape that is known");
    let mut shape = GroupShape {
        config,
        prompt: 256,
        completions: 8,
        new_tokens: 16,
        groups: Groups::ONE,
        rows: 0,
        size: 4,
        gradient_size: 4,
        chunk_bytes: CPU_CHUNK_BYTES,
    };
    shape.rows = shape.packed();
    let maker = Maker::new(Device::Cpu, DType::F32, DType::F32);
    let mut group = short(c, "ops");
    for case in ops::all(&shape).expect("a group with tokens") {
        group.throughput(match case.cost.flop {
            0.0 => Throughput::Bytes(case.cost.bytes as u64),
            flop => Throughput::Elements(flop as u64),
        });
        // Made when the function is chosen, and once for all its samples.
        let mut made = None;
        group.bench_function(BenchmarkId::new(&case.name, &case.shape), |b| {
            let make = || input_sets(&case, &maker, MOST_SETS).expect("inputs that fit in memory");
            let runs: &Vec<Run> = made.get_or_insert_with(make);
            let mut turn = runs.iter().cycle();
            b.iter(|| turn.next().map(|run| run().expect("an op that runs")));
        });
    }
}

/// Conversations to tokens: the demo's synthetic logs with a tokenizer made from them. Throughput counts tokens.
fn encoder(c: &mut Criterion) {
    let rows = synthetic::rows(&Spec::new(1, Split::Train, 64));
    let task = Task::load("demo").expect("a built-in task");
    let samples: Vec<_> = rows
        .iter()
        .map(|row| task.sample(row, "synthetic".as_ref(), 1).expect("a row of the task"))
        .collect();
    let messages = samples.iter().flat_map(|sample| &sample.conversation.messages);
    let texts: Vec<_> = messages.map(|message| message.text()).collect();
    let texts = texts.iter().map(|text| text.as_ref());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tokenizer = byte_tokenizer::build(texts, &synthetic::phrases(), 1024).expect("a tokenizer");
    byte_tokenizer::save_pretrained(&tokenizer, dir.path()).expect("a folder that can be written");
    let encoder = PromptEncoder::load(&EncoderFiles::of(dir.path())).expect("an encoder");
    let encode = || -> usize {
        let prompts = samples.iter().map(|sample| encoder.encode_prompt(&sample.conversation));
        prompts.map(|prompt| prompt.expect("a prompt").token_ids.len()).sum()
    };
    let mut group = short(c, "encoder");
    group.throughput(Throughput::Elements(encode() as u64));
    group.bench_function("64 prompts", |b| b.iter(|| black_box(encode())));
}

/// A GRPO step in f32 on the CPU: the model's shape cut to two blocks. Throughput counts packed tokens.
fn step(c: &mut Criterion) {
    let mut config = shapes::find(MODEL).expect("a shape that is known");
    config.num_hidden_layers = 2;
    let shape = StepShape {
        groups: 1,
        group_size: 8,
        prompt_tokens: 256,
        new_tokens: 16,
        max_tokens_per_pack: 8192,
        max_rollout_tokens: 32768,
        max_reused_tokens: 8192,
        activations: ActivationMemory::Recompute,
    };
    // Made when a function is chosen.
    let mut made = None;
    let mut number = 0;
    let mut run = || {
        let make = || shape.learner(&Placement::CPU, config.clone(), &OptimConfig::default(), 0);
        let learner = made.get_or_insert_with(|| make().expect("a model that fits in memory"));
        number += 1;
        shape.run(learner, number).expect("a step")
    };
    let mut group = short(c, "step");
    let packed = shape.prompt_tokens + shape.group_size * (shape.new_tokens - 1);
    group.throughput(Throughput::Elements(packed as u64));
    group.bench_function("grpo, 8 of 16 after 256 tokens", |b| b.iter(&mut run));
}

criterion_group!(benches, ops, step, encoder);
criterion_main!(benches);
