//! The generic decoder: from knobs and tensor names to the unfused graph.
//!
//! Per layer: norm, projections to queries, keys and values, rotation, cache append, attention, output projection,
//! residual; norm, gate and up projections, gated activation, down projection, residual. Then the wanted rows are
//! gathered, normed and projected to logits. Fusion is the business of passes.

use std::collections::BTreeSet;

use lathe_ir::graph::{Arrangement, Graph, Part, RowOrder, StepInput, Value, Weight};
use lathe_ir::ops::add::Add;
use lathe_ir::ops::append::Append;
use lathe_ir::ops::attention::Attention;
use lathe_ir::ops::bias::Bias;
use lathe_ir::ops::embed::Embed;
use lathe_ir::ops::gather::Gather;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::mul::Mul;
use lathe_ir::ops::rms_norm::RmsNorm;
use lathe_ir::ops::rope::Rope;
use lathe_ir::ops::rotary::{Rotary, Scaling};
use lathe_ir::ops::silu::Silu;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, Dim, Elem, Type};

use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, RopeLayout};
use crate::error::ModelError;

/// Names of a checkpoint's tensors; `{}` stands for the layer.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the name of the tensor in the role that the field is called by")]
pub struct TensorNames {
    pub embed: &'static str,
    pub attention_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub q_bias: &'static str,
    pub k_bias: &'static str,
    pub v_bias: &'static str,
    pub o: &'static str,
    pub ffn_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub final_norm: &'static str,
    pub head: &'static str,
}

/// A tensor that the decoder needs: where it goes in the graph and what shape it must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Name in the graph.
    pub name: String,
    /// Name in the checkpoint.
    pub tensor: String,
    /// Rows; 1 for a vector.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Whether it is a vector, which the graph holds as plain f32.
    pub vector: bool,
    /// Order in which its rows are stored.
    pub order: RowOrder,
}

/// The tensors of one layer, in the order of [`TensorNames`].
struct LayerSlots {
    attention_norm: Slot,
    q: Slot,
    k: Slot,
    v: Slot,
    /// Of q, k and v; empty where the model has none.
    biases: Vec<Slot>,
    o: Slot,
    ffn_norm: Slot,
    gate: Slot,
    up: Slot,
    down: Slot,
}

fn matrix(name: &str, tensor: &str, rows: usize, cols: usize) -> Slot {
    let (name, tensor) = (name.to_owned(), tensor.to_owned());
    Slot { name, tensor, rows, cols, vector: false, order: RowOrder::AsStored }
}

fn vector(name: &str, tensor: &str, cols: usize) -> Slot {
    Slot { vector: true, ..matrix(name, tensor, 1, cols) }
}

fn embed_slot(config: &ModelConfig, names: &TensorNames) -> Slot {
    matrix("embed", names.embed, config.vocab, config.hidden)
}

fn final_norm_slot(config: &ModelConfig, names: &TensorNames) -> Slot {
    vector("final_norm", names.final_norm, config.hidden)
}

/// The head's own matrix; `None` when it is the embedding table.
fn head_slot(config: &ModelConfig, names: &TensorNames) -> Option<Slot> {
    (!config.tied_head).then(|| matrix("head", names.head, config.vocab, config.hidden))
}

fn layer_slots(config: &ModelConfig, names: &TensorNames, layer: usize) -> LayerSlots {
    let &ModelConfig { hidden, heads, kv_heads, head_dim, ffn, .. } = config;
    let order = match config.rope.layout {
        RopeLayout::Halves => RowOrder::AsStored,
        RopeLayout::Pairs => RowOrder::PairsToHalves { head_dim },
    };
    let at = |role: &str| format!("layers.{layer}.{role}");
    let stored = |template: &str| template.replace("{}", &layer.to_string());
    let matrix = |role, template, rows, cols| matrix(&at(role), &stored(template), rows, cols);
    let mut biases = Vec::new();
    if config.attention_bias {
        let bias = |role, template, heads| vector(&at(role), &stored(template), heads * head_dim);
        biases.push(bias("q.bias", names.q_bias, heads));
        biases.push(bias("k.bias", names.k_bias, kv_heads));
        biases.push(bias("v.bias", names.v_bias, kv_heads));
    }
    LayerSlots {
        attention_norm: vector(&at("attention_norm"), &stored(names.attention_norm), hidden),
        q: Slot { order, ..matrix("q", names.q, heads * head_dim, hidden) },
        k: Slot { order, ..matrix("k", names.k, kv_heads * head_dim, hidden) },
        v: matrix("v", names.v, kv_heads * head_dim, hidden),
        biases,
        o: matrix("o", names.o, hidden, heads * head_dim),
        ffn_norm: vector(&at("ffn_norm"), &stored(names.ffn_norm), hidden),
        gate: matrix("gate", names.gate, ffn, hidden),
        up: matrix("up", names.up, ffn, hidden),
        down: matrix("down", names.down, hidden, ffn),
    }
}

