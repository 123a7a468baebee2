//! Each way in which a program could misuse memory is refused with its sentence.

use lathe_plan::{Access, Affine, Bucket, Buffer, Input, Launch, Plan, PlanWriter, Program, Retention, Share, Term};

use crate::sample::{self, refusal};

/// What is said about a program.
fn sentence(program: &Program) -> String {
    let mut writer = PlanWriter::new();
    writer.program(program);
    refusal(writer.to_bytes().unwrap())
}

/// Edits the program and expects a sentence about it.
#[track_caller]
fn check(edit: impl FnOnce(&mut Program), expected: &str) {
    let mut program = sample::program();
    edit(&mut program);
    let found = sentence(&program);
    assert!(found.contains(expected), "expected: {expected}\n   found: {found}");
}

/// Edits a launch of the second bucket (16 tokens, 2 sequences, 2 rows; slots of 1024 bytes).
#[track_caller]
fn check_launch(index: usize, edit: impl FnOnce(&mut Launch), expected: &str) {
    check(|program| edit(&mut program.buckets[1].launches[index]), expected);
}

#[track_caller]
fn check_bucket(edit: impl FnOnce(&mut Bucket), expected: &str) {
    check(|program| edit(&mut program.buckets[1]), expected);
}

fn arena(offset: u64, bytes: u64) -> Buffer {
    Buffer::Arena { offset, bytes: Affine::constant(bytes) }
}

#[test]
fn the_whole_sentence() {
    let mut program = sample::program();
    program.buckets[1].launches[2].buffers[3] = arena(1024, 960);
    let expected = "the plan would misuse memory: program `main`, bucket 1 (up to 16 tokens, 2 sequences, 2 rows), launch 2, \
                    kernel `attention`, operand 3: the kernel touches 1024 bytes of a buffer of 960; this is a mistake of \
                    the compiler that wrote it: please report it";
    assert_eq!(sentence(&program), expected);
}

#[test]
fn indices_are_in_range() {
    check_launch(1, |launch| launch.kernel = 4, "launch 1, kernel `?`: kernel 4 does not exist, there are 4");
    check_launch(0, |launch| launch.buffers[1] = Buffer::Weight(2), "operand 1: weight 2 does not exist, there are 2");
    check_launch(0, |launch| launch.buffers[0] = Buffer::Input(5), "operand 0: input 5 does not exist, there are 5");
    let cache = |group, tensor| move |launch: &mut Launch| launch.buffers[3] = Buffer::Cache { group, tensor };
    check_launch(1, cache(2, 0), "operand 3: cache group 2 does not exist, there are 2");
    check_launch(1, cache(1, 0), "operand 3: cache tensor 0 does not exist, there are 0");
    check(|program| program.inputs[3] = Input::BlockTable { group: 2 }, "cache group 2 does not exist, there are 2");
    let far = Term { coefficient: 1, factors: [None, Some(1)] };
    check(|program| program.kernels[0].operands[0].extent.push(far), "parameter 1 does not exist, there are 1");
    check_launch(0, |launch| launch.params.clear(), "expected 1 parameters, found 0");
    check_launch(0, |launch| launch.buffers.truncate(2), "expected 3 buffers, found 2");
}

#[test]
fn sizes_are_sane() {
    check(|program| program.vocabulary = 0, "expected a vocabulary from 1 to 2147483647, found 0");
    check(|program| program.kernels[0].grid.threads = 1025, "expected threads of a block from 1 to 1024, found 1025");
    check(|program| program.kernels[0].grid.units = 0, "expected units of a block from 1 to 2147483647, found 0");
    check(|program| program.max_context = 1 << 31, "expected a maximal context from 1 to 2147483647, found 2147483648");
    check(|program| program.cache_groups[0].page_tokens = 0, "expected tokens per page from 1 to 2147483647, found 0");
    check(|program| program.cache_groups[0].tensors[0].page_bytes = 0, "expected bytes per page from 1");
    check(
        |program| program.cache_groups[1].retention = Retention::Window { tokens: 0 },
        "expected tokens in a window from 1",
    );
    check(|program| program.buckets.clear(), "expected buckets from 1 to 2147483647, found 0");
    check_bucket(|bucket| bucket.max.sequences = 0, "expected sequences from 1 to 2147483647, found 0");
    check_launch(2, |launch| launch.share = Share::Claim { grain: 0 }, "expected units per claim from 1");
    let huge = Affine::tokens(u64::MAX / 4);
    check_launch(0, |launch| launch.params[0] = huge, "launch 0, kernel `embed`: a parameter overflows");
    check_launch(0, |launch| launch.params[0] = Affine::constant(1 << 63), "a parameter overflows at the largest step");
    check_launch(0, |launch| launch.units = huge, "the number of units overflows at the largest step");
    check_launch(0, |launch| launch.params[0] = Affine::constant(1 << 62), "operand 0: the extent overflows");
}

