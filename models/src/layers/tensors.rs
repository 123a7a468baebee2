//! The tensors that the generic decoder needs: their names in a checkpoint and their shapes.

use std::collections::BTreeSet;

use lathe_ir::graph::RowOrder;

use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, NormKind, Norms, QkNorm, RopeLayout};
use crate::error::ModelError;
use crate::views;

/// Names of a checkpoint's tensors; `{}` stands for the layer. The name of a bias is that of its weight with another
/// ending. What follows a `#` says which piece of a tensor is meant, see [`crate::views`].
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "each is the name of the tensor in the role that the field is called by")]
pub struct TensorNames {
    pub embed: &'static str,
    pub positions: &'static str,
    pub attention_norm: &'static str,
    pub q: &'static str,
    pub k: &'static str,
    pub v: &'static str,
    pub q_norm: &'static str,
    pub k_norm: &'static str,
    pub o: &'static str,
    pub attention_out_norm: &'static str,
    pub ffn_norm: &'static str,
    pub gate: &'static str,
    pub up: &'static str,
    pub down: &'static str,
    pub ffn_out_norm: &'static str,
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
    /// Whether it is stored as its distance from one.
    pub plus_one: bool,
}

/// A matrix and its bias.
pub(super) struct Projection {
    pub weight: Slot,
    pub bias: Option<Slot>,
}

/// A norm's weight, and its bias where its kind has one.
pub(super) struct NormSlots {
    pub weight: Slot,
    pub bias: Option<Slot>,
}

/// The tensors of one layer, in the order of use.
pub(super) struct LayerSlots {
    pub attention_norm: Option<NormSlots>,
    /// Queries, keys and values.
    pub qkv: [Projection; 3],
    /// Of queries and keys.
    pub qk_norms: Option<[Slot; 2]>,
    pub o: Projection,
    pub attention_out_norm: Option<NormSlots>,
    pub ffn_norm: Option<NormSlots>,
    pub gate: Option<Projection>,
    pub up: Projection,
    pub down: Projection,
    pub ffn_out_norm: Option<NormSlots>,
}

fn matrix(name: &str, tensor: &str, rows: usize, cols: usize) -> Slot {
    let (name, tensor) = (name.to_owned(), tensor.to_owned());
    Slot { name, tensor, rows, cols, vector: false, order: RowOrder::AsStored, plus_one: false }
}

fn vector(name: &str, tensor: &str, cols: usize) -> Slot {
    Slot { vector: true, ..matrix(name, tensor, 1, cols) }
}

fn norm(config: &ModelConfig, name: &str, tensor: &str) -> NormSlots {
    let weight = Slot { plus_one: config.knobs.plus_one, ..vector(name, tensor, config.hidden) };
    let bias = || vector(&format!("{name}.bias"), &views::bias(tensor), config.hidden);
    NormSlots { weight, bias: (config.knobs.norm == NormKind::Layer).then(bias) }
}

pub(super) fn embed(config: &ModelConfig, names: &TensorNames) -> Slot {
    matrix("embed", names.embed, config.vocab, config.hidden)
}

/// The learned positions, where the model has any.
pub(super) fn positions(config: &ModelConfig, names: &TensorNames) -> Option<Slot> {
    config.knobs.learned_positions.then(|| matrix("positions", names.positions, config.context, config.hidden))
}

pub(super) fn final_norm(config: &ModelConfig, names: &TensorNames) -> NormSlots {
    norm(config, "final_norm", names.final_norm)
}

/// The head's own matrix; `None` when it is the embedding table.
pub(super) fn head(config: &ModelConfig, names: &TensorNames) -> Option<Slot> {
    (!config.tied_head).then(|| matrix("head", names.head, config.vocab, config.hidden))
}

