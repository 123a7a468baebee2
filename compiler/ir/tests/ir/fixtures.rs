//! A small decoder in two forms, as models build it and as passes leave it, with weights made from their names.

use half::f16;
use lathe_ir::eval::{Caches, StepInputs, Tensor, evaluate};
use lathe_ir::graph::{Arrangement, Graph, Part, RowOrder, StepInput, Value, Weight};
use lathe_ir::ops::add::Add;
use lathe_ir::ops::append::Append;
use lathe_ir::ops::attention::Attention;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::gather::Gather;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::rope::Rope;
use lathe_ir::ops::rotary::{Rotary, Scaling};
use lathe_ir::ops::silu::Silu;
use lathe_ir::scheme::{Matrix, MatrixData, Scheme, Zero};
use lathe_ir::types::{CacheType, DType, Dim, Elem, Type};

pub const HIDDEN: usize = 64;
pub const HEADS: usize = 4;
pub const KV: usize = 2;
pub const D: usize = 16;
pub const FFN: usize = 96;
pub const VOCAB: usize = 80;
pub const EPS: f32 = 1e-5;

/// A weight made of one whole tensor.
pub fn weight(graph: &mut Graph, name: &str, ty: Type, rows: usize) -> Value {
    let part = Part { tensor: format!("{name}.weight"), rows, order: RowOrder::AsStored, plus_one: false };
    graph.weight(Weight { name: name.to_string(), parts: vec![part], arrangement: Arrangement::Concat }, ty)
}

/// A matrix weight of one tensor.
pub fn matrix(graph: &mut Graph, name: &str, scheme: Scheme, n: usize, k: usize) -> Value {
    weight(graph, name, matrix_type(scheme, n, k), n)
}

pub fn matrix_type(scheme: Scheme, n: usize, k: usize) -> Type {
    Type::Tensor { elem: Elem::Weight(scheme), shape: vec![Dim::of(n), Dim::of(k)] }
}

pub fn act_type(group: usize, m: Dim, k: usize) -> Type {
    Type::Tensor { elem: Elem::Act { group }, shape: vec![m, Dim::of(k)] }
}

pub fn cache_type(dtype: DType) -> CacheType {
    CacheType { dtype, heads: KV, head_dim: D }
}

/// The unfused decoder with a tied head.
pub fn decoder(layers: usize, scheme: Scheme) -> Graph {
    let mut graph = Graph::new("main");
    let g = &mut graph;
    let [tokens, positions, sequences, rows] = StepInput::ALL.map(|input| g.input(input));
    let table = matrix(g, "embd", scheme, VOCAB, HIDDEN);
    let mut x = g.op1(Embed, &[tokens, table]).unwrap();
    let rotary = g.op1(Rotary { dim: D, theta: 1e4, scaling: Scaling::None }, &[positions]).unwrap();
    for layer in 0..layers {
        let linear = |g: &mut Graph, name: &str, n: usize, k: usize, x: Value| {
            let w = matrix(g, &format!("blk.{layer}.{name}"), scheme, n, k);
            g.op1(Linear::new(), &[x, w]).unwrap()
        };
        let norm = |g: &mut Graph, name: &str, x: Value| {
            let w = weight(g, &format!("blk.{layer}.{name}"), Type::f32([Dim::of(HIDDEN)]), 1);
            g.op1(RmsNorm { eps: EPS }, &[x, w]).unwrap()
        };
        let n = norm(g, "attn_norm", x);
        let q = linear(g, "attn_q", HEADS * D, HIDDEN, n);
        let k = linear(g, "attn_k", KV * D, HIDDEN, n);
        let v = linear(g, "attn_v", KV * D, HIDDEN, n);
        let q = g.op1(Rope { head_dim: D, heads: HEADS }, &[q, rotary]).unwrap();
        let k = g.op1(Rope { head_dim: D, heads: KV }, &[k, rotary]).unwrap();
        let cache = g.cache(format!("kv.{layer}"), cache_type(DType::F16));
        let cache = g.op1(Append, &[k, v, positions, sequences, cache]).unwrap();
        let a = g
            .op1(
                Attention { heads: HEADS, scale: 0.25, window: None, softcap: None },
                &[q, positions, sequences, cache],
            )
            .unwrap();
        let o = linear(g, "attn_o", HIDDEN, HEADS * D, a);
        x = g.op1(Add, &[x, o]).unwrap();
        let n = norm(g, "ffn_norm", x);
        let gate = linear(g, "ffn_gate", FFN, HIDDEN, n);
        let up = linear(g, "ffn_up", FFN, HIDDEN, n);
        let gate = g.op1(Silu, &[gate]).unwrap();
        let h = g.op1(Mul, &[gate, up]).unwrap();
        let down = linear(g, "ffn_down", HIDDEN, FFN, h);
        x = g.op1(Add, &[x, down]).unwrap();
    }
    let x = g.op1(Gather, &[x, rows]).unwrap();
    let w = weight(g, "output_norm", Type::f32([Dim::of(HIDDEN)]), 1);
    let x = g.op1(RmsNorm { eps: EPS }, &[x, w]).unwrap();
    let logits = g.op1(Linear::new(), &[x, table]).unwrap();
    g.outputs.push(("logits".to_string(), logits));
    graph
}

