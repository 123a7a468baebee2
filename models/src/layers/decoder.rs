//! The generic decoder: from knobs and tensor names to the unfused graph.
//!
//! Per layer: norm, projections to queries, keys and values, rotation, cache append, attention, output projection,
//! residual; norm, gate and up projections, gated activation, down projection, residual. Then the wanted rows are
//! gathered, normed and projected to logits. Where a model's knobs say so, norms stand elsewhere or have a bias, heads
//! are normed, positions are learned, and factors and bounds apply. Fusion is the business of passes.

use lathe_ir::graph::{Arrangement, Graph, Part, StepInput, Value, Weight};
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
use lathe_ir::ops::scale::Scale;
use lathe_ir::ops::silu::Silu;
use lathe_ir::ops::softcap::Softcap;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, Dim, Elem, Type};

use super::tensors::{self, LayerSlots, NormSlots, Projection};
use crate::checkpoint::Checkpoint;
use crate::config::{self, Activation, ModelConfig, QkNorm};
use crate::error::ModelError;

pub use super::tensors::{Slot, TensorNames, check_tensors, slots};

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

    let table = builder.weight(tensors::embed(config, names));
    let embedded = builder.graph.op1(Embed, &[tokens, table])?; // [T, hidden]
    let mut x = builder.scale(embedded, config.knobs.embedding_scale)?;
    if let Some(slot) = tensors::positions(config, names) {
        let table = builder.weight(slot);
        let learned = builder.graph.op1(Embed, &[positions, table])?; // [T, hidden]
        x = builder.graph.op1(Add, &[x, learned])?;
    }
    let rotates = !config.knobs.learned_positions;
    let rotary = rotates.then(|| builder.rotary(&config.rope, positions)).transpose()?;
    let local = config.knobs.local_rope.as_ref().map(|rope| builder.rotary(rope, positions)).transpose()?;
    for layer in 0..config.layers {
        let slots = tensors::layer(config, names, layer);
        let rotary = match local.filter(|_| config.knobs.window_of(layer).is_some()) {
            Some(local) => Some(local),
            None => rotary,
        };
        x = builder.layer(layer, slots, x, Step { positions, sequences, rotary })?;
    }
    let wanted = builder.graph.op1(Gather, &[x, rows])?; // [R, hidden]
    let normed = builder.norm(wanted, tensors::final_norm(config, names))?;
    let head = tensors::head(config, names).map_or(table, |slot| builder.weight(slot));
    let mut logits = builder.linear(normed, head)?; // [R, vocab]
    logits = builder.scale(logits, config.knobs.logit_scale)?;
    if let Some(cap) = config.knobs.logit_softcap {
        logits = builder.graph.op1(Softcap { cap }, &[logits])?;
    }
    builder.graph.outputs.push(("logits".to_owned(), logits));
    Ok(builder.graph)
}

/// What all layers of a step share.
#[derive(Clone, Copy)]
struct Step {
    positions: Value, // [T] i32
    sequences: Value, // [T] i32
    /// `[T, rotating elements]` f32; `None` where positions are learned.
    rotary: Option<Value>,
}

struct Builder<'a> {
    graph: Graph,
    config: &'a ModelConfig,
    checkpoint: &'a dyn Checkpoint,
}

