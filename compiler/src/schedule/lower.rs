//! Lowers the nodes of a graph to launches, in canonical order. A node becomes one launch, and a linear with a prologue
//! two: the prologue's rows are computed once, not once per strip of the product. A gated product quantizes its own result
//! where nothing else reads it, or on a GPU rounds it where a product of bf16 does; the second half of attention quantizes.
//!
//! Ops that no pass has fused have kernels of their own, so a graph lowers with any of the fusing passes disabled.

mod attention;
mod forms;
mod sample;

use std::collections::{BTreeMap, HashMap, HashSet};

use lathe_ir::graph::{Graph, NodeId, NodeKind, Value};
use lathe_ir::op::Op;
use lathe_ir::ops::gelu::Gelu;
use lathe_ir::ops::glu::Function;
use lathe_ir::ops::head_norm::HeadNorm;
use lathe_ir::ops::linear::Linear;
use lathe_ir::ops::rotary::Rotary;
use lathe_ir::scheme::Scheme;
use lathe_ir::types::{CacheType, DType, Dim, Elem, StepSize, Type};
use lathe_kernels::packing::packed_bytes;
use lathe_kernels::spec::{Activation, BLOCK_ROWS, GROUP, KernelSpec, MapOp, Norm, STRIP_ROWS, Stage, Tile};
use lathe_kernels::targets::Machine;

use super::{
    ArenaBuffer, Bucket, Buffer, CacheGroup, Launch, MMA_FEW_ROWS, ScheduleError, ScheduledCache, ScheduledWeight,
    Share, cost, tile, times,
};

/// What all buckets of a program share.
pub struct Program {
    /// Weights in the order of their first use.
    pub weights: Vec<ScheduledWeight>,
    /// Caches in the order of their first use.
    pub caches: Vec<ScheduledCache>,
    /// Groups of caches with one block table each.
    pub groups: Vec<CacheGroup>,
}

impl Program {
    /// Collects weights and caches, and checks that kernels can walk every weight.
    pub fn of(graph: &Graph) -> Result<Program, ScheduleError> {
        let mut program = Program { weights: Vec::new(), caches: Vec::new(), groups: Vec::new() };
        for id in graph.order() {
            for value in graph.node(id).inputs.clone() {
                let node = graph.node(value.node);
                match (&node.kind, &node.results[0]) {
                    (NodeKind::Weight(weight), ty) if program.weights.iter().all(|known| known.node != value.node) => {
                        let bytes = weight_bytes(&weight.name, ty)?;
                        let (weight, ty) = (weight.clone(), ty.clone());
                        program.weights.push(ScheduledWeight { node: value.node, weight, ty, bytes });
                    }
                    (NodeKind::Cache(name), Type::Cache(cache))
                        if program.caches.iter().all(|known| known.name != *name) =>
                    {
                        let group = program.group(window(graph, value));
                        program.caches.push(ScheduledCache { name: name.clone(), ty: *cache, group });
                    }
                    _ => {}
                }
            }
        }
        Ok(program)
    }

    /// The group of caches with this window, added on first use.
    fn group(&mut self, window: Option<usize>) -> usize {
        let known = self.groups.iter().position(|group| group.window == window);
        known.unwrap_or_else(|| {
            let name = window.map_or_else(|| "kv".to_owned(), |tokens| format!("kv.window.{tokens}"));
            self.groups.push(CacheGroup { name, window });
            self.groups.len() - 1
        })
    }
}

/// The tokens of a cache that some attention still reads: the widest window over its states, or all where one sees all or
/// none attends.
fn window(graph: &Graph, cache: Value) -> Option<usize> {
    let mut widest = None;
    let mut states = vec![cache];
    while let Some(state) = states.pop() {
        for user in graph.uses(state).0 {
            if let Some(Op::Attention(attention)) = graph.as_op(user) {
                widest = widest.max(Some(attention.window?));
            }
            let results = graph.node(user).results.iter().enumerate();
            let next = results.filter(|(_, ty)| matches!(ty, Type::Cache(_)));
            states.extend(next.map(|(result, _)| Value { node: user, result: result as u32 }));
        }
    }
    widest
}