/// The same decoder, one layer, as the passes leave it with f32 activations; `{w}` stands for the weight scheme.
pub const FUSED: &str = r#"graph main(%tokens: i32[T], %positions: i32[T], %sequences: i32[T], %rows: i32[R]) {
  @embd: {w}[80, 64] = "embd.weight"
  @blk.0.attn_qkv: {w}[128, 64] = concat("blk.0.attn_q.weight"[64], "blk.0.attn_k.weight"[32], "blk.0.attn_v.weight"[32])
  @blk.0.attn_norm: f32[64] = "blk.0.attn_norm.weight"
  @blk.0.attn_o: {w}[64, 64] = "blk.0.attn_o.weight"
  @blk.0.ffn_gate_up: {w}[192, 64] = interleave 16("blk.0.ffn_gate.weight"[96], "blk.0.ffn_up.weight"[96])
  @blk.0.ffn_norm: f32[64] = "blk.0.ffn_norm.weight"
  @blk.0.ffn_down: {w}[64, 96] = "blk.0.ffn_down.weight"
  @output_norm: f32[64] = "output_norm.weight"
  cache $kv.0: cache<f16, 2x16>
  %0 = embed %tokens, @embd : f32[T, 64]
  %1 = rotary %positions {dim = 16, theta = 10000.0} : f32[T, 16]
  %2, $0 = linear %0, @blk.0.attn_qkv pre [rms_norm(@blk.0.attn_norm) {eps = 1e-5}{q}] post [rope(%1) {head_dim = 16, heads = 6}, append_qkv(%positions, %sequences, $kv.0) {heads = 4}] : f32[T, 64], cache<f16, 2x16>
  %3 = attention %2, %positions, %sequences, $0 {heads = 4, scale = 0.25} : f32[T, 64]
  %4 = linear %3, @blk.0.attn_o{p} post [add(%0)] : f32[T, 64]
  %5 = linear %4, @blk.0.ffn_gate_up pre [rms_norm(@blk.0.ffn_norm) {eps = 1e-5}{q}] post [glu {function = "silu"}] : f32[T, 96]
  %6 = linear %5, @blk.0.ffn_down{p} post [add(%4)] : f32[T, 64]
  %7 = gather %6, %rows : f32[R, 64]
  %8 = linear %7, @embd pre [rms_norm(@output_norm) {eps = 1e-5}{q}] : f32[R, 80]
  return logits = %8
}
"#;

/// The fused text in a scheme, with or without int8 activations.
pub fn fused(scheme: Scheme, quantized: bool) -> String {
    let (inner, alone) = if quantized { (", quantize {group = 32}", " pre [quantize {group = 32}]") } else { ("", "") };
    FUSED.replace("{w}", &scheme.to_string()).replace("{q}", inner).replace("{p}", alone)
}

/// A small generator (xorshift) seeded by a name: the same name gives the same numbers in every graph.
pub struct Numbers(u64);

