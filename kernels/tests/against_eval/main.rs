//! Every CPU kernel against the reference evaluation of its op, on random ragged inputs with poisoned outputs.

pub(crate) mod data;
pub(crate) mod emulated;
mod knobs;
mod linear;
pub(crate) mod machine;
mod tiles;

use data::{F32_BOUND, Random, assert_close, f32_bytes, floats, i32_bytes, weight};
use half::f16;
use lathe_ir::eval::{CacheState, Data, EvalContext, Tensor};
use lathe_ir::op::Op;
use lathe_ir::ops;
use lathe_ir::ops::glu::Function;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, DType};
use lathe_kernels::spec::{Activation, CodePage, KernelSpec, MapOp, Norm, PAGE_TOKENS, page_bytes};
use machine::Buffer::{Data as Bytes, Output};
use machine::run;

/// The single f32 result of an op.
fn eval(op: impl Into<Op>, inputs: &[Tensor]) -> Tensor {
    op.into().eval(inputs, &mut EvalContext::default()).expect("the op evaluates").remove(0)
}

#[test]
fn embed_of_every_scheme() {
    let vocabulary = 48;
    for scheme in Scheme::ALL {
        let k = 3 * scheme.span();
        let mut random = Random(1);
        let (matrix, packed) = weight(&mut random, scheme, vocabulary, k);
        let tokens = vec![0, 47, 16, 3, 31];
        let spec = KernelSpec::Embed { scheme };
        let params = [tokens.len() as i64, vocabulary as i64, 3];
        let outputs = run(&spec, vec![Bytes(i32_bytes(&tokens)), Bytes(packed), Output], &params, 5, 2);
        let expected = eval(ops::embed::Embed {}, &[Tensor::i32(vec![5], tokens), Tensor::matrix(matrix)]);
        assert_close(&spec.to_string(), &floats(&outputs[2]), expected.as_f32().unwrap(), F32_BOUND);
    }
}

/// Units of a kernel of `rows` rows of `k` columns.
fn row_units(spec: &KernelSpec, rows: usize, k: usize) -> i64 {
    let by_groups = machine::ON_EMULATOR && spec.takes_groups();
    (if by_groups { rows * k / 32 } else { rows }) as i64
}

#[test]
fn rows_gather_norm_add_and_quantize() {
    // The wider rows are more than the threads of a GPU's block take at once.
    let tokens = 7;
    for (case, k) in (0..24).flat_map(|case| [(case, 96), (case, 4224)]) {
        let norm = [None, Some(Norm::Rms { eps: 1e-5 }), Some(Norm::Layer { eps: 1e-5 })][case / 8];
        let (gather, quantize, add) = (case & 1 != 0, case & 2 != 0, case & 4 != 0);
        let mut random = Random(2);
        let x = random.floats(tokens * k);
        let weight = random.floats(k);
        let rows = if gather { vec![6, 0, 3] } else { (0..tokens as i32).collect() };
        let mut expected = Tensor::f32(vec![tokens, k], x.clone());
        let mut buffers = vec![Bytes(f32_bytes(&x))];
        if gather {
            expected = eval(ops::gather::Gather {}, &[expected, Tensor::i32(vec![rows.len()], rows.clone())]);
            buffers.push(Bytes(i32_bytes(&rows)));
        }
        let vector = |values: &[f32]| Tensor::f32(vec![k], values.to_vec());
        match norm {
            None => {}
            Some(Norm::Rms { eps }) => {
                expected = eval(ops::rms_norm::RmsNorm { eps }, &[expected, vector(&weight)]);
                buffers.push(Bytes(f32_bytes(&weight)));
            }
            Some(Norm::Layer { eps }) => {
                let bias = random.floats(k);
                expected = eval(ops::layer_norm::LayerNorm { eps }, &[expected, vector(&weight), vector(&bias)]);
                buffers.extend([Bytes(f32_bytes(&weight)), Bytes(f32_bytes(&bias))]);
            }
        }
        if add {
            let residual = random.floats(rows.len() * k);
            expected = eval(ops::add::Add, &[expected, Tensor::f32(vec![rows.len(), k], residual.clone())]);
            buffers.push(Bytes(f32_bytes(&residual)));
        }
        buffers.push(Output);
        let form = if quantize { Activation::Int8 } else { Activation::F32 };
        let spec = KernelSpec::Rows { gather, norm, add, form };
        let params = [rows.len() as i64, tokens as i64, k as i64 / 32];
        let found = run(&spec, buffers, &params, row_units(&spec, rows.len(), k), 2).pop().unwrap();
        if quantize {
            check_records(&spec, &found, &expected, k);
        } else {
            assert_close(&spec.to_string(), &floats(&found), expected.as_f32().unwrap(), F32_BOUND);
        }
    }
}