/// Stored bytes of a weight.
fn weight_bytes(name: &str, ty: &Type) -> Result<u64, ScheduleError> {
    let sizes: Option<Vec<usize>> = ty.shape().map(|shape| shape.iter().filter_map(|dim| dim.constant()).collect());
    let bytes = match (ty.elem(), sizes.as_deref()) {
        (Some(Elem::Weight(scheme)), Some(&[n, k])) if Scheme::ALL.contains(scheme) => {
            check_multiple(name, "columns", k, scheme.span())?;
            packed_bytes(*scheme, n.next_multiple_of(STRIP_ROWS), k)
        }
        (Some(Elem::Dense(DType::F32)), Some(&[k])) => k.next_multiple_of(GROUP) * DType::F32.bytes(),
        _ => {
            let expected = "a matrix in a known scheme or a vector of f32";
            return Err(ScheduleError::Weight { weight: name.to_owned(), expected, found: ty.to_string() });
        }
    };
    Ok(bytes as u64)
}

fn check_multiple(weight: &str, what: &'static str, found: usize, expected: usize) -> Result<(), ScheduleError> {
    if found.is_multiple_of(expected) {
        return Ok(());
    }
    Err(ScheduleError::Shape { weight: weight.to_owned(), what, expected, found })
}

/// The launches of one bucket; barriers and places are still to come.
pub fn bucket(
    graph: &Graph,
    program: &Program,
    max: StepSize,
    pages: usize,
    machine: Machine,
) -> Result<Bucket, ScheduleError> {
    let mut lowering = Lowering {
        graph,
        program,
        max,
        pages: Dim::of(pages),
        machine,
        values: HashMap::new(),
        padded: HashMap::new(),
        formed: HashSet::new(),
        newest: BTreeMap::new(),
        buffers: Vec::new(),
        launches: Vec::new(),
    };
    for id in graph.order() {
        lowering.node(id)?;
    }
    let (logits, picks) = match &graph.outputs[..] {
        [(_, value)] => {
            let logits = lowering.buffer(*value)?;
            (logits, (machine == Machine::Nvptx).then(|| lowering.sample(*value, logits)).transpose()?)
        }
        outputs => {
            let message = format!("expected one output, the logits, found {}", outputs.len());
            return Err(unsupported("the outputs", message));
        }
    };
    let Lowering { buffers, launches, .. } = lowering;
    Ok(Bucket { max, buffers, arena_bytes: 0, scratch_bytes: 0, logits, picks, launches })
}

fn unsupported(what: impl Into<String>, message: impl Into<String>) -> ScheduleError {
    ScheduleError::Unsupported { what: what.into(), message: message.into() }
}

struct Lowering<'g> {
    graph: &'g Graph,
    program: &'g Program,
    max: StepSize,
    pages: Dim,
    machine: Machine,
    // Where each value lies.
    values: HashMap<Value, Buffer>,
    // Columns in memory of values that have more of them than the graph says: those of a product whose weight was padded.
    padded: HashMap<Value, Dim>,
    // Values that what computes them leaves quantized or rounded, as the one node that reads them wants.
    formed: HashSet<Value>,
    // The newest state of each cache, by its index: pages change in place, so an older state is gone.
    newest: BTreeMap<usize, Value>,
    buffers: Vec<ArenaBuffer>,
    launches: Vec<Launch>,
}

