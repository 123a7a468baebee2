//! `mma.sync` against results that the published model of tensor cores gave (`tests/mma/record.py`), bit for bit.
//! `LATHE_MMA_VECTORS` names another folder of them, such as one with more cases.

use std::fmt::Write as _;
use std::path::PathBuf;

use lathe_emulator::{Chip, Device, Launch, Module, Options};

/// Elements of a packed matrix.
fn elements(bytes: &[u8], bits: usize) -> Vec<u32> {
    if bits < 8 {
        let per = 8 / bits;
        let cut = (1 << bits) - 1;
        return bytes.iter().flat_map(|&byte| (0..per).map(move |i| u32::from(byte) >> (i * bits) & cut)).collect();
    }
    let one = |bytes: &[u8]| bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte));
    bytes.chunks_exact(bits / 8).map(one).collect()
}

fn bits_of(ty: &str) -> usize {
    match ty {
        "b1" => 1,
        "s4" | "u4" => 4,
        "s8" | "u8" | "e4m3" | "e5m2" => 8,
        "f16" | "bf16" => 16,
        "tf32" | "f32" | "s32" => 32,
        _ => panic!("{ty} is no type"),
    }
}

/// The name of one instruction, taken apart.
struct Shape {
    name: String,
    m: usize,
    n: usize,
    k: usize,
    /// Bits of elements of A and B, and of accumulators.
    bits: usize,
    sum_bits: usize,
}

impl Shape {
    fn parse(name: &str) -> Shape {
        let parts: Vec<&str> = name.split('.').collect();
        let sizes: Vec<usize> = parts[0].split(['m', 'n', 'k']).filter_map(|size| size.parse().ok()).collect();
        Shape {
            name: name.into(),
            m: sizes[0],
            n: sizes[1],
            k: sizes[2],
            bits: bits_of(parts[2]),
            sum_bits: bits_of(parts[1]),
        }
    }

    /// Registers of A, B and the accumulators in a lane.
    fn registers(&self) -> [usize; 3] {
        [self.m * self.k * self.bits / 1024, self.n * self.k * self.bits / 1024, self.m * self.n * self.sum_bits / 1024]
    }

    /// Row and column (A), or column and row (B), of element `i` of a lane, as the figures of the PTX manual have it.
    fn place_a(&self, lane: usize, i: usize) -> (usize, usize) {
        let per = 32 / self.bits;
        (lane / 4 + i / per % (self.m / 8) * 8, lane % 4 * per + i % per + i / (per * self.m / 8) * 4 * per)
    }

    fn place_b(&self, lane: usize, i: usize) -> (usize, usize) {
        let per = 32 / self.bits;
        (lane / 4, lane % 4 * per + i % per + i / per * 4 * per)
    }

    fn place_c(lane: usize, i: usize) -> (usize, usize) {
        (lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2)
    }

    /// A kernel of one warp: registers lie in memory by warp, register and lane.
    fn ptx(&self, chip: &str) -> String {
        let [a, b, c] = self.registers();
        let mut parts = self.name.splitn(2, '.');
        let (shape, types) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        let suffix = if self.bits == 1 { ".and.popc" } else { "" };
        let list = |name: &str, count: usize| {
            let names: Vec<String> = (0..count).map(|i| format!("%{name}{i}")).collect();
            format!("{{{}}}", names.join(", "))
        };
        let all = |what: &str, pointer: usize, name: &str, count: usize| -> String {
            let one = |i: usize| match what {
                "ld" => format!("ld.global.b32 %{name}{i}, [%rd{pointer}+{}];\n", 128 * i),
                _ => format!("st.global.b32 [%rd{pointer}+{}], %{name}{i};\n", 128 * i),
            };
            (0..count).map(one).collect()
        };
        let mut text = format!(
            ".version 8.4\n.target {chip}\n.address_size 64\n.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 c, \
             .param .u64 d)\n{{\n.reg .b32 %a<4>, %b<2>, %c<4>, %d<4>, %r<4>; .reg .b64 %rd<6>, %p<6>;\n\
             mov.u32 %r0, %ctaid.x; mov.u32 %r1, %tid.x;\n"
        );
        for (i, (name, count)) in [("a", a), ("b", b), ("c", c), ("d", c)].into_iter().enumerate() {
            let _ = writeln!(
                text,
                "ld.param.u64 %rd{i}, [{name}]; mad.lo.u32 %r2, %r0, {}, %r1; mul.wide.u32 %p{i}, %r2, 4; \
                 add.s64 %rd{i}, %rd{i}, %p{i};",
                32 * count
            );
        }
        text += &(all("ld", 0, "a", a) + &all("ld", 1, "b", b) + &all("ld", 2, "c", c));
        let _ = writeln!(
            text,
            "mma.sync.aligned.{shape}.row.col.{types}{suffix} {}, {}, {}, {};",
            list("d", c),
            list("a", a),
            list("b", b),
            list("c", c)
        );
        text + &all("st", 3, "d", c) + "ret;\n}\n"
    }
}

