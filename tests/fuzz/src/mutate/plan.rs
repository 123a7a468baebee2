//! Changes of a plan inside its sections, under digests that are made right again: what remains to stop them is what
//! checks the content.

use super::bytes;
use crate::random::Random;

/// Places in the header and in an entry of the section table, as `lathe_plan::format` describes them.
const HEADER: usize = 96;
const ENTRY: usize = 96;
const COUNT: usize = 24;
const ROOT: std::ops::Range<usize> = 64..96;
const KIND: usize = 0;
const PLACE: usize = 32;
const DIGEST: usize = 64;
/// Kinds of sections whose digest is not that of their own bytes.
const WEIGHTS: u16 = 8;

/// The input with a few bytes changed where they are.
pub fn change(random: &mut Random, input: &[u8]) -> Vec<u8> {
    let sections = sections(input);
    if sections.is_empty() || random.once_in(10) {
        return bytes::change(random, input, &[], &[]);
    }
    let mut out = input.to_vec();
    let range = if random.once_in(8) { 0..head(input) } else { random.of(&sections).clone() };
    for _ in 0..=random.below(3) {
        let width = (*random.of(&[1, 1, 2, 4, 8])).min(range.len());
        let at = range.start + random.below(range.len() - width + 1);
        let new = if random.once_in(2) { random.awkward() } else { u64::from(input[at]) ^ (1 << random.below(8)) };
        out[at..at + width].copy_from_slice(&new.to_le_bytes()[..width]);
    }
    reseal(&mut out);
    out
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let mut wide = [0; 8];
    wide[..width].copy_from_slice(bytes.get(at..at + width)?);
    usize::try_from(u64::from_le_bytes(wide)).ok()
}

/// Bytes of header and table, without the strings.
fn table(input: &[u8]) -> usize {
    let count = number(input, COUNT, 4).unwrap_or(0).min(64);
    HEADER + count * ENTRY
}

/// Bytes of header, table and strings.
fn head(input: &[u8]) -> usize {
    let strings = number(input, COUNT + 4, 4).unwrap_or(0);
    table(input).saturating_add(strings).min(input.len())
}

fn entries(input: &[u8]) -> impl Iterator<Item = usize> {
    (HEADER..table(input)).step_by(ENTRY).filter(|at| at + ENTRY <= input.len())
}

/// The bytes of a section, where they are in the file.
fn place(input: &[u8], entry: usize) -> Option<std::ops::Range<usize>> {
    let (from, length) = (number(input, entry + PLACE, 8)?, number(input, entry + PLACE + 8, 8)?);
    let to = from.checked_add(length)?;
    (length > 0 && to <= input.len()).then_some(from..to)
}

fn sections(input: &[u8]) -> Vec<std::ops::Range<usize>> {
    entries(input).filter_map(|entry| place(input, entry)).collect()
}

/// Makes the digests of the sections and of the head right. Weights have the digest of the section with the digests of
/// their chunks, which stays wrong where they changed.
pub fn reseal(out: &mut [u8]) {
    let found: Vec<usize> = entries(out).collect();
    for entry in found {
        let kind = number(out, entry + KIND, 2);
        if let (Some(range), Some(kind)) = (place(out, entry), kind)
            && kind != usize::from(WEIGHTS)
        {
            let digest = blake3::hash(&out[range]);
            out[entry + DIGEST..entry + ENTRY].copy_from_slice(digest.as_bytes());
        }
    }
    let end = head(out);
    if end >= HEADER {
        out[ROOT].fill(0);
        let root = blake3::hash(&out[..end]);
        out[ROOT].copy_from_slice(root.as_bytes());
    }
}
