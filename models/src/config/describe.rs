//! The knobs of a decoder in words, for people who ask what a plan contains.

use lathe_ir::ops::rotary::Scaling;

use super::{Activation, Knobs, Layers, ModelConfig, NormKind, Norms, QkNorm, Rope};

impl ModelConfig {
    /// Each number and choice with its name: first those that every decoder has, then those that not every one has.
    pub fn describe(&self) -> Vec<(&'static str, String)> {
        let knobs = &self.knobs;
        let mut list = vec![
            ("layers", format!("{} of width {}", self.layers, self.hidden)),
            (
                "heads",
                format!(
                    "{} for queries, {} for keys and values, {} elements each",
                    self.heads, self.kv_heads, self.head_dim
                ),
            ),
            ("feed forward", feed_forward(knobs, self.ffn)),
            ("norms", norms(knobs, self.norm_eps)),
            ("positions", positions(knobs, &self.rope, self.head_dim)),
            ("head", if self.tied_head { "the embedding table" } else { "a matrix of its own" }.to_owned()),
        ];
        if let Some(window) = &knobs.window {
            list.push(("window", format!("{} positions in {}", window.positions, layers(&window.layers))));
        }
        if let Some(rope) = &knobs.local_rope {
            list.push(("window's rope", rotation(rope, self.head_dim)));
        }
        let biases = [
            (knobs.attention_bias, "of queries, keys and values"),
            (knobs.output_bias, "of attention's output"),
            (knobs.ffn_bias, "in the feed-forward network"),
        ];
        let biases: Vec<&str> = biases.iter().filter(|bias| bias.0).map(|bias| bias.1).collect();
        if !biases.is_empty() {
            list.push(("biases", biases.join(", ")));
        }
        let numbers = [
            ("score scale", knobs.attention_scale),
            ("score softcap", knobs.attention_softcap),
            ("embedding scale", knobs.embedding_scale),
            ("residual scale", knobs.residual_scale),
            ("logit scale", knobs.logit_scale),
            ("logit softcap", knobs.logit_softcap),
        ];
        list.extend(numbers.into_iter().filter_map(|(name, number)| Some((name, number?.to_string()))));
        list
    }
}

fn feed_forward(knobs: &Knobs, width: usize) -> String {
    let function = match knobs.activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::GeluTanh => "gelu by tanh",
    };
    let gate = if knobs.gated { ", gated" } else { "" };
    let parallel = if knobs.parallel { ", beside attention" } else { "" };
    format!("{width} wide, {function}{gate}{parallel}")
}

fn norms(knobs: &Knobs, eps: f32) -> String {
    let kind = match knobs.norm {
        NormKind::Rms => "root mean square",
        NormKind::Layer => "mean and variance",
    };
    let place = match knobs.norms {
        Norms::Before => "before",
        Norms::After => "after",
        Norms::Around => "before and after",
    };
    let weights = if knobs.plus_one { ", weights plus one" } else { "" };
    let heads = match knobs.qk_norm {
        None => "",
        Some(QkNorm::Heads) => "; of each query and key head",
        Some(QkNorm::Row) => "; of all queries and of all keys",
    };
    format!("{kind}, eps {eps:e}, {place} attention and feed forward{weights}{heads}")
}

fn positions(knobs: &Knobs, rope: &Rope, head_dim: usize) -> String {
    if knobs.learned_positions {
        return "learned vectors".to_owned();
    }
    match &knobs.unrotated {
        Layers::None => rotation(rope, head_dim),
        Layers::All => "none".to_owned(),
        some => format!("{}; none in {}", rotation(rope, head_dim), layers(some)),
    }
}

fn rotation(rope: &Rope, head_dim: usize) -> String {
    let part = match rope.partial {
        Some(dims) if dims != head_dim => format!(" of {dims} in {head_dim} elements"),
        _ => String::new(),
    };
    let scaling = match &rope.scaling {
        Scaling::None => String::new(),
        scaling => format!(", {}", scaling.to_attributes()),
    };
    format!("rotary{part}, base {}{scaling}", rope.theta)
}

fn layers(layers: &Layers) -> String {
    match layers {
        Layers::None => "no layer".to_owned(),
        Layers::All => "all layers".to_owned(),
        Layers::From(first) => format!("layers from {first} on"),
        Layers::Each(count) => format!("every layer of number {count}, {}, …", 2 * count),
        Layers::ButEach(count) => format!("all layers but those of number {count}, {}, …", 2 * count),
        Layers::Marked(marks) => {
            let marked = marks.iter().enumerate().filter(|(_, mark)| **mark);
            format!("layers {}", marked.map(|(layer, _)| layer.to_string()).collect::<Vec<_>>().join(", "))
        }
    }
}
