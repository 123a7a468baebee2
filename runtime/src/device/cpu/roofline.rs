//! The limits of this machine, measured: operations and bytes a second that the best code reaches on so many threads.
//! Achieved figures mean something as shares of these.
//!
//! Arithmetic is a loop of independent instructions on registers. Memory is a sum over more bytes than the caches hold,
//! each thread over its own, which it has touched first. All threads begin a round together; of several rounds the best
//! counts, because neighbours only ever slow one down.

#![expect(unsafe_code, reason = "instructions of one kind of CPU, and memory in pages of a chosen size")]

use std::{
    arch::x86_64::{
        _mm256_add_epi32, _mm256_dpbusd_avx_epi32, _mm256_fmadd_ps, _mm256_madd_epi16, _mm256_maddubs_epi16,
        _mm256_set1_epi8, _mm256_set1_epi16, _mm256_set1_epi32, _mm256_set1_ps, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps,
        _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_set1_epi8, _mm512_set1_epi32, _mm512_set1_ps,
    },
    hint::black_box,
    slice,
    sync::Barrier,
    thread,
    time::Instant,
};

use super::{
    features::has,
    memory::Region,
    quota::{self, Read},
    topology::{self, Cpus},
};
use crate::error::Result;

/// What a machine reaches.
#[derive(Clone, Debug, PartialEq)]
pub struct Roofline {
    /// On so many threads.
    pub threads: usize,
    /// Products of 8-bit integers.
    pub int8: Peak,
    /// Products of bf16, where the CPU has them.
    pub bf16: Option<Peak>,
    /// Products of f32.
    pub f32: Peak,
    /// Bytes a second from memory in pages of 2 MiB (or what the system gives where they are asked for).
    pub memory: f64,
    /// Bytes a second from memory in pages of 4 KiB.
    pub memory_small_pages: f64,
    /// Bytes a second from the third-level cache, if there is one that is large enough to measure.
    pub l3: Option<f64>,
}

/// Arithmetic at its fastest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Peak {
    /// The instruction that reaches it.
    pub instruction: &'static str,
    /// Operations a second; a multiply-add counts as two.
    pub per_second: f64,
}

/// Sums that grow side by side: more than any CPU's latency of a multiply-add times its throughput, and few enough for
/// sixteen registers.
const SUMS: usize = 12;
/// Additions to each sum in a round: about a millisecond, so that some rounds fit between the turns of other programs.
const TURNS: usize = 300_000;
/// Rounds of which the best counts.
const ROUNDS: usize = 64;
/// Bytes of memory that all threads together walk through before they come back to the first: more than any cache holds.
const MEMORY_BYTES: usize = 512 << 20;
/// Bytes that a thread reads from memory in a round.
const MEMORY_ROUND: usize = 16 << 20;

/// Measures the machine with so many threads, in about two seconds. `None` when the CPU lacks AVX2 and FMA, which all plans need.
///
/// # Errors
/// When there is no memory to read.
pub fn measure(threads: usize) -> Result<Option<Roofline>> {
    if !(has("avx2") && has("fma")) {
        return Ok(None);
    }
    let cpus = Cpus::here();
    let cpus: Vec<Option<usize>> = (0..threads).map(|worker| cpus.of_worker(worker, threads)).collect();
    let whole = (MEMORY_BYTES / threads).next_multiple_of(MEMORY_ROUND);
    let l3 = l3_share(threads, &quota::file);
    let l3 = l3.map(|bytes| read_rate(&cpus, Region::huge, bytes, bytes)).transpose()?;
    Ok(Some(Roofline {
        threads,
        int8: int8_peak(&cpus),
        bf16: has("avx512_bf16").then(|| peak(&cpus, "vdpbf16ps zmm", 64, bf16_products)),
        f32: f32_peak(&cpus),
        memory: read_rate(&cpus, Region::huge, whole, MEMORY_ROUND)?,
        memory_small_pages: read_rate(&cpus, Region::small, whole, MEMORY_ROUND)?,
        l3,
    }))
}

/// A loop of so many turns, and something that depends on all it computed.
type Loop = unsafe fn(usize) -> f64;

