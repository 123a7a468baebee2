//! Sampling against a plain computation of the same law with the standard library's logarithms and exponentials.

use lathe_kernels::spec::{KernelSpec, PICKED_BYTES, SAMPLE_BLOCK, SAMPLE_BOUND_BYTES, SAMPLE_SUM_BYTES, SamplePart};

use crate::data::{Random, f32_bytes};
use crate::emulated;

/// Room for exponentials in f32, and for sums of them in another order.
const SUM_BOUND: f64 = 1e-6;

/// How a row is sampled: temperature, given token, stream.
#[derive(Clone, Copy)]
struct Pick(f32, u32, u64);

/// No token is given.
const SAMPLED: u32 = u32::MAX;

/// What the kernels say of a row: the largest logit, the token's, the sum of exponentials, the token.
#[derive(Debug)]
struct Found(f32, f32, f64, u32);

fn sample(rows: &[(Vec<f32>, Pick)], vocabulary: usize, stride: usize) -> Vec<Found> {
    let blocks = vocabulary.div_ceil(SAMPLE_BLOCK);
    let params = [rows.len(), vocabulary, stride, blocks].map(|param| param as i64);
    let row = |logits: &Vec<f32>| f32_bytes(&[&logits[..], &vec![f32::NAN; stride - vocabulary]].concat());
    let logits: Vec<u8> = rows.iter().flat_map(|(logits, _)| row(logits)).collect();
    let words = |Pick(temperature, given, stream): Pick| {
        [&temperature.to_le_bytes()[..], &given.to_le_bytes(), &stream.to_le_bytes()].concat()
    };
    let picks: Vec<u8> = rows.iter().flat_map(|(_, pick)| words(*pick)).collect();
    let mut operands = vec![logits, picks];
    for (part, bytes, units) in [
        (SamplePart::Bounds, rows.len() * blocks * SAMPLE_BOUND_BYTES, rows.len() * blocks),
        (SamplePart::Sums, rows.len() * blocks * SAMPLE_SUM_BYTES, rows.len() * blocks),
        (SamplePart::Merge, rows.len() * PICKED_BYTES, rows.len()),
    ] {
        operands.push(vec![0xff; bytes]);
        operands = emulated::run(&KernelSpec::Sample(part), &operands, &params, units as i64).expect("it has PTX");
    }
    let out = operands.pop().expect("the result");
    let (records, tokens) = out.split_at(16 * rows.len());
    let found = |(record, token): (&[u8], &[u8])| {
        let float = |at: usize| f32::from_le_bytes(record[at..at + 4].try_into().expect("4 bytes"));
        let total = f64::from_le_bytes(record[8..].try_into().expect("8 bytes"));
        Found(float(0), float(4), total, u32::from_le_bytes(token.try_into().expect("4 bytes")))
    };
    records.chunks(16).zip(tokens.chunks(4)).map(found).collect()
}

/// The noise of a token: minus the logarithm of minus the logarithm of a number between 0 and 1, by a hash.
fn noise(stream: u64, token: u32) -> f64 {
    // The generator's scrambling of its next state is the hash.
    let hash = Random(stream ^ u64::from(token).wrapping_mul(0xd6e8_feb8_6659_fd93)).bits();
    let q = ((hash >> 12) as f64 + 0.5) / 2f64.powi(52);
    -(-(1.0 - q).ln()).ln()
}

fn expected(logits: &[f32], Pick(temperature, given, stream): Pick) -> u32 {
    if given != SAMPLED {
        return given;
    }
    let score = |token: u32| match f64::from(logits[token as usize]) {
        logit if temperature > 0.0 => logit / f64::from(temperature) + noise(stream, token),
        logit => logit,
    };
    let better = |best: u32, token: u32| if score(token) > score(best) { token } else { best };
    (0..logits.len() as u32).reduce(better).expect("there are logits")
}

#[test]
fn rows_are_sampled_by_the_law_of_the_runtime() {
    let mut random = Random(21);
    for (vocabulary, stride) in [(1, 32), (40, 64), (1024, 1024), (5003, 5024)] {
        let mut rows = Vec::new();
        for turn in 0..12u64 {
            let mut logits: Vec<f32> = random.floats(vocabulary).iter().map(|logit| 6.0 * logit).collect();
            if turn % 3 == 1 {
                // Many are equal, the largest among them.
                logits = logits.into_iter().map(f32::round).collect();
            }
            if turn % 4 == 3 {
                let forbidden = (0..vocabulary - 1).filter(|token| token % 3 == 0);
                forbidden.for_each(|token| logits[token] = f32::NEG_INFINITY);
            }
            let temperature = [0.0, 0.7, 1.0, 1e-6, 30.0, 0.0][turn as usize % 6];
            let given = if turn == 10 { vocabulary as u32 / 2 } else { SAMPLED };
            rows.push((logits, Pick(temperature, given, random.bits())));
        }
        let found = sample(&rows, vocabulary, stride);
        for (turn, ((logits, pick), Found(largest, logit, total, token))) in rows.iter().zip(found).enumerate() {
            let case = format!("{vocabulary} tokens, row {turn}");
            assert_eq!(token, expected(logits, *pick), "{case}");
            assert_eq!(logit.to_bits(), logits[token as usize].to_bits(), "{case}");
            let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!((largest + 0.0).to_bits(), (greatest + 0.0).to_bits(), "{case}: {largest} and {greatest}");
            let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(greatest)).exp()).sum();
            assert!((total / sum - 1.0).abs() < SUM_BOUND, "{case}: {total} and {sum}");
        }
    }
}

#[test]
fn broken_rows_show_in_their_sums_and_harm_no_other() {
    let vocabulary = 1500;
    let sound: Vec<f32> = Random(5).floats(vocabulary);
    let with = |token: usize, logit: f32| {
        let mut logits = sound.clone();
        logits[token] = logit;
        logits
    };
    let picks = [Pick(0.0, SAMPLED, 0), Pick(0.8, SAMPLED, 77)];
    for pick in picks {
        let rows = [
            (with(1400, f32::NAN), pick),
            (with(3, f32::INFINITY), pick),
            (vec![f32::NEG_INFINITY; vocabulary], pick),
            (vec![f32::NAN; vocabulary], pick),
            (sound.clone(), pick),
        ];
        let found = sample(&rows, vocabulary, 1504);
        for Found(largest, _, total, token) in &found[..4] {
            assert!(!(largest.is_finite() && total.is_finite()), "{largest}, {total}");
            assert!((*token as usize) < vocabulary, "{token}");
        }
        assert_eq!(found[4].3, expected(&sound, pick));
    }
}