impl Lowering<'_> {
    fn node(&mut self, id: NodeId) -> Result<(), ScheduleError> {
        let graph = self.graph;
        let node = graph.node(id);
        let first = Value { node: id, result: 0 };
        match &node.kind {
            NodeKind::Input(input) => {
                self.values.insert(first, Buffer::Input(*input));
            }
            NodeKind::Weight(_) => {
                // A weight that nothing reads is not stored.
                if let Some(at) = self.program.weights.iter().position(|weight| weight.node == id) {
                    self.values.insert(first, Buffer::Weight(at));
                }
            }
            NodeKind::Cache(name) => {
                if let Some(at) = self.program.caches.iter().position(|cache| cache.name == *name) {
                    self.values.insert(first, Buffer::Cache(at));
                    self.newest.insert(at, first);
                }
            }
            NodeKind::Op(op) => self.op(id, op, &node.inputs)?,
        }
        Ok(())
    }

    fn op(&mut self, id: NodeId, op: &Op, inputs: &[Value]) -> Result<(), ScheduleError> {
        let result = |result| Value { node: id, result };
        // A norm that only a quantization reads is computed in one launch with it.
        if self.is_quantized_alone(id) {
            return Ok(());
        }
        if let (Op::Quantize(_), Some(norm)) = (op, self.graph.as_op(inputs[0].node))
            && self.is_quantized_alone(inputs[0].node)
        {
            let inputs = &self.graph.node(inputs[0].node).inputs;
            let operands = inputs.iter().map(|&value| self.buffer(value)).collect::<Result<Vec<_>, _>>()?;
            let label = format!("{} and quantize", norm.name());
            let out = self.rows(&label, &[norm.clone(), op.clone()], inputs[0], &operands, Activation::F32)?;
            self.values.insert(result(0), out);
            return Ok(());
        }
        let operands = inputs.iter().map(|&value| self.buffer(value)).collect::<Result<Vec<_>, _>>()?;
        if matches!(op, Op::Quantize(_)) && self.formed.contains(&inputs[0]) {
            self.values.insert(result(0), operands[0]);
            return Ok(());
        }
        let (rows, columns) = self.shape(inputs[0]);
        let padded = inputs.iter().find_map(|value| self.padded.get(value)).copied();
        if let (Some(found), false) = (padded, is_element_wise(op)) {
            let message = format!("its input lies in rows of {found}, which only element-wise ops take");
            return Err(unsupported(op.name(), message));
        }
        let columns = padded.unwrap_or(columns);
        let out = match op {
            Op::Linear(linear) => return self.linear(id, linear, inputs, &operands),
            Op::Embed(_) => {
                let (n, k) = self.shape(inputs[1]);
                let scheme = self.scheme(inputs[1])?;
                let stored = Dim::of(n.c.next_multiple_of(BLOCK_ROWS));
                let params = vec![rows, stored, spans(k, scheme.span())];
                self.launch("embed", KernelSpec::Embed { scheme }, &operands, params, rows, Share::Even)?
            }
            Op::RmsNorm(_) | Op::LayerNorm(_) | Op::NormAdd(_) | Op::Quantize(_) | Op::Gather(_) => {
                self.rows(op.name(), std::slice::from_ref(op), inputs[0], &operands, Activation::F32)?
            }
            Op::Rotary(Rotary { dim, theta, scaling }) => {
                let kernel = KernelSpec::Rotary { dim: *dim, theta: *theta, scaling: scaling.clone() };
                self.launch("rotary", kernel, &operands, vec![rows], rows, Share::Even)?
            }
            Op::Rope(rope) => {
                check_head("rope", rope.head_dim)?;
                let kernel = KernelSpec::Rope { head_dim: rope.head_dim, dim: self.shape(inputs[1]).1.c };
                let params = vec![rows, Dim::of(columns.c / rope.head_dim), Dim::of(rope.heads)];
                self.launch("rope", kernel, &operands, params, rows, Share::Even)?
            }
            Op::HeadNorm(HeadNorm { head_dim, first, heads, eps }) => {
                check_head("head_norm", *head_dim)?;
                let kernel = KernelSpec::HeadNorm { head_dim: *head_dim, eps: *eps };
                let params = vec![rows, Dim::of(columns.c / head_dim), Dim::of(*first), Dim::of(*heads)];
                self.launch("head_norm", kernel, &operands, params, rows, Share::Even)?
            }
            Op::Silu(_) => self.map(MapOp::Activate(Function::Silu), &operands, rows, columns)?,
            Op::Gelu(gelu) => self.map(MapOp::Activate(gelu_function(gelu)), &operands, rows, columns)?,
            Op::Scale(scale) => self.map(MapOp::Scale(scale.factor), &operands, rows, columns)?,
            Op::Softcap(softcap) => self.map(MapOp::Softcap(softcap.cap), &operands, rows, columns)?,
            Op::Mul(_) => self.map(MapOp::Mul, &operands, rows, columns)?,
            Op::Add(_) => self.map(MapOp::Add, &operands, rows, columns)?,
            Op::Bias(_) => self.map(MapOp::Bias, &operands, rows, columns)?,
            Op::Glu(glu) => self.map(MapOp::Glu(glu.function), &operands, rows, Dim::of(columns.c / 2))?,
            Op::Attention(attention) => {
                let cache = self.cache(inputs[3])?;
                self.attention(id, attention, cache, &self.with_block_table(&operands, 3))?
            }
            Op::Append(_) => {
                let cache = self.cache(inputs[4])?;
                let kernel = KernelSpec::Append { head_dim: cache.head_dim, dtype: cache.dtype };
                let params = vec![rows, Dim::of(cache.heads), Dim::S, self.pages];
                self.launch("append", kernel, &self.with_block_table(&operands, 4), params, rows, Share::Even)?;
                self.advance(operands[4], result(0));
                return Ok(());
            }
            Op::AppendQkv(append) => {
                let cache = self.cache(inputs[3])?;
                let kernel = KernelSpec::AppendQkv { head_dim: cache.head_dim, dtype: cache.dtype };
                let params = vec![rows, Dim::of(append.heads), Dim::of(cache.heads), Dim::S, self.pages];
                let queries =
                    self.launch("append_qkv", kernel, &self.with_block_table(&operands, 3), params, rows, Share::Even)?;
                self.advance(operands[3], result(1));
                queries
            }
        };
        self.values.insert(result(0), out);
        self.padded.extend(padded.map(|columns| (result(0), columns)));
        Ok(())
    }

    fn linear(
        &mut self,
        id: NodeId,
        linear: &Linear,
        inputs: &[Value],
        operands: &[Buffer],
    ) -> Result<(), ScheduleError> {
        let NodeKind::Weight(weight) = &self.graph.node(inputs[1].node).kind else {
            return Err(unsupported("linear", "its second operand must be a weight"));
        };
        let label = weight.name.as_str();
        let scheme = self.scheme(inputs[1])?;
        let (n, k) = self.shape(inputs[1]);
        let extra = |at: usize| linear.extra_slots()[at].clone();

        let is_gathered = linear.prologue.iter().any(|op| matches!(op, Op::Gather(_)));
        let rows = if is_gathered { Dim::R } else { self.shape(inputs[0]).0 };
        let is_quantized = matches!(self.graph.ty(inputs[0]).elem(), Some(Elem::Act { .. }))
            || linear.prologue.iter().any(|op| matches!(op, Op::Quantize(_)));
        let mut act = if is_quantized { Activation::Int8 } else { Activation::F32 };

        let mut epilogue = Vec::new();
        let mut buffers = vec![operands[0], operands[1]];
        let mut appended = None;
        for (at, op) in linear.epilogue.iter().enumerate() {
            let slots = extra(linear.prologue.len() + at);
            let stage_operands = &operands[slots.clone()];
            epilogue.push(self.stage(op, &inputs[slots])?);
            match op {
                Op::AppendQkv(_) => {
                    appended = Some(stage_operands[2]);
                    buffers.extend(self.with_block_table(stage_operands, 2));
                }
                _ => buffers.extend(stage_operands),
            }
        }

        if let Some(Op::Glu(_)) = linear.epilogue.last()
            && n.c.is_multiple_of(2 * STRIP_ROWS)
            && super::takes_wide_strips(rows, self.max, self.machine)
        {
            let stage = if self.is_only_quantized(id) {
                Some(Stage::Quantize)
            } else {
                self.is_only_rounded(id, rows).then_some(Stage::Round)
            };
            epilogue.extend(stage);
            if stage.is_some() {
                self.formed.insert(Value { node: id, result: 0 });
            }
        }
        let strip_rows = KernelSpec::strip_blocks(&epilogue) * BLOCK_ROWS;
        // A product alone may walk the zeros behind its weight too; its rows are then longer than the graph says.
        let mut n = n;
        if !n.c.is_multiple_of(strip_rows) && takes_padding(&epilogue) {
            n = Dim::of(n.c.next_multiple_of(STRIP_ROWS));
            self.padded.insert(Value { node: id, result: 0 }, n);
        }
        check_multiple(label, "rows", n.c, strip_rows)?;
        let tile = tile([rows, n], &epilogue, scheme, act, self.max, self.machine);
        // Few rows are rounded where they are read, if nothing else is to be done to them before.
        let comes_rounded = match tile {
            Tile::Staged { .. } => true,
            Tile::Mma { tokens, .. } => tokens > MMA_FEW_ROWS || !linear.prologue.is_empty(),
            Tile::Stream { .. } | Tile::Unpack { .. } => false,
        };
        if act == Activation::F32 && comes_rounded {
            act = Activation::Bf16;
        }
        // Rows are brought into the form that the product takes in a launch of their own.
        let is_formed = act == Activation::Bf16 && self.formed.contains(&inputs[0]);
        if !linear.prologue.is_empty() || (act == Activation::Bf16 && !is_formed) {
            let stages = (0..linear.prologue.len()).flat_map(extra).map(|slot| operands[slot]);
            let operands: Vec<Buffer> = std::iter::once(operands[0]).chain(stages).collect();
            let label = format!("{label} prologue");
            buffers[0] = self.rows(&label, &linear.prologue, inputs[0], &operands, act)?;
        }
        let mut params = vec![rows, n, spans(k, scheme.span())];
        if appended.is_some() {
            params.extend([Dim::S, self.pages]);
        }
        let units = Dim::of(n.c / BLOCK_ROWS / KernelSpec::tile_blocks(tile, &epilogue) * tile.parts());
        let kernel = KernelSpec::Linear { scheme, act, tile, epilogue };
        let out = self.launch(label, kernel, &buffers, params, units, Share::Even)?;
        self.values.insert(Value { node: id, result: 0 }, out);
        if let Some(cache) = appended {
            self.advance(cache, Value { node: id, result: 1 });
        }
        Ok(())
    }

    /// The stage that an op becomes after a product; `extra` are its operands besides the running value.
    fn stage(&self, op: &Op, extra: &[Value]) -> Result<Stage, ScheduleError> {
        Ok(match op {
            &Op::HeadNorm(HeadNorm { head_dim, first, heads, eps }) => {
                check_head("head_norm", head_dim)?;
                Stage::HeadNorm { head_dim, first, heads, eps }
            }
            Op::Rope(rope) => {
                check_head("rope", rope.head_dim)?;
                Stage::Rope { head_dim: rope.head_dim, dim: self.shape(extra[0]).1.c, heads: rope.heads }
            }
            Op::Glu(glu) => Stage::Glu(glu.function),
            Op::Silu(_) => Stage::Activate(Function::Silu),
            Op::Gelu(gelu) => Stage::Activate(gelu_function(gelu)),
            Op::Scale(scale) => Stage::Scale(scale.factor),
            Op::Softcap(softcap) => Stage::Softcap(softcap.cap),
            Op::Add(_) => Stage::Add,
            Op::Bias(_) => Stage::Bias,
            Op::AppendQkv(append) => {
                let CacheType { dtype, heads: kv_heads, head_dim } = self.cache(extra[2])?;
                check_head("append_qkv", head_dim)?;
                Stage::AppendQkv { head_dim, heads: append.heads, kv_heads, dtype }
            }
            other => return Err(unsupported(format!("{} after a product", other.name()), "no such stage")),
        })
    }

    /// A launch of gather, norm and quantization, each at most once and in this order; what is not quantized is left in the
    /// form `float`.
    fn rows(
        &mut self,
        label: &str,
        ops: &[Op],
        x: Value,
        operands: &[Buffer],
        float: Activation,
    ) -> Result<Buffer, ScheduleError> {
        let (mut gather, mut norm, mut add, mut quantize) = (false, None, false, false);
        for op in ops {
            match op {
                Op::Gather(_) if !gather && norm.is_none() && !quantize => gather = true,
                Op::RmsNorm(rms) if norm.is_none() && !quantize => norm = Some(Norm::Rms { eps: rms.eps }),
                Op::LayerNorm(layer) if norm.is_none() && !quantize => norm = Some(Norm::Layer { eps: layer.eps }),
                Op::NormAdd(rms) if norm.is_none() && !quantize => {
                    (norm, add) = (Some(Norm::Rms { eps: rms.eps }), true);
                }
                Op::Quantize(quantized) if !quantize && quantized.group == GROUP => quantize = true,
                other => {
                    let message = "expected gather, a norm and quantize in groups of 32, in this order";
                    return Err(unsupported(format!("{} in {label}", other.name()), message));
                }
            }
        }
        let (source_rows, k) = self.shape(x);
        check_multiple(label, "columns", k.c, GROUP)?;
        let rows = if gather { Dim::R } else { source_rows };
        let form = if quantize { Activation::Int8 } else { float };
        let kernel = KernelSpec::Rows { gather, norm, add, form };
        let by_groups = self.machine == Machine::Nvptx && kernel.takes_groups();
        let units = if by_groups { times(rows, k.c / GROUP) } else { rows };
        self.launch(label, kernel, operands, vec![rows, source_rows, spans(k, GROUP)], units, Share::Even)
    }

    fn map(&mut self, op: MapOp, operands: &[Buffer], rows: Dim, columns: Dim) -> Result<Buffer, ScheduleError> {
        let kernel = KernelSpec::Map { op };
        let label = op.to_string();
        self.launch(&label, kernel, operands, vec![rows, columns], rows, Share::Even)
    }

    /// Adds a launch. `operands` are the kernel's in order but for `out` and `scratch`, which are made here; returns
    /// `out`, or the last operand for a kernel that has none.
    fn launch(
        &mut self,
        label: &str,
        kernel: KernelSpec,
        operands: &[Buffer],
        params: Vec<Dim>,
        units: Dim,
        share: Share,
    ) -> Result<Buffer, ScheduleError> {
        let mut given = operands.iter().copied();
        let mut out = None;
        let mut buffers = Vec::new();
        for operand in kernel.operands() {
            let extent = || {
                cost::extent(&operand, &params).ok_or_else(|| {
                    unsupported(kernel.to_string(), format!("the size of '{}' is not affine", operand.name))
                })
            };
            let buffer = match operand.name {
                "out" => {
                    let bytes = extent()?;
                    self.buffers.push(ArenaBuffer { name: label.to_owned(), bytes, offset: 0, phases: (0, 0) });
                    *out.insert(Buffer::Arena(self.buffers.len() - 1))
                }
                "scratch" => Buffer::Scratch(extent()?.eval(self.max) as u64),
                name => given.next().ok_or_else(|| unsupported(kernel.to_string(), format!("'{name}' is missing")))?,
            };
            buffers.push(buffer);
        }
        if given.next().is_some() || params.len() != kernel.params().len() {
            return Err(unsupported(kernel.to_string(), "operands or parameters are left over"));
        }
        let (flops, bytes) = (cost::flops(&kernel, &params), cost::bytes(&kernel, &params));
        let last = buffers.last().copied();
        let label = label.to_owned();
        self.launches.push(Launch { label, kernel, buffers, params, units, share, barrier: false, flops, bytes });
        out.or(last).ok_or_else(|| unsupported("a kernel", "it has no operands"))
    }

    /// The operands with the block table of the cache at `at` before it.
    fn with_block_table(&self, operands: &[Buffer], at: usize) -> Vec<Buffer> {
        let group = match operands[at] {
            Buffer::Cache(cache) => self.program.caches[cache].group,
            _ => 0,
        };
        [&operands[..at], &[Buffer::BlockTable(group)], &operands[at..]].concat()
    }

    /// Where a value lies; refuses a cache state that has been overwritten.
    fn buffer(&self, value: Value) -> Result<Buffer, ScheduleError> {
        let buffer = self.values.get(&value).copied();
        let buffer = buffer.ok_or_else(|| unsupported("a value", "it is read before it is computed"))?;
        match buffer {
            Buffer::Cache(at) if self.newest.get(&at) != Some(&value) => Err(unsupported(
                format!("a read of cache '{}' after an append", self.program.caches[at].name),
                "pages change in place",
            )),
            _ => Ok(buffer),
        }
    }

    /// The state of a cache after an append.
    fn advance(&mut self, cache: Buffer, state: Value) {
        self.values.insert(state, cache);
        if let Buffer::Cache(at) = cache {
            self.newest.insert(at, state);
        }
    }

    /// Rows and columns of a value; a vector has one column.
    fn shape(&self, value: Value) -> (Dim, Dim) {
        match self.graph.ty(value).shape() {
            Some(&[rows, columns]) => (rows, columns),
            Some(&[rows]) => (rows, Dim::of(1)),
            _ => (Dim::of(0), Dim::of(0)),
        }
    }

    fn scheme(&self, value: Value) -> Result<Scheme, ScheduleError> {
        match self.graph.ty(value).elem() {
            Some(Elem::Weight(scheme)) => Ok(*scheme),
            _ => Err(unsupported("a product", "its weight has no scheme")),
        }
    }

    fn cache(&self, value: Value) -> Result<CacheType, ScheduleError> {
        match self.graph.ty(value) {
            Type::Cache(cache) => Ok(*cache),
            Type::Tensor { .. } => Err(unsupported("an append", "its last operand must be a cache")),
        }
    }
}

