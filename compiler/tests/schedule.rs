//! Schedules are sound: any passes may be disabled, nothing that lives at the same time shares memory, and barriers
//! stand exactly where launches depend on each other. The checkers here are brute force and share no code with the
//! scheduler.

use lathe_compiler::emit;
use lathe_compiler::pass::{Activations, PASSES, PassOptions};
use lathe_compiler::quantize::{Formats, Quantize};
use lathe_compiler::schedule::{self, ArenaBuffer, Bucket, Buffer, Launch, Schedule, Share, arena, barriers};
use lathe_ir::graph::{Graph, StepInput};
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{DType, Dim, StepSize};
use lathe_kernels::spec::{Access, KernelSpec, MapOp};
use lathe_kernels::targets::Machine;
use proptest::prelude::*;

/// What a launch touches: arena bytes or a cache, and whether it writes.
#[derive(Clone, Copy, Debug)]
enum Touch {
    Arena { start: u64, end: u64, writes: bool },
    Cache { index: usize, writes: bool },
}

impl Touch {
    fn clashes(self, other: Touch) -> bool {
        match (self, other) {
            (Touch::Arena { start, end, writes }, Touch::Arena { start: from, end: to, writes: other }) => {
                (writes || other) && start < to && from < end
            }
            (Touch::Cache { index, writes }, Touch::Cache { index: at, writes: other }) => {
                (writes || other) && index == at
            }
            _ => false,
        }
    }
}

fn touches(bucket: &Bucket, launch: &Launch) -> Vec<Touch> {
    let operands = launch.kernel.operands();
    assert_eq!(operands.len(), launch.buffers.len(), "{}", launch.kernel);
    let mut touches = Vec::new();
    for (operand, buffer) in operands.iter().zip(&launch.buffers) {
        let writes = operand.access != Access::Read;
        match *buffer {
            Buffer::Arena(at) => {
                let start = bucket.buffers[at].offset;
                touches.push(Touch::Arena {
                    start,
                    end: start + bucket.buffers[at].bytes.eval(bucket.max) as u64,
                    writes,
                });
            }
            Buffer::Cache(index) => touches.push(Touch::Cache { index, writes }),
            Buffer::Weight(_) | Buffer::Input(_) | Buffer::BlockTable(_) | Buffer::Picks => {
                assert!(!writes, "{} writes what is read only", launch.kernel);
            }
            Buffer::Scratch(_) => {}
        }
    }
    touches
}

fn clash(bucket: &Bucket, a: &Launch, b: &Launch) -> bool {
    let other = touches(bucket, b);
    touches(bucket, a).into_iter().any(|touch| other.iter().any(|&with| touch.clashes(with)))
}

/// No launch clashes with one that may run at the same time, each barrier has a cause, everything lies in the arena, and
/// what a launch reads is what its writer left there.
fn check_bucket(bucket: &Bucket) {
    let launches = &bucket.launches;
    let mut running = 0;
    for (at, launch) in launches.iter().enumerate() {
        if launch.barrier {
            assert!(
                launches[running..at].iter().any(|earlier| clash(bucket, launch, earlier)),
                "barrier {at} has no cause"
            );
            running = at;
        }
        for (other, earlier) in launches[running..at].iter().enumerate() {
            assert!(!clash(bucket, launch, earlier), "launches {} and {at} race", running + other);
        }
    }
    for buffer in &bucket.buffers {
        assert_eq!(buffer.offset % arena::ALIGN, 0);
        assert!(buffer.offset + buffer.bytes.eval(bucket.max) as u64 <= bucket.arena_bytes);
    }
    check_contents(bucket);
}

