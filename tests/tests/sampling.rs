//! Sampling on a GPU against the runtime's sampler, bit for bit: a token's noise and its likelihood are part of what a plan
//! promises, wherever they are computed.

use lathe_emulator::{Chip, Device, Launch, Module, Options};
use lathe_kernels::spec::{KernelSpec, PICKED_BYTES, SAMPLE_BLOCK, SAMPLE_BOUND_BYTES, SAMPLE_SUM_BYTES, SamplePart};
use lathe_kernels::targets::Target;
use lathe_kernels::{TextLevel, text};
use lathe_runtime::math;
use lathe_runtime::sample::{NoiseKey, SampleParams, Sampler};

/// The kernels of sampling on the emulator.
struct Emulated {
    device: Device,
    parts: [(SamplePart, Module); 3],
}

/// What came of a row: the largest logit, the token's, the sum of exponentials, the token.
type Found = (f32, f32, f64, u32);

impl Emulated {
    fn new() -> Emulated {
        let device = Device::new(Chip::Sm80, 1 << 30);
        let target = Target::parse("sm_80").expect("a known target");
        let parts = [SamplePart::Bounds, SamplePart::Sums, SamplePart::Merge].map(|part| {
            let ptx = text(&[KernelSpec::Sample(part)], target, TextLevel::Assembly).expect("it has PTX");
            (part, Module::load(&ptx, &device).expect("the PTX loads"))
        });
        Emulated { device, parts }
    }

    fn buffer(&self, bytes: &[u8]) -> u64 {
        let address = self.device.memory.alloc(bytes.len() as u64).expect("a small buffer");
        self.device.memory.write(address, bytes).expect("it is as long");
        address
    }

    fn sample(&self, logits: &[Vec<f32>], picks: &[(f32, u64)]) -> Vec<Found> {
        let (rows, vocabulary) = (logits.len(), logits[0].len());
        let blocks = vocabulary.div_ceil(SAMPLE_BLOCK);
        let bytes: Vec<u8> = logits.iter().flatten().flat_map(|logit| logit.to_le_bytes()).collect();
        let words = |&(temperature, stream): &(f32, u64)| {
            [&temperature.to_le_bytes()[..], &u32::MAX.to_le_bytes(), &stream.to_le_bytes()].concat()
        };
        let picks: Vec<u8> = picks.iter().flat_map(words).collect();
        let mut operands = vec![self.buffer(&bytes), self.buffer(&picks)];
        for (part, module) in &self.parts {
            let (bytes, units) = match part {
                SamplePart::Bounds => (rows * blocks * SAMPLE_BOUND_BYTES, rows * blocks),
                SamplePart::Sums => (rows * blocks * SAMPLE_SUM_BYTES, rows * blocks),
                SamplePart::Merge => (rows * PICKED_BYTES, rows),
            };
            operands.push(self.buffer(&vec![0xff; bytes]));
            let numbers = [rows, vocabulary, vocabulary, blocks, units].map(|number| number as u64);
            let params: Vec<u8> = operands.iter().chain(&numbers).flat_map(|number| number.to_le_bytes()).collect();
            let name = module.kernels().next().expect("a kernel").to_owned();
            let grid = KernelSpec::Sample(*part).grid();
            let launch = Launch {
                grid: [(units as u32).div_ceil(grid.units), 1, 1],
                block: [grid.threads, 1, 1],
                shared_bytes: 0,
                params: &params,
                options: Options::default(),
            };
            module.launch(&self.device, &name, &launch).expect("it runs");
        }
        let mut out = vec![0; rows * PICKED_BYTES];
        self.device.memory.read(operands[operands.len() - 1], &mut out).expect("it is there");
        let word = |at: usize| u32::from_le_bytes(out[4 * at..][..4].try_into().expect("4 bytes"));
        let found = |row: usize| {
            let total = u64::from(word(4 * row + 3)) << 32 | u64::from(word(4 * row + 2));
            let [largest, logit] = [0, 1].map(|at| f32::from_bits(word(4 * row + at)));
            (largest, logit, f64::from_bits(total), word(4 * rows + row))
        };
        (0..rows).map(found).collect()
    }
}

/// A scrambled number.
fn scrambled(seed: u64, index: usize) -> u64 {
    let x = (seed ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ x >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    x ^ x >> 32
}

#[test]
fn tokens_and_likelihoods_are_the_hosts_to_the_last_bit() {
    let emulated = Emulated::new();
    for vocabulary in [17, 4096, 32_011] {
        let row = |seed: u64| -> Vec<f32> {
            // Every third row is of few different numbers, so that many tokens are tied.
            let levels = if seed.is_multiple_of(3) { 12 } else { 65_521 };
            let logit = |at: usize| (scrambled(seed, at) % levels) as f32 * (16.0 / levels as f32) - 5.0;
            let mut logits: Vec<f32> = (0..vocabulary).map(logit).collect();
            if seed.is_multiple_of(4) {
                logits.iter_mut().step_by(5).for_each(|logit| *logit = f32::NEG_INFINITY);
            }
            logits
        };
        let logits: Vec<Vec<f32>> = (0..14).map(row).collect();
        let temperatures = [0.0, 1.0, 0.7, 0.01, 2.5, 1e-30, 1e30];
        let rows: Vec<(SampleParams, NoiseKey)> = (0..logits.len() as u32)
            .map(|index| {
                let temperature = temperatures[index as usize % temperatures.len()];
                let params = SampleParams { temperature, ..SampleParams::default() };
                (params, NoiseKey { seed: 5 << 40 | 9, choice: index % 3, position: 1000 * index })
            })
            .collect();
        let picks: Vec<(f32, u64)> = rows.iter().map(|(params, key)| (params.temperature, key.stream())).collect();
        let found = emulated.sample(&logits, &picks);
        let mut sampler = Sampler::new(vocabulary);
        for (((logits, (params, key)), found), index) in logits.iter().zip(&rows).zip(found).zip(0..) {
            let case = format!("{vocabulary} tokens, row {index}");
            let token = sampler.sample(logits, params, *key);
            let largest = math::max(logits);
            let total = math::sum(logits, |logit| math::exp(logit - largest));
            let bits =
                |(largest, logit, total, token): Found| (largest.to_bits(), logit.to_bits(), total.to_bits(), token);
            assert_eq!(bits(found), bits((largest, logits[token as usize], total, token)), "{case}");
        }
    }
}