/// Every tensor that the decoder needs, in the order of use.
pub fn slots(config: &ModelConfig, names: &TensorNames) -> impl Iterator<Item = Slot> {
    let layers = (0..config.layers).flat_map(|layer| {
        let LayerSlots { attention_norm, q, k, v, biases, o, ffn_norm, gate, up, down } =
            layer_slots(config, names, layer);
        [attention_norm, q, k, v].into_iter().chain(biases).chain([o, ffn_norm, gate, up, down])
    });
    let ends = [Some(final_norm_slot(config, names)), head_slot(config, names)];
    std::iter::once(embed_slot(config, names)).chain(layers).chain(ends.into_iter().flatten())
}

/// Checks that the checkpoint holds exactly the tensors that the decoder needs, in the right shapes.
pub fn check_tensors(config: &ModelConfig, names: &TensorNames, checkpoint: &dyn Checkpoint) -> Result<(), ModelError> {
    let mut unknown: BTreeSet<&str> = checkpoint.names();
    for slot in slots(config, names) {
        let Slot { tensor, rows, cols, .. } = slot;
        let Some(info) = checkpoint.tensor(&tensor) else {
            return Err(ModelError::MissingTensor { tensor, rows, cols });
        };
        if (info.rows, info.cols) != (rows, cols) {
            let expected = format!("{rows} rows of {cols}, by the metadata");
            return Err(ModelError::Shape { tensor, expected, found: format!("{} rows of {}", info.rows, info.cols) });
        }
        unknown.remove(tensor.as_str());
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ModelError::UnknownTensors { tensors: unknown.into_iter().map(str::to_owned).collect() })
}

/// The unfused graph. Weights are typed with the schemes that the checkpoint stores them in.
///
/// # Errors
/// When a tensor is missing, has another shape, or is not understood.
pub fn build(config: &ModelConfig, names: &TensorNames, checkpoint: &dyn Checkpoint) -> Result<Graph, ModelError> {
    check_tensors(config, names, checkpoint)?;
    let mut builder = Builder { graph: Graph::new("main"), config, checkpoint };
    let tokens = builder.graph.input(StepInput::Tokens);
    let positions = builder.graph.input(StepInput::Positions);
    let sequences = builder.graph.input(StepInput::Sequences);
    let rows = builder.graph.input(StepInput::Rows);

    let table = builder.weight(embed_slot(config, names));
    let mut x = builder.graph.op1(Embed, &[tokens, table])?; // [T, hidden]
    let rotary = Rotary { dim: config.head_dim, theta: config.rope.theta, scaling: Scaling::None };
    let rotary = builder.graph.op1(rotary, &[positions])?; // [T, head_dim]
    for layer in 0..config.layers {
        let slots = layer_slots(config, names, layer);
        x = builder.layer(layer, slots, x, Step { positions, sequences, rotary })?;
    }
    let wanted = builder.graph.op1(Gather, &[x, rows])?; // [R, hidden]
    let normed = builder.norm(wanted, final_norm_slot(config, names))?;
    let head = head_slot(config, names).map_or(table, |slot| builder.weight(slot));
    let logits = builder.linear(normed, head)?; // [R, vocab]
    builder.graph.outputs.push(("logits".to_owned(), logits));
    Ok(builder.graph)
}