impl Numbers {
    pub fn of(name: &str) -> Numbers {
        Numbers(
            name.bytes()
                .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)),
        )
    }

    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Between -1 and 1.
    pub fn next(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    pub fn take(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

/// The schemes whose spans divide the widths of this decoder.
pub fn schemes() -> impl Iterator<Item = Scheme> {
    Scheme::ALL.into_iter().filter(|scheme| HIDDEN.is_multiple_of(scheme.span()))
}

/// A random matrix in a scheme without super-blocks.
pub fn random_matrix(name: &str, scheme: Scheme, rows: usize, cols: usize) -> Matrix {
    let mut numbers = Numbers::of(name);
    if !scheme.is_integer() {
        let data = MatrixData::Float(numbers.take(rows * cols).into_iter().map(|value| value * 0.2).collect());
        return Matrix { rows, cols, data };
    }
    let groups = rows * cols / scheme.group;
    let range = 1 << scheme.bits();
    let codes = (0..rows * cols).map(|_| (numbers.bits() % range) as u8).collect();
    let scale = 0.4 / range as f32;
    let scales = (0..groups).map(|_| f16::from_f32(scale * (1.5 + 0.5 * numbers.next()))).collect();
    let mins = match scheme.zero {
        Zero::Min => (0..groups).map(|_| f16::from_f32(-0.3 + 0.05 * numbers.next())).collect(),
        Zero::Symmetric => Vec::new(),
    };
    Matrix { rows, cols, data: MatrixData::Quantized { scheme, codes, scales, mins, subs: Vec::new() } }
}

/// The rows of `from` in another order.
fn select(from: &Matrix, order: &[usize]) -> Matrix {
    fn pick<T: Copy>(values: &[T], width: usize, order: &[usize]) -> Vec<T> {
        order.iter().flat_map(|&row| values[row * width..(row + 1) * width].to_vec()).collect()
    }
    let data = match &from.data {
        MatrixData::Float(values) => MatrixData::Float(pick(values, from.cols, order)),
        MatrixData::Quantized { scheme, codes, scales, mins, subs } => {
            let groups = from.cols / scheme.group;
            MatrixData::Quantized {
                scheme: *scheme,
                codes: pick(codes, from.cols, order),
                scales: pick(scales, groups, order),
                mins: if mins.is_empty() { Vec::new() } else { pick(mins, groups, order) },
                subs: subs.clone(),
            }
        }
    };
    Matrix { rows: order.len(), cols: from.cols, data }
}

/// One matrix under another.
fn stack(parts: Vec<Matrix>) -> Matrix {
    parts
        .into_iter()
        .reduce(|mut all, part| {
            all.rows += part.rows;
            match (&mut all.data, part.data) {
                (MatrixData::Float(all), MatrixData::Float(part)) => all.extend(part),
                (
                    MatrixData::Quantized { codes, scales, mins, .. },
                    MatrixData::Quantized { codes: part_codes, scales: part_scales, mins: part_mins, .. },
                ) => {
                    codes.extend(part_codes);
                    scales.extend(part_scales);
                    mins.extend(part_mins);
                }
                _ => unreachable!("parts share a scheme"),
            }
            all
        })
        .unwrap()
}

/// The data of any weight: each part from its tensor's name, arranged as declared.
pub fn weights(weight: &Weight, ty: &Type) -> Result<Tensor, String> {
    let Elem::Weight(scheme) = ty.elem().ok_or("a weight is a tensor")? else {
        let k = ty.shape().unwrap()[0].c;
        let values = Numbers::of(&weight.parts[0].tensor).take(k).into_iter().map(|value| 1.0 + 0.3 * value).collect();
        return Ok(Tensor::f32(vec![k], values));
    };
    let cols = ty.shape().unwrap()[1].c;
    let stored: Vec<Matrix> =
        weight.parts.iter().map(|part| random_matrix(&part.tensor, *scheme, part.rows, cols)).collect();
    let all = stack(stored);
    let order: Vec<usize> = match weight.arrangement {
        Arrangement::Concat => (0..all.rows).collect(),
        Arrangement::Interleave { rows } => {
            let each = weight.parts[0].rows;
            let part_row = |block: usize, i: usize| move |part: usize| part * each + block * rows + i;
            (0..each / rows)
                .flat_map(|block| {
                    (0..weight.parts.len()).flat_map(move |part| (0..rows).map(move |i| part_row(block, i)(part)))
                })
                .collect()
        }
    };
    Ok(Tensor::matrix(select(&all, &order)))
}

/// The logits of a step.
pub fn logits(graph: &Graph, step: &StepInputs, caches: &mut Caches) -> Vec<f32> {
    let outputs = evaluate(graph, &weights, step, caches).unwrap();
    outputs["logits"].as_f32().unwrap().to_vec()
}

/// `‖a − b‖ / ‖b‖`.
pub fn relative_error(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b)))
}
