//! CUDA C++ kernels, compiled to PTX by nvcc 13.0, against plain Rust. Inputs are small whole numbers wherever sums are
//! compared, so that every order of adding gives the same bits.

use lathe_emulator::{Chip, Device, Launch, Module, Options};

const PTX: &str = include_str!("fixtures/kernels.ptx");

/// An argument of a kernel: bytes by value, or a buffer with what it holds at first.
enum Argument {
    Value(Vec<u8>),
    Buffer(Vec<u8>),
}
use Argument::{Buffer, Value};

fn int(value: u32) -> Argument {
    Value(value.to_le_bytes().to_vec())
}

fn bytes<const N: usize, T: Copy>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| to(value)).collect()
}

fn floats(values: &[f32]) -> Argument {
    Buffer(bytes(values, f32::to_le_bytes))
}

fn words(values: &[u32]) -> Argument {
    Buffer(bytes(values, u32::to_le_bytes))
}

/// Runs a kernel and gives back what its buffers hold.
fn run(kernel: &str, grid: [u32; 3], block: [u32; 3], shared_bytes: u32, arguments: &[Argument]) -> Vec<Vec<u8>> {
    let device = Device::new(Chip::Sm80, 1 << 24);
    let module = Module::load(PTX, &device).unwrap_or_else(|error| panic!("{error}"));
    let mut params: Vec<u8> = Vec::new();
    let mut buffers = Vec::new();
    for argument in arguments {
        match argument {
            Value(value) => {
                params.resize(params.len().next_multiple_of(value.len()), 0);
                params.extend(value);
            }
            Buffer(contents) => {
                let address = device.memory.alloc(contents.len() as u64).expect("room");
                device.memory.write(address, contents).expect("it is there");
                params.resize(params.len().next_multiple_of(8), 0);
                params.extend(address.to_le_bytes());
                buffers.push((address, contents.len()));
            }
        }
    }
    let launch = Launch { grid, block, shared_bytes, params: &params, options: Options::default() };
    module.launch(&device, kernel, &launch).unwrap_or_else(|fault| panic!("{fault}"));
    let read = |(address, length): (u64, usize)| {
        let mut contents = vec![0; length];
        device.memory.read(address, &mut contents).expect("it is there");
        contents
    };
    buffers.into_iter().map(read).collect()
}

fn as_floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|word| f32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

fn as_words(bytes: &[u8]) -> Vec<u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect()
}

/// Whole numbers from -4 to 4.
fn small(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + salt * 11 + i / 7) % 9) as f32 - 4.0).collect()
}

/// `a [M, K]` times `b [K, N]`.
fn product(a: &[f32], b: &[f32], [m, n, k]: [usize; 3]) -> Vec<f32> {
    let cell = |row: usize, column: usize| (0..k).map(|i| a[row * k + i] * b[i * n + column]).sum();
    (0..m * n).map(|at| cell(at / n, at % n)).collect()
}

#[test]
fn element_by_element() {
    let (x, y) = (small(100, 1), small(100, 2));
    let found = run(
        "saxpy",
        [2, 1, 1],
        [64, 1, 1],
        0,
        &[Value(3.0f32.to_le_bytes().to_vec()), floats(&x), floats(&y), int(100)],
    );
    let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 3.0 * x + y).collect();
    assert_eq!(as_floats(&found[1]), expected);
}

#[test]
fn sums_by_shuffles_and_shared_memory() {
    let x = small(1000, 3);
    let found = run("reduce_sum", [3, 1, 1], [128, 1, 1], 0, &[floats(&x), floats(&[f32::NAN; 3]), int(1000)]);
    let of = |block: usize| x.iter().enumerate().filter(|(i, _)| i / 128 % 3 == block).map(|(_, x)| x).sum::<f32>();
    assert_eq!(as_floats(&found[1]), [of(0), of(1), of(2)]);
}

