//! Where the bytes of a plan lie. Little-endian, exact length; every byte is a digest's, a checked zero, or the magic.
//!
//! | bytes | field of the header |
//! |---|---|
//! | 0..8 | magic `\x89LATHE\r\n` |
//! | 8..10, 10..12 | format major, minor |
//! | 12..16 | runtime ABI |
//! | 16..24 | length of the file |
//! | 24..28 | sections |
//! | 28..32 | bytes of the strings |
//! | 32..40 | required features: a string, names separated by spaces |
//! | 40..64 | zero |
//! | 64..96 | root digest: BLAKE3 of header, table and strings with these 32 bytes zero |
//!
//! The section table follows, one entry of 96 bytes per section, and then the strings. A string is named by its offset
//! in the strings and its length, both u32.
//!
//! | bytes | field of an entry |
//! |---|---|
//! | 0..2, 2..4 | kind; flags, 1: a reader that doesn't know the kind may ignore the section |
//! | 4..8 | rank |
//! | 8..16, 16..24, 24..32 | name, target, layout: strings |
//! | 32..40, 40..48 | offset in the file, length |
//! | 48..52 | alignment of the offset |
//! | 52..64 | zero |
//! | 64..96 | BLAKE3 of the section |
//!
//! Entries ascend by (kind, name, target, layout, rank) and lie in the file in that order. Each starts at the first
//! aligned byte after what is before it; the padding is zero; the last one ends the file. The strings are exactly those
//! that the fields name, in the order of the fields, so a head has one spelling, and readers insist on it.
//!
//! Weights are read in chunks of 4 MiB, verified as they arrive. Their chunks' digests are a section of their own, and
//! the digest of a weight section is the digest of that list.

use crate::error::{NotAPlan, PlanError, TableError};
use crate::random;

/// The first bytes: not ASCII, and altered by what alters text files.
pub const MAGIC: [u8; 8] = *b"\x89LATHE\r\n";
/// Readers refuse any other.
pub const MAJOR: u16 = 1;
/// Readers accept any: what a minor version adds is in optional sections.
pub const MINOR: u16 = 0;
/// The calling convention of kernels and the meaning of the program. Readers refuse any other.
pub const RUNTIME_ABI: u32 = 3;
/// Features that this reader knows.
pub const KNOWN_FEATURES: [&str; 1] = [random::FEATURE];
/// Bytes of weights under one digest.
pub const CHUNK: usize = 4 << 20;
/// Alignment of weights, so that they can be mapped.
pub const WEIGHT_ALIGN: u32 = 4096;
/// Alignment of all other sections.
pub const ALIGN: u32 = 64;

pub(crate) const HEADER_BYTES: usize = 96;
pub(crate) const ENTRY_BYTES: usize = 96;
const ROOT: std::ops::Range<usize> = 64..96;
const OPTIONAL: u16 = 1;

/// A BLAKE3 digest.
pub type Digest = [u8; 32];

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SectionKind {
    /// A binary [`crate::Program`]; the name is the program's.
    Program,
    /// Binary [`crate::TokenizerTables`].
    Tokenizer,
    /// The chat template's text.
    ChatTemplate,
    /// The generation config's JSON.
    GenerationConfig,
    /// The model's licence text.
    Licence,
    /// A binary [`crate::CodeObject`] for a target, of the program named, over weights of a layout.
    Code,
    /// The digests of the chunks of the weights of the same name, layout and rank.
    ChunkDigests,
    /// Weights of the program named, in a layout.
    Weights,
    /// The JSON of a [`crate::Manifest`]. It lies behind the weights, because it says what packing them cost.
    Manifest,
    /// A named text for people, which may be stripped.
    Report,
    /// A binary [`random::RandomWeights`] of the program named, in a layout, in place of its weights.
    RandomWeights,
    /// What the PTX of the code of the same labels has been assembled to, for the architecture of its target alone.
    Cubin,
    /// One that this reader doesn't know.
    Unknown(u16),
}

const KINDS: [(u16, SectionKind, &str); 12] = [
    (1, SectionKind::Program, "program"),
    (2, SectionKind::Tokenizer, "tokenizer"),
    (3, SectionKind::ChatTemplate, "chat template"),
    (4, SectionKind::GenerationConfig, "generation config"),
    (5, SectionKind::Licence, "licence"),
    (6, SectionKind::Code, "code"),
    (7, SectionKind::ChunkDigests, "chunk digests"),
    (8, SectionKind::Weights, "weights"),
    (9, SectionKind::Manifest, "manifest"),
    (10, SectionKind::Report, "report"),
    (11, SectionKind::RandomWeights, "random weights"),
    (12, SectionKind::Cubin, "cubin"),
];

impl SectionKind {
    /// The number that stands for it in the file.
    pub fn number(self) -> u16 {
        match self {
            SectionKind::Unknown(number) => number,
            known => KINDS.iter().find(|row| row.1 == known).map_or(0, |row| row.0),
        }
    }

