//! Knobs of single families: norms and rotations of heads of any size in whole blocks, rotary scalings, attention with a
//! window and bounded scores, and how near the functions come.

use lathe_ir::eval::Tensor;
use lathe_ir::op::Op;
use lathe_ir::ops;
use lathe_ir::ops::glu::Function;
use lathe_ir::ops::rotary::Scaling;
use lathe_ir::recipe::ATTENTION_SPLIT;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, DType};
use lathe_kernels::spec::{
    ACT_GROUP_BYTES, Activation, BLOCK_ROWS, GROUP, KernelSpec, MapOp, PAGE_TOKENS, Stage, Tile, page_bytes,
    partial_floats,
};

use super::{LENGTHS, Paged, eval, paged};
use crate::data::{F32_BOUND, Random, assert_close, attention_bound, f32_bytes, floats, i32_bytes, weight};
use crate::emulated;
use crate::machine::Buffer::{self, Data as Bytes, Output};
use crate::machine::{ON_EMULATOR, run};

/// Sizes of heads and of their turning parts: aligned, halves of no whole blocks, parts of heads.
const HEADS: [(usize, usize); 9] =
    [(64, 64), (80, 80), (48, 48), (96, 96), (16, 16), (80, 20), (64, 16), (128, 32), (32, 2)];

const POSITIONS: [i32; 6] = [0, 1, 17, 99, 8191, 130_000];

fn positions() -> Tensor {
    Tensor::i32(vec![POSITIONS.len()], POSITIONS.to_vec())
}

/// The table of a rotary kernel, as rope kernels read it.
fn table(dim: usize, scaling: &Scaling) -> Vec<u8> {
    let spec = KernelSpec::Rotary { dim, theta: 1e4, scaling: scaling.clone() };
    run(&spec, vec![Bytes(i32_bytes(&POSITIONS)), Output], &[6], 6, 2).pop().unwrap()
}

/// Rotates heads by kernels and by the reference, and compares.
fn check_rotation(head_dim: usize, dim: usize, scaling: &Scaling) {
    let (tokens, heads, turning) = (POSITIONS.len(), 3, 2);
    let x = Random(1).floats(tokens * heads * head_dim);
    let spec = KernelSpec::Rope { head_dim, dim };
    let buffers = vec![Bytes(f32_bytes(&x)), Bytes(table(dim, scaling)), Output];
    let found = floats(&run(&spec, buffers, &[6, heads as i64, turning as i64], 6, 2).pop().unwrap());
    let rotary = ops::rotary::Rotary { dim, theta: 1e4, scaling: scaling.clone() };
    let rotary = eval(rotary, &[positions()]);
    let op = ops::rope::Rope { head_dim, heads: turning };
    let expected = eval(op, &[Tensor::f32(vec![tokens, heads * head_dim], x.clone()), rotary]);
    let expected = expected.as_f32().unwrap();
    assert_close(&format!("{spec} with {scaling:?}"), &found, expected, F32_BOUND);
    // What does not turn keeps its bits.
    let turned = |at: usize| at % head_dim < dim && at / head_dim % heads < turning;
    assert!((0..x.len()).all(|at| turned(at) || found[at].to_bits() == x[at].to_bits()), "{spec}");
}

#[test]
fn heads_of_any_blocks_turn() {
    for (head_dim, dim) in HEADS {
        check_rotation(head_dim, dim, &Scaling::None);
    }
}

#[test]
fn every_rotary_scaling() {
    for dim in [32, 20] {
        let factors = |first: f32| (0..dim / 2).map(|i| first + i as f32 / 4.0).collect::<Vec<f32>>();
        let scalings = [
            Scaling::Linear { factor: 8.0 },
            Scaling::Dynamic { factor: 2.0, original: 100 },
            Scaling::Yarn {
                factor: 4.0,
                original: 4096,
                beta_fast: 32.0,
                beta_slow: 1.0,
                attention_factor: 1.138_629_4,
            },
            Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192 },
            Scaling::LongRope { original: 4096, attention_factor: 1.19, short: factors(1.0), long: factors(3.0) },
        ];
        for scaling in scalings {
            check_rotation(64, dim, &scaling);
        }
    }
}

