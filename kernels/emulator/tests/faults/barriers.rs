//! Barriers of a CTA: when they open, and who may use them.

use lathe_emulator::FaultKind;

use super::{check, run, run_on};

#[test]
fn a_barrier_opens_as_soon_as_it_is_complete() {
    // Two warps at a time pass; the next two begin anew.
    run("bar.sync 1, 64;", 1, 128).expect("twice 64 threads");
    let words =
        run_on(1, "setp.lt.u32 %p1, %r1, 7; bar.red.popc.u32 %r6, 1, 64, %p1; st.global.u32 [%rd4], %r6;", 1, 64);
    assert_eq!(words.expect("64 threads").1, [7; 64]);
    check(FaultKind::Deadlock, 8, "waits at barrier 1 (32 of 64", "bar.sync 1, 64;", 1, 96);
}

#[test]
fn all_of_a_cta_may_be_given_as_a_number() {
    let body = |count: u32| {
        format!("setp.lt.u32 %p1, %r1, 32;\n@%p1 bra A;\nbar.sync 0;\nbra B;\nA:\nbar.sync 0, {count};\nB:")
    };
    run(&body(64), 1, 64).expect("64 threads are all");
    let fault = run(&body(64), 1, 96).expect_err("64 of 96");
    assert_eq!(fault.kind, FaultKind::BarrierCount, "{fault}");
}

#[test]
fn without_aligned_lanes_arrive_on_their_own() {
    let parted =
        |name: &str| format!("setp.lt.u32 %p1, %r1, 16;\n@%p1 bra A;\n{name}.sync 0;\nbra B;\nA:\n{name}.sync 0;\nB:");
    run(&parted("barrier"), 1, 64).expect("each lane arrives once");
    let aligned = parted("bar");
    check(FaultKind::Divergent, 10, "others wait at line 13", &aligned, 1, 64);
    check(FaultKind::Divergent, 9, "lets lanes 0xffff0000 pass", "setp.lt.u32 %p1, %r1, 16;\n@%p1 bar.sync 0;", 1, 32);
    let guarded = "setp.lt.u32 %p1, %r1, 16;\n@%p1 barrier.sync 0;\n@!%p1 barrier.sync 0;";
    run(guarded, 1, 64).expect("the lower lanes arrive, then the upper ones");
    // Half a warp waits for the other half, which never comes.
    let fault = run("setp.lt.u32 %p1, %r1, 16;\n@%p1 barrier.sync 1, 32;\nbar.warp.sync -1;", 1, 32);
    assert_eq!(fault.expect_err("16 of 32").kind, FaultKind::Deadlock);
}

#[test]
fn halves_of_warps_hand_on_through_a_barrier() {
    // The upper half of each warp writes, the lower half of the other one reads behind the barrier.
    let body = "xor.b32 %r5, %r4, 192; setp.lt.u32 %p1, %r1, 16; setp.ge.u32 %p2, %r1, 32; and.b32 %r6, %r1, 31; \
        setp.lt.u32 %p1, %r6, 16;\n@%p1 bra A;\nst.shared.u32 [%r4], %r1;\nbarrier.sync 3;\nbra B;\n\
        A:\nbarrier.sync 3;\nld.shared.u32 %r7, [%r5];\nst.global.u32 [%rd4], %r7;\nB:";
    let (_, words) = run_on(1, body, 1, 64).expect("the barrier orders them");
    // Thread 5 of warp 0 reads what thread 5 ^ 48 = 53 wrote.
    assert_eq!((words[5], words[32]), (53, 16));
}

#[test]
fn numbers_and_counts_that_differ_in_a_warp() {
    let ids = "and.b32 %r5, %r1, 1; add.u32 %r5, %r5, 1;\nbar.sync %r5, 32;";
    check(FaultKind::BarrierCount, 9, "one number and count", ids, 1, 32);
    let counts = "and.b32 %r5, %r1, 1; add.u32 %r5, %r5, 1; shl.b32 %r5, %r5, 5;\nbar.sync 1, %r5;";
    check(FaultKind::BarrierCount, 9, "one number and count", counts, 1, 32);
    // Without `.aligned`, odd lanes of two warps meet at one barrier and even ones at another.
    run(&ids.replace("bar.", "barrier."), 1, 64).expect("32 threads at each barrier");
}
