//! Runs generated code in this process: each operand lies directly before an inaccessible page, so that a kernel that
//! touches a byte past its declared extent is killed, and every output is poisoned first.
#![expect(unsafe_code, reason = "maps generated code and calls it")]

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::ptr;
use std::sync::{Arc, Mutex};

use lathe_kernels::Object;
use lathe_kernels::spec::{Access, Activation, KernelSpec, Tile};
use lathe_kernels::targets::Target;

/// Whether this is the test that runs kernels with PTX on the emulator.
pub const ON_EMULATOR: bool = matches!(env!("CARGO_CRATE_NAME").as_bytes(), b"on_emulator");

const PAGE: usize = 4096;
/// What outputs hold before a kernel runs: as f32 a NaN, as an index absurd.
const POISON: u8 = 0xff;

/// An anonymous mapping, unmapped when dropped.
struct Mapping {
    base: *mut u8,
    bytes: usize,
}

impl Mapping {
    fn new(bytes: usize) -> Mapping {
        let bytes = bytes.next_multiple_of(PAGE).max(PAGE);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping touches nothing that exists.
        let base = unsafe { libc::mmap(ptr::null_mut(), bytes, prot, flags, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap of {bytes} bytes");
        Mapping { base: base.cast(), bytes }
    }

    fn protect(&self, offset: usize, bytes: usize, prot: i32) {
        // SAFETY: the range lies inside this mapping, and nothing in Rust refers to it.
        let status = unsafe { libc::mprotect(self.base.add(offset).cast::<c_void>(), bytes, prot) };
        assert_eq!(status, 0, "mprotect");
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` and is not used after this.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

/// Bytes that end where an inaccessible page begins.
struct Guarded {
    mapping: Mapping,
    start: usize,
    len: usize,
}

impl Guarded {
    fn new(data: &[u8]) -> Guarded {
        let room = data.len().next_multiple_of(PAGE);
        let mapping = Mapping::new(room + PAGE);
        mapping.protect(room, PAGE, libc::PROT_NONE);
        let start = room - data.len();
        // SAFETY: the destination is `data.len()` writable bytes of a mapping that is ours alone.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), mapping.base.add(start), data.len()) };
        Guarded { mapping, start, len: data.len() }
    }

    fn pointer(&self) -> *mut u8 {
        // SAFETY: `start` is at most the length of the accessible part.
        unsafe { self.mapping.base.add(self.start) }
    }

    fn read(&self) -> Vec<u8> {
        // SAFETY: `len` initialized bytes start there, and no kernel is running.
        unsafe { std::slice::from_raw_parts(self.pointer(), self.len) }.to_vec()
    }
}

/// An operand given to a kernel.
pub enum Buffer {
    /// Contents; checked to be no shorter than the kernel's extent for it.
    Data(Vec<u8>),
    /// Poisoned bytes of exactly the kernel's extent.
    Output,
}

/// The proven CPU targets that this machine runs; and behind them, for a kernel that has them, the target of matrix
/// instructions, which are emulated.
fn targets(spec: &KernelSpec) -> Vec<&'static Target> {
    let mut targets: Vec<_> = Target::proven_cpus().filter(|target| target.missing_here().is_empty()).collect();
    assert!(!targets.is_empty(), "these tests run generated code, which needs AVX2 at the least");
    let matrix = matrix_target();
    let is_missing_more = matrix.missing_here().iter().any(|feature| !feature.starts_with("amx_"));
    if has_matrix_instructions(spec) && !is_missing_more && !ON_EMULATOR {
        targets.push(matrix);
    }
    targets
}

/// The target that has matrix instructions.
pub fn matrix_target() -> &'static Target {
    Target::parse("x86-64-v4+vnni+bf16+amx").expect("a known target")
}

/// Whether the kernel of a spec uses matrix instructions where there are some.
pub fn has_matrix_instructions(spec: &KernelSpec) -> bool {
    matches!(spec, KernelSpec::Linear { act: Activation::Int8, tile: Tile::Unpack { .. }, .. })
}

/// Runs one kernel for `units` units in calls of `step` units, and gives back the contents of all operands. Each target
/// that this machine runs must leave the same bits: all of them follow the same recipes.
pub fn run(spec: &KernelSpec, buffers: impl AsRef<[Buffer]>, params: &[i64], units: i64, step: i64) -> Vec<Vec<u8>> {
    let mut first: Option<(&Target, Vec<Vec<u8>>)> = None;
    let most = if ON_EMULATOR { 1 } else { usize::MAX };
    for target in targets(spec).into_iter().take(most) {
        let found = run_on(target, spec, buffers.as_ref(), params, units, step);
        match &first {
            None => first = Some((target, found)),
            Some((other, expected)) => {
                let scratch = spec.operands().iter().filter(|operand| operand.name == "scratch").count();
                let results = expected.len() - scratch;
                assert!(found[..results] == expected[..results], "{spec}: {target} and {other} differ");
            }
        }
    }
    first.expect("there is a target").1
}

/// The code of a kernel, compiled once.
fn compiled(spec: &KernelSpec, target: &'static Target) -> Arc<Object> {
    static KNOWN: Mutex<BTreeMap<(String, &str), Arc<Object>>> = Mutex::new(BTreeMap::new());
    let key = (spec.to_string(), target.name);
    if let Some(object) = KNOWN.lock().expect("no test panics in here").get(&key) {
        return Arc::clone(object);
    }
    let object = lathe_kernels::compile(std::slice::from_ref(spec), target).expect("the kernel compiles");
    let object = Arc::new(object);
    KNOWN.lock().expect("no test panics in here").insert(key, Arc::clone(&object));
    object
}

fn run_on(
    target: &'static Target,
    spec: &KernelSpec,
    buffers: &[Buffer],
    params: &[i64],
    units: i64,
    step: i64,
) -> Vec<Vec<u8>> {
    let operands = spec.operands();
    assert_eq!(operands.len(), buffers.len(), "{spec}: operands");
    assert_eq!(spec.params().len(), params.len(), "{spec}: params");
    let guarded: Vec<Guarded> = operands
        .iter()
        .zip(buffers)
        .map(|(operand, buffer)| {
            let factor = |index: Option<u8>| index.map_or(1, |index| params[usize::from(index)] as usize);
            let extent: usize = operand
                .extent
                .iter()
                .map(|term| term.coefficient as usize * factor(term.factors[0]) * factor(term.factors[1]))
                .sum();
            match buffer {
                Buffer::Output => {
                    assert_ne!(operand.access, Access::Read, "{spec}: {} is not an output", operand.name);
                    Guarded::new(&vec![POISON; extent])
                }
                Buffer::Data(data) => {
                    assert!(data.len() >= extent, "{spec}: {} has {} of {extent} bytes", operand.name, data.len());
                    Guarded::new(data)
                }
            }
        })
        .collect();
    if ON_EMULATOR {
        let contents: Vec<Vec<u8>> = guarded.iter().map(Guarded::read).collect();
        if let Some(outputs) = super::emulated::run(spec, &contents, params, units) {
            return outputs;
        }
    }
    let object = compiled(spec, target);
    let code = Mapping::new(object.code.len());
    // SAFETY: the mapping is at least as long as the code, and fresh.
    unsafe { ptr::copy_nonoverlapping(object.code.as_ptr(), code.base, object.code.len()) };
    code.protect(0, code.bytes, libc::PROT_READ | libc::PROT_EXEC);
    let pointers: Vec<*mut u8> = guarded.iter().map(Guarded::pointer).collect();
    // SAFETY: the entry is a kernel with this signature in code that we mapped executable.
    let kernel: extern "C" fn(*const *mut u8, *const i64, i64, i64) =
        unsafe { std::mem::transmute(code.base.add(object.entries[0] as usize)) };
    if target.has("amx_int8") {
        super::tiles::install();
    }
    for begin in (0..units).step_by(step as usize) {
        kernel(pointers.as_ptr(), params.as_ptr(), begin, (begin + step).min(units));
    }
    guarded.iter().map(Guarded::read).collect()
}