fn int8_peak(cpus: &[Option<usize>]) -> Peak {
    if has("avx512_vnni") {
        peak(cpus, "vpdpbusd zmm", 128, int8_products)
    } else if has("avx_vnni") {
        peak(cpus, "vpdpbusd ymm", 64, int8_products_vnni_256)
    } else {
        peak(cpus, "vpmaddubsw, vpmaddwd and vpaddd ymm", 64, int8_products_256)
    }
}

fn f32_peak(cpus: &[Option<usize>]) -> Peak {
    if has("avx512f") {
        peak(cpus, "vfmadd zmm", 32, f32_products)
    } else {
        peak(cpus, "vfmadd ymm", 16, f32_products_256)
    }
}

/// The rate of a loop whose instruction does so many operations.
fn peak(cpus: &[Option<usize>], instruction: &'static str, operations: usize, work: Loop) -> Peak {
    let round = |(): &mut (), _: usize| {
        // SAFETY: each loop is chosen only where the CPU has its instruction.
        black_box(unsafe { work(TURNS) });
    };
    let seconds = best_round(cpus, &|_| (), &round);
    Peak { instruction, per_second: (operations * SUMS * TURNS * cpus.len()) as f64 / seconds }
}

/// Defines loops of independent multiply-adds.
macro_rules! products {
    ($($(#[$doc:meta])* $name:ident: $features:literal, $zero:expr, $factors:expr, $step:expr;)*) => {$(
        $(#[$doc])*
        #[target_feature(enable = $features)]
        fn $name(turns: usize) -> f64 {
            let mut sums = [$zero; SUMS];
            for (index, sum) in sums.iter_mut().enumerate() {
                // Different values, or the compiler would find one loop to be enough.
                *sum = black_box($zero);
                black_box(index);
            }
            let (a, b) = black_box($factors);
            for _ in 0..turns {
                for sum in &mut sums {
                    *sum = $step(*sum, a, b);
                }
            }
            // The sums are looked at, as memory.
            black_box(&sums);
            0.0
        }
    )*};
}

products! {
    int8_products: "avx512f,avx512vnni", _mm512_set1_epi32(0),
        (_mm512_set1_epi8(3), _mm512_set1_epi8(2)), |sum, a, b| _mm512_dpbusd_epi32(sum, a, b);
    int8_products_vnni_256: "avx2,avxvnni", _mm256_set1_epi32(0),
        (_mm256_set1_epi8(3), _mm256_set1_epi8(2)), |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b);
    /// What stands for the dot product of bytes where there is none: its sums of two may saturate, so real kernels widen.
    int8_products_256: "avx2", _mm256_set1_epi32(0),
        (_mm256_set1_epi8(3), _mm256_set1_epi8(2)),
        |sum, a, b| _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
    bf16_products: "avx512f,avx512bf16", _mm512_set1_ps(0.0),
        (_mm512_cvtne2ps_pbh(_mm512_set1_ps(1.5), _mm512_set1_ps(1.5)), _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5), _mm512_set1_ps(0.5))),
        |sum, a, b| _mm512_dpbf16_ps(sum, a, b);
    f32_products: "avx512f", _mm512_set1_ps(0.0),
        (_mm512_set1_ps(1.5), _mm512_set1_ps(0.5)), |sum, a, b| _mm512_fmadd_ps(a, b, sum);
    f32_products_256: "avx2,fma", _mm256_set1_ps(0.0),
        (_mm256_set1_ps(1.5), _mm256_set1_ps(0.5)), |sum, a, b| _mm256_fmadd_ps(a, b, sum);
}

