//! Graphs with the knobs of families that need them, through compiler and runtime, against the reference evaluation: norms
//! after blocks and of heads, windows, soft bounds, factors, biases, partial and scaled rotations, heads of many sizes.

use std::collections::BTreeMap;

use lathe_compiler::options::Options;
use lathe_compiler::pass::Activations;
use lathe_compiler::pipeline::{Goal, compile};
use lathe_ir::eval::{Caches, StepInputs, Tensor, evaluate};
use lathe_ir::graph::{Arrangement, Graph, Part, RowOrder, StepInput, Value, Weight};
use lathe_ir::op::Op;
use lathe_ir::ops::add::Add;
use lathe_ir::ops::append::Append;
use lathe_ir::ops::attention::Attention;
use lathe_ir::ops::bias::Bias;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::gather::Gather;
use lathe_ir::ops::gelu::Gelu;
use lathe_ir::ops::head_norm::HeadNorm;
use lathe_ir::ops::layer_norm::LayerNorm;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::rope::Rope;
use lathe_ir::ops::rotary::{Rotary, Scaling};
use lathe_ir::ops::scale::Scale;
use lathe_ir::ops::silu::Silu;
use lathe_ir::ops::softcap::Softcap;
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use lathe_ir::types::{CacheType, DType, Dim, Elem, Type};
use lathe_kernels::targets::Target;
use lathe_models::checkpoint::assemble;
use lathe_models::seeded::{self, MemoryCheckpoint};
use lathe_plan::{Plan, Retention};
use lathe_runtime::device::options::DeviceOptions;
use lathe_runtime::engine::{Engine, EngineOptions};
use lathe_tests::Scratch;
use lathe_tests::compare::relative_error;

/// Room for f32 roundings in another order, over a few layers.
const F32_BOUND: f64 = 1e-5;
/// Tokens of the test's prompt: beyond the windows and original lengths of the graphs, over several cache pages.
const TOKENS: i32 = 45;

/// Builds a graph and, on the way, the random tensors of its checkpoint.
struct Builder {
    graph: Graph,
    tensors: BTreeMap<String, Matrix>,
    hidden: usize,
    state: u64,
}

/// Heads of a layer.
#[derive(Clone, Copy)]
struct Heads {
    query: usize,
    kv: usize,
    dim: usize,
}

impl Builder {
    fn new(hidden: usize) -> Builder {
        Builder { graph: Graph::new("main"), tensors: BTreeMap::new(), hidden, state: 1 }
    }

    /// Uniform in ±1 (a multiplicative generator of Park and Miller).
    fn random(&mut self) -> f32 {
        self.state = self.state * 48_271 % 0x7fff_ffff;
        self.state as f32 / 0x4000_0000 as f32 - 1.0
    }

    fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        self.graph.op1(op, inputs).unwrap_or_else(|error| panic!("{error}"))
    }

    fn tensor(&mut self, name: &str, shape: [usize; 2], values: Vec<f32>, ty: Type, plus_one: bool) -> Value {
        let [rows, cols] = shape;
        self.tensors.insert(name.to_owned(), Matrix { rows, cols, data: MatrixData::Float(values) });
        let part = Part { tensor: name.to_owned(), rows, order: RowOrder::AsStored, plus_one };
        let weight = Weight { name: name.to_owned(), parts: vec![part], arrangement: Arrangement::Concat };
        self.graph.weight(weight, ty)
    }

    fn matrix(&mut self, name: &str, n: usize, k: usize) -> Value {
        let bound = (3.0 / k as f32).sqrt();
        // The upper half of an f32's bits is a bfloat16.
        let values = (0..n * k).map(|_| f32::from_bits((self.random() * bound).to_bits() & 0xffff_0000)).collect();
        let ty = Type::Tensor { elem: Elem::Weight(Scheme::BF16), shape: vec![Dim::of(n), Dim::of(k)] };
        self.tensor(name, [n, k], values, ty, false)
    }

    /// A vector around `middle`; around one, it is stored as the distance from one.
    fn vector(&mut self, name: &str, k: usize, middle: f32) -> Value {
        let values = (0..k).map(|_| self.random() / 4.0).collect();
        self.tensor(name, [1, k], values, Type::f32([Dim::of(k)]), middle > 0.0)
    }

    fn linear(&mut self, name: &str, x: Value, n: usize, bias: bool) -> Value {
        let k = self.graph.ty(x).shape().expect("a matrix")[1].c;
        let w = self.matrix(name, n, k);
        let y = self.op(Linear::new(), &[x, w]);
        if !bias {
            return y;
        }
        let bias = self.vector(&format!("{name}.bias"), n, 0.0);
        self.op(Bias, &[y, bias])
    }

    fn rms_norm(&mut self, name: &str, x: Value) -> Value {
        let w = self.vector(name, self.hidden, 1.0);
        self.op(RmsNorm { eps: 1e-6 }, &[x, w])
    }

    fn layer_norm(&mut self, name: &str, x: Value) -> Value {
        let (w, bias) = (self.vector(name, self.hidden, 1.0), self.vector(&format!("{name}.bias"), self.hidden, 0.0));
        self.op(LayerNorm { eps: 1e-5 }, &[x, w, bias])
    }

    fn rotary(&mut self, dim: usize, theta: f32, scaling: Scaling) -> Value {
        let positions = self.graph.input(StepInput::Positions);
        self.op(Rotary { dim, theta, scaling }, &[positions])
    }

    /// Queries, keys and values of x, and attention over them.
    fn attention(&mut self, layer: usize, x: Value, heads: Heads, of: &Knobs) -> Value {
        let Heads { query, kv, dim } = heads;
        let [positions, sequences] = [StepInput::Positions, StepInput::Sequences].map(|input| self.graph.input(input));
        let mut turned = |name: &str, heads: usize| {
            let mut y = self.linear(&format!("{name}.{layer}"), x, heads * dim, of.bias);
            if of.head_norm {
                let w = self.vector(&format!("{name}_norm.{layer}"), dim, 1.0);
                y = self.op(HeadNorm { head_dim: dim, first: 0, heads, eps: 1e-6 }, &[y, w]);
            }
            if of.row_norm {
                let w = self.vector(&format!("{name}_norm.{layer}"), heads * dim, 1.0);
                y = self.op(RmsNorm { eps: 1e-6 }, &[y, w]);
            }
            match of.rotary {
                Some(rotary) => self.op(Rope { head_dim: dim, heads }, &[y, rotary]),
                None => y,
            }
        };
        let (q, k) = (turned("q", query), turned("k", kv));
        let v = self.linear(&format!("v.{layer}"), x, kv * dim, of.bias);
        let cache = self.graph.cache(format!("kv.{layer}"), CacheType { dtype: DType::F32, heads: kv, head_dim: dim });
        let cache = self.op(Append, &[k, v, positions, sequences, cache]);
        let scale = 1.0 / (dim as f32).sqrt();
        let attention = Attention { heads: query, scale, window: of.window, softcap: of.softcap };
        let attended = self.op(attention, &[q, positions, sequences, cache]);
        self.linear(&format!("o.{layer}"), attended, self.hidden, of.bias)
    }

    fn gated(&mut self, layer: usize, x: Value, function: impl Into<Op>) -> Value {
        let gate = self.linear(&format!("gate.{layer}"), x, 96, false);
        let up = self.linear(&format!("up.{layer}"), x, 96, false);
        let gate = self.op(function, &[gate]);
        let product = self.op(Mul, &[gate, up]);
        self.linear(&format!("down.{layer}"), product, self.hidden, false)
    }

    fn embed(&mut self) -> (Value, Value) {
        let tokens = self.graph.input(StepInput::Tokens);
        let table = self.matrix("embed", 128, self.hidden);
        (self.op(Embed, &[tokens, table]), table)
    }

    fn rows(&mut self, x: Value) -> Value {
        let rows = self.graph.input(StepInput::Rows);
        self.op(Gather, &[x, rows])
    }
}

/// What sets a layer's attention apart.
#[derive(Clone, Copy, Default)]
struct Knobs {
    bias: bool,
    head_norm: bool,
    row_norm: bool,
    rotary: Option<Value>,
    window: Option<usize>,
    softcap: Option<f32>,
}