/// Codes within one step of the exact value over the scale, and sums that are exactly those of the codes.
fn check_records(spec: &KernelSpec, found: &[u8], expected: &Tensor, k: usize) {
    let expected = expected.as_f32().unwrap();
    for (record, exact) in found.chunks(k / 32 * 44).zip(expected.chunks(k)) {
        let (codes, rest) = record.split_at(k);
        let fields: Vec<&[u8]> = rest.chunks(k / 32 * 4).collect();
        for (g, exact) in exact.chunks(32).enumerate() {
            let codes: Vec<i32> = codes[32 * g..][..32].iter().map(|&code| i32::from(code as i8)).collect();
            let scale = floats(fields[0])[g];
            let largest = exact.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
            assert!((scale * 127.0 / largest - 1.0).abs() < 1e-5, "{spec}: scale {scale} of {largest}");
            for (code, exact) in codes.iter().zip(exact) {
                assert!((*code as f32 - exact / scale).abs() <= 0.501, "{spec}: code {code} of {exact} at {scale}");
            }
            let sum: i32 = codes.iter().sum();
            assert_eq!(i32::from_le_bytes(fields[2][4 * g..][..4].try_into().unwrap()), sum, "{spec}: sum");
            assert_eq!(floats(fields[1])[g].to_bits(), (scale * sum as f32).to_bits(), "{spec}: scaled sum");
        }
    }
}

#[test]
fn a_row_of_zeros_quantizes_to_zeros() {
    let spec = KernelSpec::Rows { gather: false, norm: None, add: false, form: Activation::Int8 };
    let units = row_units(&spec, 1, 64);
    let found = run(&spec, vec![Bytes(f32_bytes(&[0.0; 64])), Output], &[1, 1, 2], units, 1).pop().unwrap();
    assert_eq!(found, vec![0; 88]);
}

#[test]
fn rotary_and_rope() {
    let (head_dim, heads, turning) = (64, 5, 3);
    let positions = vec![0, 1, 17, 8191, 130_000];
    let tokens = positions.len();
    let theta = 100_000.0;
    let spec = KernelSpec::Rotary { dim: head_dim, theta, scaling: ops::rotary::Scaling::None };
    let table = run(&spec, vec![Bytes(i32_bytes(&positions)), Output], &[5], 5, 1).pop().unwrap();
    let expected = eval(
        ops::rotary::Rotary { dim: head_dim, theta, scaling: ops::rotary::Scaling::None },
        &[Tensor::i32(vec![tokens], positions)],
    );
    assert_close(&spec.to_string(), &floats(&table), expected.as_f32().unwrap(), 1e-7);

    let x = Random(3).floats(tokens * heads * head_dim);
    let spec = KernelSpec::Rope { head_dim, dim: head_dim };
    let buffers = vec![Bytes(f32_bytes(&x)), Bytes(table), Output];
    let found = run(&spec, buffers, &[5, heads as i64, turning as i64], 5, 2).pop().unwrap();
    let op = ops::rope::Rope { head_dim, heads: turning };
    let expected = eval(op, &[Tensor::f32(vec![tokens, heads * head_dim], x), expected]);
    assert_close(&spec.to_string(), &floats(&found), expected.as_f32().unwrap(), F32_BOUND);
}

#[test]
fn element_wise_maps() {
    let (rows, columns) = (3, 80);
    let mut random = Random(4);
    let scaled = |values: Vec<f32>| values.into_iter().map(|value| value * 20.0).collect::<Vec<f32>>();
    let (a, b) = (scaled(random.floats(rows * columns)), scaled(random.floats(rows * columns)));
    let wide = scaled(random.floats(rows * columns * 2));
    let tensor = |values: &[f32]| match values.len() {
        len if len == columns => Tensor::f32(vec![columns], values.to_vec()),
        len => Tensor::f32(vec![rows, len / rows], values.to_vec()),
    };
    let bias = random.floats(columns);
    let cases: [(MapOp, Op, Vec<&[f32]>); 11] = [
        (MapOp::Add, ops::add::Add {}.into(), vec![&a, &b]),
        (MapOp::Mul, ops::mul::Mul {}.into(), vec![&a, &b]),
        (MapOp::Activate(Function::Silu), ops::silu::Silu {}.into(), vec![&a]),
        (MapOp::Activate(Function::Gelu), ops::gelu::Gelu { tanh: false }.into(), vec![&a]),
        (MapOp::Activate(Function::GeluTanh), ops::gelu::Gelu { tanh: true }.into(), vec![&a]),
        (MapOp::Glu(Function::Silu), ops::glu::Glu { function: Function::Silu }.into(), vec![&wide]),
        (MapOp::Glu(Function::Gelu), ops::glu::Glu { function: Function::Gelu }.into(), vec![&wide]),
        (MapOp::Glu(Function::GeluTanh), ops::glu::Glu { function: Function::GeluTanh }.into(), vec![&wide]),
        (MapOp::Scale(-0.3), ops::scale::Scale { factor: -0.3 }.into(), vec![&a]),
        (MapOp::Softcap(30.0), ops::softcap::Softcap { cap: 30.0 }.into(), vec![&a]),
        (MapOp::Bias, ops::bias::Bias.into(), vec![&a, &bias]),
    ];
    for (map, op, inputs) in cases {
        let spec = KernelSpec::Map { op: map };
        let mut buffers: Vec<_> = inputs.iter().map(|values| Bytes(f32_bytes(values))).collect();
        buffers.push(Output);
        let found = run(&spec, buffers, &[rows as i64, columns as i64], rows as i64, 2).pop().unwrap();
        let expected = eval(op, &inputs.iter().map(|values| tensor(values)).collect::<Vec<_>>());
        assert_close(&spec.to_string(), &floats(&found), expected.as_f32().unwrap(), F32_BOUND);
    }
}

