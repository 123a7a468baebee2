//! Models without weights: the shapes in `models/configs/`, and any other `config.json`.
//!
//! What they open as has a graph but no numbers, so it can be taken through the passes to a schedule and its cost, and no
//! further. Every matrix counts as bf16, as its directory would store it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use lathe_ir::scheme::{Matrix, Scheme};

use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::ModelError;
use crate::hf::generation::Generation;
use crate::layers::decoder;
use crate::{Model, Origin, hf, seeded, views};

macro_rules! shapes {
    ($($name:literal),+ $(,)?) => {
        /// Shapes by name: the published numbers of well-known models.
        pub const SHAPES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../configs/", $name, ".json")))),+];
    };
}

shapes![
    "smollm2-135m",
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.2-1b",
    "mistral-7b-v0.3",
    "qwen2.5-0.5b",
    "qwen2.5-7b",
    "qwen2.5-32b",
    "qwen3-0.6b",
    "qwen3-8b",
    "qwen3-32b",
    "gemma-2-2b",
    "gemma-2-9b",
    "gemma-3-270m",
    "gemma-3-1b",
    "phi-3-mini-4k",
    "phi-4",
];

/// Opens a shape by its name, a `config.json`, or the one in a directory.
///
/// # Errors
/// When there is none, or it asks for something that Lathe does not do.
pub fn open(path: &Path) -> Result<Model, ModelError> {
    if let Some((name, text)) = SHAPES.iter().find(|shape| Path::new(shape.0) == path) {
        return from_config(text.as_bytes(), name);
    }
    let file = if path.is_dir() { path.join("config.json") } else { path.to_owned() };
    if !file.exists() {
        let names: Vec<&str> = SHAPES.iter().map(|shape| shape.0).collect();
        let found = format!("'{}', which is not there", path.display());
        return Err(ModelError::Shapeless { known: names.join(", "), found });
    }
    let bytes = std::fs::read(&file).map_err(|error| ModelError::Io { action: "read", path: file.clone(), error })?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    from_config(&bytes, &name).map_err(|error| error.in_file(&file))
}

/// The model that a `config.json` describes.
///
/// # Errors
/// As [`open`].
pub fn from_config(bytes: &[u8], name: &str) -> Result<Model, ModelError> {
    let (layout, mut config) = hf::read_config(&hf::json::object(bytes, "a config.json")?)?;
    name.clone_into(&mut config.name);
    let tensors = decoder::slots(&config, &layout.names).map(|slot| {
        let scheme = if slot.vector { Scheme::F32 } else { Scheme::BF16 };
        (slot.tensor, TensorInfo { rows: slot.rows, cols: slot.cols, scheme })
    });
    let checkpoint = NoWeights { tensors: tensors.collect() };
    let graph = decoder::build(&config, &layout.names, &checkpoint)?;
    Ok(Model {
        source: format!("{name} (no weights)"),
        names: layout.names,
        config,
        graph,
        checkpoint: Box::new(checkpoint),
        tokenizer: seeded::small_tokenizer(),
        chat_template: None,
        generation: Generation::default(),
        licence: None,
        origin: Origin::default(),
    })
}

/// A checkpoint that knows its tensors' shapes alone.
struct NoWeights {
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint for NoWeights {
    fn names(&self) -> BTreeSet<&str> {
        self.tensors.keys().map(|name| views::stored(name)).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).copied()
    }

    fn load_rows(&self, name: &str, _rows: Range<usize>) -> Result<Matrix, ModelError> {
        Err(ModelError::NoTensor { tensor: name.to_owned() })
    }
}
