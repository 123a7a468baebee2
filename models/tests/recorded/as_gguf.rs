//! A recorded checkpoint as the GGUF file that llama.cpp's converter makes of it: its names of tensors and keys, its order
//! of rotary pairs, its norms, joined and turned matrices.
//!
//! What the format cannot say is left out as the converter leaves it out, see [`File::rows`]; a scale of scores that it
//! does not state (Gemma's) goes into the weights that make the queries.

use lathe_models::gguf::write::{RawTensor, raw};
use lathe_models::gguf::{TensorType, Value, ValueType};
use serde_json::{Value as Json, json};

use super::case::{self, Case};

/// A file, and for how much of the recorded sequence it says the same as the directory.
pub struct File {
    pub bytes: Vec<u8>,
    /// Positions before the first one that the file's model sees with other eyes.
    pub rows: usize,
}

/// Whether the file keeps queries, keys and values apart, as most do, or joined.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Projections {
    Apart,
    Joined,
}

/// Every case that a file can hold. SmolLM 3's layers that rotate nothing are every fourth one in files, so that what was
/// recorded of two layers has none, and four layers stand in for it.
pub fn cases() -> Vec<Case> {
    let four = json!({ "no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4 });
    let replaced = |case: Case| if case.name == "smollm3" { case.with_layers(4, &four) } else { case };
    case::cases().into_iter().map(replaced).collect()
}

/// A tensor on its way: the name it gets, its shape with the outermost dimension first, its numbers.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    values: Vec<f32>,
}

/// The names of what stands behind `model.layers.N.` in directories and behind `blk.N.` in files.
const OF_LAYER: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.gate_up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
    ("ln_1", "attn_norm"),
    ("ln_2", "ffn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
];

/// Likewise outside of layers.
const OF_MODEL: &[(&str, &str)] = &[
    ("model.embed_tokens", "token_embd"),
    ("model.norm", "output_norm"),
    ("lm_head", "output"),
    ("transformer.wte", "token_embd"),
    ("transformer.wpe", "position_embd"),
    ("transformer.ln_f", "output_norm"),
];

/// The knobs of a directory that a file can state.
struct Knobs<'a> {
    config: &'a Json,
    /// The name of the architecture in files.
    architecture: &'static str,
}

impl Knobs<'_> {
    fn size(&self, keys: &[&str]) -> Option<usize> {
        keys.iter().find_map(|key| self.config[*key].as_u64()).map(|size| size as usize)
    }

    fn number(&self, keys: &[&str]) -> Option<f32> {
        keys.iter().find_map(|key| self.config[*key].as_f64()).map(|number| number as f32)
    }

    fn heads(&self) -> usize {
        self.size(&["num_attention_heads", "n_head"]).unwrap()
    }

    fn head_dim(&self) -> usize {
        self.size(&["head_dim"]).unwrap_or(self.size(&["hidden_size", "n_embd"]).unwrap() / self.heads())
    }

    /// Elements of a head that rotate.
    fn rotating(&self) -> usize {
        (self.head_dim() as f32 * self.number(&["partial_rotary_factor"]).unwrap_or(1.0)) as usize
    }

    /// The factor of queries that stands for a scale of scores of the model's own.
    fn query_factor(&self) -> f32 {
        self.number(&["query_pre_attn_scalar"]).map_or(1.0, |scalar| (self.head_dim() as f32 / scalar).sqrt())
    }
}

/// The architecture's name in files.
fn architecture(config: &Json) -> &'static str {
    match config["model_type"].as_str().unwrap() {
        "llama" | "mistral" => "llama",
        "qwen2" => "qwen2",
        "qwen3" => "qwen3",
        "gemma2" => "gemma2",
        "gemma3_text" => "gemma3",
        "phi3" => "phi3",
        "olmo2" => "olmo2",
        "smollm3" => "smollm3",
        "granite" => "granite",
        "starcoder2" => "starcoder2",
        "gpt2" => "gpt2",
        "stablelm" => "stablelm",
        other => panic!("no architecture for {other}"),
    }
}

