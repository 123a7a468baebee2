//! Reader of GGUF version 3 files (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! A file is a header (magic, version, counts), metadata pairs, tensor descriptions, and the tensors' bytes, aligned.
//! The reader is strict: whatever the format does not allow is refused with a sentence, and no length in the file is
//! believed before the bytes that it promises are known to be there. Weights stay in the file until asked for.

mod cursor;
mod split;
mod tensor;
mod value;
pub mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use lathe_ir::scheme::Matrix;

pub use tensor::{TensorEntry, TensorType};
pub use value::{Value, ValueType};

use crate::bytes::Bytes;
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::error::ModelError;
use crate::sniff;
use cursor::Cursor;

const MAGIC: &[u8; 4] = b"GGUF";
const VERSION: u32 = 3;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_DIMS: u32 = 4;
/// The format's own limits, in bytes.
const MAX_KEY: usize = 65535;
const MAX_TENSOR_NAME: usize = 64;

/// Everything in the file but the tensors' bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Metadata by key.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors by name.
    pub tensors: BTreeMap<String, TensorEntry>,
}

impl Header {
    /// Reads the metadata alone: what a tokenizer needs, of any file whose tensors are of kinds yet to come.
    pub fn metadata(file: &[u8]) -> Result<BTreeMap<String, Value>, ModelError> {
        let (mut cursor, _, pair_count) = Header::counts(file)?;
        read_metadata(&mut cursor, pair_count)
    }

    /// The numbers of tensors and of metadata pairs, and a cursor behind them.
    fn counts(file: &[u8]) -> Result<(Cursor<'_>, usize, usize), ModelError> {
        let mut cursor = Cursor::new(file);
        if !file.starts_with(MAGIC) {
            return Err(sniff::unexpected("a GGUF file", file));
        }
        cursor.take(MAGIC.len(), "the magic number")?;
        check_version(cursor.u32("the version")?)?;
        // A tensor's description takes at least a name's length, a dimension count, one dimension, a type and an
        // offset; a metadata pair at least a key's length, a type and one byte.
        let tensor_count = cursor.count(8 + 4 + 8 + 4 + 8, "the list of tensors")?;
        let pair_count = cursor.count(8 + 4 + 1, "the metadata")?;
        Ok((cursor, tensor_count, pair_count))
    }

    /// Reads and checks the header of a complete file.
    pub fn parse(file: &[u8]) -> Result<Header, ModelError> {
        let (mut cursor, tensor_count, pair_count) = Header::counts(file)?;
        let metadata = read_metadata(&mut cursor, pair_count)?;
        let alignment = alignment(&metadata)?;
        let described: Vec<Described> =
            (0..tensor_count).map(|_| Described::read(&mut cursor, alignment)).collect::<Result<_, _>>()?;
        let start = (cursor.position() as u64).checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
        let tensors = locate(described, start, file.len() as u64)?;
        Ok(Header { metadata, tensors })
    }
}

fn check_version(version: u32) -> Result<(), ModelError> {
    match version {
        VERSION => Ok(()),
        swapped if swapped.swap_bytes() == VERSION => {
            Err(ModelError::Version { found: "a big-endian file of that version".to_owned() })
        }
        other => Err(ModelError::Version { found: format!("version {other}") }),
    }
}

fn read_metadata(cursor: &mut Cursor, count: usize) -> Result<BTreeMap<String, Value>, ModelError> {
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = cursor.string("a metadata key")?;
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(malformed("a metadata key", format!("1 to {MAX_KEY} bytes"), format!("{} bytes", key.len())));
        }
        let value = Value::read(cursor, &format!("the value of '{}'", key.escape_debug()))?;
        if metadata.insert(key.to_owned(), value).is_some() {
            return Err(malformed("the metadata", "each key once", format!("'{key}' twice")));
        }
    }
    Ok(metadata)
}

fn alignment(metadata: &BTreeMap<String, Value>) -> Result<u64, ModelError> {
    match metadata.get("general.alignment") {
        None => Ok(DEFAULT_ALIGNMENT),
        Some(Value::Unsigned(alignment)) if alignment.is_power_of_two() => Ok(*alignment),
        Some(other) => Err(malformed("'general.alignment'", "a power of two", other.describe())),
    }
}

