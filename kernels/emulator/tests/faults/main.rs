//! A kernel planted for each fault: it must be caught, with its line.

mod barriers;
mod collectives;
mod global;
mod orders;

use lathe_emulator::{Chip, Counters, Device, Fault, FaultKind, Launch, Module, Options};

const HEAD: &str = ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p, .param .u64 q)\n{\n\
    .reg .b32 %r<16>; .reg .b64 %rd<16>; .reg .pred %p<4>; .reg .b16 %h<4>; .shared .align 16 .b8 s[1024];\n\
    ld.param.u64 %rd1, [p]; ld.param.u64 %rd2, [q]; mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; \
    mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd1, %rd3; shl.b32 %r3, %r1, 2; mov.u32 %r4, s; add.s32 %r4, %r4, %r3;\n";

/// Runs a body with buffers `p`, 256 written bytes, and `q`, 256 unwritten ones. Its first line is line 8.
fn run(body: &str, grid: u32, block: u32) -> Result<Counters, Fault> {
    run_on(Options::default().threads, body, grid, block).map(|(counters, _)| counters)
}

/// The same on some host threads; also what `p` holds then.
fn run_on(threads: usize, body: &str, grid: u32, block: u32) -> Result<(Counters, Vec<u32>), Fault> {
    let device = Device::new(Chip::Sm80, 1 << 20);
    let ptx = format!("{HEAD}{body}\nret;\n}}\n");
    let module = Module::load(&ptx, &device).unwrap_or_else(|error| panic!("{error}\n{ptx}"));
    let (p, q) = (device.memory.alloc(256).expect("room"), device.memory.alloc(256).expect("room"));
    device.memory.write(p, &[0; 256]).expect("it is there");
    let params = [p.to_le_bytes(), q.to_le_bytes()].concat();
    let options = Options { step_limit: 1 << 22, threads, ..Options::default() };
    let launch = Launch { grid: [grid, 1, 1], block: [block, 1, 1], shared_bytes: 0, params: &params, options };
    let counters = module.launch(&device, "k", &launch)?;
    let mut out = [0; 256];
    device.memory.read(p, &mut out).expect("it is there");
    let words = out.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]])).collect();
    Ok((counters, words))
}

/// What each of 32 threads of one warp leaves in its word of `p`.
fn lanes(body: &str) -> Vec<u32> {
    let (_, words) = run_on(1, body, 1, 32).unwrap_or_else(|fault| panic!("{fault}\n{body}"));
    words[..32].to_vec()
}

fn check(kind: FaultKind, line: u32, told: &str, body: &str, grid: u32, block: u32) {
    let fault = run(body, grid, block).expect_err(told);
    assert_eq!((fault.kind, fault.line), (kind, line), "{fault}");
    assert!(fault.message.contains(told), "{fault}");
}

#[test]
fn out_of_bounds() {
    check(FaultKind::OutOfBounds, 8, "in no allocation", "ld.global.u32 %r5, [%rd4+256];", 1, 32);
    check(FaultKind::OutOfBounds, 8, "of 1024 bytes of shared", "st.shared.u32 [%r4+1000], %r1;", 1, 32);
    check(FaultKind::OutOfBounds, 8, "parameters", "ld.param.u64 %rd5, [q+8];", 1, 32);
    let fault = run("ld.global.u32 %r5, [%rd4+192];", 1, 32).expect_err("the upper lanes");
    assert_eq!(fault.lanes, 1 << 16, "the first lane that is outside: {fault}");
}

#[test]
fn misaligned() {
    check(FaultKind::Misaligned, 8, "no multiple of 4", "ld.global.u32 %r5, [%rd1+2];", 1, 1);
    check(FaultKind::Misaligned, 8, "no multiple of 16", "ld.global.v4.u32 {%r5,%r6,%r7,%r8}, [%rd1+8];", 1, 1);
}

#[test]
fn uninitialized() {
    check(FaultKind::Uninitialized, 8, "never written", "ld.global.u32 %r5, [%rd2];", 1, 32);
    check(FaultKind::Uninitialized, 8, "never written", "ld.shared.u32 %r5, [%r4];", 1, 32);
    // Two of four bytes are written.
    check(FaultKind::Uninitialized, 9, "never written", "st.shared.u16 [%r4], %h1;\nld.shared.u32 %r5, [%r4];", 1, 32);
}