    fn from_number(number: u16) -> SectionKind {
        KINDS.iter().find(|row| row.0 == number).map_or(SectionKind::Unknown(number), |row| row.1)
    }
}

impl std::fmt::Display for SectionKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match KINDS.iter().find(|row| row.1 == *self) {
            Some(row) => f.write_str(row.2),
            None => write!(f, "unknown section {}", self.number()),
        }
    }
}

/// An entry of the section table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// What it holds.
    pub kind: SectionKind,
    /// Whether a reader that doesn't know the kind may ignore it.
    pub optional: bool,
    /// The rank that it is for.
    pub rank: u32,
    /// The program's or report's name; empty where there is only one.
    pub name: String,
    /// The target of code.
    pub target: String,
    /// The layout of weights.
    pub layout: String,
    /// Where it starts in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
    /// What the offset is a multiple of.
    pub alignment: u32,
    /// BLAKE3 of its bytes; for weights, of their chunk digests.
    pub digest: Digest,
}

impl Section {
    /// What sections are sorted by, and what makes one unique.
    pub(crate) fn key(&self) -> (u16, &str, &str, &str, u32) {
        (self.kind.number(), &self.name, &self.target, &self.layout, self.rank)
    }

    /// A label that sections of this kind don't have. Without one, a program or a text is there at most once.
    pub(crate) fn stray_label(&self) -> Option<&str> {
        let labels: &[&str] = match self.kind {
            SectionKind::Code | SectionKind::Cubin | SectionKind::Unknown(_) => &[],
            SectionKind::ChunkDigests | SectionKind::Weights | SectionKind::RandomWeights => &[&self.target],
            SectionKind::Program | SectionKind::Report => &[&self.target, &self.layout],
            _ => &[&self.name, &self.target, &self.layout],
        };
        labels.iter().copied().find(|label| !label.is_empty())
    }

    /// Whether the section's digest is that of its own bytes, which then are read when the plan is opened.
    pub(crate) fn is_small(&self) -> bool {
        self.kind != SectionKind::Weights
    }
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind)?;
        for part in [&self.name, &self.target, &self.layout] {
            if !part.is_empty() {
                write!(f, " `{part}`")?;
            }
        }
        if self.rank > 0 { write!(f, " of rank {}", self.rank) } else { Ok(()) }
    }
}

/// Header and table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub minor: u16,
    pub features: Vec<String>,
    pub length: u64,
    pub sections: Vec<Section>,
}

/// The facts of the header that say how long the head is.
pub(crate) struct Start {
    pub length: u64,
    sections: usize,
    pub head_bytes: usize,
}

/// Reads what is fixed in every header of this major version. `start` is the beginning of the file, `found` its length.
pub(crate) fn parse_start(start: &[u8], found: u64) -> Result<Start, PlanError> {
    if !start.starts_with(&MAGIC) {
        return Err(NotAPlan::guess(start).into());
    }
    let Some(header) = start.get(..HEADER_BYTES) else {
        return Err(PlanError::Length { expected: HEADER_BYTES as u64, found });
    };
    let major = u16_at(header, 8);
    if major != MAJOR {
        return Err(PlanError::Major { expected: MAJOR, found: major });
    }
    let abi = u32_at(header, 12);
    if abi != RUNTIME_ABI {
        return Err(PlanError::Abi { expected: RUNTIME_ABI, found: abi });
    }
    let length = u64_at(header, 16);
    if length != found {
        return Err(PlanError::Length { expected: length, found });
    }
    let sections = u64::from(u32_at(header, 24));
    let head = HEADER_BYTES as u64 + sections * ENTRY_BYTES as u64 + u64::from(u32_at(header, 28));
    if head > length {
        return Err(TableError::Outside { head, length }.into());
    }
    Ok(Start { length, sections: sections as usize, head_bytes: head as usize })
}

/// Reads a head and proves it: its digest, its one spelling, the order and places of the sections.
pub(crate) fn parse_head(start: &Start, bytes: &[u8]) -> Result<Head, PlanError> {
    if root(bytes) != bytes[ROOT] {
        return Err(PlanError::Root);
    }
    let table = HEADER_BYTES..HEADER_BYTES + start.sections * ENTRY_BYTES;
    let strings = Strings(&bytes[table.end..]);
    let features = strings.get(bytes, 32)?;
    let head = Head {
        minor: u16_at(bytes, 10),
        features: features.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        length: start.length,
        sections: bytes[table]
            .chunks_exact(ENTRY_BYTES)
            .map(|entry| parse_entry(entry, &strings))
            .collect::<Result<_, _>>()?,
    };
    // A reserved byte that is not zero, an unknown flag, a string that no field names: none of these is reproduced.
    if head.encode() != bytes {
        return Err(TableError::Spelling.into());
    }
    if let Some(name) = head.features.iter().find(|name| !KNOWN_FEATURES.contains(&name.as_str())) {
        return Err(PlanError::Feature { name: name.clone() });
    }
    head.check_places(bytes.len() as u64)?;
    Ok(head)
}