#[test]
fn transposition_through_shared_memory() {
    let (rows, cols) = (40usize, 70usize);
    let x: Vec<f32> = (0..rows * cols).map(|i| i as f32).collect();
    let arguments = [floats(&x), floats(&vec![f32::NAN; rows * cols]), int(rows as u32), int(cols as u32)];
    let found = run("transpose", [3, 2, 1], [32, 8, 1], 0, &arguments);
    let expected: Vec<f32> = (0..rows * cols).map(|i| x[i % rows * cols + i / rows]).collect();
    assert_eq!(as_floats(&found[1]), expected);
}

#[test]
fn histogram_by_atomics() {
    let x: Vec<u8> = (0..3000u32).map(|i| (i * i % 251) as u8).collect();
    let mut expected = vec![0u32; 256];
    for &value in &x {
        expected[usize::from(value)] += 1;
    }
    let found = run("histogram", [4, 1, 1], [64, 1, 1], 0, &[Buffer(x), words(&[0; 256]), int(3000)]);
    assert_eq!(as_words(&found[1]), expected);
}

#[test]
fn scan_in_dynamic_shared_memory() {
    let x: Vec<u32> = (0..100).map(|i| i * 7 % 13).collect();
    let found = run("scan", [1, 1, 1], [128, 1, 1], 2 * 128 * 4, &[words(&x), words(&[0; 100]), int(100)]);
    let expected: Vec<u32> = x
        .iter()
        .scan(0, |sum, x| {
            *sum += x;
            Some(*sum)
        })
        .collect();
    assert_eq!(as_words(&found[1]), expected);
}

#[test]
fn layer_norm_with_an_approximate_root() {
    let (rows, k) = (3usize, 200usize);
    let (x, w, b) = (small(rows * k, 4), small(k, 5), small(k, 6));
    let arguments = [floats(&x), floats(&w), floats(&b), floats(&vec![f32::NAN; rows * k]), int(k as u32)];
    let found = as_floats(&run("layer_norm", [3, 1, 1], [256, 1, 1], 0, &arguments)[3]);
    for (row, found) in x.chunks(k).zip(found.chunks(k)) {
        let mean = row.iter().sum::<f32>() / k as f32;
        let square = row.iter().map(|x| x * x).sum::<f32>() / k as f32;
        let scale = 1.0 / (square - mean * mean + 1e-5).sqrt();
        for (i, found) in found.iter().enumerate() {
            let expected = (row[i] - mean) * scale * w[i] + b[i];
            assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1.0), "{found} for {expected}");
        }
    }
}