/// Compiles the graph and compares its logits with those of the reference evaluation, in chunks of several sizes.
fn check(what: &str, builder: Builder, logits: Value, disabled: &[&str]) -> Plan {
    let Builder { mut graph, tensors, .. } = builder;
    graph.outputs.push(("logits".to_owned(), logits));
    lathe_ir::verify::verify(&graph).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut model = seeded::small_model(1, Scheme::BF16).expect("a model");
    model = model.with_cache(DType::F32).expect("a cache");
    let stored = |(name, matrix): (String, Matrix)| {
        let scheme = if matrix.rows == 1 { Scheme::F32 } else { Scheme::BF16 };
        (name, scheme, matrix)
    };
    model.checkpoint = Box::new(MemoryCheckpoint::new(tensors.into_iter().map(stored)));
    model.graph = graph;

    let tokens: Vec<i32> = (0..TOKENS).map(|i| (i * 31 + 5) % 128).collect();
    let inputs = StepInputs { rows: (0..TOKENS).collect(), ..StepInputs::sequence(0, 0, &tokens) };
    let load = |weight: &Weight, ty: &Type| {
        let matrix = assemble(model.checkpoint.as_ref(), weight).map_err(|error| error.to_string())?;
        let vector = ty.shape().is_some_and(|shape| shape.len() == 1);
        Ok(if vector { Tensor::f32(vec![matrix.cols], matrix.to_f32()) } else { Tensor::matrix(matrix) })
    };
    let outputs = evaluate(&model.graph, &load, &inputs, &mut Caches::new()).expect("the graph evaluates");
    let expected = outputs["logits"].as_f32().expect("logits are f32").to_vec();

    let mut options = Options::new(Target::parse("native").expect("this CPU has a target"));
    options.passes.activations = Activations::F32;
    options.cache = Some(DType::F32);
    options.selection.disabled = disabled.iter().map(|&pass| pass.to_owned()).collect();
    let scratch = Scratch::new();
    let path = scratch.file("knobs.plan");
    compile(model, Goal::Plan(&path), &options).unwrap_or_else(|error| panic!("{what}: {error}"));
    let plan = Plan::from_bytes(std::fs::read(path).expect("the plan is there")).expect("the plan is sound");
    let ids: Vec<u32> = tokens.iter().map(|&token| token as u32).collect();
    let mut bits: Option<Vec<u32>> = None;
    for chunk in [1, 16, 45] {
        let device = DeviceOptions { poison: true, ..DeviceOptions::default() };
        let options = EngineOptions { device, prefill_chunk: Some(chunk), ..EngineOptions::default() };
        let found = Engine::load(&plan, &options).expect("it loads").logits(&ids).expect("it runs").concat();
        let error = relative_error(&found, &expected);
        println!("{what} in chunks of {chunk}: {error:.1e}");
        assert!(error < F32_BOUND, "{what}, in chunks of {chunk}: relative error {error:.1e}");
        let found: Vec<u32> = found.iter().map(|value| value.to_bits()).collect();
        assert!(*bits.get_or_insert_with(|| found.clone()) == found, "{what}: bits depend on the chunk of {chunk}");
    }
    plan
}

/// As Gemma 2 and 3: norms before and after blocks and of heads, of weights stored less one, a gate of gelu, a window in the first
/// layer and another base in the second, a scaled embedding, soft bounds; heads of 48.
fn gemma() -> (Builder, Value) {
    let mut b = Builder::new(64);
    let (x, table) = b.embed();
    let mut x = b.op(Scale { factor: 8.0 }, &[x]);
    let local = b.rotary(48, 1e4, Scaling::None);
    let global = b.rotary(48, 1e6, Scaling::Linear { factor: 8.0 });
    for (layer, (rotary, window)) in [(Some(local), Some(20)), (Some(global), None)].into_iter().enumerate() {
        let knobs = Knobs { head_norm: true, rotary, window, softcap: Some(5.0), ..Knobs::default() };
        let normed = b.rms_norm(&format!("attention_norm.{layer}"), x);
        let attended = b.attention(layer, normed, Heads { query: 4, kv: 2, dim: 48 }, &knobs);
        let attended = b.rms_norm(&format!("attention_post_norm.{layer}"), attended);
        x = b.op(Add, &[attended, x]);
        let normed = b.rms_norm(&format!("ffn_norm.{layer}"), x);
        let fed = b.gated(layer, normed, Gelu { tanh: true });
        let fed = b.rms_norm(&format!("ffn_post_norm.{layer}"), fed);
        x = b.op(Add, &[fed, x]);
    }
    let x = b.rows(x);
    let x = b.rms_norm("norm", x);
    let logits = b.op(Linear::new(), &[x, table]);
    let logits = b.op(Softcap { cap: 2.0 }, &[logits]);
    (b, logits)
}

#[test]
fn norms_windows_and_soft_bounds() {
    let (builder, logits) = gemma();
    let plan = check("gemma", builder, logits, &[]);
    let kept: Vec<Retention> =
        plan.program("main").expect("a program").cache_groups.iter().map(|g| g.retention).collect();
    assert_eq!(kept, [Retention::Window { tokens: 20 }, Retention::All]);
}

