//! Small random models from a seed: what tests and dry runs use where no real weights are at hand.
//!
//! Weights are uniform with variance `1/K`, so that every product keeps the size of its input and logits come out
//! near one. A tensor's values depend on the seed and its name alone, not on what other tensors there are.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use half::{bf16, f16};
use lathe_ir::scheme::{Code, Matrix, MatrixData, Scales, Scheme, Zero};
use lathe_ir::types::DType;

use crate::checkpoint::{Checkpoint, TensorInfo, rows_of};
use crate::config::{Knobs, ModelConfig, Rope, RopeLayout, Scaling};
use crate::error::ModelError;
use crate::families;
use crate::hf::generation::Generation;
use crate::layers::decoder::{self, Slot};
use crate::tokenizer::{Algorithm, Merge, PreTokenizer, Token, TokenKind, Tokenizer};
use crate::{Model, Origin};

/// A llama of two layers with all features of a large one: grouped heads, attention of another width than the
/// residual stream, a feed-forward width of its own, a tied head. [`small_tokenizer`] is its tokenizer.
pub fn small_llama() -> ModelConfig {
    ModelConfig {
        architecture: "llama".to_owned(),
        name: "small".to_owned(),
        hidden: 64,
        layers: 2,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
        ffn: 96,
        vocab: small_tokenizer().tokens.len(),
        context: 512,
        longest: None,
        norm_eps: 1e-5,
        rope: Rope { theta: 10_000.0, layout: RopeLayout::Pairs, partial: None, scaling: Scaling::None },
        knobs: Knobs::default(),
        tied_head: true,
        cache: DType::F16,
    }
}

/// A small model of every family: [`small_llama`] with what sets the family apart.
pub fn small_configs() -> Vec<ModelConfig> {
    let llama = small_llama();
    let halves = Rope { layout: RopeLayout::Halves, ..llama.rope.clone() };
    let qwen2 = ModelConfig {
        architecture: "qwen2".to_owned(),
        knobs: Knobs { attention_bias: true, ..Knobs::default() },
        rope: halves,
        tied_head: false,
        ..llama.clone()
    };
    vec![llama, qwen2]
}

/// The model of [`small_llama`], with its matrices in one scheme; wider for super-blocks, whose rows are whole spans.
///
/// # Errors
/// When the scheme's groups do not divide the rows.
pub fn small_model(seed: u64, scheme: Scheme) -> Result<Model, ModelError> {
    let mut config = small_llama();
    if !config.hidden.is_multiple_of(scheme.span()) {
        (config.hidden, config.head_dim, config.ffn) = (scheme.span(), scheme.span() / config.heads, scheme.span());
    }
    model(config, small_tokenizer(), seed, &|_| scheme)
}

/// A random model of any size; `scheme` chooses how each matrix is stored, by its name in the checkpoint.
///
/// # Errors
/// When the knobs contradict one another or a scheme's groups do not divide the rows.
pub fn model(
    config: ModelConfig,
    tokenizer: Tokenizer,
    seed: u64,
    scheme: &dyn Fn(&str) -> Scheme,
) -> Result<Model, ModelError> {
    config.check()?;
    let names = families::find(&config.architecture)?.names;
    let checkpoint = seeded(&config, seed, scheme)?;
    let graph = decoder::build(&config, &names, &checkpoint)?;
    Ok(Model {
        source: format!("{} (random, seed {seed})", config.name),
        config,
        names,
        graph,
        checkpoint: Box::new(checkpoint),
        tokenizer,
        chat_template: Some(SMALL_TEMPLATE.to_owned()),
        generation: Generation::default(),
        licence: Some("mit".to_owned()),
        origin: Origin::default(),
    })
}

/// Random weights for a model of these knobs; `scheme` chooses how each matrix is stored, by its name.
///
/// # Errors
/// When the family is unknown or a scheme's groups do not divide the rows.
pub fn seeded(
    config: &ModelConfig,
    seed: u64,
    scheme: &dyn Fn(&str) -> Scheme,
) -> Result<MemoryCheckpoint, ModelError> {
    let names = families::find(&config.architecture)?.names;
    let mut tensors = BTreeMap::new();
    for slot in decoder::slots(config, &names) {
        let scheme = if slot.vector { Scheme::F32 } else { scheme(&slot.tensor) };
        let matrix = random_tensor(&slot, seed, scheme)?;
        tensors.insert(slot.tensor, Stored { scheme, matrix });
    }
    Ok(MemoryCheckpoint { tensors })
}