/// The file of a case.
pub fn file(case: &Case, projections: Projections) -> File {
    let config = case.config();
    let knobs = Knobs { config, architecture: architecture(config) };
    let mut tensors: Vec<Tensor> =
        case.tensors().into_iter().map(|(name, shape, values)| tensor(&knobs, &name, shape, values)).collect();
    if projections == Projections::Joined {
        tensors = joined(tensors);
    }
    let extra = rope_tensors(&knobs);
    let pairs = pairs(&knobs, &extra);
    tensors.extend(extra);
    let raw_tensor = |Tensor { name, shape, values }: Tensor| RawTensor {
        name,
        dims: shape.into_iter().rev().collect(),
        ty: TensorType::F32,
        bytes: values.into_iter().flat_map(f32::to_le_bytes).collect(),
    };
    let tensors: Vec<RawTensor> = tensors.into_iter().map(raw_tensor).collect();
    // The window of these families is not in the files; before it fills, it changes nothing.
    let forgets_window = ["llama", "starcoder2", "qwen2"].contains(&knobs.architecture);
    let rows = knobs.size(&["sliding_window"]).filter(|_| forgets_window).unwrap_or(usize::MAX);
    File { bytes: raw(&pairs, &tensors), rows }
}

/// A tensor under its name in files, as files hold it.
fn tensor(knobs: &Knobs, name: &str, shape: Vec<usize>, values: Vec<f32>) -> Tensor {
    let (stem, ending) = name.rsplit_once('.').unwrap();
    let rest = stem.strip_prefix("model.layers.").or_else(|| stem.strip_prefix("transformer.h."));
    let find = |of: &[(&str, &str)], stem: &str| {
        of.iter().find(|(from, _)| *from == stem).unwrap_or_else(|| panic!("{name} has no name in files")).1.to_owned()
    };
    let stem = match rest {
        None => find(OF_MODEL, stem),
        Some(rest) => {
            let (layer, role) = rest.split_once('.').unwrap();
            let mut role = find(OF_LAYER, role);
            if rest.ends_with("post_attention_layernorm") && ["gemma2", "gemma3", "olmo2"].contains(&knobs.architecture)
            {
                "post_attention_norm".clone_into(&mut role);
            }
            format!("blk.{layer}.{role}")
        }
    };
    let mut tensor = Tensor { name: format!("{stem}.{ending}"), shape, values };
    let role = stem.rsplit('.').next().unwrap();
    let is_head = matches!(role, "attn_q" | "attn_k");
    if is_head && ["llama", "smollm3", "granite"].contains(&knobs.architecture) {
        pairs_of_halves(&mut tensor, knobs.head_dim());
    }
    if knobs.architecture == "gpt2" && tensor.shape.len() == 2 && stem.starts_with("blk.") {
        transpose(&mut tensor);
    }
    if knobs.architecture.starts_with("gemma") && stem.ends_with("norm") {
        tensor.values.iter_mut().for_each(|value| *value += 1.0);
    }
    if role == if knobs.architecture == "gemma3" { "attn_q_norm" } else { "attn_q" } {
        tensor.values.iter_mut().for_each(|value| *value *= knobs.query_factor());
    }
    tensor
}

/// Brings the rows of each head, first half and second half, into pairs: row `i` of a half becomes row `2i`, or `2i + 1`.
fn pairs_of_halves(tensor: &mut Tensor, head_dim: usize) {
    let width: usize = tensor.shape[1..].iter().product();
    let from = tensor.values.clone();
    for (row, values) in from.chunks(width).enumerate() {
        let (head, at) = (row / head_dim, row % head_dim);
        let (half, pair) = (at / (head_dim / 2), at % (head_dim / 2));
        let place = head * head_dim + 2 * pair + half;
        tensor.values[place * width..][..width].copy_from_slice(values);
    }
}

fn transpose(tensor: &mut Tensor) {
    let [rows, cols] = tensor.shape[..] else { panic!("no matrix") };
    tensor.values = (0..cols * rows).map(|at| tensor.values[at % rows * cols + at / rows]).collect();
    tensor.shape = vec![cols, rows];
}