#[test]
fn buckets_ascend() {
    check(
        |program| program.buckets.swap(0, 1),
        "bucket 1 (up to 4 tokens, 2 sequences, 2 rows): expected a larger step",
    );
    check(
        |program| program.buckets[1] = program.buckets[0].clone(),
        "expected a larger step than that of the bucket before",
    );
}

#[test]
fn buffers_lie_in_the_arena() {
    check_launch(0, |launch| launch.buffers[2] = arena(1088, 1024), "the buffer ends at byte 2112 of an arena of 2048");
    check_launch(
        0,
        |launch| launch.buffers[2] = arena(32, 1024),
        "expected an arena offset that is a multiple of 64, found 32",
    );
    check_launch(0, |launch| launch.buffers[2] = arena(u64::MAX - 63, 1024), "the end of a buffer overflows");
    check_launch(
        2,
        |launch| launch.buffers[2] = Buffer::Scratch { bytes: 257 },
        "the buffer takes 257 bytes of a scratch of 256",
    );
    check_bucket(|bucket| bucket.arena_bytes = 1087, "the buffer ends at byte 1088 of an arena of 1087");
}

#[test]
fn kernels_stay_in_their_buffers() {
    // One more token than the step has, for each kind of buffer.
    let one_more = Affine { t: 1, s: 0, r: 0, c: 1 };
    check_launch(0, |launch| launch.params[0] = one_more, "operand 0: the kernel touches 68 bytes of a buffer of 64");
    check_launch(
        2,
        |launch| launch.params[0] = one_more,
        "operand 0: the kernel touches 1088 bytes of a buffer of 1024",
    );
    let rows = Affine { t: 0, s: 0, r: 1, c: 1 };
    check_launch(3, |launch| launch.params[0] = rows, "operand 2: the kernel touches 12 bytes of a buffer of 8");
    let grow = |kernel: usize, operand: usize| {
        move |program: &mut Program| program.kernels[kernel].operands[operand].extent[0].coefficient += 1
    };
    check(grow(0, 1), "operand 1: the kernel touches 501 bytes of a buffer of 500");
    check(grow(1, 2), "operand 2: the kernel touches 25 bytes of a buffer of 24");
    check(grow(1, 3), "operand 3: the kernel touches 1025 bytes of a buffer of 1024");
    check(grow(2, 2), "operand 2: the kernel touches 257 bytes of a buffer of 256");
    // Products of two parameters and sums of terms count.
    let square = Term { coefficient: 1, factors: [Some(0), Some(0)] };
    check(
        |program| program.kernels[3].operands[3].extent.push(square),
        "bucket 0 (up to 4 tokens, 2 sequences, 2 rows), launch 3, kernel `head`, operand 3: the kernel touches 68 bytes of a buffer of 64",
    );
}

#[test]
fn weights_and_inputs_are_only_read() {
    let write = |kernel: usize, operand: usize, access| {
        move |program: &mut Program| program.kernels[kernel].operands[operand].access = access
    };
    check(write(0, 1, Access::ReadWrite), "operand 1: expected read access to Weight(0), found ReadWrite");
    check(write(0, 0, Access::Write), "operand 0: expected read access to Input(0), found Write");
}

#[test]
fn written_bytes_are_shared_only_in_place() {
    let not_in_place = "it shares written bytes with operand 0, and they are not the same bytes, read in place";
    check_launch(2, |launch| launch.buffers[3] = arena(64, 1024), &format!("operand 3: {not_in_place}"));
    check_launch(2, |launch| launch.buffers[3] = arena(0, 1088), &format!("operand 3: {not_in_place}"));
    let both_write = |program: &mut Program| program.kernels[2].operands[0].access = Access::Write;
    check(both_write, &format!("operand 3: {not_in_place}"));
    let cache = Buffer::Cache { group: 0, tensor: 0 };
    check_launch(1, |launch| launch.buffers[2] = cache, "operand 3: it shares written bytes with operand 2");
    let two = |program: &mut Program| program.buckets[1].launches[2].buffers[0] = Buffer::Scratch { bytes: 256 };
    check(two, "operand 0: the kernel touches 1024 bytes of a buffer of 256");
    let scratch = |launch: &mut Launch| launch.buffers[1] = Buffer::Scratch { bytes: 256 };
    let shrink = |program: &mut Program| {
        program.kernels[2].operands[1].extent[0].coefficient = 256;
        scratch(&mut program.buckets[1].launches[2]);
    };
    check(shrink, "operand 2: it shares written bytes with operand 1");
}