#[test]
fn heads_are_normed_apart() {
    for head_dim in [16, 80, 256] {
        let (tokens, heads, first, count, eps) = (4, 5, 1, 3, 1e-6);
        let mut random = Random(2);
        let (x, w) = (random.floats(tokens * heads * head_dim), random.floats(head_dim));
        let spec = KernelSpec::HeadNorm { head_dim, eps };
        let buffers = vec![Bytes(f32_bytes(&x)), Bytes(f32_bytes(&w)), Output];
        let params = [tokens, heads, first, count].map(|param| param as i64);
        let found = floats(&run(&spec, buffers, &params, tokens as i64, 3).pop().unwrap());
        let op = ops::head_norm::HeadNorm { head_dim, first, heads: count, eps };
        let expected = eval(op, &[Tensor::f32(vec![tokens, heads * head_dim], x), Tensor::f32(vec![head_dim], w)]);
        assert_close(&spec.to_string(), &found, expected.as_f32().unwrap(), F32_BOUND);
    }
}

#[test]
fn a_fused_head_norm_and_rope_give_the_bits_of_separate_kernels() {
    for (head_dim, dim) in [(64, 64), (80, 20), (80, 80)] {
        let (rows, heads, k) = (POSITIONS.len(), 4, 64);
        let n = heads * head_dim;
        let mut random = Random(3);
        let (_, packed) = weight(&mut random, Scheme::BF16, n, k);
        let x = f32_bytes(&random.floats(rows * k));
        let norm = f32_bytes(&random.floats(head_dim));
        let rotary = table(dim, &Scaling::None);
        let linear = |epilogue: Vec<Stage>, extra: Vec<Buffer>| {
            let units = (n / 16 / KernelSpec::strip_blocks(&epilogue)) as i64;
            let tile = Tile::Stream { tokens: 4 };
            let spec = KernelSpec::Linear { scheme: Scheme::BF16, act: Activation::F32, tile, epilogue };
            let buffers = [vec![Bytes(x.clone()), Bytes(packed.clone())], extra, vec![Output, Output]];
            let out = buffers.iter().map(Vec::len).sum::<usize>() - 2;
            let buffers: Vec<Buffer> = buffers.into_iter().flatten().collect();
            run(&spec, buffers, &[rows as i64, n as i64, k as i64 / 32], units, 1).swap_remove(out)
        };
        let (first, count, eps) = (1, 2, 1e-5);
        let stages =
            vec![Stage::HeadNorm { head_dim, first, heads: count, eps }, Stage::Rope { head_dim, dim, heads: 3 }];
        let fused = linear(stages, vec![Bytes(norm.clone()), Bytes(rotary.clone())]);

        let params = [rows, heads, first, count].map(|param| param as i64);
        let spec = KernelSpec::HeadNorm { head_dim, eps };
        let buffers = vec![Bytes(linear(vec![], vec![])), Bytes(norm), Output];
        let normed = run(&spec, buffers, &params, rows as i64, 1).pop().unwrap();
        let buffers = vec![Bytes(normed), Bytes(rotary), Output];
        let params = [rows as i64, heads as i64, 3];
        let turned = run(&KernelSpec::Rope { head_dim, dim }, buffers, &params, rows as i64, 1).pop().unwrap();
        assert!(fused == turned, "heads of {head_dim}, {dim} of which turn");
    }
}

/// Relative error allowed where tensor cores attend: queries and weights are rounded to f16, by half a unit of 11 bits,
/// and scores, whose errors weights repeat, are of some units in these tests.
const F16_BOUND: f64 = 1e-3;