/// A checkpoint in memory.
#[derive(Clone, Debug)]
pub struct MemoryCheckpoint {
    tensors: BTreeMap<String, Stored>,
}

#[derive(Clone, Debug)]
struct Stored {
    scheme: Scheme,
    matrix: Matrix,
}

impl MemoryCheckpoint {
    /// A checkpoint of the given tensors, each with the scheme that it is said to be stored in.
    pub fn new(tensors: impl IntoIterator<Item = (String, Scheme, Matrix)>) -> MemoryCheckpoint {
        let stored = |(name, scheme, matrix)| (name, Stored { scheme, matrix });
        MemoryCheckpoint { tensors: tensors.into_iter().map(stored).collect() }
    }
}

impl Checkpoint for MemoryCheckpoint {
    fn names(&self) -> BTreeSet<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        let Stored { scheme, matrix } = self.tensors.get(name)?;
        Some(TensorInfo { rows: matrix.rows, cols: matrix.cols, scheme: *scheme })
    }

    fn load_rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, ModelError> {
        let info = self.tensor(name).ok_or_else(|| ModelError::NoTensor { tensor: name.to_owned() })?;
        info.check_rows(name, &rows)?;
        let matrix = &self.tensors[name].matrix;
        let data = match &matrix.data {
            MatrixData::Float(values) => MatrixData::Float(rows_of(values, matrix.rows, rows.clone()).to_vec()),
            MatrixData::Quantized { scheme, codes, scales, mins, subs } => MatrixData::Quantized {
                scheme: *scheme,
                codes: rows_of(codes, matrix.rows, rows.clone()).to_vec(),
                scales: rows_of(scales, matrix.rows, rows.clone()).to_vec(),
                mins: rows_of(mins, matrix.rows, rows.clone()).to_vec(),
                subs: rows_of(subs, matrix.rows, rows.clone()).to_vec(),
            },
        };
        Ok(Matrix { rows: rows.len(), cols: matrix.cols, data })
    }
}

fn random_tensor(slot: &Slot, seed: u64, scheme: Scheme) -> Result<Matrix, ModelError> {
    let &Slot { rows, cols, vector, .. } = slot;
    let mut random = Random::named(seed, &slot.tensor);
    // Uniform numbers in ±bound have the variance bound²/3.
    let bound = (3.0 / cols as f32).sqrt();
    let data = match scheme.code {
        // The weights of a norm lie around one.
        Code::Float(_) if vector => MatrixData::Float((0..cols).map(|_| 1.0 + random.within(0.25)).collect()),
        Code::Float(dtype) => {
            let value = |value: f32| match dtype {
                DType::Bf16 => bf16::from_f32(value).to_f32(),
                DType::F16 => f16::from_f32(value).to_f32(),
                DType::F32 | DType::I32 | DType::Int8 => value,
            };
            MatrixData::Float((0..rows * cols).map(|_| value(random.within(bound))).collect())
        }
        Code::Uniform { .. } | Code::Table if !cols.is_multiple_of(scheme.span()) => {
            return Err(ModelError::Shape {
                tensor: slot.tensor.clone(),
                expected: format!("a multiple of {} columns for {scheme}", scheme.span()),
                found: format!("{cols} columns"),
            });
        }
        Code::Uniform { .. } | Code::Table => random_codes(&mut random, rows * cols, scheme, bound),
    };
    Ok(Matrix { rows, cols, data })
}

