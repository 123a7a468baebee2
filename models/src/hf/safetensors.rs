//! Reader of safetensors files (<https://github.com/huggingface/safetensors#format>), and of several that hold one
//! model with the index that says which tensor lies where.
//!
//! A file is the length of its header, the header in JSON, and the tensors' bytes without holes. The reader is strict,
//! and no length in the file is believed before the bytes that it promises are known to be there.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;

use half::{bf16, f16};
use lathe_ir::scheme::{Matrix, MatrixData, Scheme};
use serde_json::{Map, Value};

use super::json::{self, malformed};
use crate::bytes::Bytes;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::ModelError;
use crate::sniff;

/// The longest header that the format allows.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of two tensors that are compared at once.
const COMPARED: usize = 1 << 20;

/// How a tensor is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    F32,
    F16,
    Bf16,
}

impl Element {
    fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::F16 | Element::Bf16 => 2,
        }
    }

    /// The format's name.
    fn name(self) -> &'static str {
        match self {
            Element::F32 => "F32",
            Element::F16 => "F16",
            Element::Bf16 => "BF16",
        }
    }

    /// The scheme that holds it.
    fn scheme(self) -> Scheme {
        match self {
            Element::F32 => Scheme::F32,
            Element::F16 => Scheme::F16,
            Element::Bf16 => Scheme::BF16,
        }
    }

    fn decode(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Element::F32 => bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect(),
            Element::F16 => bytes.as_chunks().0.iter().map(|&chunk| f16::from_le_bytes(chunk).to_f32()).collect(),
            Element::Bf16 => bytes.as_chunks().0.iter().map(|&chunk| bf16::from_le_bytes(chunk).to_f32()).collect(),
        }
    }
}

/// A tensor in a file. Its range was checked: it lies in the file and holds exactly `rows` rows of `cols`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    element: Element,
    rows: usize,
    cols: usize,
    bytes: Range<usize>,
}

/// One safetensors file, open or in memory.
pub struct Shard {
    tensors: BTreeMap<String, Entry>,
    /// Names of tensors that are computed from knobs, see [`is_computed`].
    computed: BTreeSet<String>,
    bytes: Bytes,
}

impl Shard {
    /// Opens a file and checks its header. The file must not change while the result lives.
    ///
    /// # Errors
    /// When the file is none of safetensors, is damaged, or holds what is no vector or matrix of floats.
    pub fn open(path: &Path) -> Result<Shard, ModelError> {
        let ((tensors, computed), bytes) = Bytes::open(path, parse)?;
        Ok(Shard { tensors, computed, bytes })
    }

    /// Checks the header of a complete file in memory.
    ///
    /// # Errors
    /// As [`Shard::open`].
    pub fn from_bytes(file: Vec<u8>) -> Result<Shard, ModelError> {
        let (tensors, computed) = parse(&file)?;
        Ok(Shard { tensors, computed, bytes: Bytes::Memory(file) })
    }
}

/// What older files keep beside the knobs that it is computed from: rotary frequencies, and GPT-2's causal masks
/// `[1, 1, T, T]` with the number that stands for what they hide.
fn is_computed(name: &str, shape: &[u64]) -> bool {
    name.ends_with(".rotary_emb.inv_freq")
        || name.ends_with(".attn.bias") && shape.len() == 4
        || name.ends_with(".attn.masked_bias") && shape.is_empty()
}

/// The tensors of a file, and the names of those that are computed.
fn parse(file: &[u8]) -> Result<(BTreeMap<String, Entry>, BTreeSet<String>), ModelError> {
    let expected = "a safetensors file";
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(sniff::unexpected(expected, file));
    };
    let length = u64::from_le_bytes(*length);
    // The header begins right here; where none does, the length is no length either.
    if length > MAX_HEADER || !rest.starts_with(b"{") {
        return Err(sniff::unexpected(expected, file));
    }
    let (what, remaining) = ("the header".to_owned(), rest.len() as u64);
    let Some((header, data)) = rest.split_at_checked(length as usize) else {
        return Err(ModelError::Truncated { what, needed: length, remaining });
    };
    let (mut tensors, mut computed) = (BTreeMap::new(), BTreeSet::new());
    let mut ranges = Vec::new();
    for (name, value) in json::object(header, "the header of a safetensors file")? {
        if name == "__metadata__" {
            continue;
        }
        let described = describe(&name, &value, data.len())?;
        ranges.push(8 + header.len() + described.from..8 + header.len() + described.to);
        if is_computed(&name, &described.shape) {
            computed.insert(name);
        } else {
            let entry = entry(&name, &described, 8 + header.len())?;
            tensors.insert(name, entry);
        }
    }
    check_cover(ranges, 8 + header.len(), file.len())?;
    Ok((tensors, computed))
}