/// Joins the queries, keys and values of each layer, and their biases.
fn joined(tensors: Vec<Tensor>) -> Vec<Tensor> {
    let role = |name: &str, letter: char| name.contains(&format!(".attn_{letter}."));
    let (parts, mut rest): (Vec<Tensor>, Vec<Tensor>) =
        tensors.into_iter().partition(|tensor| ['q', 'k', 'v'].iter().any(|&letter| role(&tensor.name, letter)));
    for query in parts.iter().filter(|tensor| role(&tensor.name, 'q')) {
        let others = ['k', 'v'].map(|letter| {
            let name = query.name.replace(".attn_q.", &format!(".attn_{letter}."));
            parts.iter().find(|tensor| tensor.name == name).unwrap()
        });
        let mut whole = Tensor {
            name: query.name.replace(".attn_q.", ".attn_qkv."),
            shape: query.shape.clone(),
            values: query.values.clone(),
        };
        for other in others {
            whole.shape[0] += other.shape[0];
            whole.values.extend(&other.values);
        }
        rest.push(whole);
    }
    rest
}

/// The divisors of rotary frequencies, which files keep as tensors: Llama 3's by its published rule, `LongRoPE`'s lists.
fn rope_tensors(knobs: &Knobs) -> Vec<Tensor> {
    let scaling = &knobs.config["rope_scaling"];
    let number = |key: &str| scaling[key].as_f64().unwrap();
    let list = |name: &str, values: Vec<f32>| Tensor { name: name.to_owned(), shape: vec![values.len()], values };
    if scaling["rope_type"] == "llama3" {
        let theta = f64::from(knobs.number(&["rope_theta"]).unwrap());
        let (factor, original) = (number("factor"), number("original_max_position_embeddings"));
        let (low, high) = (number("low_freq_factor"), number("high_freq_factor"));
        let dim = knobs.head_dim();
        let divisor = |pair: usize| {
            let length = std::f64::consts::TAU * theta.powf((2 * pair) as f64 / dim as f64);
            let part = ((original / length - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - part) / factor + part)) as f32
        };
        return vec![list("rope_freqs.weight", (0..dim / 2).map(divisor).collect())];
    }
    let factors = |key: &str| -> Option<Vec<f32>> {
        Some(scaling[key].as_array()?.iter().map(|factor| factor.as_f64().unwrap() as f32).collect())
    };
    match (factors("long_factor"), factors("short_factor")) {
        (Some(long), Some(short)) => {
            vec![list("rope_factors_long.weight", long), list("rope_factors_short.weight", short)]
        }
        _ => Vec::new(),
    }
}

