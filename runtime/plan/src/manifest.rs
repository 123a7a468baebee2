//! The manifest: what a plan is, for people and tools. Nothing at run time is decided from it.

use serde::{Deserialize, Serialize};

use crate::codec::DecodeError;

/// What a plan is. Fields print in this order; a field that a reader doesn't know is ignored.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// The model's own name.
    pub name: String,
    /// Its architecture (`llama`).
    pub architecture: String,
    /// How many numbers the checkpoint holds.
    pub parameters: u64,
    /// Most positions of a sequence.
    pub max_context: u64,
    /// Size of the vocabulary.
    pub vocabulary: u64,
    /// The targets that the plan holds code for.
    pub targets: Vec<String>,
    /// How weights are stored (`source`, `int4`, …).
    pub quantization: String,
    /// How activations enter matrix products (`f32`, `int8`).
    pub activations: String,
    /// What may be done with the model (`apache-2.0`), where the checkpoint says it.
    pub licence: Option<String>,
    /// The compiler and its version.
    pub compiler: String,
    /// The flags of the compile that change the result.
    pub flags: Vec<String>,
    /// What was compiled.
    pub source: Source,
    /// Bytes of the packed weights.
    pub weights_bytes: u64,
    /// Bytes of them that a step of one token reads: all but the rows of a table that it does not look up.
    pub weights_bytes_per_token: u64,
    /// What the decoder is made of, beyond its architecture's name.
    pub knobs: Vec<Knob>,
    /// What the attention of each layer reads.
    pub attention: Vec<Attention>,
    /// The programs that guess what the main one will say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drafters: Vec<Drafter>,
    /// Each packed tensor.
    pub tensors: Vec<Tensor>,
}

/// The checkpoint that was compiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    /// Its format (`gguf`, `safetensors`).
    pub format: String,
    /// BLAKE3 of its bytes, in hex.
    pub blake3: String,
}

/// One number or choice of a decoder.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Knob {
    /// Its name (`query heads`).
    pub name: String,
    /// Its value (`14, with 2 key/value heads, 64 elements each`).
    pub value: String,
}

/// The attention of a layer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Attention {
    /// The cache that it reads (`kv.0`).
    pub cache: String,
    /// What it reads of it and how it makes scores, with the reason.
    pub variant: String,
}

/// A program that guesses what the main one will say.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Drafter {
    /// The program's name (`draft`).
    pub program: String,
    /// The model's own name.
    pub name: String,
    /// Its architecture.
    pub architecture: String,
    /// How many numbers its checkpoint holds.
    pub parameters: u64,
    /// Most positions of a sequence.
    pub max_context: u64,
    /// How its weights are stored.
    pub quantization: String,
    /// Bytes of its packed weights; 0 where it reads those of the main program.
    pub weights_bytes: u64,
    /// Bytes of weights that a guess reads.
    pub weights_bytes_per_token: u64,
    /// What was compiled.
    pub source: Source,
    /// The layers of the main program that it leaves out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<u32>,
    /// How a search for those went: each choice that it came by, from the fewest layers on.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub curve: Vec<LeftOut>,
}

/// What leaving layers out gives.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeftOut {
    /// The layers.
    pub layers: Vec<u32>,
    /// Of the next tokens of the calibration text, how many it says as the whole program does.
    pub right: f64,
    /// Bytes of weights that a guess reads, as a share of what the whole program reads for a token.
    pub share: f64,
    /// How many times faster answers are at best, by the bytes read.
    pub gain: f64,
    /// Guesses of a step with which they are.
    pub depth: u32,
}

/// How a tensor is stored, and what that cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tensor {
    /// Name in the graph.
    pub name: String,
    /// Rows, columns.
    pub shape: Vec<u64>,
    /// The checkpoint's type (`Q4_1`).
    pub source: String,
    /// The scheme chosen.
    pub scheme: String,
    /// Packed bytes.
    pub bytes: u64,
    /// ‖stored − source‖ / ‖source‖; `None` where it is not a finite number.
    pub error: Option<f64>,
}

impl Manifest {
    /// As indented JSON.
    pub fn to_json(&self) -> String {
        // Maps with keys that are no strings are the only thing that serde_json refuses here, and there is none.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// From JSON.
    pub fn from_json(text: &str) -> Result<Manifest, DecodeError> {
        serde_json::from_str(text).map_err(|error| DecodeError::Json(error.to_string()))
    }
}

/// How many times faster answers get at best, and with how many guesses a step, when a guess is right with this chance and
/// reads such a share of what a step of the model reads, which verifies all of them at once.
pub fn best_gain(right: f64, share: f64) -> (f64, u32) {
    let tokens = |guesses: u32| (0..=guesses).map(|n| right.powf(f64::from(n))).sum::<f64>();
    let gain = |guesses: u32| (tokens(guesses) / (1.0 + share * f64::from(guesses)), guesses);
    (1..=16).map(gain).max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((1.0, 0))
}