/// Replays the writes: who wrote each byte last? A read must find the buffer that it names, and so must the logits.
fn check_contents(bucket: &Bucket) {
    let mut owners: Vec<(u64, u64, usize)> = Vec::new();
    let range = |at: usize| {
        let start = bucket.buffers[at].offset;
        (start, start + bucket.buffers[at].bytes.eval(bucket.max) as u64)
    };
    let find = |owners: &[(u64, u64, usize)], at: usize, what: &str| {
        assert!(owners.iter().any(|&(.., owner)| owner == at), "{what}: buffer {at} was overwritten or never written");
    };
    for (index, launch) in bucket.launches.iter().enumerate() {
        let operands = launch.kernel.operands();
        for (operand, buffer) in operands.iter().zip(&launch.buffers) {
            if let (Buffer::Arena(at), Access::Read) = (*buffer, operand.access) {
                find(&owners, at, &format!("launch {index}"));
            }
        }
        for (operand, buffer) in operands.iter().zip(&launch.buffers) {
            if let (Buffer::Arena(at), Access::Write | Access::ReadWrite) = (*buffer, operand.access) {
                let (start, end) = range(at);
                owners.retain(|&(from, to, _)| end <= from || to <= start);
                owners.push((start, end, at));
            }
        }
    }
    if let Buffer::Arena(at) = bucket.logits {
        find(&owners, at, "logits");
    }
}

fn build(graph: &Graph) -> Schedule {
    schedule::build(graph, 512, Machine::X86).unwrap_or_else(|error| panic!("{error}"))
}

/// Checks every bucket here, and the whole program by the plan's own verifier.
fn check(graph: &Graph, vocabulary: usize) {
    let schedule = build(graph);
    for bucket in &schedule.buckets {
        check_bucket(bucket);
    }
    let program = emit::program(&schedule, vocabulary);
    lathe_plan::verify::check_program(&program).unwrap_or_else(|violation| panic!("{violation}"));
}

#[test]
fn schedules_with_any_one_pass_disabled() {
    for scheme in [Scheme::INT4, Scheme::BF16] {
        let model = crate::common::model(scheme);
        let options = PassOptions::default();
        check(&crate::common::fused(&model, &options, &[]), model.config.vocab);
        for pass in PASSES {
            check(&crate::common::fused(&model, &options, &[pass.name]), model.config.vocab);
        }
    }
}

#[test]
fn schedules_with_all_passes_disabled_but_one() {
    let model = crate::common::model(Scheme::INT8);
    for kept in PASSES {
        let disabled: Vec<&str> = PASSES.iter().map(|pass| pass.name).filter(|&name| name != kept.name).collect();
        check(&crate::common::fused(&model, &PassOptions::default(), &disabled), model.config.vocab);
    }
}

#[test]
fn schedules_with_every_choice_of_formats() {
    for scheme in Scheme::ALL {
        let model = crate::common::model(scheme);
        for quantize in [Quantize::Source, Quantize::F16, Quantize::Int6, Quantize::Int5, Quantize::Int4] {
            for activations in [Activations::Int8, Activations::F32] {
                let options = PassOptions { formats: Formats { base: quantize, overrides: Vec::new() }, activations };
                check(&crate::common::fused(&model, &options, &[]), model.config.vocab);
            }
        }
    }
}

#[test]
fn a_weight_shared_by_embedding_and_head_is_stored_once() {
    let model = crate::common::model(Scheme::INT8);
    assert!(model.config.tied_head);
    let schedule = build(&crate::common::fused(&model, &PassOptions::default(), &[]));
    let embeds = schedule.weights.iter().filter(|weight| weight.weight.name == "embed").count();
    assert_eq!(embeds, 1);
    let vocabulary = model.config.vocab;
    assert!(
        schedule.weights.iter().filter(|weight| weight.ty.shape().is_some_and(|s| s[0].c == vocabulary)).count() == 1
    );
}

#[test]
fn kernels_of_both_buckets_are_listed_once() {
    let schedule = build(&crate::common::fused(&crate::common::model(Scheme::INT4), &PassOptions::default(), &[]));
    let names: Vec<String> = schedule.kernels().iter().map(ToString::to_string).collect();
    let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
    assert_eq!(names.len(), distinct.len());
    for launch in schedule.buckets.iter().flat_map(|bucket| &bucket.launches) {
        assert!(names.contains(&launch.kernel.to_string()));
    }
}

/// A launch of a random schedule: what it does, and which earlier results it reads.
fn random_launch() -> impl Strategy<Value = (u8, usize, usize, usize)> {
    (0u8..4, any::<usize>(), any::<usize>(), 1usize..40)
}

fn launch(kernel: KernelSpec, buffers: Vec<Buffer>) -> Launch {
    let zero = Dim::of(0);
    let params = vec![zero; kernel.params().len()];
    Launch {
        label: String::new(),
        kernel,
        buffers,
        params,
        units: zero,
        share: Share::Even,
        barrier: false,
        flops: zero,
        bytes: zero,
    }
}

