//! Text that is no PTX, PTX that no chip runs, and launches that cannot be: each is an error that says where and why.

use std::fmt::Write as _;

use lathe_emulator::{Chip, Device, Fault, FaultKind, Launch, MemoryError, Module, ModuleError, Options};

const HEAD: &str = ".version 7.0\n.target sm_80\n.address_size 64\n";

fn load(ptx: &str) -> Result<Module, ModuleError> {
    Module::load(ptx, &Device::new(Chip::Sm80, 1 << 20))
}

/// The error of a text: its place, and that it tells something.
fn check(ptx: &str, place: (u32, u32), told: &str) {
    match load(ptx) {
        Err(ModuleError::Ptx(error)) => {
            assert!(error.message.contains(told), "`{told}` in: {error}");
            assert_eq!((error.line, error.column), place, "{error}");
        }
        Err(other) => panic!("{told}: {other}"),
        Ok(_) => panic!("{told}: it was read"),
    }
}

/// The same for the body of a kernel, which begins in line 7.
fn check_body(body: &str, place: (u32, u32), told: &str) {
    let declared = ".reg .b32 %r<4>; .reg .b64 %rd<4>; .reg .pred %p<2>; .reg .f32 %f<4>;";
    check(&format!("{HEAD}.visible .entry k(.param .u64 a)\n{{\n{declared}\n{body}\nret;\n}}\n"), place, told);
}

#[test]
fn syntax() {
    check("", (1, 1), "`.version` is missing");
    check("hello", (1, 1), "expected a directive of a module");
    check("\u{1}", (1, 1), "has no place in PTX");
    check(".version x", (1, 10), "expected a version");
    check(".version 7.0\n.address_size 64\n.entry k() { ret; }", (1, 1), "`.target` is missing");
    check(
        &format!("{HEAD}.entry k() {{\n{}", "{".repeat(300) + &"}".repeat(301)),
        (5, 256),
        "nested more than 256 deep",
    );
    check(".version 99.0", (1, 10), "are understood");
    check(&format!("{HEAD}.visible .entry k(\n"), (5, 1), "the end of the text");
    check(&format!("{HEAD}.global .b99 x;"), (4, 9), "type");
    check(&format!("{HEAD}/* never closed"), (4, 1), "not closed");
    check(&format!("{HEAD}.entry k() {{ .reg .b32 %r<2>; mov.u32 %r1, 08; ret; }}"), (4, 44), "not a number");
    check_body("add.s32 %r1 %r2;", (7, 13), "expected `,` or `;`");
    check_body("  ld.global.u32 %r1, [%rd1;", (7, 27), "expected `+`, `-` or `]`");
    check_body("@ add.s32 %r1, %r1, %r1", (7, 14), "expected an operand");
    check_body("{", (10, 1), "the end");
}

#[test]
fn unknown_instructions_and_names() {
    check_body("frobnicate.u32 %r1, %r2;", (7, 1), "`frobnicate.u32` is not known");
    check_body("add.zz.s32 %r1, %r2, %r3;", (7, 1), "the modifier `.zz`");
    check_body("add.s32 %r1, %r2;", (7, 1), "");
    check_body("add.s32 %r1, %r2, %r9;", (7, 1), "`%r9` is not declared");
    check_body("bra NOWHERE;", (7, 1), "`NOWHERE` is not there");
    check_body("L: L: ret;", (7, 4), "there twice");
    check_body("call nothing, ();", (7, 1), "`nothing` has no body");
    check_body(".frob 3;", (7, 1), "expected an instruction");
    check_body("add.s64 %r1, %rd1, %rd2;", (7, 1), "another width or kind than the result of 64 bits");
    check_body("setp.eq.u32 %r1, %r2, %r3;", (7, 1), "`%r1`");
    check_body("@%r1 ret;", (7, 6), "not a predicate");
    check_body("mma.sync.aligned.m16n8k99.row.col.f32.f16.f16.f32 %r1, %r1, %r1, %r1;", (7, 1), "shape");
}

