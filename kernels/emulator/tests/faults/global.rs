//! Races between CTAs in global memory: which accesses conflict, and what orders them.

use lathe_emulator::FaultKind::GlobalRace;

use super::{HEAD, lanes, run_on};

/// CTA 0 does something in line 9, CTA 1 in line 12, CTA 2 in line 15, one after the other; each has one thread.
fn in_turn(first: &str, second: &str, third: &str) -> Result<(), (u32, String)> {
    let body = format!(
        "setp.ne.u32 %p1, %r2, 0; setp.ne.u32 %p2, %r2, 1; cvt.u16.u32 %h1, %r2; mov.u32 %r5, 7; @%p1 bra B;\n\
         {first}\nbra E;\nB: @%p2 bra C;\n{second}\nbra E;\nC: setp.ne.u32 %p3, %r2, 2;\n{third}\nE:"
    );
    // With one host thread CTAs run one after the other, for none of these waits.
    match run_on(1, &body, 3, 1) {
        Ok(_) => Ok(()),
        Err(fault) => {
            assert_eq!(fault.kind, GlobalRace, "{fault}\n{HEAD}{body}");
            Err((fault.line, fault.message))
        }
    }
}

/// Two accesses of two CTAs, the second of which must be told as a race with what the first did.
fn races(first: &str, second: &str, told: &str) {
    let (line, message) = in_turn(first, second, "").expect_err(&format!("{first} and {second}"));
    assert_eq!(line, 12, "{message}");
    assert!(message.contains(told), "{told}: {message}");
}

fn free(first: &str, second: &str) {
    in_turn(first, second, "").unwrap_or_else(|(_, message)| panic!("{first} and {second}: {message}"));
}

const READ: &str = "ld.global.u32 %r6, [%rd1];";
const WRITE: &str = "st.global.u32 [%rd1], %r5;";
const STRONG_READ: &str = "ld.relaxed.gpu.global.u32 %r6, [%rd1];";
const STRONG_WRITE: &str = "st.relaxed.gpu.global.u32 [%rd1], %r5;";
const ADD: &str = "red.global.add.u32 [%rd1], 1;";

#[test]
fn accesses_conflict_when_one_writes_and_one_is_weak() {
    races(WRITE, WRITE, "which CTA 0 wrote in this launch");
    races(WRITE, READ, "which CTA 0 wrote in this launch");
    races(READ, WRITE, "which CTA 0 read in this launch");
    races(ADD, READ, "which CTA 0 wrote by an atomic or volatile access");
    races(ADD, WRITE, "which CTA 0 wrote by an atomic or volatile access");
    races(STRONG_WRITE, READ, "which CTA 0 wrote by an atomic or volatile access");
    races("st.volatile.global.u32 [%rd1], %r5;", READ, "which CTA 0 wrote by an atomic or volatile access");
    races(STRONG_READ, WRITE, "which CTA 0 read by an atomic or volatile access");
    races(WRITE, ADD, "by an atomic or volatile access, which CTA 0 wrote in this launch");
    races(WRITE, STRONG_READ, "by an atomic or volatile access, which CTA 0 wrote in this launch");
    races(READ, ADD, "by an atomic or volatile access, which CTA 0 read in this launch");
    races(READ, STRONG_WRITE, "by an atomic or volatile access, which CTA 0 read in this launch");
    for (first, second) in [(READ, READ), (READ, STRONG_READ), (STRONG_READ, READ)] {
        free(first, second);
    }
    for first in [STRONG_READ, STRONG_WRITE, ADD] {
        for second in [STRONG_READ, STRONG_WRITE, ADD] {
            free(first, second);
        }
    }
}

#[test]
fn an_atomic_of_one_cta_alone_is_weak_towards_others() {
    let own = "red.relaxed.cta.global.add.u32 [%rd1], 1;";
    races(own, own, "CTA 0 wrote");
    races(own, own, "the scope `.cta` makes it an atomic within its CTA only");
    races(ADD, "red.relaxed.cta.global.add.u32 [%rd1], 1;", "CTA 0 wrote by an atomic");
    races("ld.relaxed.cta.global.u32 %r6, [%rd1];", STRONG_WRITE, "CTA 0 read");
}

