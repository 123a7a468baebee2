//! Shares, buckets, and programs that contradict themselves.

use lathe_plan::program::{Access, CacheGroup, CacheTensor, Grid, Kernel, Launch, Operand, Retention, WeightSpan};

use super::*;

fn size(tokens: u32, sequences: u32, rows: u32) -> StepSize {
    StepSize { tokens, sequences, rows }
}

fn program() -> Program {
    let buffers = vec![
        Buffer::Arena { offset: 64, bytes: Affine::tokens(8) },
        Buffer::Scratch { bytes: 40 },
        Buffer::Scratch { bytes: 8 },
        Buffer::Weight(0),
        Buffer::Input(1),
        Buffer::Cache { group: 0, tensor: 0 },
    ];
    let launch = Launch {
        kernel: 0,
        buffers,
        params: vec![Affine::constant(3), Affine { t: 1, s: 10, r: 100, c: 1000 }],
        units: Affine::tokens(2),
        share: Share::Even,
        barrier: true,
        flops: Affine::default(),
        bytes: Affine::default(),
    };
    let bucket = |max: StepSize| Bucket {
        max,
        arena_bytes: 4096,
        scratch_bytes: 128,
        logits: Buffer::Arena { offset: 1024, bytes: Affine { r: 16, ..Affine::default() } },
        picks: None,
        launches: vec![launch.clone()],
    };
    Program {
        name: "main".into(),
        vocabulary: 4,
        max_context: 50,
        inputs: vec![Input::Tokens, Input::BlockTable { group: 0 }],
        cache_groups: vec![CacheGroup {
            name: "all".into(),
            page_tokens: 16,
            retention: Retention::All,
            tensors: vec![CacheTensor { name: "kv.0".into(), page_bytes: 64 }],
        }],
        weights: vec![WeightSpan { name: "w".into(), offset: 128, bytes: 64 }],
        kernels: vec![Kernel {
            name: "k".into(),
            recipe: String::new(),
            params: 2,
            grid: Grid::default(),
            operands: vec![Operand { access: Access::Read, extent: Vec::new() }; 6],
        }],
        buckets: vec![bucket(size(1, 1, 1)), bucket(size(16, 4, 4)), bucket(size(64, 4, 4))],
    }
}

#[test]
fn buffers_get_their_places() {
    let prepared = prepare(&program()).unwrap();
    let places = [
        Place::Arena(64),
        Place::Scratch(0),
        Place::Scratch(64),
        Place::Weight(128),
        Place::Input(1),
        Place::Cache { group: 0, tensor: 0 },
    ];
    assert_eq!(prepared[0].places, places);
    assert_eq!(prepared[0].logits, 1024);
}

#[test]
fn a_step_takes_the_smallest_bucket_that_holds_it() {
    let prepared = prepare(&program()).unwrap();
    let mut numbers = Numbers::default();
    for (step, bucket) in [(size(1, 1, 0), 0), (size(2, 1, 1), 1), (size(1, 2, 1), 1), (size(17, 1, 1), 2)] {
        numbers.evaluate(&prepared, step).unwrap();
        assert_eq!(numbers.bucket, bucket, "{step:?}");
        assert_eq!(numbers.units, [u64::from(step.tokens) * 2]);
        let wanted = 1000 + i64::from(step.tokens) + 10 * i64::from(step.sequences) + 100 * i64::from(step.rows);
        assert_eq!(numbers.params, [3, wanted]);
    }
    assert!(numbers.evaluate(&prepared, size(65, 1, 1)).is_err());
    assert!(numbers.evaluate(&prepared, size(1, 5, 1)).is_err());
}

#[test]
fn even_shares_cover_all_units_once_and_evenly() {
    for units in [0, 1, 2, 7, 64, 1000, u64::MAX / 2] {
        for workers in 1..9 {
            let mut next = 0;
            for worker in 0..workers {
                let share = even_share(units, worker, workers);
                assert_eq!(share.start, next);
                let size = share.end - share.start;
                assert!(size == units / workers as u64 || size == units / workers as u64 + 1);
                next = share.end;
            }
            assert_eq!(next, units);
        }
    }
}

#[test]
fn workers_claim_as_many_units_as_leave_some_for_all() {
    for (grain, units, workers, expected) in
        [(4, 96, 2, 4), (4, 24, 2, 3), (4, 6, 2, 1), (4, 0, 2, 1), (1, 1000, 2, 1), (4, 96, 64, 1), (4, 4096, 64, 4)]
    {
        assert_eq!(claimed(grain, units, workers), expected, "{grain} of {units} by {workers}");
    }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Program)) {
    let mut program = program();
    change(&mut program);
    let error = prepare(&program).unwrap_err().to_string();
    assert!(error.contains("inconsistent"), "{error}");
}

#[test]
fn contradictions_are_errors() {
    refused(|program| program.buckets.clear());
    refused(|program| program.buckets[1].launches[0].kernel = 1);
    refused(|program| program.buckets[1].launches[0].buffers[3] = Buffer::Weight(1));
    refused(|program| program.buckets[1].launches[0].buffers[4] = Buffer::Input(2));
    refused(|program| program.buckets[1].launches[0].buffers[5] = Buffer::Cache { group: 0, tensor: 1 });
    refused(|program| program.buckets[1].launches[0].buffers[5] = Buffer::Cache { group: 1, tensor: 0 });
    refused(|program| program.buckets[1].launches[0].buffers[1] = Buffer::Scratch { bytes: 65 + 60 });
    refused(|program| {
        program.buckets[2].launches[0].buffers[0] = Buffer::Arena { offset: 3968, bytes: Affine::tokens(3) }
    });
    refused(|program| {
        program.buckets[1].launches[0].buffers[0] = Buffer::Arena { offset: u64::MAX, bytes: Affine::tokens(3) }
    });
    refused(|program| program.buckets[1].launches[0].buffers.truncate(5));
    refused(|program| program.buckets[1].launches[0].params.truncate(1));
    refused(|program| program.buckets[1].launches[0].share = Share::Claim { grain: 0 });
    refused(|program| program.buckets[1].logits = Buffer::Scratch { bytes: 8 });
    refused(|program| program.buckets[1].logits = Buffer::Arena { offset: 4032 + 4, bytes: Affine::default() });
}

#[test]
fn inputs_have_room_for_the_largest_step() {
    let program = program();
    assert_eq!(input_len(&program, Input::Tokens).unwrap(), 64);
    assert_eq!(input_len(&program, Input::Rows).unwrap(), 4);
    assert_eq!(input_len(&program, Input::BlockTable { group: 0 }).unwrap(), 4 * 4);
    assert!(input_len(&program, Input::BlockTable { group: 1 }).is_err());
}