#[test]
fn asynchronous_copies() {
    let copy = "shl.b32 %r5, %r1, 4; mov.u32 %r6, s; add.s32 %r5, %r5, %r6; mul.wide.u32 %rd5, %r1, 16; \
        add.s64 %rd5, %rd1, %rd5; cp.async.cg.shared.global [%r5], [%rd5], 16; cp.async.commit_group;";
    let read = |wait: &str| format!("{copy}\n{wait}\nld.shared.u32 %r7, [%r5];");
    check(FaultKind::AsyncCopy, 10, "not waited for", &read("cp.async.wait_group 1;"), 1, 16);
    assert!(run(&read("cp.async.wait_group 0;"), 1, 16).is_ok());
    // What another thread copied needs a barrier too.
    let other = format!("{copy}\ncp.async.wait_all;\nxor.b32 %r5, %r5, 16; ld.shared.u32 %r7, [%r5];");
    check(FaultKind::SharedRace, 10, "no barrier", &other, 1, 16);
}

#[test]
fn divergent_collectives() {
    let part = "setp.lt.u32 %p1, %r1, 16;\n@%p1 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.sync 0;\nB:";
    check(FaultKind::Divergent, 10, "others wait at line 13", part, 1, 32);
    let ldmatrix = "st.shared.u32 [%r4], %r1; bar.warp.sync -1; mov.u32 %r5, s; setp.lt.u32 %p1, %r1, 8;\n\
        @%p1 ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r6}, [%r5];";
    check(FaultKind::Divergent, 9, "0xffffffff together", ldmatrix, 1, 32);
    let shuffle = "setp.lt.u32 %p1, %r1, 8;\n@%p1 shfl.sync.bfly.b32 %r6, %r1, 1, 31, 0xffff;\nbar.sync 0;";
    check(FaultKind::Divergent, 9, "0x0000ffff together", shuffle, 1, 32);
}

#[test]
fn threads_that_exit_early_are_not_awaited() {
    let body = "setp.ge.u32 %p1, %r1, 20;\n@%p1 bra E;\nst.shared.u32 [%r4], %r1;\nbar.sync 0;\nE:";
    assert!(run(body, 1, 64).is_ok());
}

#[test]
fn barrier_counts() {
    let counts = "setp.lt.u32 %p1, %r1, 32;\n@%p1 bra A;\nbar.sync 1, 64;\nbra B;\nA:\nbar.sync 1, 96;\nB:";
    let fault = run(counts, 1, 96).expect_err("64 and 96");
    assert_eq!(fault.kind, FaultKind::BarrierCount, "{fault}");
    check(FaultKind::BarrierCount, 8, "no multiple of 32", "bar.sync 1, 40;", 1, 64);
    check(FaultKind::Deadlock, 8, "waits at barrier 1 (64 of 96", "bar.sync 1, 96;", 1, 64);
}

#[test]
fn named_barriers_pair_warps() {
    let body = "setp.lt.u32 %p1, %r1, 32;\n@!%p1 bra A;\nst.shared.u32 [%r4], %r1;\nbar.arrive 1, 64;\nbra B;\nA:\n\
        bar.sync 1, 64;\nld.shared.u32 %r5, [%r4+-128];\nB:";
    assert!(run(body, 1, 64).is_ok());
}

#[test]
fn shared_races() {
    let read = "st.shared.u32 [%r4], %r1; bar.sync 0; xor.b32 %r5, %r4, 256;\nst.shared.u32 [%r4], %r2;\n\
        ld.shared.u32 %r6, [%r5];";
    check(FaultKind::SharedRace, 9, "no barrier", read, 1, 256);
    let waits = "st.shared.u32 [%r4], %r1;\nxor.b32 %r5, %r4, 256;\nbar.sync 0; ld.shared.u32 %r6, [%r5];";
    assert!(run(waits, 1, 256).is_ok());
    // In one warp, `bar.warp.sync` is what orders lanes.
    let warp = |sync: &str| format!("st.shared.u32 [%r4], %r1; xor.b32 %r5, %r4, 4; {sync}\nld.shared.u32 %r6, [%r5];");
    check(FaultKind::SharedRace, 9, "no barrier", &warp(""), 1, 32);
    assert!(run(&warp("bar.warp.sync -1;"), 1, 32).is_ok());
    // Writing what another warp still reads.
    let war = "st.shared.u32 [%r4], %r1; xor.b32 %r5, %r4, 128; bar.sync 0; ld.shared.u32 %r6, [%r5];\n\
        st.shared.u32 [%r4], %r6;";
    // Warp 0 is through when warp 1 reads, so the read is what is found.
    check(FaultKind::SharedRace, 8, "warp 0 lane 0 wrote", war, 1, 64);
}