/// The registers of a warp, for each register its 32 lanes, from elements by place.
fn fragment(registers: usize, bits: usize, element: impl Fn(usize, usize) -> u32) -> Vec<u8> {
    let per = 32 / bits;
    let mut out = Vec::new();
    for register in 0..registers {
        for lane in 0..32 {
            let word = (0..per).fold(0, |word, i| word | element(lane, register * per + i) << (i * bits));
            out.extend(word.to_le_bytes());
        }
    }
    out
}

/// Compares every case of a file on one of its chips; gives how many results were compared.
fn check(shape: &Shape, chips: &[&str], file: &[u8], index: usize) -> usize {
    let bytes = |count: usize, bits: usize| count * bits / 8;
    let (a_bytes, b_bytes) = (bytes(shape.m * shape.k, shape.bits), bytes(shape.n * shape.k, shape.bits));
    let c_bytes = bytes(shape.m * shape.n, shape.sum_bits);
    let case_bytes = a_bytes + b_bytes + c_bytes * (1 + chips.len());
    assert_eq!(file.len() % case_bytes, 0, "{}: whole cases", shape.name);
    let cases: Vec<&[u8]> = file.chunks_exact(case_bytes).collect();
    let [a_regs, b_regs, c_regs] = shape.registers();
    let mut inputs: [Vec<u8>; 3] = Default::default();
    for case in &cases {
        let a = elements(&case[..a_bytes], shape.bits);
        let b = elements(&case[a_bytes..][..b_bytes], shape.bits);
        let c = elements(&case[a_bytes + b_bytes..][..c_bytes], shape.sum_bits);
        let at = |matrix: &[u32], width: usize, (row, column): (usize, usize)| matrix[row * width + column];
        inputs[0].extend(fragment(a_regs, shape.bits, |lane, i| at(&a, shape.k, shape.place_a(lane, i))));
        inputs[1].extend(fragment(b_regs, shape.bits, |lane, i| at(&b, shape.k, shape.place_b(lane, i))));
        inputs[2].extend(fragment(c_regs, shape.sum_bits, |lane, i| at(&c, shape.n, Shape::place_c(lane, i))));
    }
    let chip = chips[index];
    let device = Device::new(Chip::parse(chip).expect("a chip"), 1 << 30);
    let module = Module::load(&shape.ptx(chip), &device).unwrap_or_else(|error| panic!("{}: {error}", shape.name));
    let mut params = Vec::new();
    for contents in inputs.iter().chain([&vec![0; inputs[2].len()]]) {
        let address = device.memory.alloc(contents.len() as u64).expect("room");
        device.memory.write(address, contents).expect("it is there");
        params.push(address);
    }
    let result = params[3];
    let params: Vec<u8> = params.iter().flat_map(|address| address.to_le_bytes()).collect();
    let options = Options::default();
    let launch =
        Launch { grid: [cases.len() as u32, 1, 1], block: [32, 1, 1], shared_bytes: 0, params: &params, options };
    module.launch(&device, "k", &launch).unwrap_or_else(|fault| panic!("{}: {fault}", shape.name));
    let mut found = vec![0; inputs[2].len()];
    device.memory.read(result, &mut found).expect("it is there");
    for (number, case) in cases.iter().enumerate() {
        let expected = elements(&case[a_bytes + b_bytes + c_bytes * (1 + index)..][..c_bytes], shape.sum_bits);
        let found = elements(&found[number * 128 * c_regs..][..128 * c_regs], shape.sum_bits);
        let per = 32 / shape.sum_bits;
        for register in 0..c_regs {
            for lane in 0..32 {
                for i in 0..per {
                    let (row, column) = Shape::place_c(lane, register * per + i);
                    let (found, expected) = (found[(register * 32 + lane) * per + i], expected[row * shape.n + column]);
                    let name = &shape.name;
                    assert_eq!(
                        found, expected,
                        "{name} on {chip}, case {number}, row {row}, column {column}: {found:#x} for {expected:#x}"
                    );
                }
            }
        }
    }
    cases.len() * shape.m * shape.n
}

#[test]
fn tensor_cores_equal_the_published_model() {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/mma");
    let folder = std::env::var_os("LATHE_MMA_VECTORS").map_or_else(own, PathBuf::from);
    let chips = std::fs::read_to_string(folder.join("chips")).expect("the list of chips");
    let mut compared = 0;
    for line in chips.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (shape, chips) = (Shape::parse(words[0]), &words[1..]);
        let file = std::fs::read(folder.join(format!("{}.bin", shape.name))).expect("recorded cases");
        for index in 0..chips.len() {
            compared += check(&shape, chips, &file, index);
        }
    }
    println!("{compared} results are equal");
    assert!(compared > 10_000, "{compared}");
}