#[test]
fn what_ptxas_refuses_too() {
    for (instruction, told) in [
        ("fence.frobnicate.zz;", "no scope"),
        ("fence.acq_rel.gpu.sys;", "`.sys`"),
        ("membar;", "no scope"),
        ("membar.everything;", "no scope"),
        ("membar.cta.gl;", "`.gl`"),
        ("prefetch.frob.L9 [%rd1];", "no level"),
        ("prefetch.L1.L2 [%rd1];", "`.L2`"),
        ("griddepcontrol.dance;", "sm_90"),
        ("ld.release.gpu.global.u32 %r1, [%rd1];", "`.release`"),
        ("st.acquire.gpu.global.u32 [%rd1], %r1;", "`.acquire`"),
        ("red.acquire.gpu.global.add.u32 [%rd1], 1;", "`.acquire`"),
        ("st.global.nc.u32 [%rd1], %r1;", "`.nc`"),
        ("ld.nc.u32 %r1, [%rd1];", "`.nc`"),
        ("ld.wt.global.u32 %r1, [%rd1];", "`.wt`"),
        ("st.global.ca.u32 [%rd1], %r1;", "`.ca`"),
        ("ld.relaxed.gpu.global.ca.u32 %r1, [%rd1];", "`.ca`"),
        ("ld.volatile.gpu.global.u32 %r1, [%rd1];", "`.gpu`"),
        ("ld.acquire.global.u32 %r1, [%rd1];", "needs a scope"),
        ("ld.gpu.global.u32 %r1, [%rd1];", "`.gpu`"),
        ("ld.acquire.cta.gpu.global.u32 %r1, [%rd1];", "`.gpu`"),
        ("ld.global.ca.cg.u32 %r1, [%rd1];", "`.cg`"),
        ("ld.global.v8.b64 {%rd1, %rd1, %rd1, %rd1, %rd1, %rd1, %rd1, %rd1}, [%rd1];", "32 bytes"),
        ("activemask.b32 %r1, %r2, %r3;", "one result"),
        ("ret %r1;", "takes 0 operands"),
        ("exit %r1;", "takes 0 operands"),
        ("trap %r1;", "takes 0 operands"),
        ("nanosleep.u32 %r1, %r1;", "takes a time"),
        ("pmevent 99999;", "0 to 15"),
        ("cp.async.wait_group 3, 4;", "takes 1 operands"),
        ("cp.async.commit_group 3;", "takes 0 operands"),
        ("cp.async.ca.shared.global [%r1], [%rd1], 4, 99;", "more bytes than it copies"),
        ("bar.sync 16;", "barriers 0 to 15"),
        ("fma.rn.relu.f32 %f1, %f1, %f1, %f1;", "`.relu`"),
        ("add.s32 %r1, %rd1, %r2;", "`%rd1` has 64 bits, and the instruction takes 32 there"),
        ("add.s64 %rd1, %r1, %rd2;", "`%r1` has 32 bits, and the instruction takes 64 there"),
        ("add.s32 %rd1, %r1, %r2;", "another width"),
        ("setp.lt.f32 %p1, %f1, %rd1;", "`%rd1` has 64 bits"),
        ("mov.b64 %rd1, {%r1, %rd2};", "`%rd2` has 64 bits"),
        ("shfl.sync.idx.b32 %r1, %rd1, 0, 31, -1;", "`%rd1` has 64 bits"),
        ("st.global.u64 [%rd1], %r1;", "`%r1` has 32 bits"),
        ("atom.global.and.f32 %f1, [%rd1], %f2;", "not there for its type"),
        ("red.global.max.f32 [%rd1], %f2;", "not there for its type"),
        ("atom.global.inc.s32 %r1, [%rd1], %r2;", "not there for its type"),
        ("call %rd1, ();", "in a register are not emulated"),
        (".reg .b32 %r1;", "declared twice"),
        (".reg .b32 %r<9>;", "declared twice"),
        (".reg .b32 %x, %x;", "declared twice"),
    ] {
        let column =
            if instruction.starts_with(".reg") { instruction.rfind('%').map_or(0, |at| at as u32 + 1) } else { 1 };
        check_body(instruction, (7, column), told);
    }
    // What differs in one word is accepted.
    let body = "membar.gl; fence.acq_rel.gpu; fence.gpu; prefetch.global.L2::evict_last [%rd1]; pmevent 3; nanosleep.u32 5;\n\
        ld.acquire.gpu.global.u32 %r1, [%rd1]; ld.global.ca.nc.u32 %r1, [%rd1]; st.global.wt.u32 [%rd1], %r1;\n\
        ld.volatile.global.u32 %r1, [%rd1]; red.release.cta.global.add.u32 [%rd1], 1; activemask.b32 %r1;\n\
        { .reg .b32 %r<9>; .reg .b32 %r09, %r10; mov.u32 %r10, %r8; }\n\
        cvt.u32.u32 %r1, %rd1; cvt.u64.u32 %rd1, %r1; st.global.u16 [%rd1], %r1; st.global.u8 [%rd1], %rd1; ld.global.u8 %rd1, [%rd1];\n\
        .reg .b8 %b<4>; mov.b32 %r1, {%b0, %b1, %b2, %b3};";
    let head = ".reg .b32 %r<4>; .reg .b64 %rd<4>;";
    load(&format!("{HEAD}.visible .entry k(.param .u64 a)\n{{\n{head}\n{body}\nret;\n}}\n")).expect("sound PTX");
}

