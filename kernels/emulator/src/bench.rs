//! `emulator bench`: lane-instructions a second for each class of the arithmetic that kernels consist of.

use std::error::Error;
use std::fmt::Write as _;
use std::time::Instant;

use lathe_emulator::{Counters, Device, Launch, Module, Options};

use crate::{DEFAULT_CHIP, arguments};

/// A loop around eight copies of some instructions, in which `$` is the number of the copy.
fn kernel(body: &str) -> String {
    let mut ptx = String::from(
        ".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n\
         .reg .b32 %r<40>; .reg .b64 %rd<10>; .reg .pred %p<4>; .shared .align 16 .b8 s[4096];\n\
         ld.param.u64 %rd1, [p]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd2, %r1, 16; add.s64 %rd1, %rd1, %rd2;\n\
         mov.u32 %r8, %ctaid.x; mul.wide.u32 %rd2, %r8, 2048; add.s64 %rd1, %rd1, %rd2;\n\
         shl.b32 %r2, %r1, 4; mov.u32 %r3, s; add.s32 %r2, %r2, %r3;\n\
         mov.u32 %r4, 0x3f800000; mov.u32 %r5, 0x3f000000; mov.u32 %r6, 0x3f400000; mov.u32 %r7, 3;\n\
         mov.u32 %r10, 0; mov.u32 %r11, 0; mov.u32 %r12, 0; mov.u32 %r13, 0;\n\
         st.shared.v4.b32 [%r2], {%r4, %r5, %r6, %r7};\nmov.u32 %r9, 0;\nL:\n",
    );
    for copy in 0..8 {
        let _ = writeln!(ptx, "{}", body.replace('$', &copy.to_string()));
    }
    ptx.push_str(
        "add.s32 %r9, %r9, 1; setp.lt.u32 %p1, %r9, 1000; @%p1 bra L;\nst.global.b32 [%rd1], %r10;\nret;\n}\n",
    );
    ptx
}

const CLASSES: [(&str, &str); 17] = [
    (
        "integer",
        "add.s32 %r10, %r10, %r7; xor.b32 %r11, %r11, %r10; shl.b32 %r12, %r11, 1; mad.lo.s32 %r13, %r12, %r7, %r10;",
    ),
    ("float", "fma.rn.f32 %r10, %r5, %r6, %r10; add.f32 %r11, %r11, %r10; mul.f32 %r12, %r11, %r5;"),
    ("convert", "cvt.rn.f32.s32 %r10, %r7; cvt.rzi.s32.f32 %r11, %r10;"),
    ("special", "ex2.approx.f32 %r10, %r5; rsqrt.approx.f32 %r11, %r6;"),
    ("control", "setp.lt.u32 %p2, %r9, 500; @%p2 bra A$; add.s32 %r10, %r10, 1; A$:"),
    ("divergent", "setp.lt.u32 %p2, %r1, 50; @%p2 bra A$; add.s32 %r10, %r10, 1; A$:"),
    ("shared", "ld.shared.b32 %r10, [%r2]; ld.shared.v4.b32 {%r10, %r11, %r12, %r13}, [%r2];"),
    ("global", "st.global.b32 [%rd1], %r10; ld.global.b32 %r11, [%rd1];"),
    ("atomic", "atom.global.add.u32 %r10, [%rd1], %r7; red.global.add.u32 [%rd1], %r7;"),
    ("barrier", "bar.sync 0;"),
    ("shuffle", "shfl.sync.bfly.b32 %r10, %r7, 1, 31, -1;"),
    // One stage of a pipeline: 16 bytes a lane, waited for, and read as fragments.
    (
        "copy",
        "cp.async.cg.shared.global [%r2], [%rd1], 16; cp.async.commit_group; cp.async.wait_group 0; \
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r20, %r21, %r22, %r23}, [%r2];",
    ),
    // The mixture of a tile of products on plain cores: a load of four words for eight multiply-adds.
    (
        "tiled gemm",
        "ld.shared.v4.b32 {%r20, %r21, %r22, %r23}, [%r2]; \
        fma.rn.f32 %r10, %r20, %r21, %r10; fma.rn.f32 %r11, %r20, %r22, %r11; fma.rn.f32 %r12, %r20, %r23, %r12; \
        fma.rn.f32 %r13, %r21, %r22, %r13; fma.rn.f32 %r24, %r21, %r23, %r10; fma.rn.f32 %r25, %r22, %r23, %r11; \
        fma.rn.f32 %r26, %r20, %r20, %r12; fma.rn.f32 %r27, %r21, %r21, %r13;",
    ),
    (
        "mma f16",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r10, %r11, %r12, %r13}, {%r4, %r5, %r6, %r4}, \
        {%r5, %r6}, {%r10, %r11, %r12, %r13};",
    ),
    (
        "mma bf16",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%r10, %r11, %r12, %r13}, {%r4, %r5, %r6, %r4}, \
        {%r5, %r6}, {%r10, %r11, %r12, %r13};",
    ),
    (
        "mma tf32",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r10, %r11, %r12, %r13}, {%r4, %r5, %r6, %r4}, \
        {%r5, %r6}, {%r10, %r11, %r12, %r13};",
    ),
    (
        "mma s8",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r10, %r11, %r12, %r13}, {%r4, %r5, %r6, %r4}, \
        {%r5, %r6}, {%r10, %r11, %r12, %r13};",
    ),
];

