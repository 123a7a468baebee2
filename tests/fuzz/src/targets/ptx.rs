//! PTX into kernels, and each of them run for some thousands of instructions: by one CTA, and by several on one or two host
//! threads.

use lathe_emulator::{Chip, Counters, Device, Fault, Launch, Module, Options};

use crate::mutate::Shape;
use crate::{Outcome, Target};

/// The target's entry.
pub const TARGET: Target =
    Target { name: "ptx", summary: "PTX into kernels that run on the emulator", shape: Shape::Text(WORDS), seeds, run };

/// Words of the language.
const WORDS: &[&str] = &[
    "\n\tadd.s32 %r1, %r2, %r3;",
    "\n\tmov.b64 %rd1, %rd2;",
    "\n\tld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1+16];",
    "\n\tst.shared.b32 [%r1], %r2;",
    "\n\tld.shared.b32 %r1, [%r2+-4];",
    "\n\tld.local.b32 %r1, [%rd1];",
    "\n\tatom.global.add.u32 %r1, [%rd1], 1;",
    "\n\tcp.async.cg.shared.global [%r1], [%rd1], 16, %r2;\n\tcp.async.commit_group;",
    "\n\tcp.async.wait_group 0;",
    "\n\tbar.sync 0;",
    "\n\tbar.sync 1, 32;",
    "\n\tbar.arrive %r1, %r2;",
    "\n\tbar.warp.sync -1;",
    "\n\tshfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1;",
    "\n\tldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r1, %r2, %r3, %r4}, [%r5];",
    "\n\tmma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1,%r2,%r3,%r4}, {%r5,%r6,%r7,%r8}, {%r9,%r1}, {%r1,%r2,%r3,%r4};",
    "\n\tsetp.ne.s32 %p1|%p2, %r1, %r2;",
    "\n\t@!%p1 bra $L__BB0_1;",
    "\n\tbrx.idx %r1, table;",
    "\ntable: .branchtargets $L__BB0_1, $L__BB0_2;",
    "\n\tcall (%r1), f, (%r2);",
    "\n\tcvt.rni.s64.f64 %rd1, %fd1;",
    "\n\tdiv.u32 %r1, %r2, 0;",
    "\n\trem.s64 %rd1, %rd2, %rd3;",
    "\n\tbfi.b64 %rd1, %rd2, %rd3, %r1, %r2;",
    "\n\tmadc.hi.cc.u64 %rd1, %rd2, %rd3, %rd4;",
    "\n\tprmt.b32 %r1, %r2, %r3, 0x7654;",
    "\n\tret;",
    "\n\ttrap;",
    ".reg .b32 %r<99>;",
    ".shared .align 16 .b8 s[65536];",
    ".local .b8 l[65536];",
    ".global .align 4 .b32 g[4] = {1, 2, g, -4};",
    ".func f(.param .b32 x) { ret; }",
    ".maxntid 64, 2, 1",
    "{",
    "}",
    "[",
    "%tid.x",
    "%ctaid.y",
    "-9223372036854775808",
    "18446744073709551615",
    "0f7FC00000",
    "0dFFF0000000000000",
];

/// Kernels of the emulator's own tests.
fn seeds() -> Vec<Vec<u8>> {
    let files: [&[u8]; 5] = [
        include_bytes!("../../../../kernels/emulator/tests/triton/argmax.ptx"),
        include_bytes!("../../../../kernels/emulator/tests/triton/histogram.ptx"),
        include_bytes!("../../../../kernels/emulator/tests/triton/matmul_f16.ptx"),
        include_bytes!("../../../../kernels/emulator/tests/triton/scan.ptx"),
        include_bytes!("../../../../kernels/emulator/tests/triton/transpose.ptx"),
    ];
    files.into_iter().map(<[u8]>::to_vec).collect()
}

/// Bytes of the device, and of the buffer that each pointer is given.
const DEVICE: u64 = 1 << 21;
const BUFFER: u64 = 1 << 16;

/// CTAs, threads of each, and host threads.
struct Size {
    grid: [u32; 3],
    block: u32,
    host: usize,
}

fn run(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    let device = Device::new(Chip::Sm80, DEVICE);
    let module = match Module::load(&text, &device) {
        Ok(module) => module,
        Err(error) => return Outcome::refused(&error),
    };
    let names: Vec<String> = module.kernels().map(str::to_owned).collect();
    // The input itself draws the second launch, so that it alone replays a find.
    let drawn = input.iter().fold(0u32, |sum, &byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    let mut outcome = Outcome::accepted("no kernel");
    for name in names {
        let threads = module.needs(&name).map_or(32, |(_, _, most)| most.clamp(1, 128)) as u32;
        let one = Size { grid: [1; 3], block: threads, host: 1 };
        let several = Size {
            grid: [1 + drawn % 3, 1 + drawn / 3 % 2, 1],
            block: (threads >> (drawn / 6 % 3)).max(1),
            host: 1 + (drawn / 18 % 2) as usize,
        };
        let first = launch(&device, &module, &name, &one);
        // CTAs that do the same race with each other, and a seed that does so is sound. On two host threads it is chance
        // what comes first, which must not lead the search.
        let then = match launch(&device, &module, &name, &several) {
            _ if several.host > 1 => String::new(),
            Ok(_) => "so did several CTAs".to_owned(),
            Err(fault) => format!("several CTAs: {:?}", fault.kind),
        };
        outcome = match first {
            Ok(counters) => {
                Outcome::accepted(format_args!("it ran, {} atomics; {then}", counters.instructions[5].min(1)))
            }
            Err(fault) => Outcome::refused(&fault),
        };
    }
    outcome
}

/// Runs a kernel with a buffer of its own for each pointer, all of which are given back.
fn launch(device: &Device, module: &Module, name: &str, size: &Size) -> Result<Counters, Fault> {
    let (mut params, mut buffers) = (Vec::new(), Vec::new());
    for param in module.params(name).unwrap_or_default() {
        params.resize(param.offset as usize, 0);
        let value = if param.bytes == 8 {
            // There may be no room beside the module's variables; then pointers lead nowhere.
            let buffer = device.memory.alloc(BUFFER).unwrap_or(0);
            let _ = device.memory.fill(buffer, &[1, 0, 0, 0], BUFFER / 8);
            buffers.push(buffer);
            buffer
        } else {
            64
        };
        params.extend(value.to_le_bytes().into_iter().cycle().take(param.bytes as usize));
    }
    let options = Options { step_limit: 40_000, threads: size.host, ..Options::default() };
    let (grid, block) = (size.grid, [size.block, 1, 1]);
    let ran = module.launch(device, name, &Launch { grid, block, shared_bytes: 32 << 10, params: &params, options });
    for buffer in buffers {
        let _ = device.memory.free(buffer);
    }
    ran
}
