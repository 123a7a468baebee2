//! What launches count, against numbers worked out by hand.

use lathe_emulator::{Chip, Class, Counters, Device, Launch, Module, Options};

/// Runs one CTA of a body in which `%r1` is the thread, `%rd1` 16 KiB of global memory, and `s` 16 KiB of shared memory whose
/// first address is `%r2`.
fn run(body: &str, threads: u32) -> Counters {
    let ptx = format!(
        ".version 7.8\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 a)\n{{\n\
         .reg .b32 %r<16>; .reg .b64 %rd<8>; .reg .pred %p<4>; .reg .b16 %h<4>;\n\
         .shared .align 16 .b8 s[16384]; .local .align 16 .b8 l[64];\n\
         ld.param.u64 %rd1, [a]; mov.u32 %r1, %tid.x; mov.u32 %r2, s; mov.b32 %r9, 0; mov.b32 %r10, 0;\n{body}\nret;\n}}\n"
    );
    let device = Device::new(Chip::Sm80, 1 << 20);
    let module = Module::load(&ptx, &device).unwrap_or_else(|error| panic!("{error}\n{ptx}"));
    let buffer = device.memory.alloc(16 << 10).expect("room");
    device.memory.fill(buffer, &[0; 4], 4 << 10).expect("it is there");
    // What nothing wrote may be read here: what is counted is all that matters.
    let options = Options { checks: false, ..Options::default() };
    let launch =
        Launch { grid: [1; 3], block: [threads, 1, 1], shared_bytes: 0, params: &buffer.to_le_bytes(), options };
    module.launch(&device, "k", &launch).unwrap_or_else(|fault| panic!("{fault}\n{ptx}"))
}

/// An access of each of 32 lanes, so many bytes from the one before it.
fn global(access: &str, stride: u32, offset: u32) -> Counters {
    run(
        &format!("mul.wide.u32 %rd2, %r1, {stride}; add.s64 %rd2, %rd2, %rd1; add.s64 %rd2, %rd2, {offset}; {access}"),
        32,
    )
}

fn shared(access: &str, stride: u32) -> Counters {
    run(&format!("mad.lo.u32 %r3, %r1, {stride}, %r2; {access}"), 32)
}

#[test]
fn coalescing_in_sectors() {
    let word = "ld.global.u32 %r4, [%rd2];";
    // Bytes from lane to lane, where the first one lies, sectors touched, and the fewest for so many bytes.
    for (stride, offset, touched, fewest) in
        [(4, 0, 4, 4), (4, 4, 5, 4), (8, 0, 8, 4), (32, 0, 32, 4), (128, 0, 32, 4), (0, 0, 1, 1)]
    {
        let counters = global(word, stride, offset);
        assert_eq!((counters.sectors, counters.ideal_sectors), (touched, fewest), "{stride} {offset}");
        assert_eq!((counters.global_read, counters.global_written), (128, 0));
    }
    let wide = global("st.global.v4.b32 [%rd2], {%r1, %r1, %r1, %r1};", 16, 0);
    assert_eq!((wide.sectors, wide.ideal_sectors, wide.global_written), (16, 16, 512));
    let bytes = global("ld.global.u8 %h1, [%rd2];", 1, 0);
    assert_eq!((bytes.sectors, bytes.ideal_sectors, bytes.global_read), (1, 1, 32));
    let half = global("setp.lt.u32 %p1, %r1, 16; @%p1 ld.global.u32 %r4, [%rd2];", 4, 0);
    assert_eq!((half.sectors, half.ideal_sectors, half.global_read), (2, 2, 64));
}

#[test]
fn bank_conflicts_in_passes() {
    // Words from lane to lane, and passes beyond the first: lanes that share a factor with the 32 banks meet.
    for (words, passes) in [(0, 0), (1, 0), (2, 1), (3, 0), (4, 3), (8, 7), (16, 15), (32, 31), (33, 0)] {
        let counters = shared("ld.shared.u32 %r4, [%r3];", 4 * words);
        assert_eq!((counters.bank_conflicts, counters.shared_read), (passes, 128), "{words} words");
    }
    // Eight lanes are served at a time with 16 bytes each, sixteen with 8.
    assert_eq!(shared("ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];", 16).bank_conflicts, 0);
    assert_eq!(shared("ld.shared.v4.b32 {%r4, %r5, %r6, %r7}, [%r3];", 32).bank_conflicts, 4);
    assert_eq!(shared("ld.shared.v2.b32 {%r4, %r5}, [%r3];", 16).bank_conflicts, 2);
    let stored = shared("st.shared.u16 [%r3], %h1;", 2);
    assert_eq!((stored.bank_conflicts, stored.shared_written), (0, 64), "two lanes in a word");
}