fn random_codes(random: &mut Random, count: usize, scheme: Scheme, bound: f32) -> MatrixData {
    let bits = scheme.bits();
    let codes = (0..count).map(|_| (random.next() >> (64 - bits)) as u8).collect();
    let steps = f32::from(scheme.level(u8::MAX >> (8 - bits)) - scheme.level(0));
    let (mut scales, mut mins, mut subs) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..count / scheme.scale_columns() {
        // Each group has its own range, between three quarters of the bound and all of it.
        let range = bound * (0.875 + random.within(0.125));
        let (mut scale, mut min) = (2.0 * range / steps, 0.0);
        if scheme.zero == Zero::Min {
            min = -range + random.within(0.1) * range;
        }
        if let Scales::Super { bits } = scheme.scales {
            let largest = u8::MAX >> (8 - bits);
            let least = scheme.sub_zero() + (largest - scheme.sub_zero()) / 4 * 3;
            let integers = scheme.span() / scheme.group * scheme.parameters();
            subs.extend((0..integers).map(|_| least + (random.next() % u64::from(largest - least + 1)) as u8));
            scale /= f32::from(largest - scheme.sub_zero());
            min /= f32::from(largest);
        }
        scales.push(f16::from_f32(scale));
        if scheme.zero == Zero::Min {
            mins.push(f16::from_f32(min));
        }
    }
    MatrixData::Quantized { scheme, codes, scales, mins, subs }
}

/// The generator `SplitMix64` (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
struct Random(u64);

impl Random {
    /// A stream of its own for each name (which FNV-1a hashes).
    fn named(seed: u64, name: &str) -> Random {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        let mut random = Random(hash ^ seed);
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Uniform between −bound and bound; 24 bits, so that each step is exact in f32.
    fn within(&mut self, bound: f32) -> f32 {
        let unit = (self.next() >> 40) as f32 / (1u32 << 24) as f32;
        (2.0 * unit - 1.0) * bound
    }
}

/// Each message as `<|im_start|>ROLE`, its text and `<|im_end|>`, on lines.
const SMALL_TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + \
    message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Merges of the small tokenizer, first to last.
const SMALL_MERGES: [(&str, &str); 28] = [
    (" ", "t"),
    ("h", "e"),
    ("i", "n"),
    ("r", "e"),
    ("o", "n"),
    (" t", "he"),
    ("e", "r"),
    (" ", "a"),
    (" ", "s"),
    ("a", "t"),
    ("n", "d"),
    (" ", "w"),
    ("o", "u"),
    (" ", "o"),
    ("e", "s"),
    ("in", "g"),
    (" a", "nd"),
    (" ", "c"),
    ("i", "t"),
    ("o", "r"),
    ("e", "n"),
    (" ", "h"),
    ("l", "l"),
    ("l", "o"),
    ("he", "ll"),
    ("hell", "o"),
    (" o", "f"),
    ("\n", "\n"),
];

/// A byte-level BPE of 128 tokens: three special ones, tab, newline, printable ASCII and what a few merges make. As
/// in many real vocabularies, some bytes have no token.
pub fn small_tokenizer() -> Tokenizer {
    let special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(|text| (text.to_owned(), TokenKind::Control));
    let ascii = "\t\n".chars().chain(' '..='~').map(|character| (character.to_string(), TokenKind::Normal));
    let merged = SMALL_MERGES.iter().map(|(left, right)| (format!("{left}{right}"), TokenKind::Normal));
    let texts: Vec<(String, TokenKind)> = special.into_iter().chain(ascii).chain(merged).collect();

    let id = |text: &str| texts.iter().position(|(token, _)| token == text).map(|id| id as u32);
    let merge = |(left, right): &(&str, &str)| {
        Some(Merge { left: id(left)?, right: id(right)?, merged: id(&format!("{left}{right}"))? })
    };
    let merges = SMALL_MERGES.iter().filter_map(merge).collect();
    let tokens = texts.iter().map(|(text, kind)| Token { bytes: text.as_bytes().to_vec(), kind: *kind }).collect();
    Tokenizer {
        algorithm: Algorithm::Bpe { pre: PreTokenizer::SmolLm, whole_pieces: false, nfc: false, merges },
        matching: BTreeMap::new(),
        tokens,
        bos: Some(1),
        eos: Some(2),
        eot: None,
        ends: Vec::new(),
        pad: Some(2),
        unk: Some(0),
        add_bos: false,
        add_eos: false,
    }
}