/// The file's metadata.
fn pairs(knobs: &Knobs, extra: &[Tensor]) -> Vec<(String, Value)> {
    let name = knobs.architecture;
    let text = |text: &str| Value::String(text.to_owned());
    let mut pairs: Vec<(String, Value)> = [
        ("general.architecture", text(name)),
        ("general.type", text("model")),
        ("general.file_type", Value::Unsigned(0)),
        ("general.quantization_version", Value::Unsigned(2)),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    let mut put = |key: &str, value: Value| pairs.push((format!("{name}.{key}"), value));
    let hidden = knobs.size(&["hidden_size", "n_embd"]).unwrap();
    let sizes = [
        ("block_count", knobs.size(&["num_hidden_layers", "n_layer"])),
        ("context_length", knobs.size(&["max_position_embeddings", "n_ctx"])),
        ("embedding_length", Some(hidden)),
        ("feed_forward_length", Some(knobs.size(&["intermediate_size"]).unwrap_or(4 * hidden))),
        ("attention.head_count", Some(knobs.heads())),
        ("attention.head_count_kv", knobs.size(&["num_key_value_heads"])),
        ("attention.key_length", knobs.size(&["head_dim"])),
        ("attention.value_length", knobs.size(&["head_dim"])),
        ("rope.dimension_count", (name != "gpt2").then(|| knobs.rotating())),
    ];
    for (key, size) in sizes {
        if let Some(size) = size {
            put(key, Value::Unsigned(size as u64));
        }
    }
    let numbers = [
        ("attention.layer_norm_rms_epsilon", knobs.number(&["rms_norm_eps"])),
        ("attention.layer_norm_epsilon", knobs.number(&["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"])),
        ("rope.freq_base", knobs.number(&["rope_theta"])),
        ("attn_logit_softcapping", knobs.number(&["attn_logit_softcapping"])),
        ("final_logit_softcapping", knobs.number(&["final_logit_softcapping"])),
        ("attention.scale", knobs.number(&["attention_multiplier"])),
        ("embedding_scale", knobs.number(&["embedding_multiplier"])),
        ("residual_scale", knobs.number(&["residual_multiplier"])),
        ("logit_scale", knobs.number(&["logits_scaling"])),
    ];
    for (key, number) in numbers {
        if let Some(number) = number {
            put(key, Value::F32(number));
        }
    }
    let window = knobs.size(&["sliding_window"]).unwrap_or(0) as u64;
    match name {
        "phi3" | "gemma2" => put("attention.sliding_window", Value::Unsigned(window)),
        "gemma3" => {
            put("attention.sliding_window", Value::Unsigned(window));
            let pattern = match knobs.config["layer_types"].as_array() {
                None => Value::Unsigned(knobs.size(&["sliding_window_pattern"]).unwrap() as u64),
                Some(types) => {
                    let bytes = types.iter().map(|kind| u8::from(kind == "sliding_attention")).collect();
                    Value::Scalars { element: ValueType::Bool, bytes }
                }
            };
            put("attention.sliding_window_pattern", pattern);
        }
        "stablelm" => {
            let parallel = knobs.config["use_parallel_residual"].as_bool().unwrap_or(true);
            put("use_parallel_residual", Value::Bool(parallel));
        }
        _ => {}
    }
    rope_pairs(knobs, extra, &mut put);
    let vocabulary = knobs.size(&["vocab_size"]).unwrap();
    let strings = |texts: Vec<String>| Value::Strings(texts);
    let kinds = [1i32].repeat(vocabulary).into_iter().flat_map(i32::to_le_bytes).collect();
    let tokenizer = [
        ("model", text("gpt2")),
        ("pre", text("default")),
        ("tokens", strings((0..vocabulary).map(|id| format!("t{id}")).collect())),
        ("token_type", Value::Scalars { element: ValueType::I32, bytes: kinds }),
        ("merges", strings(Vec::new())),
        ("bos_token_id", Value::Unsigned(0)),
        ("eos_token_id", Value::Unsigned(0)),
    ];
    pairs.extend(tokenizer.map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)));
    pairs
}

/// The kind of rotation, where it is not the plain one. Files have no word for dynamic scaling, which begins behind the
/// context that the model was trained for.
fn rope_pairs(knobs: &Knobs, extra: &[Tensor], put: &mut impl FnMut(&str, Value)) {
    let scaling = &knobs.config["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or(scaling["type"].as_str());
    let original = scaling["original_max_position_embeddings"].as_u64();
    let original = original.or(knobs.config["original_max_position_embeddings"].as_u64());
    if let Some(kind @ ("linear" | "yarn")) = kind {
        put("rope.scaling.type", Value::String(kind.to_owned()));
        put("rope.scaling.factor", Value::F32(scaling["factor"].as_f64().unwrap() as f32));
    }
    if let Some(original) = original.filter(|_| kind == Some("yarn") || knobs.architecture == "phi3") {
        put("rope.scaling.original_context_length", Value::Unsigned(original));
        let longer = knobs.config["max_position_embeddings"].as_f64().unwrap() / original as f64;
        if extra.iter().any(|tensor| tensor.name == "rope_factors_long.weight") {
            let factor = if longer > 1.0 { (1.0 + longer.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
            put("rope.scaling.attn_factor", Value::F32(factor as f32));
        }
    }
}