/// Units of an attention, and the relative error allowed.
pub fn attention_units(spec: &KernelSpec, tokens: usize, kv_heads: usize) -> (usize, f64) {
    match spec.grid().rows {
        rows if ON_EMULATOR && rows > 0 => (kv_heads, F16_BOUND),
        _ => (tokens * kv_heads, attention_bound(spec.cache().expect("it reads a cache"))),
    }
}

/// Attention of some tokens over a paged cache, so many units at once.
fn attend(
    spec: &KernelSpec,
    cache: &Paged,
    q: &[f32],
    at: &[(usize, usize)],
    kv_heads: usize,
    units_at_once: usize,
) -> Vec<u8> {
    let column = |of: fn(&(usize, usize)) -> usize| at.iter().map(|at| of(at) as i32).collect::<Vec<i32>>();
    let buffers = vec![
        Bytes(f32_bytes(q)),
        Bytes(i32_bytes(&column(|at| at.1))),
        Bytes(i32_bytes(&column(|at| at.0))),
        Bytes(i32_bytes(&cache.table)),
        Bytes(cache.bytes.clone()),
        Output,
    ];
    let params = [at.len(), kv_heads, LENGTHS.len(), cache.width].map(|param| param as i64);
    let (units, _) = attention_units(spec, at.len(), kv_heads);
    let found = run(spec, &buffers, &params, units as i64, units_at_once as i64).pop().unwrap();
    if ON_EMULATOR && !matches!(spec.cache(), Some(DType::Int8 | DType::Bf16)) {
        let operands = buffers.iter().filter_map(|buffer| if let Bytes(bytes) = buffer { Some(bytes) } else { None });
        assert!(found == attend_by_splits(spec, operands.cloned().collect(), &params), "{spec}: its halves differ");
    }
    found
}

/// The same attention by a kernel for splits, of which blocks take several each, and one that merges them.
fn attend_by_splits(spec: &KernelSpec, mut operands: Vec<Vec<u8>>, params: &[i64]) -> Vec<u8> {
    let &KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap } = spec else {
        panic!("{spec} is no attention")
    };
    let (ways, &[rows, kv_heads, _, pages]) = (2, params) else { panic!("four parameters") };
    let width = kv_heads * (pages as usize * PAGE_TOKENS).div_ceil(ATTENTION_SPLIT) as i64;
    let poison = |floats: usize| vec![0xff; 4 * rows as usize * floats];
    operands.push(poison(width as usize * group * partial_floats(head_dim)));
    let splits = KernelSpec::AttentionSplits { group, head_dim, dtype, scale, window, softcap };
    let of_splits = [params, &[ways, width]].concat();
    let written = emulated::run(&splits, &operands, &of_splits, rows * kv_heads * ways).expect("it has PTX");
    let (positions, partials) = (operands[1].clone(), written[5].clone());
    let columns = kv_heads as usize * group * head_dim;
    let merged = |quantize: bool, at_once: usize| {
        let merge = KernelSpec::AttentionMerge { group, head_dim, window, quantize };
        let operands = [positions.clone(), partials.clone(), poison(columns)];
        let units = rows * (columns / at_once) as i64;
        emulated::run(&merge, &operands, &[rows, kv_heads, width], units).expect("it has PTX").pop().unwrap()
    };
    let found = merged(false, BLOCK_ROWS);
    if head_dim.is_multiple_of(GROUP) {
        let spec = KernelSpec::Rows { gather: false, norm: None, add: false, form: Activation::Int8 };
        let groups = (columns / GROUP) as i64;
        let operands = [found.clone(), vec![0xff; rows as usize * columns / GROUP * ACT_GROUP_BYTES]];
        let units = rows * groups;
        let apart = emulated::run(&spec, &operands, &[rows, rows, groups], units).expect("it has PTX").pop().unwrap();
        assert!(merged(true, GROUP)[..apart.len()] == apart, "{splits}: its merged results are quantized otherwise");
    }
    found
}

/// Tokens of every sequence: its first, middle and last one, and one at the edge of a page.
fn tokens() -> Vec<(usize, usize)> {
    let of = |(sequence, &length): (usize, &usize)| {
        [0, length / 2, (length - 1) / 16 * 16, length - 1].map(|position| (sequence, position))
    };
    LENGTHS.iter().enumerate().flat_map(of).collect()
}