impl Builder<'_> {
    /// Adds the weight of a slot.
    fn weight(&mut self, slot: Slot) -> Value {
        let Slot { name, tensor, rows, cols, vector, order, plus_one } = slot;
        let ty = if vector {
            Type::f32([Dim::of(cols)])
        } else {
            let scheme = self.checkpoint.tensor(&tensor).map_or(Scheme::F32, |info| info.scheme);
            Type::Tensor { elem: Elem::Weight(scheme), shape: vec![Dim::of(rows), Dim::of(cols)] }
        };
        let parts = vec![Part { tensor, rows, order, plus_one }];
        self.graph.weight(Weight { name, parts, arrangement: Arrangement::Concat }, ty)
    }

    fn rotary(&mut self, rope: &config::Rope, positions: Value) -> Result<Value, ModelError> {
        let longest = self.config.longest.unwrap_or(self.config.context);
        Ok(self.graph.op1(rope.op(self.config.head_dim, longest), &[positions])?)
    }

    /// Multiplies by a factor, where there is one.
    fn scale(&mut self, x: Value, factor: Option<f32>) -> Result<Value, ModelError> {
        Ok(match factor {
            Some(factor) => self.graph.op1(Scale { factor }, &[x])?,
            None => x,
        })
    }

    fn linear(&mut self, x: Value, weight: Value) -> Result<Value, ModelError> {
        Ok(self.graph.op1(Linear { prologue: Vec::new(), epilogue: Vec::new() }, &[x, weight])?)
    }

    fn project(&mut self, x: Value, Projection { weight, bias }: Projection) -> Result<Value, ModelError> {
        let weight = self.weight(weight);
        let projected = self.linear(x, weight)?;
        let Some(bias) = bias else { return Ok(projected) };
        let bias = self.weight(bias);
        Ok(self.graph.op1(Bias, &[projected, bias])?)
    }

    fn norm(&mut self, x: Value, NormSlots { weight, bias }: NormSlots) -> Result<Value, ModelError> {
        let eps = self.config.norm_eps;
        let weight = self.weight(weight);
        Ok(match bias {
            Some(bias) => {
                let bias = self.weight(bias);
                self.graph.op1(LayerNorm { eps }, &[x, weight, bias])?
            }
            None => self.graph.op1(RmsNorm { eps }, &[x, weight])?,
        })
    }

    /// Norms where the layer has a norm.
    fn maybe_norm(&mut self, x: Value, slots: Option<NormSlots>) -> Result<Value, ModelError> {
        slots.map_or(Ok(x), |slots| self.norm(x, slots))
    }

    /// Adds what half a layer computed to the residual stream.
    fn residual(&mut self, computed: Value, norm: Option<NormSlots>, x: Value) -> Result<Value, ModelError> {
        let normed = self.maybe_norm(computed, norm)?;
        let scaled = self.scale(normed, self.config.knobs.residual_scale)?;
        Ok(self.graph.op1(Add, &[scaled, x])?)
    }

    /// One layer: `x` is the residual stream `[T, hidden]`, and so is the result.
    fn layer(&mut self, layer: usize, slots: LayerSlots, x: Value, step: Step) -> Result<Value, ModelError> {
        let LayerSlots { attention_norm, qkv: [q, k, v], qk_norms, o, attention_out_norm, .. } = slots;
        let LayerSlots { ffn_norm, gate, up, down, ffn_out_norm, .. } = slots;
        let parallel = self.config.knobs.parallel;

        let entering = self.maybe_norm(x, attention_norm)?;
        let mut q = self.project(entering, q)?; // [T, heads * head_dim]
        let mut k = self.project(entering, k)?; // [T, kv_heads * head_dim]
        let v = self.project(entering, v)?; // [T, kv_heads * head_dim]
        if let Some([q_norm, k_norm]) = qk_norms {
            q = self.head_norm(q, q_norm, self.config.heads)?;
            k = self.head_norm(k, k_norm, self.config.kv_heads)?;
        }
        let attended = self.attention(layer, [q, k, v], step)?; // [T, heads * head_dim]
        let projected = self.project(attended, o)?;
        let x = self.residual(projected, attention_out_norm, x)?;

        let entering = if parallel { entering } else { self.maybe_norm(x, ffn_norm)? };
        let gate = gate.map(|gate| self.project(entering, gate)).transpose()?; // [T, ffn]
        let up = self.project(entering, up)?; // [T, ffn]
        let product = match gate {
            Some(gate) => {
                let activated = self.activate(gate)?;
                self.graph.op1(Mul, &[activated, up])?
            }
            None => self.activate(up)?,
        };
        let projected = self.project(product, down)?;
        self.residual(projected, ffn_out_norm, x)
    }

    fn activate(&mut self, x: Value) -> Result<Value, ModelError> {
        Ok(match self.config.knobs.activation {
            Activation::Silu => self.graph.op1(Silu, &[x])?,
            Activation::Gelu => self.graph.op1(Gelu { tanh: false }, &[x])?,
            Activation::GeluTanh => self.graph.op1(Gelu { tanh: true }, &[x])?,
        })
    }

    /// Norms queries or keys of so many heads.
    fn head_norm(&mut self, x: Value, slot: Slot, heads: usize) -> Result<Value, ModelError> {
        let (eps, head_dim) = (self.config.norm_eps, self.config.head_dim);
        let weight = self.weight(slot);
        Ok(match self.config.knobs.qk_norm {
            Some(QkNorm::Row) => self.graph.op1(RmsNorm { eps }, &[x, weight])?,
            _ => self.graph.op1(HeadNorm { head_dim, first: 0, heads, eps }, &[x, weight])?,
        })
    }

    /// Rotates queries and keys, appends to the layer's cache and attends over it.
    fn attention(&mut self, layer: usize, [q, k, v]: [Value; 3], step: Step) -> Result<Value, ModelError> {
        let &ModelConfig { heads, kv_heads, head_dim, cache, ref knobs, .. } = self.config;
        let Step { positions, sequences, rotary } = step;
        let cache = CacheType { dtype: cache, heads: kv_heads, head_dim };
        let graph = &mut self.graph;
        let (mut q, mut k) = (q, k);
        if let Some(rotary) = rotary.filter(|_| !knobs.unrotated.contain(layer)) {
            q = graph.op1(Rope { head_dim, heads }, &[q, rotary])?;
            k = graph.op1(Rope { head_dim, heads: kv_heads }, &[k, rotary])?;
        }
        let before = graph.cache(format!("kv.{layer}"), cache);
        let after = graph.op1(Append, &[k, v, positions, sequences, before])?;
        let scale = knobs.attention_scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt());
        let attention = Attention { heads, scale, window: knobs.window_of(layer), softcap: knobs.attention_softcap };
        Ok(graph.op1(attention, &[q, positions, sequences, after])?)
    }
}