#[test]
fn bytes_of_every_space() {
    let local = run("st.local.v2.b32 [l], {%r1, %r1}; ld.local.u32 %r3, [l];", 32);
    assert_eq!((local.local, local.global_read, local.shared_read), (32 * 12, 0, 0));
    let copy = run(
        "mad.lo.u32 %r3, %r1, 16, %r2; mul.wide.u32 %rd2, %r1, 16; add.s64 %rd2, %rd2, %rd1; \
         cp.async.cg.shared.global [%r3], [%rd2], 16; cp.async.commit_group; cp.async.wait_group 0;",
        32,
    );
    assert_eq!((copy.global_read, copy.shared_written, copy.sectors), (512, 512, 16));
    let matrices = run(
        "mad.lo.u32 %r3, %r1, 16, %r2; \
         ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r4, %r5, %r6, %r7}, [%r3];",
        32,
    );
    assert_eq!((matrices.shared_read, matrices.bank_conflicts), (512, 0));
    assert_eq!(
        run("ld.shared.u32 %r3, [%r2]; ld.param.u64 %rd2, [a];", 32).shared_read,
        128,
        "parameters are no memory"
    );
}

#[test]
fn branches_at_which_lanes_part() {
    let branch = |bound: u32, threads: u32| {
        let body = format!("setp.lt.u32 %p1, %r1, {bound}; @%p1 bra A; add.u32 %r3, %r1, %r1; A:");
        run(&body, threads).divergent_branches
    };
    assert_eq!(branch(16, 32), 1);
    assert_eq!((branch(0, 32), branch(32, 32)), (0, 0), "all take it, or none");
    assert_eq!((branch(40, 64), branch(32, 64)), (1, 0), "in one warp of two, and between them");
}

#[test]
fn instructions_by_class() {
    // Two warps of 32 and 8 lanes.
    let base = run("", 40);
    for (class, instruction) in [
        (Class::Integer, "add.s32 %r3, %r1, %r1;"),
        (Class::Integer, "setp.eq.u32 %p1, %r1, 3;"),
        (Class::Float, "fma.rn.f32 %r3, %r1, %r1, %r1;"),
        (Class::Float, "ex2.approx.f32 %r3, %r1;"),
        (Class::Convert, "cvt.rn.f32.s32 %r3, %r1;"),
        (Class::Control, "bra.uni A; A:"),
        (Class::Memory, "ld.global.u32 %r3, [%rd1];"),
        (Class::Memory, "st.shared.u32 [%r2], 1;"),
        (Class::Atomic, "red.global.add.u32 [%rd1], 1;"),
        (Class::Sync, "bar.sync 0;"),
        (Class::Sync, "fence.acq_rel.gpu;"),
        (Class::Warp, "activemask.b32 %r3;"),
    ] {
        let counters = run(instruction, 40);
        for (index, other) in Class::ALL.into_iter().enumerate() {
            let more = u64::from(other == class);
            assert_eq!(counters.instructions[index], base.instructions[index] + 2 * more, "{instruction} {other:?}");
            let lanes = base.lane_instructions[index] + 40 * more;
            assert_eq!(counters.lane_instructions[index], lanes, "{instruction} {other:?}");
        }
    }
    let mma = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r3, %r4, %r5, %r6}, {%r9, %r9, %r9, %r9}, {%r9, %r9}, \
               {%r10, %r10, %r10, %r10};";
    let counters = run(mma, 64);
    assert_eq!(counters.tensor_operations, 2 * 2 * 16 * 8 * 16, "two warps, a product and a sum each");
    assert_eq!(counters.instructions[Class::Tensor as usize], 2);
    assert_eq!(counters.lane_instructions[Class::Tensor as usize], 64);
}
