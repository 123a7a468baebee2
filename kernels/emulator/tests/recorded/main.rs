//! Kernels written in CUDA C++ and Triton, compiled to PTX without a GPU, against what NumPy recorded. The driver's tests run
//! the same cases through its interface.

mod cases;

use cases::{Argument, Case, cases};
use lathe_emulator::{Chip, Counters, Device, Launch, Module, Options};

/// The folder of this package's tests, from its manifest.
const TESTS: &str = "tests";

/// Runs a case on a chip and compares every array that it is to leave.
fn run(case: &Case, chip: Chip) -> Counters {
    let name = &case.name;
    let device = Device::new(chip, 1 << 24);
    let module = Module::load(&case.ptx(), &device).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (mut params, mut buffers) = (Vec::new(), Vec::new());
    for argument in &case.arguments {
        if !matches!(argument, Argument::Value(_)) {
            params.resize(params.len().next_multiple_of(8), 0);
        }
        match argument {
            Argument::Value(bits) => params.extend(bits.to_le_bytes()),
            Argument::Null => params.extend([0; 8]),
            Argument::Buffer(buffer) => {
                let address = device.memory.alloc(buffer.bytes as u64).expect("room");
                device.memory.write(address, buffer.before.as_deref().unwrap_or_default()).expect("it is there");
                params.extend(address.to_le_bytes());
                buffers.push((address, buffer.bytes));
            }
        }
    }
    let options = Options::default();
    let launch = Launch { grid: case.grid, block: case.block, shared_bytes: case.shared, params: &params, options };
    let counters =
        module.launch(&device, &case.kernel, &launch).unwrap_or_else(|fault| panic!("{name} on {chip:?}: {fault}"));
    let read = |(address, bytes): (u64, usize)| {
        let mut found = vec![0; bytes];
        device.memory.read(address, &mut found).expect("it is there");
        found
    };
    case.check(chip.name(), &buffers.into_iter().map(read).collect::<Vec<_>>());
    counters
}

#[test]
fn kernels_agree_with_numpy() {
    let cases = cases();
    assert_eq!(cases.len(), 36);
    for case in &cases {
        for chip in [Chip::Sm80, Chip::Sm90] {
            run(case, chip);
        }
    }
}

#[test]
fn products_use_tensor_cores_and_asynchronous_copies() {
    for case in cases().iter().filter(|case| case.name.starts_with("matmul")) {
        let ptx = case.ptx();
        assert!(ptx.contains("cp.async") && ptx.contains("mma.sync"), "{}", case.name);
        // 64 x 64 x 160, a multiplication and an addition each.
        assert_eq!(run(case, Chip::Sm80).tensor_operations, 2 * 64 * 64 * 160, "{}", case.name);
    }
}