#[test]
fn what_a_target_does_not_have() {
    let on = |target: &str, instruction: &str| {
        let chip = Chip::parse("sm_90").expect("a chip");
        let head = format!(".version 8.0\n.target {target}\n.address_size 64\n.entry k() {{");
        let declared = ".reg .b32 %r<4>; .reg .b16 %h<4>; .reg .f32 %f<4>; .reg .pred %p<4>;";
        Module::load(&format!("{head}\n{declared}\n{instruction}\nret; }}"), &Device::new(chip, 1 << 20)).map(drop)
    };
    for (instruction, without, with) in [
        ("elect.sync %r1|%p1, -1;", "sm_89", "sm_90"),
        ("griddepcontrol.wait;", "sm_80", "sm_90"),
        ("setmaxnreg.inc.sync.aligned.u32 40;", "sm_80", "sm_90a"),
        ("cvt.rn.satfinite.e4m3x2.f32 %h1, %f1, %f2;", "sm_80", "sm_89"),
        ("fence.acq_rel.cluster;", "sm_80", "sm_90"),
        ("redux.sync.add.s32 %r1, %r2, -1;", "sm_75", "sm_80"),
        ("cp.async.wait_all;", "sm_75", "sm_80"),
    ] {
        let error = on(without, instruction).expect_err(instruction).to_string();
        assert!(error.contains("line 6") && error.contains("needs `.target"), "{error}");
        on(with, instruction).unwrap_or_else(|error| panic!("{instruction}: {error}"));
    }
}

#[test]
fn definitions_that_are_there_twice() {
    check(&format!("{HEAD}.entry k() {{ ret; }}\n.entry k() {{ ret; }}"), (5, 8), "`k` is defined twice");
    check(&format!("{HEAD}.entry k(.param .u64 a, .param .u32 a) {{ ret; }}"), (4, 37), "`a` is there twice");
    load(&format!("{HEAD}.func f;\n.func f {{ ret; }}\n.entry k() {{ ret; }}")).expect("declared, then defined");
}

#[test]
fn blocks_that_no_device_has() {
    for (directive, told) in [
        (".maxntid 4294967295, 4294967295, 4294967295", "4294967295 threads in one direction"),
        (".reqntid 4294967295, 4294967295, 4294967295", "4294967295 threads in one direction"),
        (".maxntid 0", "0 threads in one direction"),
        (".maxntid 32, 32, 2", "2048 threads"),
        (".reqntid 1025", "1025 threads"),
    ] {
        check(&format!("{HEAD}.entry k()\n{directive} {{ ret; }}"), (5, 10), told);
    }
    let module = load(&format!("{HEAD}.entry k()\n.maxntid 32, 32, 1 {{ ret; }}")).expect("1024 threads");
    assert_eq!(module.needs("k").map(|(_, _, threads)| threads), Some(1024));
}

#[test]
fn more_memory_than_the_host_has() {
    let device = Device::new(Chip::Sm80, u64::MAX);
    assert_eq!(device.memory.alloc(1 << 62), Err(MemoryError::Host { requested: 1 << 62 }));
    device.memory.alloc(256).expect("the device goes on");
}

#[test]
fn what_later_chips_add_is_named() {
    for instruction in [
        "mbarrier.init.shared.b64 [%r1], 1;",
        "cp.async.bulk.commit_group;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r1], [%rd1, {%r1, %r2}], [%r3];",
        "wgmma.fence.sync.aligned;",
        "barrier.cluster.arrive;",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2};",
    ] {
        check_body(instruction, (7, 1), "is not emulated yet");
        let name = instruction.split([' ', ';']).next().expect("an opcode");
        check_body(instruction, (7, 1), name);
    }
}