/// What the header says of a tensor, whose bytes are there.
struct Described<'a> {
    dtype: &'a str,
    shape: Vec<u64>,
    from: usize,
    to: usize,
}

/// Reads the description of one tensor in a file with `length` bytes of data.
fn describe<'a>(name: &str, value: &'a Value, length: usize) -> Result<Described<'a>, ModelError> {
    let what = format!("tensor '{}'", name.escape_debug());
    let described = || -> Option<(&str, Vec<u64>, u64, u64)> {
        let value = value.as_object().filter(|value| value.len() == 3)?;
        let numbers = |key| value.get(key)?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
        let &[from, to] = numbers("data_offsets")?.as_slice() else { return None };
        Some((value.get("dtype")?.as_str()?, numbers("shape")?, from, to))
    };
    let Some((dtype, shape, from, to)) = described() else {
        return Err(malformed(what, "a dtype, a shape and two data_offsets", &value.to_string()));
    };
    if from > to {
        return Err(malformed(what, "an end behind its start", &format!("data_offsets {from} to {to}")));
    }
    if to > length as u64 {
        return Err(ModelError::Truncated { what, needed: to - from, remaining: (length as u64).saturating_sub(from) });
    }
    // The whole lies in the file, so that both fit a usize.
    Ok(Described { dtype, shape, from: from as usize, to: to as usize })
}

/// Checks that a tensor is a vector or a matrix of floats; `start` is where data begins.
fn entry(name: &str, described: &Described<'_>, start: usize) -> Result<Entry, ModelError> {
    let Described { dtype, shape, from, to } = described;
    let what = format!("tensor '{}'", name.escape_debug());
    let element = match *dtype {
        "F32" => Element::F32,
        "F16" => Element::F16,
        "BF16" => Element::Bf16,
        _ => return Err(ModelError::ElementType { tensor: name.to_owned(), found: (*dtype).to_owned() }),
    };
    if shape.is_empty() || shape.len() > 2 || shape.contains(&0) {
        let (expected, found) = ("a vector or a matrix".to_owned(), format!("the shape {shape:?}"));
        return Err(ModelError::Shape { tensor: name.to_owned(), expected, found });
    }
    let needed = shape.iter().try_fold(element.bytes() as u64, |product, &dim| product.checked_mul(dim));
    if needed != Some((to - from) as u64) {
        let found = format!("data_offsets {from} to {to}");
        return Err(malformed(what, format!("the bytes of {shape:?} elements of {dtype}"), &found));
    }
    // The whole lies in the file, and no dimension is zero, so that each fits a usize.
    let cols = shape[shape.len() - 1] as usize;
    let rows = if shape.len() == 1 { 1 } else { shape[0] as usize };
    Ok(Entry { element, rows, cols, bytes: start + from..start + to })
}

/// The format's rule against hidden or shared bytes: the tensors follow each other from the first byte to the last.
fn check_cover(mut ranges: Vec<Range<usize>>, start: usize, end: usize) -> Result<(), ModelError> {
    ranges.sort_by_key(|range| range.start);
    let mut at = start;
    for range in ranges {
        if range.start != at {
            let kind = if range.start < at { "tensors that overlap" } else { "a hole between tensors" };
            return Err(malformed(
                "the data",
                "tensors one after the other",
                &format!("{kind} at byte {}", range.start),
            ));
        }
        at = range.end;
    }
    if at == end {
        Ok(())
    } else {
        Err(malformed("the data", format!("its end at byte {at}"), &format!("{end} bytes")))
    }
}