fn parse_entry(entry: &[u8], strings: &Strings) -> Result<Section, TableError> {
    let mut digest = [0; 32];
    digest.copy_from_slice(&entry[64..]);
    Ok(Section {
        kind: SectionKind::from_number(u16_at(entry, 0)),
        optional: u16_at(entry, 2) & OPTIONAL != 0,
        rank: u32_at(entry, 4),
        name: strings.get(entry, 8)?,
        target: strings.get(entry, 16)?,
        layout: strings.get(entry, 24)?,
        offset: u64_at(entry, 32),
        length: u64_at(entry, 40),
        alignment: u32_at(entry, 48),
        digest,
    })
}

impl Head {
    /// Gives each section its offset, in order, and the file its length. The sections must be sorted.
    pub fn place(&mut self) {
        let mut end = self.encode().len() as u64;
        for section in &mut self.sections {
            section.offset = end.next_multiple_of(u64::from(section.alignment));
            end = section.offset.saturating_add(section.length);
        }
        self.length = end;
    }

    /// The bytes of header, table and strings, with the root digest.
    pub fn encode(&self) -> Vec<u8> {
        let mut strings = Vec::new();
        let mut table = Vec::with_capacity(self.sections.len() * ENTRY_BYTES);
        let features = named(&self.features.join(" "), &mut strings);
        for section in &self.sections {
            table.extend(section.kind.number().to_le_bytes());
            table.extend((if section.optional { OPTIONAL } else { 0 }).to_le_bytes());
            table.extend(section.rank.to_le_bytes());
            for string in [&section.name, &section.target, &section.layout] {
                table.extend(named(string, &mut strings));
            }
            table.extend(section.offset.to_le_bytes());
            table.extend(section.length.to_le_bytes());
            table.extend(section.alignment.to_le_bytes());
            table.extend([0; 12]);
            table.extend(section.digest);
        }
        let mut bytes = Vec::with_capacity(HEADER_BYTES + table.len() + strings.len());
        bytes.extend(MAGIC);
        bytes.extend(MAJOR.to_le_bytes());
        bytes.extend(self.minor.to_le_bytes());
        bytes.extend(RUNTIME_ABI.to_le_bytes());
        bytes.extend(self.length.to_le_bytes());
        bytes.extend((self.sections.len() as u32).to_le_bytes());
        bytes.extend((strings.len() as u32).to_le_bytes());
        bytes.extend(features);
        bytes.resize(HEADER_BYTES, 0);
        bytes.extend(table);
        bytes.extend(strings);
        let root = root(&bytes);
        bytes[ROOT].copy_from_slice(&root);
        bytes
    }

    /// Sorted, known, aligned, each right after the one before, the last one at the end of the file.
    fn check_places(&self, head_bytes: u64) -> Result<(), TableError> {
        let mut end = head_bytes;
        for (index, section) in self.sections.iter().enumerate() {
            let name = || section.to_string();
            if index > 0 && self.sections[index - 1].key() >= section.key() {
                return Err(TableError::Order { section: name() });
            }
            if matches!(section.kind, SectionKind::Unknown(_)) && !section.optional {
                return Err(TableError::Unknown { section: name() });
            }
            let least = if section.kind == SectionKind::Weights { WEIGHT_ALIGN } else { 1 };
            if !section.alignment.is_power_of_two() || section.alignment < least {
                return Err(TableError::Alignment { section: name(), least, found: section.alignment });
            }
            let expected = end.checked_next_multiple_of(u64::from(section.alignment));
            if expected != Some(section.offset) {
                return Err(TableError::Offset {
                    section: name(),
                    expected: expected.unwrap_or(u64::MAX),
                    found: section.offset,
                });
            }
            end = section.offset.checked_add(section.length).filter(|&end| end <= self.length).ok_or_else(|| {
                TableError::Length {
                    section: name(),
                    most: self.length.saturating_sub(section.offset),
                    found: section.length,
                }
            })?;
        }
        if end == self.length { Ok(()) } else { Err(TableError::End { expected: end, found: self.length }) }
    }
}

/// Appends a string to the strings; its offset and length.
fn named(string: &str, strings: &mut Vec<u8>) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&(strings.len() as u32).to_le_bytes());
    bytes[4..].copy_from_slice(&(string.len() as u32).to_le_bytes());
    strings.extend_from_slice(string.as_bytes());
    bytes
}

struct Strings<'a>(&'a [u8]);

impl Strings<'_> {
    /// The string that the field at `at` names.
    fn get(&self, bytes: &[u8], at: usize) -> Result<String, TableError> {
        let (offset, length) = (u32_at(bytes, at) as usize, u32_at(bytes, at + 4) as usize);
        let string = offset.checked_add(length).and_then(|end| self.0.get(offset..end));
        string.and_then(|bytes| str::from_utf8(bytes).ok()).map(str::to_owned).ok_or(TableError::Spelling)
    }
}

pub(crate) fn root(head: &[u8]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&head[..ROOT.start]).update(&[0; 32]).update(&head[ROOT.end..]);
    *hasher.finalize().as_bytes()
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
