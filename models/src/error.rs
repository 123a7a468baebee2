//! Why a model cannot be read. Each sentence says what was expected, what was found and what to do.

use std::path::PathBuf;

use lathe_ir::op::OpError;

/// Why a model cannot be read or turned into a graph.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot {action} {}: {error}", path.display())]
    Io {
        /// `open`, `map`, `write`, …
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A dry run of something that is not there.
    #[error("expected a config.json, a directory with one, or one of the shapes {known}; found {found}")]
    Shapeless {
        /// The names of the shapes.
        known: String,
        /// What was given.
        found: String,
    },
    /// Another error, and the file in which it was met.
    #[error("{}: {error}", path.display())]
    InFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: Box<ModelError>,
    },
    /// The file is something else.
    #[error("expected {expected}, found {found}; {advice}")]
    Kind {
        /// What was to be read.
        expected: &'static str,
        /// What the file is.
        found: &'static str,
        /// What to do with such a file.
        advice: &'static str,
    },
    /// A GGUF file of another version.
    #[error("expected GGUF version 3, found {found}; convert the model again with a current converter")]
    Version {
        /// The version, in words.
        found: String,
    },
    /// Parts of a model that was split into several files.
    #[error(
        "split model: expected {expected}, found {found}; put all parts of one download, and no others, into one folder \
         under their own names"
    )]
    Split {
        /// What belongs together.
        expected: String,
        /// What is there.
        found: String,
    },
    /// The file ends before what it promises.
    #[error(
        "{what} needs {needed} bytes, found {remaining}: the file is cut short or damaged; get a complete copy of it"
    )]
    Truncated {
        /// What was being read.
        what: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that are there.
        remaining: u64,
    },
    /// The file contradicts its format.
    #[error("{what}: expected {expected}, found {found}; the file is damaged or its converter is faulty")]
    Malformed {
        /// Which part of the file.
        what: String,
        /// What the format allows.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A tensor is stored in a way that this reader does not decode.
    #[error(
        "tensor '{tensor}' is stored as {found}; expected {}: \
         use a file of the same model in one of these types",
        crate::gguf::TensorType::names()
    )]
    TensorType {
        /// The tensor.
        tensor: String,
        /// Its type, by name.
        found: String,
    },
    /// A tensor of a safetensors file whose elements are none that Lathe reads.
    #[error(
        "tensor '{tensor}' is stored as {found}; expected F32, F16 or BF16: use a file of the same model in one of these types"
    )]
    ElementType {
        /// The tensor.
        tensor: String,
        /// Its type, by name.
        found: String,
    },
    /// A name of the Hugging Face hub that leads to no model.
    #[error("expected {expected}, found {found}")]
    Hub {
        /// What would lead to one.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A directory without the files of a model.
    #[error("expected a model directory with {expected}, found {found}")]
    Directory {
        /// The file that it lacks.
        expected: &'static str,
        /// What is there instead, and what to do.
        found: String,
    },
    /// A metadata key that the model cannot be read without.
    #[error("metadata key '{key}' is missing; expected {expected}: convert the model again with a current converter")]
    MissingKey {
        /// The key.
        key: String,
        /// What its value would be.
        expected: &'static str,
    },
    /// A metadata value of the wrong type or out of range, or one that contradicts others.
    #[error("metadata key '{key}': expected {expected}, found {found}; get the file anew, or correct the key")]
    Key {
        /// The key.
        key: String,
        /// What Lathe can work with.
        expected: String,
        /// The value.
        found: String,
    },
    /// A metadata value that asks for what Lathe does not do.
    #[error(
        "metadata key '{key}': expected {expected}, found {found}; Lathe cannot run such a model, use a variant without it"
    )]
    Unsupported {
        /// The key.
        key: String,
        /// What Lathe can work with.
        expected: String,
        /// The value.
        found: String,
    },
    /// Metadata keys that nothing in Lathe reads.
    #[error(
        "metadata not understood: {}; to ignore it could compute another model than the file's, so it is refused: use a \
         variant of the model without it",
        quoted(keys)
    )]
    UnknownKeys {
        /// The keys.
        keys: Vec<String>,
    },
    /// A family that Lathe does not know.
    #[error(
        "the model's architecture is '{found}'; expected one of {}: use a model of one of these families",
        every(known)
    )]
    Architecture {
        /// The architecture in the file.
        found: String,
        /// Those that Lathe knows.
        known: Vec<String>,
    },
    /// A tensor that the architecture needs.
    #[error("tensor '{tensor}' is missing; expected {rows} rows of {cols}: the file holds only a part of the model")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: usize,
        /// Its columns.
        cols: usize,
    },
    /// A name that the checkpoint does not have.
    #[error("the checkpoint has no tensor '{tensor}'; ask only for names that it lists")]
    NoTensor {
        /// The name.
        tensor: String,
    },
    /// A tensor whose shape contradicts the metadata or the way in which it is used.
    #[error(
        "tensor '{tensor}': expected {expected}, found {found}; \
         the tensors and the metadata are of different models, or damaged: get both anew"
    )]
    Shape {
        /// The tensor.
        tensor: String,
        /// The shape that fits.
        expected: String,
        /// The shape in the file.
        found: String,
    },
    /// Tensors that the graph would not use.
    #[error(
        "tensors not understood: {}; to ignore them could compute another model than the file's, so they are refused: use \
         a variant of the model without them",
        quoted(tensors)
    )]
    UnknownTensors {
        /// The tensors.
        tensors: Vec<String>,
    },
    /// A weight or scale that is not a finite number.
    #[error(
        "tensor '{tensor}', row {row}: expected finite numbers, found {value} among its {part}; \
         the file is damaged or the model was trained to ruin"
    )]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The first row with such a number.
        row: usize,
        /// `values`, `scales` or `minima`.
        part: &'static str,
        /// The number.
        value: f32,
    },
    /// A merged weight whose parts do not go together.
    #[error("weight '{weight}': expected {expected}, found {found}")]
    Weight {
        /// Name of the weight in the graph.
        weight: String,
        /// What its arrangement or row order needs.
        expected: String,
        /// What its parts are.
        found: String,
    },
    /// Tokenizer data that contradicts itself.
    #[error("tokenizer: expected {expected}, found {found}; get the tokenizer that belongs to the model")]
    Tokenizer {
        /// What would be consistent.
        expected: String,
        /// What the file says.
        found: String,
    },
    /// The family built an op that the graph refuses: a mistake in Lathe.
    #[error("the graph of this model cannot be built ({0}); this is a mistake in Lathe, please report it")]
    Graph(#[from] OpError),
}

impl ModelError {
    /// Whether the model may be sound, but asks for something that Lathe does not do.
    pub fn is_unsupported(&self) -> bool {
        match self {
            ModelError::InFile { error, .. } => error.is_unsupported(),
            ModelError::Unsupported { .. }
            | ModelError::UnknownKeys { .. }
            | ModelError::UnknownTensors { .. }
            | ModelError::Architecture { .. }
            | ModelError::TensorType { .. }
            | ModelError::ElementType { .. } => true,
            _ => false,
        }
    }

    /// The same error, with the file in which it was met.
    pub(crate) fn in_file(self, path: &std::path::Path) -> ModelError {
        ModelError::InFile { path: path.to_owned(), error: Box::new(self) }
    }
}

/// All names, quoted.
fn every(names: &[String]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

/// `'a', 'b' and 3 more`: a list that stays readable when a file repeats its mistake in every layer.
fn quoted(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect();
    match names.len().saturating_sub(SHOWN) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}