/// Sums of earlier results, appends to two caches and attention over them, in any order.
fn random_bucket(choices: &[(u8, usize, usize, usize)]) -> Bucket {
    let mut buffers: Vec<ArenaBuffer> = Vec::new();
    let mut launches: Vec<Launch> = Vec::new();
    let input = Buffer::Input(StepInput::Tokens);
    for &(kind, a, b, size) in choices {
        let written = buffers.len();
        let earlier = |pick: usize| if written == 0 { input } else { Buffer::Arena(pick % written) };
        let cache = Buffer::Cache(a % 2);
        let mut result = || {
            buffers.push(ArenaBuffer { name: String::new(), bytes: Dim::of(size * 12), offset: 0, phases: (0, 0) });
            Buffer::Arena(written)
        };
        launches.push(match kind {
            0 | 1 => launch(KernelSpec::Map { op: MapOp::Add }, vec![earlier(a), earlier(b), result()]),
            2 => {
                let kernel = KernelSpec::Append { head_dim: 16, dtype: DType::F16 };
                launch(kernel, vec![earlier(a), earlier(b), input, input, Buffer::BlockTable(0), cache])
            }
            _ => {
                let kernel = KernelSpec::Attention {
                    group: 1,
                    head_dim: 16,
                    dtype: DType::F16,
                    scale: 1.0,
                    window: None,
                    softcap: None,
                };
                launch(kernel, vec![earlier(b), input, input, Buffer::BlockTable(0), cache, result()])
            }
        });
    }
    let logits = if buffers.is_empty() { input } else { Buffer::Arena(choices[0].1 % buffers.len()) };
    let max = StepSize { tokens: 1, sequences: 1, rows: 1 };
    Bucket { max, buffers, arena_bytes: 0, scratch_bytes: 0, logits, picks: None, launches }
}

proptest! {
    #[test]
    fn random_schedules_are_sound(choices in prop::collection::vec(random_launch(), 1..40)) {
        let mut bucket = random_bucket(&choices);
        let phases = barriers::place(&mut bucket.launches);
        arena::place(&mut bucket, &phases, Machine::X86);
        check_bucket(&bucket);
    }

    #[test]
    fn first_fit_never_overlaps_what_lives_together(
        lives in prop::collection::vec((0usize..20, 0usize..6, 1u64..500), 1..40),
        by_rows in any::<bool>(),
    ) {
        let mut buffers: Vec<ArenaBuffer> = lives
            .iter()
            .map(|&(first, length, bytes)| ArenaBuffer {
                name: String::new(),
                bytes: Dim::of(bytes as usize),
                offset: 0,
                phases: (first, first + length),
            })
            .collect();
        let sizes: Vec<u64> = lives.iter().map(|life| life.2).collect();
        let total = arena::first_fit(&mut buffers, &sizes, by_rows);
        for (a, (at, size)) in buffers.iter().zip(&sizes).enumerate() {
            prop_assert!(at.offset + size <= total);
            for (other, other_size) in buffers.iter().zip(&sizes).take(a) {
                let together = (at.phases.0..=at.phases.1).any(|phase| (other.phases.0..=other.phases.1).contains(&phase));
                let apart = at.offset + size <= other.offset || other.offset + other_size <= at.offset;
                prop_assert!(!together || apart);
                prop_assert!(!by_rows || apart || size == other_size && at.offset == other.offset);
            }
        }
    }
}

#[test]
fn a_gpu_splits_the_attention_of_few_tokens_alone() {
    let model = lathe_models::shapes::open(std::path::Path::new("smollm2-135m")).expect("a known shape");
    let graph = crate::common::fused(&model, &PassOptions::default(), &[]);
    let schedule = schedule::build(&graph, 8192, Machine::Nvptx).expect("it has a schedule");
    let splits = |bucket: &Bucket| {
        let is_split = |launch: &&Launch| matches!(launch.kernel, KernelSpec::AttentionSplits { .. });
        (bucket.max.tokens, bucket.launches.iter().filter(is_split).count())
    };
    assert_eq!(schedule.buckets.iter().map(splits).collect::<Vec<_>>(), [(16, 30), (128, 30), (2048, 0)]);
}
