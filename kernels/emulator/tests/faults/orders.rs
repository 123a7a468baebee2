//! What orders threads besides barriers: releases, acquires and fences with their scopes, and what strong accesses race with.

use lathe_emulator::FaultKind::{GlobalRace, SharedRace};
use lathe_emulator::{Chip, Device, Launch, Module, Options};

use super::{HEAD, check, run, run_on};

/// CTA 0 writes a word and raises a flag; CTA 1 waits for the flag in line 14 and reads the word in line 15.
fn relay(raise: &str, wait: &str, then: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r2, 0;\n@%p1 bra W;\nst.global.u32 [%rd1+64], %r1;\n{raise} [%rd1], 1;\nbra E;\nW:\n\
         {wait} %r5, [%rd1]; setp.eq.u32 %p2, %r5, 0; @%p2 bra W;\n{then} ld.global.u32 %r6, [%rd1+64];\nE:"
    )
}

#[test]
fn a_scope_of_one_cta_orders_no_two() {
    const ACQUIRE: &str = "ld.acquire.gpu.global.u32";
    const RELAXED: &str = "red.relaxed.gpu.global.add.u32";
    for scope in ["gpu", "sys"] {
        let release = format!("red.release.{scope}.global.add.u32");
        run(&relay(&release, &format!("ld.acquire.{scope}.global.u32"), ""), 2, 1).expect(scope);
        let fence = format!("fence.acq_rel.{scope}; {RELAXED}");
        run(&relay(&fence, ACQUIRE, ""), 2, 1).expect(scope);
    }
    run(&relay(&format!("membar.gl; {RELAXED}"), ACQUIRE, ""), 2, 1).expect("a fence of the device");
    let races = |raise: &str, wait: &str, then: &str| {
        check(GlobalRace, 15, "nothing orders", &relay(raise, wait, then), 2, 1);
    };
    // The flag itself is raced for where one side's scope leaves the other out.
    for (raise, wait) in [("red.release.cta", ACQUIRE), ("red.release.gpu", "ld.acquire.cta.global.u32")] {
        check(GlobalRace, 14, "nothing orders", &relay(&format!("{raise}.global.add.u32"), wait, ""), 2, 1);
    }
    races(&format!("fence.acq_rel.cta; {RELAXED}"), ACQUIRE, "");
    races(&format!("membar.cta; {RELAXED}"), ACQUIRE, "");
    races("red.release.gpu.global.add.u32", "ld.relaxed.gpu.global.u32", "fence.acq_rel.cta;");
}

#[test]
fn a_fence_counts_for_what_precedes_it() {
    let body = relay("red.relaxed.gpu.global.add.u32", "ld.acquire.gpu.global.u32", "");
    // The first line holds the fence too, so that the read stays in line 15.
    check(GlobalRace, 15, "nothing orders", &format!("fence.acq_rel.gpu; {body}"), 2, 1);
    // A relay twice over, whose second turn lacks the fence: the flag goes to 1 and then to 2.
    let turn = |fence: &str, at: u32, label: &str| {
        format!(
            "@%p1 bra W{label};\nst.global.u32 [%rd1+{at}], %r1; {fence} red.relaxed.gpu.global.add.u32 [%rd1], 1;\n\
             bra E{label};\nW{label}: ld.acquire.gpu.global.u32 %r5, [%rd1]; setp.lt.u32 %p2, %r5, {label};\n\
             @%p2 bra W{label};\nld.global.u32 %r6, [%rd1+{at}];\nE{label}:\n"
        )
    };
    let twice = |second: &str| {
        format!("setp.ne.u32 %p1, %r2, 0;\n{}{}", turn("fence.acq_rel.gpu;", 64, "1"), turn(second, 68, "2"))
    };
    run(&twice("fence.acq_rel.gpu;"), 2, 1).expect("a fence in each turn");
    check(GlobalRace, 21, "nothing orders", &twice(""), 2, 1);
}

