//! `hf://org/name` and `hf://org/name@revision`: models in the local cache of the Hugging Face hub, whose layout is
//! documented (<https://huggingface.co/docs/huggingface_hub/guides/manage-cache>). Nothing is downloaded.

use std::env;
use std::path::{Path, PathBuf};

use crate::error::ModelError;

/// The folder of a model's files, when the text is a name of this kind.
///
/// # Errors
/// When the name has another form, and when the cache does not hold the model.
pub fn resolve(text: &str) -> Option<Result<PathBuf, ModelError>> {
    let name = text.strip_prefix("hf://")?;
    Some(cache().and_then(|cache| find(name, &cache)))
}

/// The cache's folder, by the variables that the hub's own tools read.
fn cache() -> Result<PathBuf, ModelError> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HF_HUB_CACHE")
        .or_else(|| variable("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/huggingface/hub")))
        .ok_or_else(|| ModelError::Hub {
            expected: "a folder in HF_HUB_CACHE, HF_HOME or HOME".to_owned(),
            found: "none of these variables".to_owned(),
        })
}

/// The snapshot of a model, named without `hf://`, in a cache.
///
/// # Errors
/// As [`resolve`].
pub fn find(name: &str, cache: &Path) -> Result<PathBuf, ModelError> {
    let (model, revision) = name.split_once('@').unwrap_or((name, "main"));
    let plain = |part: &str| {
        let allowed = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        !part.is_empty() && part.chars().all(allowed) && !part.starts_with('.')
    };
    let Some((org, model)) =
        model.split_once('/').filter(|(org, model)| [*org, *model, revision].into_iter().all(plain))
    else {
        let expected = "hf://org/name or hf://org/name@revision".to_owned();
        return Err(ModelError::Hub { expected, found: format!("'hf://{}'", name.escape_debug()) });
    };
    let folder = cache.join(format!("models--{org}--{model}"));
    // A revision is a branch or tag, whose file holds the commit, or the commit itself.
    let commit = std::fs::read_to_string(folder.join("refs").join(revision));
    let commit = commit.as_deref().map_or(revision, str::trim);
    let snapshot = folder.join("snapshots").join(commit);
    if plain(commit) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    Err(ModelError::Hub {
        expected: format!("a snapshot of {org}/{model} at '{revision}'"),
        found: format!("none in {}; fetch it with `hf download {org}/{model}`", cache.display()),
    })
}
