//! What sets a decoder apart from a plain llama, as data.

use super::Rope;
use crate::error::ModelError;

/// How rows are normed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NormKind {
    /// By the root of the mean square, without a bias.
    #[default]
    Rms,
    /// By mean and variance, with a bias.
    Layer,
}

/// Where a layer norms.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Norms {
    /// What enters attention and feed-forward network.
    #[default]
    Before,
    /// What leaves them, before it is added to the residual stream.
    After,
    /// Both.
    Around,
}

/// How queries and keys are normed before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Each head on its own, all with one weight of `head_dim` elements.
    Heads,
    /// All heads as one row.
    Row,
}

/// The function of the feed-forward network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    #[default]
    Silu,
    /// `x · Φ(x)` by the error function.
    Gelu,
    /// `x · Φ(x)` by the tanh approximation.
    GeluTanh,
}

/// Some of the layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Layers {
    /// None of them.
    #[default]
    None,
    /// All of them.
    All,
    /// Those from this one on.
    From(usize),
    /// Each so-manieth: with 4 the fourth, the eighth and so on.
    Each(usize),
    /// All but each so-manieth.
    ButEach(usize),
    /// Those that are marked; one mark a layer.
    Marked(Vec<bool>),
}

impl Layers {
    /// Whether a layer is one of them.
    pub fn contain(&self, layer: usize) -> bool {
        match self {
            Layers::None => false,
            Layers::All => true,
            Layers::From(first) => layer >= *first,
            Layers::Each(count) => (layer + 1).is_multiple_of(*count),
            Layers::ButEach(count) => !(layer + 1).is_multiple_of(*count),
            Layers::Marked(marks) => marks.get(layer) == Some(&true),
        }
    }
}

/// Attention that sees only the latest positions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Positions that a token sees, itself among them.
    pub positions: usize,
    /// The layers that have it; the others see all.
    pub layers: Layers,
}

/// What families add to, or change in, a plain llama. The default is a plain llama.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of a checkpoint, independent of the others")]
pub struct Knobs {
    /// How rows are normed.
    pub norm: NormKind,
    /// Whether norm weights are stored as their distance from one.
    pub plus_one: bool,
    /// Where a layer norms.
    pub norms: Norms,
    /// Whether the feed-forward network reads what attention reads, instead of what attention has added to.
    pub parallel: bool,
    /// How queries and keys are normed.
    pub qk_norm: Option<QkNorm>,
    /// Whether queries, keys and values have biases.
    pub attention_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub output_bias: bool,
    /// Whether the projections of the feed-forward network have biases.
    pub ffn_bias: bool,
    /// The function of the feed-forward network.
    pub activation: Activation,
    /// Whether the function's result gates a second projection; without it there is one projection.
    pub gated: bool,
    /// Factor of the scores where it is not `1 / sqrt(head_dim)`.
    pub attention_scale: Option<f32>,
    /// Bound of the scores: `cap · tanh(score / cap)`.
    pub attention_softcap: Option<f32>,
    /// Bound of the logits, likewise.
    pub logit_softcap: Option<f32>,
    /// Factor of the embeddings.
    pub embedding_scale: Option<f32>,
    /// Factor of what each layer's halves add to the residual stream.
    pub residual_scale: Option<f32>,
    /// Factor of the logits.
    pub logit_scale: Option<f32>,
    /// Attention to the latest positions only.
    pub window: Option<Window>,
    /// The rotation in layers with a window, where it differs.
    pub local_rope: Option<Rope>,
    /// Layers whose queries and keys are not rotated.
    pub unrotated: Layers,
    /// Whether positions are learned vectors that are added to the embeddings.
    pub learned_positions: bool,
}

impl Default for Knobs {
    fn default() -> Knobs {
        Knobs {
            norm: NormKind::default(),
            plus_one: false,
            norms: Norms::default(),
            parallel: false,
            qk_norm: None,
            attention_bias: false,
            output_bias: false,
            ffn_bias: false,
            activation: Activation::default(),
            gated: true,
            attention_scale: None,
            attention_softcap: None,
            logit_softcap: None,
            embedding_scale: None,
            residual_scale: None,
            logit_scale: None,
            window: None,
            local_rope: None,
            unrotated: Layers::None,
            learned_positions: false,
        }
    }
}

impl Knobs {
    /// Positions that a layer's tokens see; `None` for all.
    pub fn window_of(&self, layer: usize) -> Option<usize> {
        self.window.as_ref().filter(|window| window.layers.contain(layer)).map(|window| window.positions)
    }

    /// Refuses numbers that no model has.
    pub(super) fn check(&self, architecture: &str, layers: usize) -> Result<(), ModelError> {
        let wrong = |key: &str, expected: String, found: String| {
            Err(ModelError::Key { key: format!("{architecture}.{key}"), expected, found })
        };
        let positive = [
            ("attention.scale", self.attention_scale),
            ("attn_logit_softcapping", self.attention_softcap),
            ("final_logit_softcapping", self.logit_softcap),
            ("embedding_scale", self.embedding_scale),
            ("residual_scale", self.residual_scale),
            ("logit_scale", self.logit_scale),
        ];
        for (key, number) in positive {
            if let Some(number) = number.filter(|number| !(number.is_finite() && *number > 0.0)) {
                return wrong(key, "a positive number".to_owned(), number.to_string());
            }
        }
        let windowed = self.window.as_ref().map(|window| ("attention.sliding_window_pattern", &window.layers));
        for (key, of) in windowed.into_iter().chain([("rope.unrotated_layers", &self.unrotated)]) {
            match of {
                Layers::Marked(marks) if marks.len() != layers => {
                    return wrong(key, format!("one entry for each of {layers} layers"), marks.len().to_string());
                }
                Layers::Each(0) | Layers::ButEach(0) => {
                    return wrong(key, "a positive number".to_owned(), "0".to_owned());
                }
                _ => {}
            }
        }
        Ok(())
    }
}