fn gelu_function(gelu: &Gelu) -> Function {
    if gelu.tanh { Function::GeluTanh } else { Function::Gelu }
}

/// Whether an op treats each element alone, so that zeros behind a row do no harm.
fn is_element_wise(op: &Op) -> bool {
    matches!(op, Op::Silu(_) | Op::Gelu(_) | Op::Scale(_) | Op::Softcap(_) | Op::Mul(_) | Op::Add(_) | Op::Bias(_))
}

/// Whether all stages treat each element alone, with no operand that lies in rows as the graph says.
fn takes_padding(epilogue: &[Stage]) -> bool {
    let alone = |stage: &Stage| matches!(stage, Stage::Activate(_) | Stage::Scale(_) | Stage::Softcap(_) | Stage::Bias);
    epilogue.iter().all(alone)
}

/// Refuses heads that are no whole blocks of lanes.
fn check_head(op: &str, head_dim: usize) -> Result<(), ScheduleError> {
    if head_dim > 0 && head_dim.is_multiple_of(BLOCK_ROWS) {
        return Ok(());
    }
    Err(unsupported(format!("{op} of heads of {head_dim}"), format!("expected a multiple of {BLOCK_ROWS} elements")))
}

fn spans(columns: Dim, span: usize) -> Dim {
    Dim::of(columns.c / span)
}