pub(super) fn layer(config: &ModelConfig, names: &TensorNames, layer: usize) -> LayerSlots {
    let &ModelConfig { hidden, heads, kv_heads, head_dim, ffn, ref knobs, .. } = config;
    let order = match config.rope.layout {
        RopeLayout::Pairs => RowOrder::PairsToHalves { head_dim },
        RopeLayout::Halves => RowOrder::AsStored,
    };
    let at = |role: &str| format!("layers.{layer}.{role}");
    let stored = |template: &str| template.replace("{}", &layer.to_string());
    let norm = |role, template: &str| norm(config, &at(role), &stored(template));
    let project = |role: &str, template, rows, cols, biased: bool| {
        let weight = matrix(&at(role), &stored(template), rows, cols);
        let bias = biased.then(|| vector(&at(&format!("{role}.bias")), &views::bias(&stored(template)), rows));
        Projection { weight, bias }
    };
    let reordered = |bias: Slot| match order {
        RowOrder::AsStored => bias,
        RowOrder::PairsToHalves { .. } => Slot { tensor: views::halves(&bias.tensor), ..bias },
    };
    let ordered = |of: Projection| Projection { weight: Slot { order, ..of.weight }, bias: of.bias.map(reordered) };
    let (before, after) = match knobs.norms {
        Norms::Before => (true, false),
        Norms::After => (false, true),
        Norms::Around => (true, true),
    };
    let qk_norm = |role, template, heads: usize| {
        let cols = if knobs.qk_norm == Some(QkNorm::Row) { heads * head_dim } else { head_dim };
        Slot { plus_one: knobs.plus_one, ..vector(&at(role), &stored(template), cols) }
    };
    let attention = knobs.attention_bias;
    LayerSlots {
        attention_norm: before.then(|| norm("attention_norm", names.attention_norm)),
        qkv: [
            ordered(project("q", names.q, heads * head_dim, hidden, attention)),
            ordered(project("k", names.k, kv_heads * head_dim, hidden, attention)),
            project("v", names.v, kv_heads * head_dim, hidden, attention),
        ],
        qk_norms: knobs
            .qk_norm
            .map(|_| [qk_norm("q_norm", names.q_norm, heads), qk_norm("k_norm", names.k_norm, kv_heads)]),
        o: project("o", names.o, hidden, heads * head_dim, knobs.output_bias),
        attention_out_norm: after.then(|| norm("attention_out_norm", names.attention_out_norm)),
        ffn_norm: (before && !knobs.parallel).then(|| norm("ffn_norm", names.ffn_norm)),
        gate: knobs.gated.then(|| project("gate", names.gate, ffn, hidden, knobs.ffn_bias)),
        up: project("up", names.up, ffn, hidden, knobs.ffn_bias),
        down: project("down", names.down, hidden, ffn, knobs.ffn_bias),
        ffn_out_norm: after.then(|| norm("ffn_out_norm", names.ffn_out_norm)),
    }
}

impl Projection {
    fn slots(self) -> impl Iterator<Item = Slot> {
        std::iter::once(self.weight).chain(self.bias)
    }
}

impl NormSlots {
    fn slots(self) -> impl Iterator<Item = Slot> {
        std::iter::once(self.weight).chain(self.bias)
    }
}

impl LayerSlots {
    fn slots(self) -> impl Iterator<Item = Slot> {
        let norm = |norm: Option<NormSlots>| norm.into_iter().flat_map(NormSlots::slots);
        let attention = self.qkv.into_iter().flat_map(Projection::slots).chain(self.qk_norms.into_iter().flatten());
        let ffn = self.gate.into_iter().chain([self.up, self.down]).flat_map(Projection::slots);
        norm(self.attention_norm)
            .chain(attention)
            .chain(self.o.slots())
            .chain(norm(self.attention_out_norm))
            .chain(norm(self.ffn_norm))
            .chain(ffn)
            .chain(norm(self.ffn_out_norm))
    }
}

/// Every tensor that the decoder needs, in the order of use.
pub fn slots(config: &ModelConfig, names: &TensorNames) -> impl Iterator<Item = Slot> {
    let layers = (0..config.layers).flat_map(|index| layer(config, names, index).slots());
    let starts = std::iter::once(embed(config, names)).chain(positions(config, names));
    starts.chain(layers).chain(final_norm(config, names).slots()).chain(head(config, names))
}

/// Checks that the checkpoint holds exactly the tensors that the decoder needs, in the right shapes.
pub fn check_tensors(config: &ModelConfig, names: &TensorNames, checkpoint: &dyn Checkpoint) -> Result<(), ModelError> {
    let mut unknown: BTreeSet<&str> = checkpoint.names();
    for slot in slots(config, names) {
        let Slot { tensor, rows, cols, .. } = slot;
        let Some(info) = checkpoint.tensor(&tensor) else {
            return Err(ModelError::MissingTensor { tensor: views::stored(&tensor).to_owned(), rows, cols });
        };
        if (info.rows, info.cols) != (rows, cols) {
            let expected = format!("{rows} rows of {cols}, by the metadata");
            let found = format!("{} rows of {}", info.rows, info.cols);
            return Err(ModelError::Shape { tensor: views::stored(&tensor).to_owned(), expected, found });
        }
        unknown.remove(views::stored(&tensor));
    }
    if unknown.is_empty() {
        return Ok(());
    }
    Err(ModelError::UnknownTensors { tensors: unknown.into_iter().map(str::to_owned).collect() })
}