#[test]
fn philox_as_published() {
    // The known answer of ten rounds for counter and key zero (Salmon et al., 2011, the authors' test vectors).
    let found = run("philox", [1, 1, 1], [32, 1, 1], 0, &[int(0), words(&[0; 128])]);
    assert_eq!(as_words(&found[0])[..4], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
}

#[test]
fn the_largest_values_of_each_row() {
    let x: Vec<f32> = (0..2 * 90).map(|i| ((i * 53) % 89) as f32 - 40.0).collect();
    let arguments = [floats(&x), floats(&[0.0; 10]), words(&[0; 10]), int(90), int(5)];
    let found = run("top_k", [2, 1, 1], [32, 1, 1], 0, &arguments);
    let (values, places) = (as_floats(&found[1]), as_words(&found[2]));
    for row in 0..2 {
        let mut order: Vec<usize> = (0..90).collect();
        order.sort_by(|&a, &b| x[row * 90 + b].total_cmp(&x[row * 90 + a]).then(a.cmp(&b)));
        for j in 0..5 {
            assert_eq!(places[row * 5 + j] as usize, order[j], "row {row}");
            assert_eq!(values[row * 5 + j].to_bits(), x[row * 90 + order[j]].to_bits());
        }
    }
}

#[test]
fn blocks_that_wait_for_each_other() {
    let x = small(8 * 50, 7);
    let arguments = [floats(&x), floats(&[0.0; 8]), words(&[0]), floats(&[f32::NAN]), int(50)];
    let found = run("last_block", [8, 1, 1], [32, 1, 1], 0, &arguments);
    assert_eq!(as_floats(&found[3]), [x.iter().sum::<f32>()]);
    let found = run("relay", [6, 1, 1], [32, 1, 1], 0, &[words(&[0]), words(&[0; 6])]);
    assert_eq!(as_words(&found[1]), [5, 9, 12, 14, 15, 15]);
}

#[test]
fn calls_and_constants() {
    let x = small(64, 8);
    let found = run("calls", [1, 1, 1], [64, 1, 1], 0, &[floats(&x), floats(&[f32::NAN; 64]), int(64)]);
    let poly = |x: f32, n: usize| [0.5f32, -1.25, 2.0, 0.75, -3.0][..n].iter().fold(0.0f32, |r, c| r.mul_add(x, *c));
    let expected: Vec<f32> = x.iter().map(|&x| poly(x, 5) + poly(x * 0.5, 3)).collect();
    assert_eq!(as_floats(&found[1]), expected);
}

#[test]
fn lanes_that_leave_a_loop_at_their_own_time() {
    let x: Vec<u32> = (1..=70).collect();
    let found = run("collatz", [3, 1, 1], [32, 1, 1], 0, &[words(&x), words(&[0; 70]), int(70)]);
    let steps = |start: u32| {
        let (mut value, mut count) = (u64::from(start), 0);
        while value != 1 {
            value = if value % 2 == 1 { 3 * value + 1 } else { value / 2 };
            count += 1;
        }
        count
    };
    assert_eq!(as_words(&found[1]), x.iter().map(|&x| steps(x)).collect::<Vec<u32>>());
}

#[test]
fn products_on_tensor_cores() {
    // Whole numbers below 2⁸ are exact in f16, bf16 and tf32, and so are their sums in f32.
    let [m, n, k] = [64usize, 128, 96];
    let (a, b) = (small(m * k, 9), small(k * n, 10));
    let expected = product(&a, &b, [m, n, k]);
    let sizes = || [m, n, k].map(|size| int(size as u32));
    let f16 = |values: &[f32]| Buffer(bytes(values, |x| half_of_small(x).to_le_bytes()));
    let bf16 = |values: &[f32]| Buffer(bytes(values, |x| ((x.to_bits() >> 16) as u16).to_le_bytes()));
    let empty = || floats(&vec![f32::NAN; m * n]);
    for (kernel, a, b) in [("gemm_f16", f16(&a), f16(&b)), ("gemm_bf16", bf16(&a), bf16(&b))] {
        let arguments: Vec<Argument> = [a, b, empty()].into_iter().chain(sizes()).collect();
        let found = run(kernel, [2, 1, 1], [128, 1, 1], 0, &arguments);
        assert_eq!(as_floats(&found[2]), expected, "{kernel}");
    }
    let transposed: Vec<f32> = (0..n * k).map(|at| b[at % k * n + at / k]).collect();
    let (grid, size) = ([n as u32 / 8, m as u32 / 16, 1], |size: usize| int(size as u32));
    let found = run("gemm_tf32", grid, [32, 1, 1], 0, &[floats(&a), floats(&transposed), empty(), size(n), size(k)]);
    assert_eq!(as_floats(&found[2]), expected);
    let s8 = |values: &[f32]| Buffer(values.iter().map(|&x| x as i8 as u8).collect());
    let found = run("gemm_s8", grid, [32, 1, 1], 0, &[s8(&a), s8(&transposed), empty(), size(n), size(k)]);
    let integers: Vec<u32> = expected.iter().map(|&x| x as i32 as u32).collect();
    assert_eq!(as_words(&found[2]), integers);
}

/// The f16 of a whole number from -4 to 4.
fn half_of_small(x: f32) -> u16 {
    let magnitude = [0x0000, 0x3c00, 0x4000, 0x4200, 0x4400][x.abs() as usize];
    if x < 0.0 { magnitude | 0x8000 } else { magnitude }
}