#[test]
fn attention_with_windows_and_bounded_scores() {
    let cases = [
        (DType::F16, 2, 64, Some(1), None),
        (DType::F16, 2, 64, Some(16), None),
        (DType::F32, 1, 80, Some(37), Some(3.0)),
        (DType::F32, 1, 48, Some(300), None),
        (DType::F16, 2, 112, Some(300), None),
        (DType::F16, 4, 256, Some(512), Some(50.0)),
        (DType::F32, 3, 16, None, Some(0.5)),
        (DType::Bf16, 2, 64, Some(1), None),
        (DType::Bf16, 3, 48, Some(37), Some(3.0)),
        (DType::Bf16, 4, 256, Some(512), Some(50.0)),
        (DType::Int8, 2, 64, Some(1), None),
        (DType::Int8, 3, 48, Some(37), Some(3.0)),
        (DType::Int8, 4, 256, Some(512), Some(50.0)),
    ];
    for (dtype, group, head_dim, window, softcap) in cases {
        let mut random = Random(5);
        let ty = CacheType { dtype, heads: 2, head_dim };
        let mut cache = paged(ty, &mut random);
        let at = tokens();
        let heads = group * ty.heads;
        let q = random.floats(at.len() * heads * head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let spec = KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap };
        let (_, bound) = attention_units(&spec, at.len(), ty.heads);
        let found = attend(&spec, &cache, &q, &at, ty.heads, 3);
        let op = ops::attention::Attention { heads, scale, window, softcap };
        let column =
            |of: fn(&(usize, usize)) -> usize| Tensor::i32(vec![at.len()], at.iter().map(|at| of(at) as i32).collect());
        let x = Tensor::f32(vec![at.len(), heads * head_dim], q.clone());
        let expected = eval(op, &[x, column(|at| at.1), column(|at| at.0), Tensor::cache(cache.reference.clone())]);
        assert_close(&spec.to_string(), &floats(&found), expected.as_f32().unwrap(), bound);

        // The last tokens alone have the same bits, also when every page before their windows is gone: its entry in the
        // table leads outside of the cache, where a read is a fault.
        let Some(window) = window else { continue };
        let last: Vec<(usize, usize)> = LENGTHS.iter().enumerate().map(|(at, length)| (at, length - 1)).collect();
        for &(sequence, position) in &last {
            for page in 0..(position + 1).saturating_sub(window) / PAGE_TOKENS {
                cache.table[sequence * cache.width + page] = i32::MAX / page_bytes(1, 256, DType::F32) as i32;
            }
        }
        let row = heads * head_dim;
        let rows: Vec<usize> = last.iter().map(|last| at.iter().rposition(|at| at == last).unwrap()).collect();
        let q: Vec<f32> = rows.iter().flat_map(|&at| q[at * row..][..row].to_vec()).collect();
        let alone = attend(&spec, &cache, &q, &last, ty.heads, 3);
        let among: Vec<u8> = rows.iter().flat_map(|&at| found[4 * at * row..][..4 * row].to_vec()).collect();
        assert!(alone == among, "{spec}: bits depend on the step or on pages before the window");
    }
}