/// The file of each tensor by an index (`model.safetensors.index.json`).
///
/// # Errors
/// When it is no index, or names a file outside its own folder.
pub fn index(bytes: &[u8]) -> Result<BTreeMap<String, String>, ModelError> {
    let what = "the index of safetensors files";
    let object = json::object(bytes, what)?;
    let map = object.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty());
    let empty = Map::new();
    let mut files = BTreeMap::new();
    for (tensor, file) in map.unwrap_or(&empty) {
        let file = file.as_str().unwrap_or_default();
        let plain = !file.contains(['/', '\\', '\0', ':']) && file.ends_with(".safetensors") && !file.starts_with('.');
        if !plain {
            let expected = "the plain name of a .safetensors file beside it".to_owned();
            return Err(malformed(
                format!("tensor '{}' in the index", tensor.escape_debug()),
                expected,
                &map_text(file),
            ));
        }
        files.insert(tensor.clone(), file.to_owned());
    }
    match map {
        Some(_) => Ok(files),
        None => Err(malformed(what, "a 'weight_map' from tensors to files", "none")),
    }
}

fn map_text(file: &str) -> String {
    format!("'{}'", file.escape_debug())
}

/// All tensors of a model directory.
pub struct Shards {
    shards: Vec<Shard>,
    places: BTreeMap<String, usize>,
}

impl Shards {
    /// Joins files by name. With an index, it has to name exactly their tensors, each in its own file.
    ///
    /// # Errors
    /// When two files hold one tensor, and when the index contradicts the files.
    pub fn new(files: Vec<(String, Shard)>, index: Option<&BTreeMap<String, String>>) -> Result<Shards, ModelError> {
        let (mut shards, mut places, mut computed) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        for (at, (file, mut shard)) in files.into_iter().enumerate() {
            computed.append(&mut shard.computed);
            for name in shard.tensors.keys() {
                let indexed = index.map(|index| index.get(name).map(String::as_str));
                if indexed.is_some_and(|indexed| indexed != Some(&file)) {
                    let found = format!("it in '{file}'");
                    let expected = indexed
                        .flatten()
                        .map_or("none, by the index".to_owned(), |place| format!("it in '{place}', by the index"));
                    return Err(malformed(format!("tensor '{}'", name.escape_debug()), expected, &found));
                }
                places.insert(name.clone(), at);
            }
            shards.push(shard);
        }
        match index.into_iter().flatten().find(|(name, _)| !places.contains_key(*name) && !computed.contains(*name)) {
            None => Ok(Shards { shards, places }),
            Some((name, file)) => {
                let what = format!("tensor '{}'", name.escape_debug());
                Err(malformed(what, format!("it in '{file}', by the index"), "no such tensor there"))
            }
        }
    }

    /// Leaves tensors out.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.places.retain(|name, _| keep(name));
    }

    /// Whether two tensors are there and hold the same bytes in the same shape.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn are_equal(&self, a: &str, b: &str) -> Result<bool, ModelError> {
        let (Some((a, a_bytes)), Some((b, b_bytes))) = (self.find(a), self.find(b)) else { return Ok(false) };
        if (a.element, a.rows, a.cols) != (b.element, b.rows, b.cols) {
            return Ok(false);
        }
        for from in (0..a.bytes.len()).step_by(COMPARED) {
            let piece =
                |entry: &Entry| entry.bytes.start + from..(entry.bytes.start + from + COMPARED).min(entry.bytes.end);
            if a_bytes.read(piece(a))? != b_bytes.read(piece(b))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A tensor and the file that it lies in.
    fn find(&self, name: &str) -> Option<(&Entry, &Bytes)> {
        let shard = &self.shards[*self.places.get(name)?];
        Some((shard.tensors.get(name)?, &shard.bytes))
    }
}

impl Checkpoint for Shards {
    fn names(&self) -> BTreeSet<&str> {
        self.places.keys().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        let (entry, _) = self.find(name)?;
        Some(TensorInfo { rows: entry.rows, cols: entry.cols, scheme: entry.element.scheme() })
    }

    fn type_name(&self, name: &str) -> Option<String> {
        self.find(name).map(|(entry, _)| entry.element.name().to_owned())
    }

    fn load_rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, ModelError> {
        let (entry, bytes) = self.find(name).ok_or_else(|| ModelError::NoTensor { tensor: name.to_owned() })?;
        let info = TensorInfo { rows: entry.rows, cols: entry.cols, scheme: entry.element.scheme() };
        info.check_rows(name, &rows)?;
        let row_bytes = entry.cols * entry.element.bytes();
        let from = entry.bytes.start;
        let bytes = bytes.read(from + rows.start * row_bytes..from + rows.end * row_bytes)?;
        let values = entry.element.decode(&bytes);
        Ok(Matrix { rows: rows.len(), cols: entry.cols, data: MatrixData::Float(values) })
    }
}