#[test]
fn targets() {
    let module =
        |target: &str| load(&format!(".version 8.0\n.target {target}\n.address_size 64\n.entry k() {{ ret; }}"));
    assert!(module("sm_80").is_ok() && module("sm_50").is_ok());
    for target in ["sm_90", "sm_90a", "sm_100", "sm_80a9", "texmode_unified", "sm_"] {
        match module(target) {
            Err(error @ ModuleError::Target { .. }) => {
                assert!(error.to_string().contains(target) && error.to_string().contains("sm_80"), "{error}");
            }
            other => panic!("{target}: {other:?}"),
        }
    }
    assert!(load(".version 7.0\n.target sm_80\n.address_size 32\n").is_err(), "32-bit addresses");
}

#[test]
fn hostile_text_is_refused_in_bounded_time_and_space() {
    let body = |text: &str| load(&format!("{HEAD}.entry k() {{\n{text}\n}}")).map(drop);
    assert!(body(&"{".repeat(100_000)).is_err(), "braces that are never closed");
    assert!(body(&format!("{}{}", "{".repeat(100_000), "}".repeat(100_000))).is_err(), "deep braces");
    assert!(body(&format!("mov.b32 %r1, {}", "{".repeat(100_000))).is_err(), "deep operands");
    assert!(body(".reg .b32 %r<4000000000>;").is_err(), "too many registers");
    assert!(body(".shared .b8 s[18446744073709551615];").is_err(), "more bytes than there are addresses");
    assert!(body(".shared .b8 s[65536][65536][65536][65536];").is_err(), "a product that overflows");
    assert!(body(".shared .b8 s[1048577];").is_err(), "more shared memory than any chip has");
    assert!(body(".local .b8 s[1048577];").is_err(), "more local memory than a thread may have");
    assert!(load(&format!("{HEAD}.global .b8 g[4294967295];")).is_err(), "more than the device has");
    let mut loops = String::from(".reg .b32 %r<4>; .reg .pred %p<2>;\n");
    for i in 0..60_000 {
        let _ = writeln!(loops, "L{i}: @%p0 bra M{i}; add.u32 %r1, %r1, 1; M{i}: add.u32 %r2, %r2, 1; @%p1 bra L{i};");
    }
    assert!(body(&(loops + "ret;")).is_ok(), "many loops, each of two blocks");
    let functions: String = (1..40)
        .flat_map(|i| {
            let (own, other) = (i.to_string(), (i - 1).to_string());
            [".func f", &own, "() { call f", &other, ", (); call f", &other, ", (); ret; }\n"].map(str::to_owned)
        })
        .collect();
    for kernel in [".entry k() { call f20, (); ret; }", ".entry k() { call f39, (); ret; }"] {
        assert!(load(&format!("{HEAD}.func f0() {{ ret; }}\n{functions}{kernel}")).is_err(), "calls without end");
    }
    assert!(load(&format!("{HEAD}.func f() {{ call f, (); ret; }}\n.entry k() {{ call f, (); ret; }}")).is_err());
    assert!(body(&"add.s32 %r1, %r1, %r1;\n".repeat(1000)).is_err(), "undeclared, a thousand times");
    let long = format!("{}\n{}", ".reg .b32 %r<2>;", "add.s32 %r1, %r1, %r1;\n".repeat(50_000));
    assert!(body(&long).is_ok(), "long is not hostile");
    let maze: String = (0..3000)
        .flat_map(|i| ["L".into(), i.to_string(), ": bra L".into(), ((i * 7919 + 13) % 3000).to_string(), ";\n".into()])
        .collect();
    assert!(body(&maze).is_ok(), "jumps without order");
}

fn launch(ptx: &str, grid: [u32; 3], block: [u32; 3], shared_bytes: u32, params: &[u8]) -> Result<(), Fault> {
    let device = Device::new(Chip::Sm80, 1 << 20);
    let module = Module::load(ptx, &device).unwrap_or_else(|error| panic!("{error}"));
    let options = Options { step_limit: 100_000, ..Options::default() };
    module.launch(&device, "k", &Launch { grid, block, shared_bytes, params, options }).map(drop)
}

