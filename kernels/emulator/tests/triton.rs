//! Kernels written in Triton, compiled to PTX without a GPU, against what NumPy recorded (`tests/triton/record.py`).

use std::path::PathBuf;

use lathe_emulator::{Chip, Counters, Device, Launch, Module, Options};

/// One array of a case: its bytes before, and what is expected after.
struct Buffer {
    ty: String,
    bytes: usize,
    before: Option<Vec<u8>>,
    after: Option<(Vec<u8>, f64)>,
}

enum Argument {
    Value(u32),
    Buffer(Buffer),
    Null,
}

struct Case {
    name: String,
    kernel: String,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    arguments: Vec<Argument>,
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/triton")
}

fn width(ty: &str) -> usize {
    match ty {
        "s8" => 1,
        "f16" | "bf16" => 2,
        _ => 4,
    }
}

fn read(paragraph: &str) -> Case {
    let mut lines = paragraph.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(' ').collect();
    let number = |word: &str| word.parse::<u32>().expect("a number");
    let contents = std::fs::read(folder().join(format!("{}.bin", head[1]))).expect("recorded arrays");
    let mut rest = &contents[..];
    let argument = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        match words[0] {
            "null" => Argument::Null,
            "value" => Argument::Value(number(words[2])),
            _ => {
                let bytes = number(words[2]) as usize * width(words[1]);
                let mut take = || {
                    let (taken, left) = rest.split_at(bytes);
                    rest = left;
                    taken.to_vec()
                };
                let before = words.contains(&"in").then(&mut take);
                let after = words
                    .iter()
                    .position(|&word| word == "out")
                    .map(|at| (take(), words[at + 1].parse().expect("a tolerance")));
                Argument::Buffer(Buffer { ty: words[1].into(), bytes, before, after })
            }
        }
    };
    let arguments = lines.map(argument).collect();
    assert!(rest.is_empty(), "{}: arrays that no argument has", head[1]);
    let grid = [number(head[3]), number(head[4]), number(head[5])];
    Case {
        name: head[1].into(),
        kernel: head[2].into(),
        grid,
        threads: number(head[6]),
        shared: number(head[7]),
        arguments,
    }
}

/// Elements as numbers.
fn numbers(ty: &str, bytes: &[u8]) -> Vec<f64> {
    let one = |b: &[u8]| match ty {
        "s8" => f64::from(b[0] as i8),
        "f16" => half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
        "bf16" => half::bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        "i32" => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        _ => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    };
    bytes.chunks_exact(width(ty)).map(one).collect()
}

/// Runs a case on a chip and compares every array that it is to leave.
fn run(case: &Case, chip: Chip) -> Counters {
    let name = &case.name;
    let ptx = std::fs::read_to_string(folder().join(format!("{name}.ptx"))).expect("recorded PTX");
    let device = Device::new(chip, 1 << 24);
    let module = Module::load(&ptx, &device).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (mut params, mut buffers) = (Vec::new(), Vec::new());
    for argument in &case.arguments {
        match argument {
            Argument::Value(bits) => params.extend(bits.to_le_bytes()),
            Argument::Null | Argument::Buffer(_) => params.resize(params.len().next_multiple_of(8), 0),
        }
        match argument {
            Argument::Value(_) => {}
            Argument::Null => params.extend([0; 8]),
            Argument::Buffer(buffer) => {
                let address = device.memory.alloc(buffer.bytes as u64).expect("room");
                device.memory.write(address, buffer.before.as_deref().unwrap_or_default()).expect("it is there");
                params.extend(address.to_le_bytes());
                buffers.push((address, buffer));
            }
        }
    }
    let (block, options) = ([case.threads, 1, 1], Options::default());
    let launch = Launch { grid: case.grid, block, shared_bytes: case.shared, params: &params, options };
    let counters =
        module.launch(&device, &case.kernel, &launch).unwrap_or_else(|fault| panic!("{name} on {chip:?}: {fault}"));
    for (address, buffer) in buffers {
        let Some((expected, tolerance)) = &buffer.after else { continue };
        let mut found = vec![0; buffer.bytes];
        device.memory.read(address, &mut found).expect("it is there");
        let pairs = numbers(&buffer.ty, &found).into_iter().zip(numbers(&buffer.ty, expected));
        for (at, (found, expected)) in pairs.enumerate() {
            let allowed = tolerance * expected.abs().max(1.0);
            assert!((found - expected).abs() <= allowed, "{name} on {chip:?}, element {at}: {found} for {expected}");
        }
    }
    counters
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(folder().join("cases")).expect("the list of cases");
    text.split("\n\n").map(read).collect()
}

#[test]
fn triton_kernels_agree_with_numpy() {
    let cases = cases();
    assert!(cases.len() >= 16, "{}", cases.len());
    for case in &cases {
        for chip in [Chip::Sm80, Chip::Sm90] {
            run(case, chip);
        }
    }
}

#[test]
fn products_use_tensor_cores_and_asynchronous_copies() {
    for case in cases().iter().filter(|case| case.name.starts_with("matmul")) {
        let ptx = std::fs::read_to_string(folder().join(format!("{}.ptx", case.name))).expect("recorded PTX");
        assert!(ptx.contains("cp.async") && ptx.contains("mma.sync"), "{}", case.name);
        // 64 x 64 x 160, a multiplication and an addition each.
        assert_eq!(run(case, Chip::Sm80).tensor_operations, 2 * 64 * 64 * 160, "{}", case.name);
    }
}
