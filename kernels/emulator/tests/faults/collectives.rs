//! Collectives of parts of a warp: each group of lanes that gives the same mask is one, and exited lanes are not awaited.

use lathe_emulator::FaultKind;

use super::{check, lanes, run};

/// Gives `%r5` the mask of the lane's half of the warp, and makes `%p2` true.
const HALVES: &str =
    "setp.lt.u32 %p1, %r1, 16; selp.u32 %r5, 0xffff, 0xffff0000, %p1; setp.ne.u32 %p2, %r1, 99; mov.u32 %r7, 31;\n";

/// What each half of the warp computes of a collective whose mask is in `%r5` and whose result is in `%r6`.
fn halves(collective: &str) -> [u32; 2] {
    let found = lanes(&format!("{HALVES}{collective}\nst.global.u32 [%rd4], %r6;"));
    assert!(found[..16].iter().all(|&value| value == found[0]), "{collective}: {found:?}");
    assert!(found[16..].iter().all(|&value| value == found[16]), "{collective}: {found:?}");
    [found[0], found[16]]
}

#[test]
fn a_mask_by_lane_makes_groups() {
    assert_eq!(halves("vote.sync.ballot.b32 %r6, %p2, %r5;"), [0xffff, 0xffff_0000]);
    // 0 + 1 + … + 15, and 16 + … + 31.
    assert_eq!(halves("redux.sync.add.u32 %r6, %r1, %r5;"), [120, 376]);
    assert_eq!(halves("redux.sync.max.u32 %r6, %r1, %r5;"), [15, 31]);
    assert_eq!(halves("match.any.sync.b32 %r6, %r7, %r5;"), [0xffff, 0xffff_0000]);
    // Lane 3 alone says yes, so that only the lower half has one.
    let any = "setp.eq.u32 %p2, %r1, 3; vote.sync.any.pred %p3, %p2, %r5; selp.u32 %r6, 1, 0, %p3;";
    assert_eq!(halves(any), [1, 0]);
}

#[test]
fn four_tiles_shuffle_on_their_own() {
    // Tiles of eight lanes take the value of their lane 2: 8 · (lane / 8) + 2.
    let body = "shr.u32 %r5, %r1, 3; shl.b32 %r5, %r5, 3; mov.u32 %r6, 255; shl.b32 %r5, %r6, %r5;\n\
        shfl.sync.idx.b32 %r6, %r1, 2, 0x181f, %r5;\nst.global.u32 [%rd4], %r6;";
    let expected: Vec<u32> = (0..32).map(|lane| lane / 8 * 8 + 2).collect();
    assert_eq!(lanes(body), expected);
}

#[test]
fn groups_may_part_and_meet_again() {
    // The upper half comes from another branch; each half is complete without the other.
    let body = format!(
        "{HALVES}@%p1 bra A;\nadd.u32 %r1, %r1, 100;\nA:\nredux.sync.min.u32 %r6, %r1, %r5;\nst.global.u32 [%rd4], %r6;"
    );
    let found = lanes(&body);
    assert_eq!((found[0], found[15], found[16], found[31]), (0, 0, 116, 116));
}

#[test]
fn lanes_outside_of_their_own_mask() {
    let shuffle = "\nshfl.sync.bfly.b32 %r6, %r1, 1, 31, 0xffff;";
    check(FaultKind::Divergent, 9, "0xffff0000 execute it with the mask 0x0000ffff", shuffle, 1, 32);
    check(FaultKind::Divergent, 8, "does not name them", "vote.sync.ballot.b32 %r6, %p1, 1;", 1, 32);
    check(FaultKind::Divergent, 8, "does not name them", "bar.warp.sync 3;", 1, 32);
}

#[test]
fn masks_that_differ_never_meet() {
    let body = "setp.ge.u32 %p1, %r1, 2;\n@%p1 bra E;\nsetp.eq.u32 %p1, %r1, 0; selp.u32 %r5, 1, 3, %p1;\n\
        shfl.sync.bfly.b32 %r6, %r1, 0, 31, %r5;\nbar.sync 0;\nE:";
    check(FaultKind::Divergent, 11, "needs lanes 0x00000003 together", body, 1, 32);
    let body = "setp.eq.u32 %p1, %r1, 0; selp.u32 %r5, 3, -1, %p1;\nvote.sync.ballot.b32 %r6, 1, %r5;";
    check(FaultKind::Divergent, 9, "other masks", body, 1, 32);
}

#[test]
fn shuffles_from_lanes_that_do_not_take_part() {
    let outside = "setp.ge.u32 %p1, %r1, 16;\n@%p1 bra E;\nshfl.sync.idx.b32 %r6, %r1, 20, 31, 0xffff;\nE:";
    check(FaultKind::Divergent, 10, "0x00100000 are read", outside, 1, 32);
    // The mask names lane 20, which has exited.
    let exited = "setp.ge.u32 %p1, %r1, 16;\n@%p1 exit;\nshfl.sync.idx.b32 %r6, %r1, 20, 31, -1;";
    check(FaultKind::Divergent, 10, "0x00100000 are read", exited, 1, 32);
    // What lies beyond the segment is not read.
    run("setp.ge.u32 %p1, %r1, 16;\n@%p1 bra E;\nshfl.sync.down.b32 %r6, %r1, 1, 15, 0xffff;\nE:", 1, 32)
        .expect("lane 15 keeps its own value");
}

#[test]
fn exited_lanes_are_not_awaited() {
    let after_exit = |rest: &str| format!("setp.ge.u32 %p1, %r1, 16;\n@%p1 exit;\n{rest}\nst.global.u32 [%rd4], %r6;");
    let found = lanes(&after_exit("vote.sync.ballot.b32 %r6, 1, -1;"));
    assert_eq!((found[0], found[15], found[16]), (0xffff, 0xffff, 0));
    let found = lanes(&after_exit("shfl.sync.bfly.b32 %r6, %r1, 1, 31, -1;"));
    assert_eq!((found[0], found[1], found[15], found[16]), (1, 0, 14, 0));
    run(&after_exit("bar.warp.sync -1; mov.u32 %r6, 1;"), 1, 32).expect("those that are left meet");
    // Lanes that exit while the others wait for them already, and a third group spins until those went on.
    let late = "setp.ge.u32 %p1, %r1, 16; setp.ge.u32 %p2, %r1, 24;\n@%p1 bra B;\nbar.warp.sync 0xffffff;\n\
        st.volatile.global.u32 [%rd1], 1;\nbra E;\nB:\n@!%p2 bra E;\n\
        C:\nld.volatile.global.u32 %r6, [%rd1];\nsetp.eq.u32 %p3, %r6, 0;\n@%p3 bra C;\nE:";
    run(late, 1, 32).expect("the barrier opens once lanes 16 to 23 are gone");
    // Tensor cores need the whole warp.
    let mma = "mov.u32 %r5, 0; setp.ge.u32 %p1, %r1, 16;\n@%p1 exit;\n\
        mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%r6,%r7,%r8,%r9},{%r5,%r5},{%r5},{%r5,%r5,%r5,%r5};";
    check(FaultKind::Divergent, 10, "0xffffffff together", mma, 1, 32);
}