/// A tensor's description, before its place in the file is checked.
struct Described {
    name: String,
    dims: Vec<usize>,
    ty: TensorType,
    offset: u64,
    length: u64,
}

impl Described {
    fn read(cursor: &mut Cursor, alignment: u64) -> Result<Described, ModelError> {
        let name = cursor.string("a tensor's name")?;
        if name.is_empty() || name.len() > MAX_TENSOR_NAME {
            let expected = format!("1 to {MAX_TENSOR_NAME} bytes");
            return Err(malformed("a tensor's name", expected, format!("{} bytes", name.len())));
        }
        let what = format!("tensor '{}'", name.escape_debug());
        let count = cursor.u32(&what)?;
        if count == 0 || count > MAX_DIMS {
            return Err(malformed(&what, format!("1 to {MAX_DIMS} dimensions"), count.to_string()));
        }
        let dims = (0..count).map(|_| cursor.u64(&what)).collect::<Result<Vec<u64>, _>>()?;
        let ty = TensorType::from_id(cursor.u32(&what)?)
            .map_err(|found| ModelError::TensorType { tensor: name.to_owned(), found })?;
        let offset = cursor.u64(&what)?;
        if !offset.is_multiple_of(alignment) {
            return Err(malformed(&what, format!("an offset that {alignment} divides"), offset.to_string()));
        }
        let length = byte_length(ty, &dims)
            .ok_or_else(|| malformed(&what, format!("dimensions that suit {ty:?}"), format!("{dims:?}")))?;
        // The length fits a u64 and no dimension is zero, so that each dimension fits a usize where u64 does.
        let dims = dims.into_iter().map(|dim| dim as usize).collect();
        Ok(Described { name: name.to_owned(), dims, ty, offset, length })
    }
}

/// Bytes of a tensor; `None` for a dimension of zero, rows of broken blocks and overflow.
fn byte_length(ty: TensorType, dims: &[u64]) -> Option<u64> {
    let (block, block_bytes) = ty.block();
    if dims.contains(&0) || !dims[0].is_multiple_of(block as u64) {
        return None;
    }
    let elements = dims.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim))?;
    (elements / block as u64).checked_mul(block_bytes as u64)
}

/// Turns offsets into ranges of the file, and checks that they lie in it, do not overlap and have different names.
fn locate(described: Vec<Described>, start: u64, file: u64) -> Result<BTreeMap<String, TensorEntry>, ModelError> {
    let mut tensors = BTreeMap::new();
    let mut ranges = Vec::with_capacity(described.len());
    for Described { name, mut dims, ty, offset, length } in described {
        let what = format!("tensor '{}'", name.escape_debug());
        let from = start.checked_add(offset);
        let to = from.and_then(|from| from.checked_add(length));
        let (Some(from), Some(to)) = (from, to) else {
            return Err(malformed(&what, "an offset inside the file", offset.to_string()));
        };
        if to > file {
            return Err(ModelError::Truncated { what, needed: length, remaining: file.saturating_sub(from) });
        }
        ranges.push((from, to, name.clone()));
        while dims.len() > 1 && dims.last() == Some(&1) {
            dims.pop();
        }
        let bytes = from as usize..to as usize;
        let entry = TensorEntry { ty, cols: dims[0], rows: dims[1..].iter().product(), bytes, dims };
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(malformed("the list of tensors", "each name once", format!("'{name}' twice")));
        }
    }
    ranges.sort();
    match ranges.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        None => Ok(tensors),
        Some(pair) => {
            let found = format!("'{}' and '{}' overlapping", pair[0].2, pair[1].2);
            Err(malformed("the list of tensors", "each tensor in bytes of its own", found))
        }
    }
}

fn malformed(what: &str, expected: impl Into<String>, found: impl Into<String>) -> ModelError {
    ModelError::Malformed { what: what.to_owned(), expected: expected.into(), found: found.into() }
}