#[test]
fn tokens_that_go_together_have_the_bits_that_they_have_alone() {
    let cases = [
        (DType::F16, 3, 64, None, None),
        (DType::F16, 1, 32, None, Some(2.0)),
        (DType::F32, 4, 80, Some(30), None),
        (DType::F16, 7, 64, None, None),
        (DType::F32, 9, 16, None, None),
        (DType::Bf16, 3, 64, Some(270), None),
        (DType::Bf16, 7, 64, None, None),
        (DType::Bf16, 9, 32, None, Some(2.0)),
        (DType::Int8, 3, 64, Some(270), None),
        (DType::Int8, 6, 128, None, None),
        (DType::Int8, 9, 16, None, Some(2.0)),
    ];
    // Chunks of a prompt that begin at the edge of a page or anywhere, go over edges of pages and splits, and stand beside
    // single tokens of other sequences.
    let chunks = [(1, 0..LENGTHS[1].min(9)), (0, 0..1), (3, 5..50), (2, 1..2), (3, 240..LENGTHS[3].min(290))];
    let at: Vec<(usize, usize)> =
        chunks.into_iter().flat_map(|(sequence, chunk)| chunk.map(move |position| (sequence, position))).collect();
    assert!(at.iter().all(|&(sequence, position)| position < LENGTHS[sequence]), "{LENGTHS:?}");
    for (dtype, group, head_dim, window, softcap) in cases {
        let mut random = Random(9);
        let ty = CacheType { dtype, heads: 2, head_dim };
        let cache = paged(ty, &mut random);
        let heads = group * ty.heads;
        let q = random.floats(at.len() * heads * head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let spec = KernelSpec::Attention { group, head_dim, dtype, scale, window, softcap };
        let alone = attend(&spec, &cache, &q, &at, ty.heads, 1);
        for units_at_once in [2, 4, 8, at.len() * ty.heads] {
            let together = attend(&spec, &cache, &q, &at, ty.heads, units_at_once);
            assert!(alone == together, "{spec}: bits depend on units at once, {units_at_once}");
        }
        let op = ops::attention::Attention { heads, scale, window, softcap };
        let column =
            |of: fn(&(usize, usize)) -> usize| Tensor::i32(vec![at.len()], at.iter().map(|at| of(at) as i32).collect());
        let x = Tensor::f32(vec![at.len(), heads * head_dim], q);
        let expected = eval(op, &[x, column(|at| at.1), column(|at| at.0), Tensor::cache(cache.reference)]);
        let (_, bound) = attention_units(&spec, at.len(), ty.heads);
        assert_close(&spec.to_string(), &floats(&alone), expected.as_f32().unwrap(), bound);
    }
}

/// The largest relative error of a function on a dense sweep.
fn worst(op: MapOp, reference: &Op, from: f32, to: f32) -> f64 {
    let count = 1 << 16;
    let x: Vec<f32> = (0..count).map(|i| from + (to - from) * (i as f32 + 0.5) / count as f32).collect();
    let params = [1, i64::from(count)];
    let found = run(&KernelSpec::Map { op }, vec![Bytes(f32_bytes(&x)), Output], &params, 1, 1).pop().unwrap();
    let expected = eval(reference.clone(), &[Tensor::f32(vec![1, count as usize], x)]);
    let errors = floats(&found).into_iter().zip(expected.as_f32().unwrap().to_vec());
    errors.map(|(a, b)| (f64::from(a) / f64::from(b) - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn functions_err_as_little_as_they_say() {
    let check = |op: MapOp, reference: Op, [from, to]: [f32; 2], bound: f64| {
        let found = worst(op, &reference, from, to);
        println!("{op} from {from} to {to}: {found:.2e}");
        assert!(found < bound, "{op} from {from} to {to}: relative error {found:.2e}");
    };
    let gelu = |tanh: bool| -> Op { ops::gelu::Gelu { tanh }.into() };
    for (function, reference) in [(Function::Gelu, gelu(false)), (Function::GeluTanh, gelu(true))] {
        check(MapOp::Activate(function), reference.clone(), [-4.0, 30.0], 3e-6);
        check(MapOp::Activate(function), reference, [-8.0, -4.0], 1e-5);
    }
    check(MapOp::Activate(Function::Silu), ops::silu::Silu.into(), [-80.0, 80.0], 1e-6);
    check(MapOp::Softcap(1.0), ops::softcap::Softcap { cap: 1.0 }.into(), [-12.0, 12.0], 3e-7);
    check(MapOp::Softcap(1.0), ops::softcap::Softcap { cap: 1.0 }.into(), [-1e-3, 1e-3], 3e-7);
}
