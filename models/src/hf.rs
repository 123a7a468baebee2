//! Reader of model directories as the Hugging Face hub keeps them: `config.json`, safetensors, `tokenizer.json` and
//! what belongs to them.
//!
//! Every knob of `config.json` is read, known to change nothing, or refused by name. A file that is something else (a
//! git-LFS pointer, a web page, another tool's format) is named for what it is. Of `generation_config.json` the ids of
//! the tokens that end an answer are read, and how tokens should be sampled ([`generation`]).

pub mod generation;
pub mod hub;
pub mod json;
pub mod safetensors;
mod spelling;
pub mod tokenizer;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::config::{Metadata, ModelConfig};
use crate::error::ModelError;
use crate::families::Layout;
use crate::layers::decoder::{self, TensorNames};
use crate::tokenizer::Tokenizer;
use crate::views::Views;
use crate::{Model, Origin, families, mapping, sniff, template};
use generation::Generation;
use safetensors::{Shard, Shards};
use tokenizer::Settings;

/// Keys of `config.json` that change nothing in what the model computes: notes of the tools that wrote the file, how
/// it was trained, and how that library runs it. The ids of special tokens are read elsewhere.
const INFORMATIVE: &[&str] = &[
    "_attn_implementation_autoset",
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "attn_pdrop",
    "auto_map.",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "embd_pdrop",
    "embedding_dropout",
    "eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "is_llama_config",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "resid_pdrop",
    "residual_dropout",
    "return_dict",
    "summary_",
    "task_specific_params.",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_",
    "use_cache",
];

/// The files of a directory, and which of them were read.
struct Folder<'a> {
    path: &'a Path,
    read: Vec<PathBuf>,
}

impl Folder<'_> {
    fn bytes(&mut self, name: &str) -> Result<Option<Vec<u8>>, ModelError> {
        let path = self.path.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => {
                self.read.push(path);
                Ok(Some(bytes))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ModelError::Io { action: "read", path, error }),
        }
    }

    /// What `read` makes of a file, with the file's name in its error.
    fn file<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&[u8]) -> Result<T, ModelError>,
    ) -> Result<Option<T>, ModelError> {
        let bytes = self.bytes(name)?;
        bytes.map(|bytes| read(&bytes).map_err(|error| error.in_file(&self.path.join(name)))).transpose()
    }

    fn object(&mut self, name: &str) -> Result<Option<Map<String, Value>>, ModelError> {
        self.file(name, |bytes| json::object(bytes, "a JSON file"))
    }

    fn needed(&self, expected: &'static str) -> ModelError {
        ModelError::Directory { expected, found: self.strangers() }
    }

    /// What is in the directory, with the first file of a kind that is known to be no model of this reader's.
    fn strangers(&self) -> String {
        let entries = std::fs::read_dir(self.path).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(|path| path.is_file()).collect();
        paths.sort();
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        for path in &paths {
            let known = mapping::map(path).ok().and_then(|bytes| sniff::known(&bytes));
            if let Some((kind, advice)) = known {
                return format!("'{}', {kind}; {advice}", name(path));
            }
        }
        match paths.iter().map(name).take(8).collect::<Vec<_>>().as_slice() {
            [] => "no files".to_owned(),
            names => format!("{}; download the whole model again", names.join(", ")),
        }
    }
}