#[test]
fn whoever_has_seen_a_strong_write_comes_after_it() {
    // What was added before is seen by an atomic of one's own, and by a strong read.
    free(ADD, &format!("atom.global.add.u32 %r6, [%rd1], 1; {WRITE} {READ}"));
    free(STRONG_WRITE, &format!("{STRONG_READ} {READ}"));
    // A third one, which the second one tells so.
    let tells = "st.release.gpu.global.u32 [%rd1+64], %r5;";
    let hears = "ld.acquire.gpu.global.u32 %r7, [%rd1+64];";
    for first in [
        STRONG_WRITE,
        "fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%rd1], %r5;",
        "st.release.gpu.global.u32 [%rd1], %r5;",
    ] {
        let second = format!("ld.acquire.gpu.global.u32 %r6, [%rd1]; {tells}");
        let third = in_turn(first, &second, &format!("{hears} {READ}"));
        let knows = first != STRONG_WRITE;
        assert_eq!(third.is_ok(), knows, "{first}: {third:?}");
    }
}

#[test]
fn bytes_of_a_word_have_writers_of_their_own() {
    let byte = |at: u32| format!("st.global.u8 [%rd1+{at}], %h1;");
    let read = |at: u32| format!("ld.global.u8 %h2, [%rd1+{at}];");
    free(&byte(0), &byte(1));
    free(&read(0), &byte(1));
    races(&format!("{} {}", byte(0), byte(1)), &byte(1), "CTA 0 wrote");
    // CTA 1 writes another byte between.
    in_turn(&byte(0), &byte(1), &byte(2)).expect("a byte each");
    for at in [0, 1] {
        let (line, message) = in_turn(&byte(0), &byte(1), &read(at)).expect_err("others wrote it");
        assert_eq!(line, 15);
        assert!(message.contains(&format!("which CTA {at} wrote")), "{message}");
    }
    let (line, message) = in_turn(&byte(0), &byte(1), WRITE).expect_err("others wrote parts of it");
    assert!(line == 15 && message.contains("writes global memory"), "{message}");
    // A CTA's own writes before and after a release are told apart.
    let tells = format!("{} st.release.gpu.global.u32 [%rd1+64], %r5; {}", byte(0), byte(1));
    let hears = |at: u32| format!("ld.acquire.gpu.global.u32 %r7, [%rd1+64]; {}", read(at));
    free(&tells, &hears(0));
    races(&tells, &hears(1), "CTA 0 wrote");
}

#[test]
fn the_last_access_of_a_kind_is_what_is_kept() {
    // Two CTAs read, and the second of them tells the third: that the first one was not ordered is not seen.
    let second = format!("{READ} st.release.gpu.global.u32 [%rd1+64], %r5;");
    in_turn(READ, &second, &format!("ld.acquire.gpu.global.u32 %r7, [%rd1+64]; {WRITE}")).expect("the limit");
    let (line, message) = in_turn(READ, READ, WRITE).expect_err("the second reader is not ordered");
    assert!(line == 15 && message.contains("which CTA 1 read"), "{message}");
}

#[test]
fn one_thread_counts_for_its_cta() {
    // A thread of CTA 0 writes, and another one releases with no barrier between: a limit, for CTAs are compared as wholes.
    let body = |barrier: &str| {
        format!(
            "setp.eq.u32 %p1, %r2, 1; @%p1 bra B;\nsetp.eq.u32 %p2, %r1, 0; @%p2 st.global.u32 [%rd1], 7;\n{barrier}\n\
             setp.eq.u32 %p3, %r1, 32; @%p3 st.release.gpu.global.u32 [%rd1+64], 1;\nbra E;\n\
             B: ld.acquire.gpu.global.u32 %r6, [%rd1+64]; setp.eq.u32 %p1, %r6, 0; @%p1 bra B;\n\
             ld.global.u32 %r7, [%rd1];\nE:"
        )
    };
    for barrier in ["", "bar.sync 0;"] {
        run_on(1, &body(barrier), 2, 64).unwrap_or_else(|fault| panic!("{fault}"));
    }
}

#[test]
fn registers_that_nothing_wrote_are_zero() {
    // A limit: reading them is no fault.
    assert_eq!(lanes("st.global.u32 [%rd4], %r9;"), [0; 32]);
}