/// What all layers of a step share.
#[derive(Clone, Copy)]
struct Step {
    positions: Value, // [T] i32
    sequences: Value, // [T] i32
    rotary: Value,    // [T, head_dim] f32
}

struct Builder<'a> {
    graph: Graph,
    config: &'a ModelConfig,
    checkpoint: &'a dyn Checkpoint,
}

impl Builder<'_> {
    /// Adds the weight of a slot.
    fn weight(&mut self, slot: Slot) -> Value {
        let Slot { name, tensor, rows, cols, vector, order } = slot;
        let ty = if vector {
            Type::f32([Dim::of(cols)])
        } else {
            let scheme = self.checkpoint.tensor(&tensor).map_or(Scheme::F32, |info| info.scheme);
            Type::Tensor { elem: Elem::Weight(scheme), shape: vec![Dim::of(rows), Dim::of(cols)] }
        };
        let parts = vec![Part { tensor, rows, order, plus_one: false }];
        self.graph.weight(Weight { name, parts, arrangement: Arrangement::Concat }, ty)
    }

    fn linear(&mut self, x: Value, weight: Value) -> Result<Value, ModelError> {
        Ok(self.graph.op1(Linear { prologue: Vec::new(), epilogue: Vec::new() }, &[x, weight])?)
    }

    fn project(&mut self, x: Value, slot: Slot) -> Result<Value, ModelError> {
        let weight = self.weight(slot);
        self.linear(x, weight)
    }

    fn norm(&mut self, x: Value, slot: Slot) -> Result<Value, ModelError> {
        let weight = self.weight(slot);
        Ok(self.graph.op1(RmsNorm { eps: self.config.rms_eps }, &[x, weight])?)
    }

    /// One layer: `x` is the residual stream `[T, hidden]`, and so is the result.
    fn layer(&mut self, layer: usize, slots: LayerSlots, x: Value, step: Step) -> Result<Value, ModelError> {
        let LayerSlots { attention_norm, q, k, v, biases, o, ffn_norm, gate, up, down } = slots;

        let normed = self.norm(x, attention_norm)?;
        let mut projected = [
            self.project(normed, q)?, // [T, heads * head_dim]
            self.project(normed, k)?, // [T, kv_heads * head_dim]
            self.project(normed, v)?, // [T, kv_heads * head_dim]
        ];
        for (value, bias) in projected.iter_mut().zip(biases) {
            let bias = self.weight(bias);
            *value = self.graph.op1(Bias, &[*value, bias])?;
        }
        let attended = self.attention(layer, projected, step)?; // [T, heads * head_dim]
        let projected = self.project(attended, o)?;
        let x = self.graph.op1(Add, &[projected, x])?;

        let normed = self.norm(x, ffn_norm)?;
        let gate = self.project(normed, gate)?; // [T, ffn]
        let up = self.project(normed, up)?; // [T, ffn]
        let activated = self.graph.op1(Silu, &[gate])?;
        let product = self.graph.op1(Mul, &[activated, up])?;
        let projected = self.project(product, down)?;
        Ok(self.graph.op1(Add, &[projected, x])?)
    }

    /// Rotates queries and keys, appends to the layer's cache and attends over it.
    fn attention(&mut self, layer: usize, [q, k, v]: [Value; 3], step: Step) -> Result<Value, ModelError> {
        let &ModelConfig { heads, kv_heads, head_dim, cache, .. } = self.config;
        let Step { positions, sequences, rotary } = step;
        let cache = CacheType { dtype: cache, heads: kv_heads, head_dim };
        let graph = &mut self.graph;
        let q = graph.op1(Rope { head_dim, heads }, &[q, rotary])?;
        let k = graph.op1(Rope { head_dim, heads: kv_heads }, &[k, rotary])?;
        let before = graph.cache(format!("kv.{layer}"), cache);
        let after = graph.op1(Append, &[k, v, positions, sequences, before])?;
        let scale = 1.0 / (head_dim as f32).sqrt();
        Ok(graph.op1(Attention { heads, scale, window: None, softcap: None }, &[q, positions, sequences, after])?)
    }
}