/// Sequences of these lengths share the cache pages in a shuffled order.
const LENGTHS: [usize; 4] = [1, 16, 45, 600];

/// A paged cache of [`LENGTHS`], its block table, and the reference cache with the same contents.
struct Paged {
    bytes: Vec<u8>,
    table: Vec<i32>,
    width: usize,
    reference: CacheState,
}

/// Fills a cache through the append kernel; slots that hold no token stay poisoned.
fn paged(ty: CacheType, random: &mut Random) -> Paged {
    let width = 600usize.div_ceil(PAGE_TOKENS);
    let pages = LENGTHS.len() * width;
    let mut order: Vec<i32> = (0..pages as i32).collect();
    for i in (1..pages).rev() {
        order.swap(i, random.below(i + 1));
    }
    let mut reference = CacheState::new(ty);
    let mut bytes = vec![0xff; pages * page_bytes(ty.heads, ty.head_dim, ty.dtype)];
    let spec = KernelSpec::Append { head_dim: ty.head_dim, dtype: ty.dtype };
    for (sequence, &length) in LENGTHS.iter().enumerate() {
        let row = ty.heads * ty.head_dim;
        let (keys, values) = (random.floats(length * row), random.floats(length * row));
        for position in 0..length {
            let at = position * row..(position + 1) * row;
            reference.append(sequence as i32, position as i32, &keys[at.clone()], &values[at]);
        }
        let buffers = vec![
            Bytes(f32_bytes(&keys)),
            Bytes(f32_bytes(&values)),
            Bytes(i32_bytes(&(0..length as i32).collect::<Vec<_>>())),
            Bytes(i32_bytes(&vec![sequence as i32; length])),
            Bytes(i32_bytes(&order)),
            Bytes(bytes),
        ];
        let params = [length as i64, ty.heads as i64, LENGTHS.len() as i64, width as i64];
        bytes = run(&spec, buffers, &params, length as i64, 7).pop().unwrap();
    }
    Paged { bytes, table: order, width, reference }
}

#[test]
fn append_and_attention_over_shuffled_pages() {
    let cases = [
        (DType::F16, 3, 64),
        (DType::F32, 1, 32),
        (DType::F32, 2, 128),
        (DType::Bf16, 3, 64),
        (DType::Bf16, 6, 128),
        (DType::Bf16, 1, 80),
        (DType::Int8, 6, 128),
        (DType::Int8, 3, 64),
        (DType::Int8, 1, 80),
    ];
    for (dtype, group, head_dim) in cases {
        let mut random = Random(5);
        let ty = CacheType { dtype, heads: 2, head_dim };
        let cache = paged(ty, &mut random);
        let (mut positions, mut sequences) = (Vec::new(), Vec::new());
        for (sequence, &length) in LENGTHS.iter().enumerate() {
            for position in [0, length / 2, length - 1] {
                positions.push(position as i32);
                sequences.push(sequence as i32);
            }
        }
        let tokens = positions.len();
        let heads = group * ty.heads;
        let q = random.floats(tokens * heads * head_dim);
        let scale = 1.0 / (head_dim as f32).sqrt();
        let spec = KernelSpec::Attention { group, head_dim, dtype, scale, window: None, softcap: None };
        let buffers = vec![
            Bytes(f32_bytes(&q)),
            Bytes(i32_bytes(&positions)),
            Bytes(i32_bytes(&sequences)),
            Bytes(i32_bytes(&cache.table)),
            Bytes(cache.bytes),
            Output,
        ];
        let params = [tokens as i64, ty.heads as i64, LENGTHS.len() as i64, cache.width as i64];
        let (units, bound) = knobs::attention_units(&spec, tokens, ty.heads);
        let found = run(&spec, buffers, &params, units as i64, 3).pop().unwrap();
        let expected = eval(
            ops::attention::Attention { heads, scale, window: None, softcap: None },
            &[
                Tensor::f32(vec![tokens, heads * head_dim], q),
                Tensor::i32(vec![tokens], positions),
                Tensor::i32(vec![tokens], sequences),
                Tensor::cache(cache.reference),
            ],
        );
        assert_close(&spec.to_string(), &floats(&found), expected.as_f32().unwrap(), bound);
    }
}

