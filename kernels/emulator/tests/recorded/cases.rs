//! Kernels with recorded inputs and what NumPy makes of them: those of `tests/triton/` and of `tests/fixtures/` (CUDA C++).
//! The `record.py` of each folder writes its `cases` and arrays, and says in which form.

use std::{fs, path::PathBuf};

/// One array of a case: its bytes before, and what is expected after with the relative error that is allowed.
pub struct Buffer {
    ty: String,
    pub bytes: usize,
    pub before: Option<Vec<u8>>,
    after: Option<(Vec<u8>, f64)>,
}

/// An argument of a kernel.
pub enum Argument {
    /// The bits of a number.
    Value(u32),
    Buffer(Buffer),
    /// A pointer to nothing.
    Null,
}

/// A launch of a kernel.
pub struct Case {
    pub name: String,
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub arguments: Vec<Argument>,
    ptx: PathBuf,
}

/// All cases.
pub fn cases() -> Vec<Case> {
    let folder = |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(super::TESTS).join(name);
    ["triton", "fixtures"]
        .into_iter()
        .flat_map(|name| {
            let text = fs::read_to_string(folder(name).join("cases")).expect("the list of cases");
            text.split("\n\n").map(|paragraph| read(&folder(name), paragraph)).collect::<Vec<_>>()
        })
        .collect()
}

fn width(ty: &str) -> usize {
    match ty {
        "s8" | "u8" => 1,
        "f16" | "bf16" => 2,
        "f32" | "i32" => 4,
        _ => panic!("{ty} is no type"),
    }
}

fn read(folder: &std::path::Path, paragraph: &str) -> Case {
    let mut lines = paragraph.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(' ').collect();
    let [_, name, kernel, x, y, z, threads, shared] = head[..] else { panic!("{head:?} is no head") };
    let number = |word: &str| word.parse::<u32>().expect("a number");
    let contents = fs::read(folder.join(format!("{name}.bin"))).expect("recorded arrays");
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
    assert!(rest.is_empty(), "{name}: arrays that no argument has");
    let own = folder.join(format!("{name}.ptx"));
    let mut block = [1; 3];
    for (size, word) in block.iter_mut().zip(threads.split('x')) {
        *size = number(word);
    }
    Case {
        name: name.into(),
        kernel: kernel.into(),
        grid: [x, y, z].map(number),
        block,
        shared: number(shared),
        arguments,
        // Triton gives a module to each kernel, nvcc one to all.
        ptx: if own.is_file() { own } else { folder.join("kernels.ptx") },
    }
}

/// Elements as numbers.
fn numbers(ty: &str, bytes: &[u8]) -> Vec<f64> {
    let one = |b: &[u8]| match ty {
        "u8" => f64::from(b[0]),
        "s8" => f64::from(b[0] as i8),
        "f16" => half::f16::from_le_bytes([b[0], b[1]]).to_f64(),
        "bf16" => half::bf16::from_le_bytes([b[0], b[1]]).to_f64(),
        "i32" => f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        _ => f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
    };
    bytes.chunks_exact(width(ty)).map(one).collect()
}

impl Case {
    /// The text of the module.
    pub fn ptx(&self) -> String {
        fs::read_to_string(&self.ptx).expect("recorded PTX")
    }

    /// The arrays, in the order of the arguments.
    pub fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.arguments.iter().filter_map(|argument| match argument {
            Argument::Buffer(buffer) => Some(buffer),
            _ => None,
        })
    }

    /// Compares what the kernel left in every array with what was recorded.
    pub fn check(&self, place: &str, found: &[Vec<u8>]) {
        assert_eq!(self.buffers().count(), found.len(), "{}: arrays", self.name);
        let mut compared = 0;
        for (buffer, found) in self.buffers().zip(found) {
            let Some((expected, tolerance)) = &buffer.after else { continue };
            let pairs = numbers(&buffer.ty, found).into_iter().zip(numbers(&buffer.ty, expected));
            for (at, (found, expected)) in pairs.enumerate() {
                let allowed = tolerance * expected.abs().max(1.0);
                let name = &self.name;
                assert!((found - expected).abs() <= allowed, "{name} on {place}, element {at}: {found} for {expected}");
                compared += 1;
            }
        }
        assert!(compared > 0, "{}: nothing was expected", self.name);
    }
}