/// Opens a directory. Its files must not change while the model is in use.
///
/// # Errors
/// When a file is missing, damaged or of another kind, and when the model asks for something that Lathe does not do.
pub fn open(path: &Path) -> Result<Model, ModelError> {
    let mut folder = Folder { path, read: Vec::new() };
    let Some(object) = folder.object("config.json")? else {
        return Err(folder.needed("a config.json").in_file(path));
    };
    let in_config = |error: ModelError| error.in_file(&path.join("config.json"));
    let (layout, mut config) = read_config(&object).map_err(in_config)?;
    let mut checkpoint = weights(&mut folder)?;
    let names = families::names_in(&layout, &checkpoint);
    drop_copies(&mut checkpoint, &config, &names)?;
    let checkpoint =
        Views::new(Box::new(checkpoint), &config, &names, BTreeSet::new()).map_err(|error| error.in_file(path))?;
    let graph = decoder::build(&config, &names, &checkpoint).map_err(|error| error.in_file(path))?;

    let settings = folder.object("generation_config.json")?;
    let generation = settings.as_ref().map(Generation::read).transpose();
    let generation = generation.map_err(|error| error.in_file(&path.join("generation_config.json")))?;
    let (tokenizer, chat_template) = read_tokenizer(&mut folder, &object, settings.as_ref(), config.vocab)?;
    config.name = model_name(path);
    folder.read.sort();
    Ok(Model {
        source: format!("{} ({})", config.name, path.display()),
        names,
        config,
        graph,
        checkpoint: Box::new(checkpoint),
        tokenizer,
        chat_template,
        generation: generation.unwrap_or_default(),
        licence: licence(&mut folder)?,
        origin: Origin { format: "hf", files: folder.read },
    })
}

pub(crate) fn read_config(object: &Map<String, Value>) -> Result<(Layout, ModelConfig), ModelError> {
    let knobs = json::knobs(object);
    let metadata = Metadata::new(&knobs);
    let [architecture] = metadata.texts("architectures")? else {
        let found = object["architectures"].to_string();
        return Err(ModelError::Key { key: "architectures".to_owned(), expected: "one name".to_owned(), found });
    };
    let layout = families::find_hf(architecture)?;
    let config = (layout.config)(&metadata)?;
    config.check().map_err(|error| spelling::respell(error, &metadata))?;
    check_type(&metadata, &layout)?;
    metadata.skip(INFORMATIVE);
    metadata.finish()?;
    Ok((layout, config))
}

/// Refuses a `model_type` that is another family's than the architecture's. One that no family has changes nothing.
fn check_type(metadata: &Metadata, layout: &Layout) -> Result<(), ModelError> {
    let plain = |architecture: &str| {
        let name = architecture.strip_suffix("ForCausalLM").or(architecture.strip_suffix("LMHeadModel"));
        name.unwrap_or(architecture).to_lowercase()
    };
    let own = plain(layout.architecture);
    let Some(stated) = metadata.optional_text("model_type")? else { return Ok(()) };
    let stated = stated.strip_suffix("_text").unwrap_or(stated);
    let is_known = |family: &families::Family| family.hf.is_some_and(|layout| plain(layout.architecture) == stated);
    if stated != own && families::FAMILIES.iter().any(is_known) {
        return metadata.contradicts("model_type", format!("'{own}', as architectures says {}", layout.architecture));
    }
    Ok(())
}

/// The tensors: of one file, or of those that the index names.
fn weights(folder: &mut Folder) -> Result<Shards, ModelError> {
    const WHOLE: &str = "model.safetensors";
    let index = folder.file("model.safetensors.index.json", safetensors::index)?;
    let whole = folder.path.join(WHOLE).exists();
    let files: BTreeSet<&str> = match &index {
        Some(_) if whole => {
            let found = format!("both {WHOLE} and an index of several files; keep the one that belongs to the model");
            return Err(ModelError::Directory { expected: "one set of weights", found }.in_file(folder.path));
        }
        Some(index) => index.values().map(String::as_str).collect(),
        None if whole => BTreeSet::from([WHOLE]),
        None => return Err(folder.needed("a model.safetensors, or an index of several").in_file(folder.path)),
    };
    let mut shards = Vec::new();
    for name in files {
        let path = folder.path.join(name);
        shards.push((name.to_owned(), Shard::open(&path)?));
        folder.read.push(path);
    }
    Shards::new(shards, index.as_ref()).map_err(|error| error.in_file(folder.path))
}

/// Leaves out a tied head that is stored a second time.
fn drop_copies(checkpoint: &mut Shards, config: &ModelConfig, names: &TensorNames) -> Result<(), ModelError> {
    let is_copy = config.tied_head && checkpoint.are_equal(names.head, names.embed)?;
    checkpoint.retain(|name| !(is_copy && name == names.head));
    Ok(())
}

