//! Checkpoints made up from the names of their tensors, and the logits that others computed for them.
//!
//! `tests/reference/record_logits.py` made the files of `tests/data/recorded` and says how; the weights themselves are
//! not stored but made again here.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Name, shape with the outermost dimension first, numbers.
pub type Tensor = (String, Vec<usize>, Vec<f32>);

/// What was recorded of one checkpoint.
pub struct Case {
    pub name: String,
    content: Value,
    /// Rows of `[R, V]`, one after the other.
    pub logits: Vec<f32>,
}

/// Every case, by name.
pub fn cases() -> Vec<Case> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/data/recorded");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|of| of == "json")).collect();
    files.sort();
    files.iter().map(|path| Case::read(path)).collect()
}

impl Case {
    fn read(path: &Path) -> Case {
        let logits = fs::read(path.with_extension("f32")).unwrap();
        Case {
            name: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            content: serde_json::from_slice(&fs::read(path).unwrap()).unwrap(),
            logits: logits.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
        }
    }

    fn integers(&self, key: &str) -> Vec<i32> {
        self.content[key].as_array().unwrap().iter().map(|id| id.as_i64().unwrap() as i32).collect()
    }

    /// The tokens of the one sequence.
    pub fn tokens(&self) -> Vec<i32> {
        self.integers("tokens")
    }

    /// The positions whose logits were recorded.
    pub fn rows(&self) -> Vec<i32> {
        self.integers("rows")
    }

    /// The knobs, as `config.json` has them.
    pub fn config(&self) -> &Value {
        &self.content["config"]
    }

    /// Every tensor.
    pub fn tensors(&self) -> Vec<Tensor> {
        let size = |dim: &Value| dim.as_u64().unwrap() as usize;
        let tensor = |(name, shape): (&String, &Value)| {
            let shape: Vec<usize> = shape.as_array().unwrap().iter().map(size).collect();
            let values = weights(name, &shape).collect();
            (name.clone(), shape, values)
        };
        self.content["tensors"].as_object().unwrap().iter().map(tensor).collect()
    }

    /// The same family with another number of layers, of which nothing was recorded.
    pub fn with_layers(mut self, layers: usize, knobs: &Value) -> Case {
        let tensors = self.content["tensors"].as_object_mut().unwrap();
        let first: Vec<(String, Value)> = tensors
            .iter()
            .filter(|(name, _)| name.contains(".layers.0."))
            .map(|(name, shape)| (name.clone(), shape.clone()))
            .collect();
        for layer in 0..layers {
            tensors
                .extend(first.iter().map(|(name, shape)| (name.replace(".0.", &format!(".{layer}.")), shape.clone())));
        }
        self.content["config"]["num_hidden_layers"] = layers.into();
        self.content["config"].as_object_mut().unwrap().extend(knobs.as_object().unwrap().clone());
        Case { name: format!("{}-{layers}-layers", self.name), content: self.content, logits: Vec::new() }
    }

    /// Writes the checkpoint as a Hugging Face directory.
    pub fn write(&self, folder: &Path) {
        self.write_tensors(folder, self.tensors());
    }

    /// Writes a directory with other tensors than the checkpoint's own.
    pub fn write_tensors(&self, folder: &Path, tensors: Vec<Tensor>) {
        fs::create_dir_all(folder).unwrap();
        let mut header = Map::new();
        let mut data: Vec<u8> = Vec::new();
        for (name, shape, values) in tensors {
            let start = data.len();
            data.extend(values.into_iter().flat_map(f32::to_le_bytes));
            let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, data.len()] });
            header.insert(name, entry);
        }
        let header = Value::Object(header).to_string();
        let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        fs::write(folder.join("model.safetensors"), file).unwrap();
        fs::write(folder.join("config.json"), self.content["config"].to_string()).unwrap();
        let vocabulary = self.content["config"]["vocab_size"].as_u64().unwrap();
        fs::write(folder.join("tokenizer.json"), tokenizer(vocabulary).to_string()).unwrap();
    }
}

/// `SplitMix64` from the FNV-1a hash of the name, eight bits of each output as an odd integer over 1024. A vector that
/// scales lies around one.
fn weights(name: &str, shape: &[usize]) -> impl Iterator<Item = f32> {
    let hash = |state: u64, byte: u8| (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    let state = name.bytes().fold(0xcbf2_9ce4_8422_2325, hash);
    let around = if shape.len() == 1 && name.ends_with(".weight") { 1.0 } else { 0.0 };
    (1..=shape.iter().product::<usize>() as u64).map(move |index| {
        let mut mixed = state.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        ((mixed >> 56) as f32 * 2.0 - 255.0) / 1024.0 + around
    })
}

/// A tokenizer of so many tokens. No test reads a text by it: its tokens are single characters, and words of digits.
fn tokenizer(vocabulary: u64) -> Value {
    let characters = ('!'..='~').map(String::from).chain((100..).map(|number| format!("<{number}>")));
    let vocab: Map<String, Value> = characters.zip(0..vocabulary).map(|(text, id)| (text, id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [],
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Digits", "individual_digits": true },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true },
        ] },
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    })
}