/// Bytes a second that all threads together read: each walks through `bytes` of its own, `each` of them in a round.
fn read_rate(
    cpus: &[Option<usize>],
    map: fn(&'static str, usize) -> Result<Region>,
    bytes: usize,
    each: usize,
) -> Result<f64> {
    let regions = cpus.iter().map(|_| map("measuring", bytes)).collect::<Result<Vec<Region>>>()?;
    let touch = |worker: usize| {
        let start = regions[worker].start();
        // SAFETY: the whole region is written, by the one thread that uses it.
        unsafe { start.write_bytes(1, bytes) };
        #[expect(clippy::cast_ptr_alignment, reason = "a region starts on a page")]
        let words = start.cast_const().cast::<u64>();
        // SAFETY: the region is aligned and initialized, and nobody writes to it any more.
        unsafe { slice::from_raw_parts(words, bytes / 8) }
    };
    let round = |words: &mut &[u64], round: usize| {
        let begin = round % (bytes / each) * (each / 8);
        // SAFETY: `measure` asks for AVX2 first.
        black_box(unsafe { read(black_box(&words[begin..begin + each / 8])) });
    };
    let seconds = best_round(cpus, &touch, &round);
    Ok((each * cpus.len()) as f64 / seconds)
}

/// Folds all words into one, in vectors.
#[target_feature(enable = "avx2")]
fn read(words: &[u64]) -> u64 {
    let mut folds = [0; 32];
    for chunk in words.chunks_exact(32) {
        for (fold, word) in folds.iter_mut().zip(chunk) {
            *fold ^= word;
        }
    }
    folds.iter().fold(0, |all, fold| all ^ fold)
}

/// Seconds of the shortest of several rounds, from the first thread's start to the last one's end.
fn best_round<S>(
    cpus: &[Option<usize>],
    prepare: &(impl Fn(usize) -> S + Sync),
    round: &(impl Fn(&mut S, usize) + Sync),
) -> f64 {
    let barrier = &Barrier::new(cpus.len());
    let of_thread = |worker: usize, cpu: Option<usize>| {
        if let Some(cpu) = cpu {
            topology::pin(cpu);
        }
        let mut state = prepare(worker);
        let mut times = Vec::with_capacity(ROUNDS);
        for number in 0..ROUNDS {
            barrier.wait();
            let start = Instant::now();
            round(&mut state, number);
            times.push((start, Instant::now()));
        }
        times
    };
    let times: Vec<Vec<(Instant, Instant)>> = thread::scope(|scope| {
        let threads: Vec<_> =
            cpus.iter().enumerate().map(|(worker, &cpu)| scope.spawn(move || of_thread(worker, cpu))).collect();
        threads.into_iter().filter_map(|thread| thread.join().ok()).collect()
    });
    let seconds = |round: usize| {
        let start = times.iter().map(|times| times[round].0).min();
        let end = times.iter().map(|times| times[round].1).max();
        start.zip(end).map_or(f64::INFINITY, |(start, end)| (end - start).as_secs_f64())
    };
    (0..ROUNDS).map(seconds).fold(f64::INFINITY, f64::min)
}

/// Bytes for each thread that its second-level cache cannot hold and the third can hold for all: together half of the third,
/// where that is at least four times the second for each.
fn l3_share(threads: usize, read: Read) -> Option<usize> {
    let size = |level: u8| {
        let folder = |index: u8| format!("/sys/devices/system/cpu/cpu0/cache/index{index}");
        let of_level = |index: &u8| {
            read(&format!("{}/level", folder(*index))).is_some_and(|text| text.trim() == level.to_string())
        };
        let index = (0..8).rfind(of_level)?;
        let text = read(&format!("{}/size", folder(index)))?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok().map(|kib| kib << 10)
    };
    let (second, third) = (size(2)?, size(3)?);
    let share = (third / 2 / threads).next_multiple_of(4096);
    (share >= 4 * second).then_some(share)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caches(second: &'static str, third: Option<&'static str>) -> impl Fn(&str) -> Option<String> {
        move |path| {
            let (index, what) = path.strip_prefix("/sys/devices/system/cpu/cpu0/cache/index")?.split_once('/')?;
            let (level, size) = match index {
                "0" | "1" => ("1", "32K"),
                "2" => ("2", second),
                "3" => ("3", third?),
                _ => return None,
            };
            Some(format!("{}\n", if what == "level" { level } else { size }))
        }
    }

    #[test]
    fn a_share_of_the_third_level_exceeds_the_second() {
        assert_eq!(l3_share(2, &caches("1024K", Some("32768K"))), Some(8 << 20));
        assert_eq!(l3_share(4, &caches("1024K", Some("32768K"))), Some(4 << 20));
        assert_eq!(l3_share(5, &caches("1024K", Some("32768K"))), None);
        assert_eq!(l3_share(1, &caches("512K", None)), None);
        assert_eq!(l3_share(1, &|_| None), None);
    }

    #[test]
    fn reading_looks_at_every_word() {
        if has("avx2") {
            let mut words = vec![0u64; 256];
            for index in 0..words.len() {
                words[index] = 1 << (index % 64);
                // SAFETY: the feature was asked for.
                assert_eq!(unsafe { read(&words) }, words[index], "{index}");
                words[index] = 0;
            }
        }
    }
}