/// A GGUF file, open or in memory, or all parts of a model that was split into several.
pub struct Gguf {
    /// Metadata by key, without that of splitting.
    pub metadata: BTreeMap<String, Value>,
    /// Tensors, each with the index of its part.
    tensors: BTreeMap<String, (usize, TensorEntry)>,
    parts: Vec<Bytes>,
}

impl Gguf {
    /// Opens a file and checks its header; any part of a model that was split opens all of them. The files must not
    /// change while the result lives.
    ///
    /// # Errors
    /// When a file cannot be read, is damaged or none of GGUF, and when parts are missing or do not belong together.
    pub fn open(path: &Path) -> Result<Gguf, ModelError> {
        if path.is_dir() {
            let advice = "give the path of the GGUF file itself";
            return Err(ModelError::Kind { expected: "a GGUF file", found: "a directory", advice }.in_file(path));
        }
        let part = Bytes::open(path, checked)?;
        match split::count(&part.0).map_err(|error| error.in_file(path))? {
            0 | 1 => Gguf::join(vec![part]).map_err(|error| error.in_file(path)),
            count => Gguf::join(split::open(path, part, count)?).map_err(|error| error.in_file(path)),
        }
    }

    /// Checks the header of a file in memory.
    ///
    /// # Errors
    /// As [`Gguf::open`]; a part of a split model is refused.
    pub fn from_bytes(file: Vec<u8>) -> Result<Gguf, ModelError> {
        let header = checked(&file)?;
        match split::count(&header)? {
            0 | 1 => Gguf::join(vec![(header, Bytes::Memory(file))]),
            count => Err(ModelError::Split {
                expected: "a whole model".to_owned(),
                found: format!("one of {count} parts, without the path that leads to the others"),
            }),
        }
    }

    /// The files, in the order of the parts; none of a file in memory.
    pub fn files(&self) -> Vec<PathBuf> {
        self.parts.iter().filter_map(|part| part.path().map(Path::to_owned)).collect()
    }

    /// Joins the headers of all parts.
    fn join(parts: Vec<(Header, Bytes)>) -> Result<Gguf, ModelError> {
        let (headers, parts): (Vec<Header>, Vec<Bytes>) = parts.into_iter().unzip();
        let (metadata, tensors) = split::join(headers)?;
        Ok(Gguf { metadata, tensors, parts })
    }
}

/// The header of a file that a graph's weights can come from.
fn checked(file: &[u8]) -> Result<Header, ModelError> {
    let header = Header::parse(file)?;
    check_matrices(&header.tensors)?;
    Ok(header)
}

/// The graph's weights are vectors and matrices.
fn check_matrices(tensors: &BTreeMap<String, TensorEntry>) -> Result<(), ModelError> {
    match tensors.iter().find(|(_, entry)| entry.dims.len() > 2) {
        None => Ok(()),
        Some((name, entry)) => Err(ModelError::Shape {
            tensor: name.clone(),
            expected: "a vector or a matrix".to_owned(),
            found: format!("the dimensions {:?}", entry.dims),
        }),
    }
}

impl Checkpoint for Gguf {
    fn names(&self) -> BTreeSet<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn tensor(&self, name: &str) -> Option<TensorInfo> {
        let (_, entry) = self.tensors.get(name)?;
        Some(TensorInfo { rows: entry.rows, cols: entry.cols, scheme: entry.ty.scheme() })
    }

    fn type_name(&self, name: &str) -> Option<String> {
        self.tensors.get(name).map(|(_, entry)| format!("{:?}", entry.ty))
    }

    fn load_rows(&self, name: &str, rows: Range<usize>) -> Result<Matrix, ModelError> {
        let info = self.tensor(name).ok_or_else(|| ModelError::NoTensor { tensor: name.to_owned() })?;
        info.check_rows(name, &rows)?;
        let (part, entry) = &self.tensors[name];
        let row_bytes = entry.bytes.len() / entry.rows;
        let from = entry.bytes.start;
        let bytes = self.parts[*part].read(from + rows.start * row_bytes..from + rows.end * row_bytes)?;
        Ok(tensor::decode(entry.ty, &bytes, entry.cols))
    }
}