#[test]
fn the_same_without_fusion() {
    let (builder, logits) = gemma();
    let passes = ["merge_qkv", "merge_gate_up", "fuse_norm", "fuse_scale", "fuse_activation", "fuse_residual"];
    check("gemma, unfused", builder, logits, &passes);
}

/// As GPT-2: layer norms with biases, learned positions, biases everywhere, no gate.
#[test]
fn layer_norms_learned_positions_and_biases() {
    let mut b = Builder::new(64);
    let (x, table) = b.embed();
    let positions = b.graph.input(StepInput::Positions);
    let learned = b.matrix("positions", 512, 64);
    let learned = b.op(Embed, &[positions, learned]);
    let mut x = b.op(Add, &[x, learned]);
    for layer in 0..2 {
        let normed = b.layer_norm(&format!("attention_norm.{layer}"), x);
        let knobs = Knobs { bias: true, ..Knobs::default() };
        let attended = b.attention(layer, normed, Heads { query: 4, kv: 4, dim: 16 }, &knobs);
        x = b.op(Add, &[attended, x]);
        let normed = b.layer_norm(&format!("ffn_norm.{layer}"), x);
        let up = b.linear(&format!("up.{layer}"), normed, 160, true);
        let up = b.op(Gelu { tanh: layer == 0 }, &[up]);
        let down = b.linear(&format!("down.{layer}"), up, 64, true);
        x = b.op(Add, &[down, x]);
    }
    let x = b.rows(x);
    let x = b.layer_norm("norm", x);
    let logits = b.op(Linear::new(), &[x, table]);
    check("gpt2", b, logits, &[]);
}

/// As Stable LM, Phi 3 and SmolLM 3: a part of each head turns, blocks in parallel, a layer without rotation; lengths
/// beyond the original one.
#[test]
fn partial_rotations_scaled_by_length() {
    let factors = |first: f32| (0..10).map(|i| first + i as f32 / 8.0).collect::<Vec<f32>>();
    let long = Scaling::LongRope { original: 16, attention_factor: 1.2, short: factors(1.0), long: factors(2.0) };
    for (what, scaling) in [("dynamic", Scaling::Dynamic { factor: 4.0, original: 16 }), ("longrope", long)] {
        let mut b = Builder::new(96);
        let (mut x, table) = b.embed();
        let turning = b.rotary(20, 1e4, scaling);
        for (layer, rotary) in [Some(turning), None].into_iter().enumerate() {
            let normed = b.layer_norm(&format!("norm.{layer}"), x);
            let knobs = Knobs { rotary, ..Knobs::default() };
            let attended = b.attention(layer, normed, Heads { query: 2, kv: 1, dim: 80 }, &knobs);
            let fed = b.gated(layer, normed, Silu);
            let both = b.op(Add, &[attended, fed]);
            x = b.op(Add, &[both, x]);
        }
        let x = b.rows(x);
        let x = b.layer_norm("norm", x);
        let logits = b.op(Linear::new(), &[x, table]);
        check(what, b, logits, &[]);
    }
}

/// As Granite: factors of embedding, residuals and logits. As the second Olmo: norms after blocks only, and of whole queries and
/// keys.
#[test]
fn factors_and_norms_after_blocks() {
    let mut b = Builder::new(64);
    let (x, table) = b.embed();
    let mut x = b.op(Scale { factor: 12.0 }, &[x]);
    let attention_factor = 1.1;
    let yarn = Scaling::Yarn { factor: 4.0, original: 16, beta_fast: 2.0, beta_slow: 0.1, attention_factor };
    let llama = Scaling::Llama3 { factor: 4.0, low: 1.0, high: 4.0, original: 32 };
    for (layer, scaling) in [yarn, llama].into_iter().enumerate() {
        let rotary = Some(b.rotary(32, 1e4, scaling));
        let knobs = Knobs { rotary, row_norm: layer == 1, ..Knobs::default() };
        let attended = b.attention(layer, x, Heads { query: 2, kv: 1, dim: 32 }, &knobs);
        let attended = b.op(Scale { factor: 0.22 }, &[attended]);
        x = b.op(Add, &[x, attended]);
        let fed = b.gated(layer, x, Gelu { tanh: false });
        let fed = b.rms_norm(&format!("ffn_post_norm.{layer}"), fed);
        x = b.op(Add, &[x, fed]);
    }
    let x = b.rows(x);
    let x = b.rms_norm("norm", x);
    let logits = b.op(Linear::new(), &[x, table]);
    let logits = b.op(Scale { factor: 0.125 }, &[logits]);
    check("granite", b, logits, &[]);
}
