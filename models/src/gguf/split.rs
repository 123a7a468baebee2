//! Models in several GGUF files, as llama.cpp's `gguf-split` makes them: `NAME-00001-of-00003.gguf` and so on.
//!
//! Every part says under `split.count` how many there are and under `split.no` which of them it is, from 0;
//! `split.tensors.count` is the number of tensors in all of them. The first part holds the metadata of the model, the
//! others repeat none or some of it. A file that was joined again keeps the keys, with a count of 0.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Header, TensorEntry, Value, checked};
use crate::bytes::Bytes;
use crate::error::ModelError;

const COUNT: &str = "split.count";
const NUMBER: &str = "split.no";
const TENSORS: &str = "split.tensors.count";
/// The format's own limit: a number of 16 bits.
const MOST_PARTS: u64 = 65535;

/// Metadata and tensors of a whole model, each tensor with the index of its part.
type Joined = (BTreeMap<String, Value>, BTreeMap<String, (usize, TensorEntry)>);

fn wrong(expected: impl Into<String>, found: impl Into<String>) -> ModelError {
    ModelError::Split { expected: expected.into(), found: found.into() }
}

/// A number that may be absent, of any integer type.
fn number(header: &Header, key: &str, most: u64) -> Result<Option<u64>, ModelError> {
    let found = match header.metadata.get(key) {
        None => return Ok(None),
        Some(Value::Unsigned(number)) => Some(*number),
        Some(Value::Signed(number)) => u64::try_from(*number).ok(),
        Some(_) => None,
    };
    let refused = || ModelError::Key {
        key: key.to_owned(),
        expected: format!("an integer from 0 to {most}"),
        found: header.metadata[key].describe(),
    };
    found.filter(|&number| number <= most).map(Some).ok_or_else(refused)
}

/// How many parts a model has by one of them; 0 or 1 for a file that is whole.
pub(super) fn count(header: &Header) -> Result<usize, ModelError> {
    Ok(number(header, COUNT, MOST_PARTS)?.unwrap_or(0) as usize)
}

/// A name of the form `PREFIX-00001-of-00003.gguf`.
struct PartName<'a> {
    prefix: &'a str,
    number: usize,
    count: usize,
}

impl<'a> PartName<'a> {
    fn parse(name: &'a str) -> Option<PartName<'a>> {
        let digits = |text: &str| (text.len() == 5).then(|| text.parse().ok()).flatten();
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, number) = rest.rsplit_once('-')?;
        Some(PartName { prefix, number: digits(number)?, count: digits(count)? })
    }
}

fn part_name(prefix: &str, number: usize, count: usize) -> String {
    format!("{prefix}-{number:05}-of-{count:05}.gguf")
}

/// Opens the other parts of a model, of which one is open already and says that there are `count`.
///
/// # Errors
/// When the file's name is none of a part, and when parts are missing, too many, or not what their names say.
pub(super) fn open(path: &Path, part: (Header, Bytes), count: usize) -> Result<Vec<(Header, Bytes)>, ModelError> {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(name) = PartName::parse(&file).filter(|name| name.count == count) else {
        let expected = format!("a name that ends in '-00001-of-{count:05}.gguf' or so, since {COUNT} is {count}");
        return Err(wrong(expected, format!("'{file}'")).in_file(path));
    };
    let folder = path.parent().unwrap_or(Path::new(""));
    let paths: Vec<PathBuf> = (1..=count).map(|number| folder.join(part_name(name.prefix, number, count))).collect();
    let missing: Vec<String> = (1..=count)
        .filter(|&number| !paths[number - 1].exists())
        .map(|number| part_name(name.prefix, number, count))
        .collect();
    if !missing.is_empty() {
        let found = format!("{} missing beside it: {}", missing.len(), few(&missing));
        return Err(wrong(format!("all {count} parts"), found).in_file(path));
    }
    let surplus = surplus(folder, &name)?;
    if !surplus.is_empty() {
        return Err(wrong(format!("{count} parts"), format!("more of them beside it: {}", few(&surplus))).in_file(path));
    }
    let mut given = Some(part);
    let mut parts = Vec::with_capacity(count);
    for (at, path) in paths.iter().enumerate() {
        let part = match given.take_if(|_| at + 1 == name.number) {
            Some(part) => part,
            None => Bytes::open(path, checked)?,
        };
        check_part(&part.0, at, count).map_err(|error| error.in_file(path))?;
        parts.push(part);
    }
    Ok(parts)
}

/// Files that are called parts of the same model and cannot be any of them.
fn surplus(folder: &Path, name: &PartName<'_>) -> Result<Vec<String>, ModelError> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let failed = |error| ModelError::Io { action: "list", path: folder.to_owned(), error };
    let mut surplus = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let file = entry.map_err(failed)?.file_name().to_string_lossy().into_owned();
        let is_one = PartName::parse(&file).is_some_and(|other| {
            other.prefix == name.prefix && other.count == name.count && !(1..=name.count).contains(&other.number)
        });
        if is_one {
            surplus.push(file);
        }
    }
    surplus.sort();
    Ok(surplus)
}

/// Some names, not more than can be read.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let shown = names.iter().take(SHOWN).map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

/// Refuses a file that is another part than its name says.
fn check_part(header: &Header, at: usize, count: usize) -> Result<(), ModelError> {
    let expected = [(COUNT, count, MOST_PARTS), (NUMBER, at, MOST_PARTS - 1)];
    for (key, expected, most) in expected {
        let found = number(header, key, most)?;
        if found != Some(expected as u64) {
            let found = found.map_or("none".to_owned(), |found| found.to_string());
            return Err(wrong(format!("{expected} as {key}, by the file's name"), found));
        }
    }
    Ok(())
}

/// Joins the headers of all parts of a model, which may be one.
///
/// # Errors
/// When they contradict one another: in a key, in the number of tensors, or by a tensor in two of them.
pub(super) fn join(headers: Vec<Header>) -> Result<Joined, ModelError> {
    let mut total = None;
    let (mut metadata, mut tensors) = (BTreeMap::new(), BTreeMap::new());
    for (part, mut header) in headers.into_iter().enumerate() {
        let stated = number(&header, TENSORS, i32::MAX as u64)?;
        if part > 0 && stated.is_some() && stated != total {
            let expected = total.map_or("none".to_owned(), |total: u64| total.to_string());
            let found = stated.unwrap_or_default();
            return Err(wrong(
                format!("{expected} as {TENSORS} in all parts"),
                format!("{found} in part {}", part + 1),
            ));
        }
        total = total.or(stated);
        header.metadata.retain(|key, _| ![COUNT, NUMBER, TENSORS].contains(&key.as_str()));
        if part == 0 {
            metadata = header.metadata;
        } else if let Some((key, value)) = header.metadata.iter().find(|(key, value)| metadata.get(*key) != Some(value))
        {
            let found = format!("{} in part {}", value.describe(), part + 1);
            return Err(wrong(format!("'{key}' as in the first part, or not at all"), found));
        }
        for (name, entry) in header.tensors {
            if let Some((other, _)) = tensors.insert(name.clone(), (part, entry)) {
                let found = format!("'{name}' in the parts {} and {}", other + 1, part + 1);
                return Err(wrong("each tensor in one part", found));
            }
        }
    }
    match total.filter(|&total| total != tensors.len() as u64) {
        None => Ok((metadata, tensors)),
        Some(total) => Err(wrong(format!("{total} tensors, by {TENSORS}"), tensors.len().to_string())),
    }
}
