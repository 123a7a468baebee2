//! Readers of checkpoints and the families of models: a file becomes a graph, a source of weights and a tokenizer.
//!
//! [`open`] reads a GGUF file or a Hugging Face directory into a [`Model`]. The graph is the unfused one that [`layers`] build from the knobs of
//! a [`config::ModelConfig`]; its weights name tensors of the checkpoint, whose data [`checkpoint::assemble`] loads.
//! Whatever a file says that Lathe does not understand is refused by name, never ignored.

mod bytes;
pub mod checkpoint;
pub mod config;
pub mod error;
pub mod families;
pub mod gguf;
pub mod hf;
pub mod layers;
mod mapping;
pub mod seeded;
pub mod shapes;
mod sniff;
pub mod template;
pub mod tokenizer;
pub mod views;

use std::path::{Path, PathBuf};

use lathe_ir::graph::Graph;
use lathe_ir::types::DType;

use checkpoint::Checkpoint;
use config::{Metadata, ModelConfig};
pub use error::ModelError;
use gguf::{Gguf, Value};
use hf::generation::Generation;
use layers::decoder::TensorNames;
use tokenizer::Tokenizer;
use views::Views;

/// A model, ready to be compiled.
pub struct Model {
    /// Its knobs.
    pub config: ModelConfig,
    /// Names of its tensors in the checkpoint.
    pub names: TensorNames,
    /// One step of it, unfused.
    pub graph: Graph,
    /// Its weights.
    pub checkpoint: Box<dyn Checkpoint>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Template (Jinja) that renders a chat as text.
    pub chat_template: Option<String>,
    /// How its authors would have its tokens sampled.
    pub generation: Generation,
    /// Name of its licence, as the file gives it.
    pub licence: Option<String>,
    /// Where it came from, for people.
    pub source: String,
    /// What it was read from.
    pub origin: Origin,
}

/// What a model was read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// `gguf` or `hf`; empty for a model that was made in memory.
    pub format: &'static str,
    /// The files, sorted.
    pub files: Vec<PathBuf>,
}

impl Model {
    /// Chooses the element type of the key/value cache and builds the graph anew where it has another.
    ///
    /// # Errors
    /// None for a model that was opened; as [`open`] otherwise.
    pub fn with_cache(mut self, cache: DType) -> Result<Model, ModelError> {
        if self.config.cache == cache {
            return Ok(self);
        }
        self.config.cache = cache;
        self.graph = layers::decoder::build(&self.config, &self.names, &*self.checkpoint)?;
        Ok(self)
    }
}

/// Opens a GGUF file, a Hugging Face directory, or the directory that `hf://org/name` stands for. The key/value cache
/// is of type f16; see [`Model::with_cache`]. The files must not change while the model is in use.
///
/// # Errors
/// When the file cannot be read, is damaged or is of another kind, and when it asks for something that Lathe does not
/// do. The message says what to do.
pub fn open(path: &Path) -> Result<Model, ModelError> {
    if let Some(folder) = path.to_str().and_then(hf::hub::resolve) {
        return hf::open(&folder?);
    }
    if path.is_dir() {
        return hf::open(path);
    }
    let file_name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let gguf = Gguf::open(path)?;
    let origin = Origin { format: "gguf", files: gguf.files() };
    let model = from_gguf(gguf, &file_name).map_err(|error| error.in_file(path))?;
    Ok(Model { origin, ..model })
}

/// Makes a model of a file that is open already; `file_name` goes into its `source`.
///
/// # Errors
/// As [`open`], when the metadata or tensors are not those of a model that Lathe understands.
pub fn from_gguf(gguf: Gguf, file_name: &str) -> Result<Model, ModelError> {
    let metadata = Metadata::new(&gguf.metadata);
    check_general(&metadata)?;
    let layout = families::find(metadata.text("general.architecture")?)?;
    let mut config = (layout.config)(&metadata)?;
    let names = families::names_in(&layout, &gguf);
    let read = families::apply_tensors(&metadata, &gguf, &names, &mut config)?;
    config.check()?;
    config.tied_head = gguf.tensor(names.head).is_none();
    let tokenizer = Tokenizer::read(&metadata)?;
    if let Some(rows) = gguf.tensor(names.embed).map(|info| info.rows).filter(|&rows| rows != config.vocab) {
        let expected = format!("a token for each of the {rows} rows of '{}'", names.embed);
        return Err(ModelError::Tokenizer { expected, found: format!("{} tokens", config.vocab) });
    }
    let tool_use = metadata.optional_text("tokenizer.chat_template.tool_use")?;
    let chat_template = metadata.optional_text("tokenizer.chat_template")?;
    let chat_template = chat_template.map(|default| template::with_tool_use(default, tool_use));
    let licence = metadata.optional_text("general.license")?.map(str::to_owned);
    metadata.skip(INFORMATIVE);
    metadata.finish()?;
    let checkpoint = Views::new(Box::new(gguf), &config, &names, read)?;
    let graph = layers::decoder::build(&config, &names, &checkpoint)?;
    let source = format!("{} ({file_name})", config.name);
    Ok(Model {
        config,
        names,
        graph,
        checkpoint: Box::new(checkpoint),
        tokenizer,
        chat_template,
        generation: Generation::default(),
        licence,
        source,
        origin: Origin::default(),
    })
}

/// Keys that describe a file and change nothing in what the model computes, by prefix: also templates for other uses than
/// chats, and tokens for uses that Lathe does not have.
const INFORMATIVE: &[&str] = &[
    "general.",
    "quantize.",
    "tokenizer.chat_template.",
    "tokenizer.chat_templates",
    "tokenizer.ggml.cls_token_id",
    "tokenizer.ggml.fim_",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.middle_token_id",
    "tokenizer.ggml.prefix_token_id",
    "tokenizer.ggml.seperator_token_id",
    "tokenizer.ggml.suffix_token_id",
];

/// Keys of the file at large that say that it is not a whole model, or not one that this reader understands.
fn check_general(metadata: &Metadata) -> Result<(), ModelError> {
    let wrong = |key: &str, expected: &str, found: String| {
        Err(ModelError::Unsupported { key: key.to_owned(), expected: expected.to_owned(), found })
    };
    if let Some(kind) = metadata.optional_text("general.type")?.filter(|&kind| kind != "model") {
        return wrong("general.type", "'model'", format!("'{kind}'"));
    }
    match metadata.get("general.quantization_version") {
        None | Some(Value::Unsigned(2)) => Ok(()),
        Some(other) => wrong("general.quantization_version", "2", other.describe()),
    }
}