#[test]
fn launches_that_run_together_do_not_race() {
    let race =
        |launch, operand| format!("it shares written bytes with operand {operand} of launch {launch}, and no barrier");
    // A read of what was written, in the arena and in the cache.
    check_launch(1, |launch| launch.barrier = false, &format!("launch 1, kernel `append`, operand 0: {}", race(0, 2)));
    check_launch(
        2,
        |launch| launch.barrier = false,
        &format!("launch 2, kernel `attention`, operand 1: {}", race(1, 3)),
    );
    // Past a launch that shares nothing, and a write over what is still read.
    let far = |program: &mut Program| {
        let bucket = &mut program.buckets[1];
        bucket.launches[3].buffers[0] = Buffer::Arena { offset: 1024, bytes: Affine::tokens(64) };
        bucket.launches[3].buffers[3] = arena(0, 64);
        bucket.launches[3].barrier = false;
    };
    check(far, &format!("launch 3, kernel `head`, operand 3: {}", race(2, 0)));
    // Both read the same and write different things.
    let mut program = sample::program();
    let head = Launch { barrier: false, ..program.buckets[1].launches[3].clone() };
    program.buckets[1].launches.insert(2, head);
    let mut writer = PlanWriter::new();
    writer.program(&program);
    Plan::from_bytes(writer.to_bytes().unwrap()).unwrap();
}

#[test]
fn logits_are_in_the_arena_and_fit() {
    check_bucket(|bucket| bucket.logits = Buffer::Weight(0), "expected the logits in the arena, found Weight(0)");
    check_bucket(|bucket| bucket.logits = arena(1024, 63), "expected 64 bytes for the logits, found 63");
    let rows_of = |r: u64| Buffer::Arena { offset: 1024, bytes: Affine { t: 0, s: 0, r, c: 0 } };
    let short = 4 * u64::from(sample::VOCABULARY) - 4;
    check_bucket(|bucket| bucket.logits = rows_of(short), &format!("multiple of 4, found {short}"));
    check_bucket(|bucket| bucket.logits = rows_of(short + 6), &format!("multiple of 4, found {}", short + 6));
    check_bucket(|bucket| bucket.logits = arena(2048, 64), "the buffer ends at byte 2112 of an arena of 2048");
}

#[test]
fn tokens_that_a_step_samples_are_in_the_arena_and_fit_and_are_told_how() {
    let sampling = |picks, expected: &str| {
        check(
            |program| {
                program.inputs.push(Input::Picks);
                program.buckets[1].picks = Some(picks);
            },
            expected,
        );
    };
    sampling(Buffer::Input(2), "the tokens that a step samples are in Input(2), expected the arena");
    sampling(arena(1024, 39), "expected 40 bytes for the tokens that a step samples, found 39");
    sampling(arena(2048, 40), "the buffer ends at byte 2088 of an arena of 2048");
    check_bucket(|bucket| bucket.picks = Some(arena(1024, 40)), "no step input says how; expected the input of picks");
    // Four words for each of two rows.
    let reads = |coefficient| Term { coefficient, factors: [None, None] };
    let with_picks = |program: &mut Program, bytes| {
        program.buckets[1].picks = Some(arena(1024, 40));
        program.inputs.push(Input::Picks);
        program.buckets.iter_mut().for_each(|bucket| bucket.launches[3].buffers[2] = Buffer::Input(5));
        program.kernels[3].operands[2].extent = vec![reads(bytes)];
    };
    check(|program| with_picks(program, 33), "touches 33 bytes of a buffer of 32");
    let mut program = sample::program();
    program.inputs.push(Input::Picks);
    program.buckets[1].picks = Some(arena(1024, 40));
    let mut writer = PlanWriter::new();
    writer.program(&program);
    let plan = Plan::from_bytes(writer.to_bytes().unwrap()).unwrap();
    assert_eq!(plan.program("main").unwrap(), &program);
}

#[test]
fn weights_ascend_and_fill_their_section() {
    let check = |edit: fn(&mut Program), expected: &str| {
        let mut program = sample::program();
        let writer = sample::writer(&program);
        edit(&mut program);
        // The writer has the weights as they were, and the program as it is now.
        let mut bytes = writer.to_bytes().unwrap();
        let section = sample::section(&bytes, 1);
        let edited = lathe_plan::codec::encode(&program);
        assert_eq!(edited.len(), section.len());
        bytes[section].copy_from_slice(&edited);
        sample::redigest(&mut bytes, 1);
        let found = refusal(bytes);
        assert!(found.contains(expected), "expected: {expected}\n   found: {found}");
    };
    check(
        |program| program.weights[1].offset = 448,
        "weight `head` starts at byte 448, expected a multiple of 64 from 500",
    );
    check(
        |program| program.weights[1].offset = 513,
        "weight `head` starts at byte 513, expected a multiple of 64 from 500",
    );
    check(|program| program.weights[1].offset = 576, "the weights end at byte 876, their section at 812");
    check(|program| program.weights[1].bytes = 302, "the weights end at byte 814, their section at 812");
    check(|program| program.weights[1].bytes = u64::MAX, "the end of a weight overflows");
}
