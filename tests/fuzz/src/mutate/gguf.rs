//! Changes of a GGUF file: a value, a key, a tensor's description, an element of an array, a count that lies.

use super::{bytes, json};
use crate::random::Random;

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A file, read without checks beyond what its pieces need.
struct File {
    version: u32,
    /// What the file says beyond the true counts of tensors and pairs.
    lies: [u64; 2],
    pairs: Vec<(Vec<u8>, u32, Held)>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
}

/// A value, or an element of an array.
#[derive(Clone)]
enum Held {
    Scalar(Vec<u8>),
    Text(Vec<u8>),
    Items { element: u32, lie: u64, items: Vec<Held> },
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    dims: Vec<u64>,
    ty: u32,
    offset: u64,
}

/// The input with one change. What is no GGUF file is changed as bytes.
pub fn change(random: &mut Random, input: &[u8], other: &[u8]) -> Vec<u8> {
    let Some(mut file) = read(input) else { return bytes::change(random, input, other, &[]) };
    match random.below(20) {
        0 => file.version = random.awkward() as u32,
        1 => file.lies[random.below(2)] = random.awkward(),
        2 => file.data = bytes::change(random, &file.data, other, &[]),
        3..8 if !file.tensors.is_empty() => change_tensors(random, &mut file.tensors),
        8 if !file.pairs.is_empty() => {
            // A pair of another file.
            if let Some(File { pairs, .. }) = read(other).filter(|other| !other.pairs.is_empty()) {
                let at = random.below(file.pairs.len());
                file.pairs[at] = random.of(&pairs).clone();
            }
        }
        _ if !file.pairs.is_empty() => change_pairs(random, &mut file.pairs),
        _ => file.version ^= 1,
    }
    write(&file)
}

fn change_pairs(random: &mut Random, pairs: &mut Vec<(Vec<u8>, u32, Held)>) {
    let at = random.below(pairs.len());
    match random.below(10) {
        0 => drop(pairs.remove(at)),
        1 => pairs.push(pairs[at].clone()),
        2 => pairs[at].0 = change_text(random, &pairs[at].0),
        3 => pairs[at].1 = random.below(16) as u32,
        4 => {
            let (_, ty, value) = random.of(pairs).clone();
            (pairs[at].1, pairs[at].2) = (ty, value);
        }
        _ => change_value(random, &mut pairs[at].2),
    }
}

fn change_value(random: &mut Random, value: &mut Held) {
    match value {
        Held::Scalar(bytes) => {
            let number = match random.below(3) {
                0 => random.of(&[f32::NAN, f32::INFINITY, -1.0, 0.0, 1e-40, 1e38]).to_bits().into(),
                _ => random.awkward(),
            };
            let width = bytes.len().min(8);
            bytes[..width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        Held::Text(text) => *text = change_text(random, text),
        Held::Items { element, lie, items } => {
            let (at, to) = (random.below(items.len()), random.below(items.len()));
            match random.below(10) {
                0 => *element = random.below(16) as u32,
                1 => *lie = random.awkward(),
                2 if !items.is_empty() => drop(items.remove(at)),
                3 if !items.is_empty() => items.insert(to, items[at].clone()),
                4 if !items.is_empty() => items.swap(at, to),
                5 if !items.is_empty() => items[at] = items[to].clone(),
                6 => items.truncate(at),
                _ if !items.is_empty() => change_value(random, &mut items[at]),
                _ => items.push(Held::Scalar(vec![0])),
            }
        }
    }
}

fn change_tensors(random: &mut Random, tensors: &mut Vec<Tensor>) {
    let (at, to) = (random.below(tensors.len()), random.below(tensors.len()));
    match random.below(9) {
        0 => drop(tensors.remove(at)),
        1 => tensors.push(tensors[at].clone()),
        2 => tensors[at].name = change_text(random, &tensors[at].name),
        3 => tensors[at].name = tensors[to].name.clone(),
        4 => tensors[at].ty = random.below(40) as u32,
        5 => tensors[at].offset = *random.of(&[0, 1, 32, u64::MAX, tensors[to].offset, tensors[at].offset + 32]),
        6 => tensors[at].dims = tensors[to].dims.clone(),
        7 => tensors[at].dims.push(random.awkward()),
        _ => {
            let dims = &mut tensors[at].dims;
            if let Some(last) = dims.len().checked_sub(1) {
                dims[random.below(last + 1)] = random.awkward();
            }
        }
    }
}

/// Text as text where it is, else as bytes.
fn change_text(random: &mut Random, text: &[u8]) -> Vec<u8> {
    match std::str::from_utf8(text) {
        Ok(text) if !random.once_in(10) => json::change_text(random, text).into_bytes(),
        _ => bytes::change(random, text, &[], &[]),
    }
}

/// A place in the bytes of a file.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn text(&mut self) -> Option<Vec<u8>> {
        let length = usize::try_from(self.u64()?).ok()?;
        Some(self.take(length)?.to_vec())
    }

    fn value(&mut self, ty: u32, depth: usize) -> Option<Held> {
        match ty {
            0 | 1 | 7 => Some(Held::Scalar(self.take(1)?.to_vec())),
            2 | 3 => Some(Held::Scalar(self.take(2)?.to_vec())),
            4..=6 => Some(Held::Scalar(self.take(4)?.to_vec())),
            10..=12 => Some(Held::Scalar(self.take(8)?.to_vec())),
            STRING => Some(Held::Text(self.text()?)),
            ARRAY if depth < 4 => {
                let (element, count) = (self.u32()?, self.u64()?);
                // Each takes a byte at least, so that no more are begun than there are bytes.
                let items = (0..count).map(|_| self.value(element, depth + 1)).collect::<Option<_>>()?;
                Some(Held::Items { element, lie: 0, items })
            }
            _ => None,
        }
    }
}