#[test]
fn races_between_ctas() {
    check(FaultKind::GlobalRace, 8, "nothing orders", "st.global.u32 [%rd4], %r2;", 2, 32);
    // Halves of one word are not shared.
    let halves =
        "mul.wide.u32 %rd5, %r2, 2; add.s64 %rd5, %rd1, %rd5; cvt.u16.u32 %h1, %r1; st.global.u16 [%rd5], %h1;";
    assert!(run(halves, 8, 1).is_ok());
    let relay = |add: &str, load: &str| {
        format!(
            "setp.ne.u32 %p1, %r2, 0;\n@%p1 bra W;\nst.global.u32 [%rd1+64], %r1;\n{add} [%rd1], 1;\nbra E;\nW:\n\
             {load} %r5, [%rd1]; setp.eq.u32 %p2, %r5, 0; @%p2 bra W;\nld.global.u32 %r6, [%rd1+64];\nE:"
        )
    };
    let ordered = relay("red.release.gpu.global.add.u32", "ld.acquire.gpu.global.u32");
    run(&ordered, 2, 1).expect("a release and an acquire order the two");
    let relaxed = relay("red.relaxed.gpu.global.add.u32", "ld.acquire.gpu.global.u32");
    check(FaultKind::GlobalRace, 15, "nothing orders", &relaxed, 2, 1);
    let weak = relay("red.release.gpu.global.add.u32", "ld.relaxed.gpu.global.u32");
    check(FaultKind::GlobalRace, 15, "nothing orders", &weak, 2, 1);
    let fences = relay("fence.acq_rel.gpu;\nred.relaxed.gpu.global.add.u32", "ld.relaxed.gpu.global.u32")
        .replace("ld.global.u32 %r6", "fence.acq_rel.gpu;\nld.global.u32 %r6");
    run(&fences, 2, 1).expect("fences around relaxed accesses order the two");
}

#[test]
fn deadlocks_tell_who_waits_for_what() {
    let spin = "W:\nld.acquire.gpu.global.u32 %r5, [%rd1];\nsetp.eq.u32 %p1, %r5, 0;\n@%p1 bra W;";
    let fault = run(spin, 3, 32).expect_err("nobody writes");
    assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    for told in ["CTA 0: warp 0 reads global memory at", "which holds 0", "CTA 2"] {
        assert!(fault.message.contains(told), "{told}: {fault}");
    }
}

#[test]
fn endless_loops_end_at_the_step_limit() {
    let fault = run("L:\nadd.s32 %r1, %r1, 1;\nbra L;", 1, 32).expect_err("it never ends");
    assert_eq!(fault.kind, FaultKind::StepLimit, "{fault}");
}

#[test]
fn lanes_of_a_warp_wait_for_each_other() {
    // A lock that lanes of one warp take in turn: the holder must run while the others spin.
    let body = "L:\natom.global.cas.b32 %r5, [%rd1], 0, 1;\nsetp.ne.u32 %p1, %r5, 0;\n@%p1 bra L;\n\
        ld.volatile.global.u32 %r6, [%rd1+8];\nadd.s32 %r6, %r6, 1;\nst.volatile.global.u32 [%rd1+8], %r6;\n\
        atom.global.exch.b32 %r5, [%rd1], 0;";
    run(body, 1, 32).expect("each lane gets the lock");
}

#[test]
fn traps_and_freed_memory() {
    check(FaultKind::Trap, 8, "trap", "trap;", 1, 32);
    let device = Device::new(Chip::Sm80, 1 << 20);
    let module = Module::load(&format!("{HEAD}ld.global.u32 %r5, [%rd1];\nret;\n}}"), &device).expect("it is PTX");
    let p = device.memory.alloc(256).expect("room");
    device.memory.free(p).expect("it is allocated");
    let params = [p.to_le_bytes(); 2].concat();
    let options = Options::default();
    let launch = Launch { grid: [1; 3], block: [1; 3], shared_bytes: 0, params: &params, options };
    let fault = module.launch(&device, "k", &launch).expect_err("the memory is gone");
    assert_eq!(fault.kind, FaultKind::OutOfBounds, "{fault}");
    assert!(fault.message.ends_with("the allocation of 256 bytes that was there has been freed"), "{fault}");
}

#[test]
fn launches_that_no_device_takes() {
    for (grid, block) in [(1, 2048), (0, 32), (1, 0)] {
        let fault = run("", grid, block).expect_err("impossible sizes");
        assert_eq!(fault.kind, FaultKind::Launch, "{fault}");
    }
}

#[test]
fn counters_count() {
    let body = "st.global.u32 [%rd4], %r1;\nmul.wide.u32 %rd5, %r1, 32; and.b64 %rd5, %rd5, 224; \
        shl.b32 %r5, %r1, 5; mov.u32 %r6, s; add.s32 %r5, %r5, %r6;\nst.shared.u32 [%r5], %r1;";
    let counters = run(body, 1, 32).expect("it runs");
    assert_eq!((counters.global_written, counters.sectors, counters.ideal_sectors), (128, 4, 4));
    assert_eq!(counters.shared_written, 128);
    // A stride of 32 bytes meets four banks, each eight times.
    assert_eq!(counters.bank_conflicts, 7);
}
