//! Runs the PTX of a kernel on the emulator, with every operand an allocation of its own: a byte past its extent, a read
//! of what nothing wrote, or a race between CTAs is a fault.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use lathe_emulator::{Chip, Device, Launch, Module, Options};
use lathe_kernels::spec::{Grid, KernelSpec};
use lathe_kernels::targets::Target;
use lathe_kernels::{KernelError, TextLevel, text};

use super::data::F32_BOUND;

/// Runs a kernel for `units` units and gives back the contents of all operands; nothing where it has no PTX yet.
pub fn run(spec: &KernelSpec, operands: &[Vec<u8>], params: &[i64], units: i64) -> Option<Vec<Vec<u8>>> {
    let target = Target::parse("sm_80").expect("a known target");
    let ptx = match text(std::slice::from_ref(spec), target, TextLevel::Assembly) {
        Ok(ptx) => ptx,
        Err(KernelError::Unsupported { .. }) => return None,
        Err(error) => panic!("{spec}: {error}"),
    };
    let device = Device::new(Chip::Sm80, 1 << 30);
    let module = Module::load(&ptx, &device).unwrap_or_else(|error| panic!("{spec}: {error}"));
    let name = module.kernels().next().expect("one kernel").to_owned();
    let mut arguments = Vec::new();
    let mut addresses = Vec::new();
    for operand in operands {
        let address = device.memory.alloc(operand.len().max(1) as u64).expect("a small operand");
        device.memory.write(address, operand).expect("the allocation is as long");
        addresses.push(address);
        arguments.extend(address.to_le_bytes());
    }
    for param in params.iter().chain([&units]) {
        arguments.extend(param.to_le_bytes());
    }
    // Fewer threads than most tests have work for, so that the kernels' own loops run too.
    let options = Options::default();
    let grid = spec.grid();
    let Grid { threads, rows, .. } = grid;
    let threads = if grid.is_shared() { threads } else { 64 };
    let row_blocks = if rows == 0 { 1 } else { (params[0] as u32).div_ceil(rows) };
    let blocks = if spec.takes_one_unit() { units as u32 } else { 3 };
    let launch =
        Launch { grid: [blocks, row_blocks, 1], block: [threads, 1, 1], shared_bytes: 0, params: &arguments, options };
    module.launch(&device, &name, &launch).unwrap_or_else(|fault| panic!("{spec}: {fault}"));
    let read = |(operand, address): (&Vec<u8>, &u64)| {
        let mut contents = vec![0; operand.len()];
        device.memory.read(*address, &mut contents).expect("the allocation is still there");
        contents
    };
    let found: Vec<Vec<u8>> = operands.iter().zip(&addresses).map(read).collect();
    if let Some(folder) = std::env::var_os("LATHE_VECTORS") {
        let call = Call { spec, entry: &name, ptx: &ptx, grid: launch.grid, block: launch.block };
        write_vector(Path::new(&folder), &call, &[params, &[units]].concat(), operands, &found);
    }
    Some(found)
}

/// Most bytes of a vector that is written: all of them travel together.
const MOST_VECTOR: usize = 1 << 18;

/// How a kernel was called.
struct Call<'a> {
    spec: &'a KernelSpec,
    entry: &'a str,
    ptx: &'a str,
    grid: [u32; 3],
    block: [u32; 3],
}

/// Writes what a device can be asked to repeat: a line of JSON, the PTX, the operands before and after. One vector for each
/// kernel is enough.
fn write_vector(folder: &Path, call: &Call<'_>, params: &[i64], before: &[Vec<u8>], after: &[Vec<u8>]) {
    let bytes: usize = before.iter().map(Vec::len).sum();
    let mut hasher = DefaultHasher::new();
    call.spec.to_string().hash(&mut hasher);
    let path = folder.join(format!("{:016x}.vector", hasher.finish()));
    if 2 * bytes + call.ptx.len() > MOST_VECTOR || path.exists() {
        return;
    }
    let line = format!(
        "{{\"kernel\": {:?}, \"entry\": {:?}, \"grid\": {:?}, \"block\": {:?}, \"params\": {params:?}, \"bound\": {:?}, \
         \"ptx_bytes\": {}, \"operand_bytes\": {:?}}}\n",
        call.spec.to_string(),
        call.entry,
        call.grid,
        call.block,
        F32_BOUND,
        call.ptx.len(),
        before.iter().map(Vec::len).collect::<Vec<_>>(),
    );
    let parts = [line.as_bytes(), call.ptx.as_bytes()].into_iter().chain(before.iter().chain(after).map(Vec::as_slice));
    std::fs::create_dir_all(folder).expect("a folder for vectors");
    std::fs::write(path, parts.collect::<Vec<_>>().concat()).expect("a vector is written");
}