/// Bytes of global memory of a CTA, 16 for each of its 128 threads.
const CTA_BYTES: u64 = 2048;

/// Measurements of each kernel, of which the fastest counts.
const REPEATS: usize = 5;
/// Seconds that one takes at least: a system counts the time of threads in ticks of up to 10 ms.
const LEAST: f64 = 0.3;

/// Reads the options of `emulator bench`.
pub fn options(words: &[String]) -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.as_slice().first()) {
            ("--no-checks", _) => options.checks = false,
            ("--threads", Some(value)) => {
                options.threads = arguments::threads(value)?;
                words.next();
            }
            _ => return Err(format!("`{word}` is no option of `bench`, or has no value")),
        }
    }
    Ok(options)
}

/// Seconds that this thread has had a processor, where the system says so.
fn own_time() -> Option<f64> {
    let told = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(told.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e9)
}

/// Seconds that all threads of the process have had processors, those counted that have ended.
fn time_of_all() -> Option<f64> {
    /// Linux counts there in hundredths of a second.
    const TICKS: f64 = 100.0;
    let told = std::fs::read_to_string("/proc/self/stat").ok()?;
    // Behind the name, which may hold anything, they are the twelfth and thirteenth.
    let mut fields = told.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / TICKS)
}

/// Prints the table.
pub fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    println!("{} host threads, checks {}", options.threads, if options.checks { "on" } else { "off" });
    // So what other work on the machine takes is told apart.
    let clock = || if options.threads == 1 { own_time() } else { Some(time_of_all()? / options.threads as f64) };
    println!("{:<12} {:>24} {:>14}", "class", "million lane-instr./s", "ns/warp-instr.");
    for (name, body) in CLASSES {
        let device = Device::new(DEFAULT_CHIP, 1 << 20);
        let module = Module::load(&kernel(body), &device)?;
        let grid = options.threads as u32 * 4;
        // Each CTA has memory of its own there, so that none races with another.
        let buffer = device.memory.alloc(u64::from(grid) * CTA_BYTES)?;
        let params = buffer.to_le_bytes();
        device.memory.fill(buffer, &[0; 4], u64::from(grid) * CTA_BYTES / 4)?;
        let options = options.clone();
        let launch = Launch { grid: [grid, 1, 1], block: [128, 1, 1], shared_bytes: 0, params: &params, options };
        let (mut best, mut counters) = (f64::INFINITY, Counters::default());
        for _ in 0..REPEATS {
            let (begin, own, mut runs) = (Instant::now(), clock(), 0u32);
            let elapsed = loop {
                counters = module.launch(&device, "k", &launch)?;
                runs += 1;
                let wall = begin.elapsed().as_secs_f64();
                let elapsed = clock().zip(own).map_or(wall, |(end, begin)| end - begin);
                if elapsed >= LEAST {
                    break elapsed;
                }
            };
            best = best.min(elapsed / f64::from(runs));
        }
        let warps: u64 = counters.instructions.iter().sum();
        println!("{name:<12} {:>24.0} {:>14.1}", counters.lanes() as f64 / best / 1e6, best / warps as f64 * 1e9);
    }
    Ok(())
}