fn read(input: &[u8]) -> Option<File> {
    let mut reader = Reader(input.strip_prefix(b"GGUF")?);
    let (version, tensors, pairs) = (reader.u32()?, reader.u64()?, reader.u64()?);
    let pair = |reader: &mut Reader| {
        let (key, ty) = (reader.text()?, reader.u32()?);
        Some((key, ty, reader.value(ty, 0)?))
    };
    let pairs = (0..pairs).map(|_| pair(&mut reader)).collect::<Option<_>>()?;
    let tensor = |reader: &mut Reader| {
        let (name, dims) = (reader.text()?, reader.u32()?);
        let dims = (0..dims).map(|_| reader.u64()).collect::<Option<_>>()?;
        Some(Tensor { name, dims, ty: reader.u32()?, offset: reader.u64()? })
    };
    let tensors = (0..tensors).map(|_| tensor(&mut reader)).collect::<Option<_>>()?;
    let start = (input.len() - reader.0.len()).next_multiple_of(32);
    let data = input.get(start..).unwrap_or_default().to_vec();
    Some(File { version, lies: [0; 2], pairs, tensors, data })
}

fn write(file: &File) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(file.version.to_le_bytes());
    for (count, lie) in [file.tensors.len(), file.pairs.len()].into_iter().zip(file.lies) {
        out.extend((count as u64).wrapping_add(lie).to_le_bytes());
    }
    for (key, ty, value) in &file.pairs {
        put_text(&mut out, key);
        out.extend(ty.to_le_bytes());
        put_value(&mut out, value);
    }
    for tensor in &file.tensors {
        put_text(&mut out, &tensor.name);
        out.extend((tensor.dims.len() as u32).to_le_bytes());
        out.extend(tensor.dims.iter().flat_map(|dim| dim.to_le_bytes()));
        out.extend(tensor.ty.to_le_bytes());
        out.extend(tensor.offset.to_le_bytes());
    }
    if !file.data.is_empty() {
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&file.data);
    }
    out
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

fn put_value(out: &mut Vec<u8>, value: &Held) {
    match value {
        Held::Scalar(bytes) => out.extend(bytes),
        Held::Text(text) => put_text(out, text),
        Held::Items { element, lie, items } => {
            out.extend(element.to_le_bytes());
            out.extend((items.len() as u64).wrapping_add(*lie).to_le_bytes());
            for item in items {
                put_value(out, item);
            }
        }
    }
}