#[test]
fn codes_in_pages_are_those_of_the_reference() {
    for head_dim in [16, 80, 128] {
        let ty = CacheType { dtype: DType::Int8, heads: 2, head_dim };
        let Paged { bytes, table, width, reference } = paged(ty, &mut Random(8));
        let page = CodePage::new(head_dim);
        let code = |at: usize| f32::from(bytes[at] as i8);
        let scale = |at: usize| f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32();
        for (sequence, &length) in LENGTHS.iter().enumerate() {
            let rows = reference.visible(sequence as i32, length as i32 - 1, None).unwrap();
            for (position, row) in rows.into_iter().enumerate() {
                let number = table[sequence * width + position / PAGE_TOKENS] as usize;
                let slot = position % PAGE_TOKENS;
                // The reference may round to minus zero, which codes do not have.
                for (i, (&key, &value)) in row.key.iter().zip(&row.value).enumerate() {
                    let (head, d) = ((number * 2 + i / head_dim) * page.bytes, i % head_dim);
                    let (group, half, pair) = (d / 32, d % 32 / 16, d % 16);
                    let found = code(head + ((16 * group + pair) * PAGE_TOKENS + slot) * 2 + half)
                        * scale(head + page.key_scales + 2 * (PAGE_TOKENS * group + slot));
                    assert_eq!(found.to_bits(), (key + 0.0).to_bits(), "key {sequence}, {position}, element {i}");
                    let found = code(head + page.values + (slot / 2 * head_dim + d) * 2 + slot % 2)
                        * scale(head + page.value_scales + 2 * slot);
                    assert_eq!(found.to_bits(), (value + 0.0).to_bits(), "value {sequence}, {position}, element {i}");
                }
            }
        }
    }
}

#[test]
fn append_qkv_splits_heads_and_leaves_other_slots_alone() {
    let (heads, ty) = (3, CacheType { dtype: DType::F16, heads: 2, head_dim: 32 });
    let tokens = 5;
    let qkv = Random(6).floats(tokens * (heads + 2 * ty.heads) * ty.head_dim);
    let (positions, sequences) = (vec![0, 1, 33, 34, 5], vec![0, 0, 1, 1, 2]);
    let table = vec![4, 0, 1, 7, 2, 3, 5, 6, 8];
    let bytes = vec![0xab; 9 * page_bytes(ty.heads, ty.head_dim, ty.dtype)];
    let buffers = vec![
        Bytes(f32_bytes(&qkv)),
        Bytes(i32_bytes(&positions)),
        Bytes(i32_bytes(&sequences)),
        Bytes(i32_bytes(&table)),
        Bytes(bytes),
        Output,
    ];
    let spec = KernelSpec::AppendQkv { head_dim: ty.head_dim, dtype: ty.dtype };
    let outputs = run(&spec, buffers, &[5, heads as i64, 2, 3, 3], 5, 2);
    let q: Vec<f32> = qkv.chunks(7 * 32).flat_map(|row| row[..3 * 32].to_vec()).collect();
    assert_eq!(floats(&outputs[5]), q);
    let page = page_bytes(ty.heads, ty.head_dim, ty.dtype);
    let half = |at: usize| f16::from_le_bytes([outputs[4][at], outputs[4][at + 1]]);
    // Token 2 (sequence 1, position 33) lies in slot 1 of the page that entry [1, 2] names: page 3.
    let head = 3 * page + 2 * PAGE_TOKENS * 32 * 2;
    assert_eq!(half(head + (7 * PAGE_TOKENS + 1) * 2), f16::from_f32(qkv[2 * 224 + 4 * 32 + 7]), "key head 1, d = 7");
    let values = head + PAGE_TOKENS * 32 * 2;
    assert_eq!(half(values + (32 + 9) * 2), f16::from_f32(qkv[2 * 224 + 6 * 32 + 9]), "value head 1, d = 9");
    let written = outputs[4].chunks(2).filter(|pair| **pair != [0xab, 0xab]).count();
    assert_eq!(written, tokens * 2 * ty.heads * ty.head_dim, "elements written");
    let reference = eval(
        ops::append_qkv::AppendQkv { heads },
        &[
            Tensor::f32(vec![tokens, 7 * 32], qkv),
            Tensor::i32(vec![tokens], positions),
            Tensor::i32(vec![tokens], sequences),
            Tensor::cache(CacheState::new(ty)),
        ],
    );
    assert_eq!(reference.data, Data::F32(q));
}