/// Clears the flag `s`, then warp 0's first thread writes `s+64` and raises the flag, and warp 1 waits and reads.
fn handover(raise: &str, wait: &str, then: &str) -> String {
    format!(
        "setp.ne.u32 %p1, %r1, 0; mov.u32 %r5, 0; mov.u32 %r8, 1; @%p1 bra Z; st.shared.u32 [s], %r5;\nZ:\nbar.sync 0;\n\
         setp.ge.u32 %p2, %r1, 32;\n@%p2 bra C;\n@%p1 bra E;\nst.shared.u32 [s+64], %r8; {raise} [s], %r8;\nbra E;\n\
         C:\n{wait} %r6, [s]; setp.eq.u32 %p3, %r6, 0; @%p3 bra C;\n{then} ld.shared.u32 %r7, [s+64];\n\
         st.global.u32 [%rd4], %r7;\nE:"
    )
}

#[test]
fn warps_hand_on_through_flags_in_shared_memory() {
    let reads = |raise: &str, wait: &str, then: &str| {
        let body = handover(raise, wait, then);
        let (_, words) = run_on(1, &body, 1, 64).unwrap_or_else(|fault| panic!("{fault}\n{body}"));
        assert_eq!(words[32..], [1; 32], "{body}");
    };
    reads("st.release.cta.shared.u32", "ld.acquire.cta.shared.u32", "");
    reads("st.release.gpu.shared.u32", "ld.acquire.sys.shared.u32", "");
    reads("red.release.cta.shared.add.u32", "ld.volatile.shared.u32", "fence.acq_rel.cta;");
    reads("fence.acq_rel.cta; st.volatile.shared.u32", "ld.volatile.shared.u32", "fence.acq_rel.cta;");
    reads("membar.cta; st.volatile.shared.u32", "ld.acquire.cta.shared.u32", "");
    let races = |raise: &str, wait: &str, then: &str| {
        check(SharedRace, 18, "no barrier between", &handover(raise, wait, then), 1, 64);
    };
    races("st.volatile.shared.u32", "ld.volatile.shared.u32", "");
    races("st.release.cta.shared.u32", "ld.relaxed.cta.shared.u32", "");
    races("st.relaxed.cta.shared.u32", "ld.acquire.cta.shared.u32", "");
    // A fence before the write that is handed on.
    let early = handover("st.volatile.shared.u32", "ld.acquire.cta.shared.u32", "");
    check(
        SharedRace,
        18,
        "no barrier",
        &early.replace("st.shared.u32 [s+64]", "fence.acq_rel.cta; st.shared.u32 [s+64]"),
        1,
        64,
    );
}

#[test]
fn a_lock_in_shared_memory_orders_who_holds_it() {
    let lock = |acquire: &str, release: &str| {
        format!(
            "setp.ne.u32 %p1, %r1, 0; mov.u32 %r7, 0; @%p1 bra Z; st.shared.u32 [s], %r7; st.shared.u32 [s+4], %r7;\n\
             Z: bar.sync 0;\nL: atom{acquire}.shared.cas.b32 %r5, [s], 0, 1; setp.ne.u32 %p1, %r5, 0; @%p1 bra L;\n\
             ld.shared.u32 %r6, [s+4]; add.s32 %r6, %r6, 1; st.shared.u32 [s+4], %r6;\n\
             atom{release}.shared.exch.b32 %r5, [s], 0;\nbar.sync 0; ld.shared.u32 %r6, [s+4]; st.global.u32 [%rd4], %r6;"
        )
    };
    let (_, words) = run_on(1, &lock(".acquire.cta", ".release.cta"), 1, 64).expect("each thread holds it in turn");
    assert_eq!(words, [64; 64]);
    for (acquire, release) in [(".relaxed.cta", ".release.cta"), (".acquire.cta", ".relaxed.cta")] {
        let fault = run(&lock(acquire, release), 1, 64).expect_err("nothing orders the holders");
        assert_eq!((fault.kind, fault.line), (SharedRace, 11), "{fault}");
    }
}