fn read_tokenizer(
    folder: &mut Folder,
    config: &Map<String, Value>,
    generation: Option<&Map<String, Value>>,
    vocab: usize,
) -> Result<(Tokenizer, Option<String>), ModelError> {
    let path = folder.path.join("tokenizer.json");
    let Some(file) = folder.object("tokenizer.json")? else {
        let others = [
            ("tokenizer.model", "SentencePiece's own file, which says less than the model's authors do with it"),
            ("vocab.json", "the vocabulary of an older tokenizer, which does not say how text is cut"),
        ];
        let other = others.into_iter().find(|(name, _)| folder.path.join(name).exists());
        let error = other.map_or_else(
            || folder.needed("a tokenizer.json"),
            |(name, what)| ModelError::Directory {
                expected: "a tokenizer.json",
                found: format!(
                    "{name}, {what}; make one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
                ),
            },
        );
        return Err(error.in_file(folder.path));
    };
    let settings_file = folder.object("tokenizer_config.json")?;
    let map = folder.object("special_tokens_map.json")?;
    let settings = Settings { config: settings_file.as_ref(), map: map.as_ref() };
    let mut tokenizer = tokenizer::read(&file, settings, vocab).map_err(|error| error.in_file(&path))?;

    let files = generation.into_iter().map(|file| (file, "generation_config.json")).chain([(config, "config.json")]);
    for (file, name) in files {
        if let Some(ids) = file.get("eos_token_id").filter(|ids| !ids.is_null() && tokenizer.ends.is_empty()) {
            tokenizer.ends = end_tokens(ids, vocab).map_err(|error| error.in_file(&folder.path.join(name)))?;
        }
    }
    tokenizer.eos = tokenizer.eos.or_else(|| tokenizer.ends.first().copied());

    let text = |bytes: &[u8]| match std::str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(json::malformed("the template", "UTF-8 text", &error.to_string())),
    };
    let template = match folder.file("chat_template.jinja", text)? {
        Some(default) => {
            let tool_use = folder.file("additional_chat_templates/tool_use.jinja", text)?;
            Some(template::with_tool_use(&default, tool_use.as_deref()))
        }
        None => settings.chat_template()?,
    };
    Ok((tokenizer, template))
}

/// One id or a list of them.
fn end_tokens(value: &Value, vocab: usize) -> Result<Vec<u32>, ModelError> {
    let ids = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    let id = |id: &Value| id.as_u64().filter(|&id| id < vocab as u64).map(|id| id as u32);
    let wrong = || json::malformed("'eos_token_id'", format!("token ids below {vocab}"), &value.to_string());
    ids.iter().map(id).collect::<Option<_>>().ok_or_else(wrong)
}

/// `org/name` of a snapshot in the hub's cache, else the directory's own name.
fn model_name(path: &Path) -> String {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let names = path.ancestors().filter_map(|ancestor| ancestor.file_name()?.to_str());
    let of_hub = names.clone().find_map(|name| name.strip_prefix("models--")).map(|name| name.replacen("--", "/", 1));
    of_hub.or_else(|| names.clone().next().map(str::to_owned)).unwrap_or_else(|| "unnamed".to_owned())
}

/// The licence by the front matter of the model card, else by the first words of a licence file.
fn licence(folder: &mut Folder) -> Result<Option<String>, ModelError> {
    let card = folder.bytes("README.md")?.unwrap_or_default();
    let card = String::from_utf8_lossy(&card);
    let mut lines = card.lines();
    let matter: BTreeMap<&str, &str> = match lines.next() {
        Some("---") => lines.take_while(|line| *line != "---").filter_map(|line| line.split_once(':')).collect(),
        _ => BTreeMap::new(),
    };
    let stated =
        |key| matter.get(key).map(|value| value.trim().trim_matches(['\'', '"'])).filter(|value| !value.is_empty());
    if let Some(licence) = stated("license").filter(|&licence| licence != "other").or_else(|| stated("license_name")) {
        return Ok(Some(licence.to_owned()));
    }
    for name in ["LICENSE", "LICENSE.txt", "LICENSE.md"] {
        if let Some(bytes) = folder.bytes(name)? {
            let text = String::from_utf8_lossy(&bytes);
            return Ok(text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned));
        }
    }
    Ok(None)
}