#[test]
fn launches() {
    let kernel = |body: &str| format!("{HEAD}.visible .entry k(.param .u64 a)\n{{\n{body}\nret;\n}}\n");
    let plain = kernel("");
    let refused = |ptx: &str, grid, block, shared, params: &[u8], told: &str| {
        let fault = launch(ptx, grid, block, shared, params).expect_err(told);
        assert_eq!(fault.kind, FaultKind::Launch, "{fault}");
        assert!(fault.message.contains(told), "`{told}` in: {fault}");
    };
    assert!(launch(&plain, [1; 3], [1; 3], 0, &[0; 8]).is_ok());
    refused(&plain, [1; 3], [1; 3], 0, &[0; 4], "4 bytes of parameters; 8 are declared");
    refused(&plain, [1; 3], [1; 3], 0, &[0; 16], "16 bytes of parameters");
    refused(&plain, [1; 3], [1025, 1, 1], 0, &[0; 8], "1 to 1024");
    refused(&plain, [1; 3], [1, 1, 65], 0, &[0; 8], "64 of them in z");
    refused(&plain, [1; 3], [u32::MAX; 3], 0, &[0; 8], "threads");
    refused(&plain, [1, 65536, 1], [1; 3], 0, &[0; 8], "65535");
    refused(&plain, [u32::MAX; 3], [1; 3], 0, &[0; 8], "CTAs");
    refused(&plain, [1; 3], [1; 3], 200 << 10, &[0; 8], "is the most");
    refused(&kernel(".shared .b8 s[166000]; .shared .b8 t[2000];"), [1; 3], [1; 3], 0, &[0; 8], "is the most");
    refused(&kernel(".local .b8 s[400000];"), [1; 3], [1024, 1, 1], 0, &[0; 8], "launch fewer threads");
    let sized = plain.replace("\n{", "\n.reqntid 64\n{");
    refused(&sized, [1; 3], [32, 1, 1], 0, &[0; 8], "requires 64");
    let bounded = plain.replace("\n{", "\n.maxntid 64\n{");
    refused(&bounded, [1; 3], [65, 1, 1], 0, &[0; 8], "compiled for 64");
    let device = Device::new(Chip::Sm80, 1 << 20);
    let module = Module::load(&plain, &device).expect("it is PTX");
    let options = Options::default();
    let none = Launch { grid: [1; 3], block: [1; 3], shared_bytes: 0, params: &[0; 8], options };
    assert_eq!(module.launch(&device, "nothing", &none).expect_err("no such kernel").kind, FaultKind::Launch);
}

#[test]
fn hostile_kernels_end_in_a_fault() {
    let run = |declared: &str, body: &str| {
        let ptx = format!(
            "{HEAD}.visible .entry k(.param .u64 a)\n{{\n.reg .b32 %r<8>; .reg .b64 %rd<8>; .reg .pred %p<2>; {declared}\n\
             {body}\nret;\n}}\n"
        );
        launch(&ptx, [2, 1, 1], [64, 1, 1], 0, &[0; 8]).expect_err(body).kind
    };
    // A loop that changes nothing is found out before the limit.
    assert_eq!(run("", "L: bra L;"), FaultKind::Deadlock);
    assert_eq!(run("", "L: bar.sync 0; bra L;"), FaultKind::StepLimit);
    assert_eq!(
        run("", "mov.u32 %r1, %tid.x; mul.lo.u32 %r2, %r1, %r1; L: add.u32 %r1, %r1, %r2; bra L;"),
        FaultKind::StepLimit
    );
    for address in ["0", "0xffffffffffffffff", "0x7f0000000000", "0x10000000000", "0x20000000000", "0x30000000008"] {
        for access in ["ld.u8 %r1, [%rd1];", "st.u64 [%rd1], %rd1;", "ld.v4.u32 {%r1,%r2,%r3,%r4}, [%rd1+-16];"] {
            let kind = run("", &format!("mov.u64 %rd1, {address}; {access}"));
            assert!(matches!(kind, FaultKind::OutOfBounds | FaultKind::Misaligned), "{address} {access}: {kind:?}");
        }
    }
    for access in
        ["ld.shared.u32 %r1, [%r1+-4];", "ld.local.u32 %r1, [%rd1+64];", "atom.shared.add.u32 %r1, [1048576], 1;"]
    {
        assert_eq!(
            run(".local .b8 l[64]; .shared .b8 s[64];", &format!("mov.u32 %r1, 0; mov.u64 %rd1, 0; {access}")),
            FaultKind::OutOfBounds
        );
    }
    assert_eq!(run("", "mov.u32 %r1, 99; bar.sync %r1;"), FaultKind::BarrierCount);
    assert_eq!(run("", "T: .branchtargets A, A; mov.u32 %r1, 7; brx.idx %r1, T; A:"), FaultKind::Trap);
}