#[test]
fn atomics_race_with_plain_accesses() {
    let clear = "setp.ne.u32 %p1, %r1, 0; mov.u32 %r5, 0;\n@%p1 bra A; st.shared.u32 [s], %r5;\nA:";
    let add = "red.shared.add.u32 [s], 1;";
    check(SharedRace, 11, "lane 0 wrote", &format!("{clear}\n{add}"), 1, 64);
    let initialized = format!("{clear} bar.sync 0;\n{add}");
    let read = "ld.shared.u32 %r6, [s]; st.global.u32 [%rd4], %r6;";
    check(SharedRace, 12, "by an atomic or volatile access", &format!("{initialized}\n{read}"), 1, 64);
    let one_writes = "setp.ne.u32 %p1, %r1, 40;\n@%p1 bra B; st.shared.u32 [s], %r1;\nB:";
    check(SharedRace, 13, "by an atomic or volatile access", &format!("{initialized}\n{one_writes}"), 1, 64);
    // A plain read, and an atomic of another thread behind it.
    let read_first = "setp.ne.u32 %p1, %r1, 0;\n@%p1 bra B; ld.shared.u32 %r6, [s];\nB:";
    check(SharedRace, 14, "which warp 0 lane 0 reads", &format!("{clear} bar.sync 0;\n{read_first}\n{add}"), 1, 64);
    // With a barrier each of them is right; atomics among themselves need none.
    let (_, words) = run_on(1, &format!("{initialized} {add}\nbar.sync 0; {read}"), 1, 64).expect("barriers order all");
    assert_eq!(words, [128; 64]);
    let volatile = "st.volatile.shared.u32 [s], %r1; ld.volatile.shared.u32 %r6, [s]; red.shared.add.u32 [s], 1;";
    run(&format!("{initialized} {volatile}"), 1, 64).expect("strong accesses do not race");
    // Lanes of one warp are ordered by `bar.warp.sync`.
    run(&format!("{initialized} bar.warp.sync -1; {read}"), 1, 32).expect("one warp");
}

#[test]
fn many_launches_are_told_apart() {
    // CTA 1 of one launch writes; CTA 0 of a later one reads, which is no race however many lie between.
    let device = Device::new(Chip::Sm80, 1 << 20);
    let ptx = |body: &str| format!("{HEAD}{body}\nret;\n}}\n");
    let write = "setp.ne.u32 %p1, %r2, 1; @%p1 bra E; st.global.u32 [%rd1], %r1; E:";
    let read = "setp.ne.u32 %p1, %r2, 0; @%p1 bra E; ld.global.u32 %r5, [%rd1]; E:";
    let [write, nothing, read] = [write, "", read].map(|body| Module::load(&ptx(body), &device).expect("sound PTX"));
    let p = device.memory.alloc(256).expect("room");
    let params = [p.to_le_bytes(); 2].concat();
    let run = |module: &Module, grid: u32| {
        let options = Options { threads: 1, ..Options::default() };
        let launch = Launch { grid: [grid, 1, 1], block: [1; 3], shared_bytes: 0, params: &params, options };
        module.launch(&device, "k", &launch).unwrap_or_else(|fault| panic!("{fault}"));
    };
    run(&write, 2);
    // The number of a launch is kept in 12 bits.
    for _ in 0..4095 {
        run(&nothing, 1);
    }
    run(&read, 2);
}

#[test]
fn strong_accesses_of_64_bits_are_whole() {
    // Between the halves of each the emulator asserts that it holds the lock that keeps others out.
    let body = "mov.b64 %rd5, 0x1111111122222222; st.relaxed.gpu.global.b64 [%rd1], %rd5;\n\
        atom.relaxed.gpu.global.exch.b64 %rd6, [%rd1], %rd5; atom.relaxed.gpu.global.add.u64 %rd6, [%rd1], %rd6;\n\
        ld.relaxed.gpu.global.b64 %rd7, [%rd1]; ld.volatile.global.v2.b64 {%rd7, %rd8}, [%rd1];\n\
        st.volatile.global.b64 [%rd1+8], %rd7;";
    let (_, words) = run_on(1, body, 1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(words[..4], [0x4444_4444, 0x2222_2222, 0x4444_4444, 0x2222_2222]);
}
