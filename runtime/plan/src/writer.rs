//! Writing a plan: sections in, one file out, whole or not at all, and the same bytes for the same sections.
//!
//! Weights are streamed: the writer asks for one span at a time and holds no more of them than a buffer. The file is
//! written beside its final place, brought to the disk, opened and verified by the same reader that will load it, and
//! only then given its name. Whatever fails, an earlier file of that name stays as it was.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::codec;
use crate::error::PlanError;
use crate::format::{ALIGN, CHUNK, Digest, Head, MINOR, Section, SectionKind, WEIGHT_ALIGN};
use crate::manifest::Manifest;
use crate::program::{CodeObject, Program};
use crate::random::{self, RandomWeights};
use crate::reader::Plan;
use crate::tokenizer::TokenizerTables;
use crate::verify;

/// Writes the bytes of the weight span of an index, all of them, to a sink.
pub type FillSpan<'a> = dyn FnMut(usize, &mut dyn Write) -> io::Result<()> + 'a;

/// Collects the sections of a plan.
#[derive(Default)]
pub struct PlanWriter<'a> {
    features: Vec<String>,
    parts: Vec<(Section, Content<'a>)>,
}

enum Content<'a> {
    Bytes(Vec<u8>),
    /// Known after the weights are written.
    Late(Box<dyn FnOnce() -> Vec<u8> + 'a>),
    /// Of the weights with the same labels; known after those are written.
    ChunkDigests,
    Weights {
        program: Program,
        fill: Box<FillSpan<'a>>,
    },
}

impl<'a> PlanWriter<'a> {
    /// A plan without sections.
    pub fn new() -> PlanWriter<'a> {
        PlanWriter::default()
    }

    /// Demands a feature of whoever reads the plan.
    pub fn require(&mut self, feature: &str) {
        if !self.features.iter().any(|known| known == feature) {
            self.features.push(feature.to_owned());
        }
    }

    /// Adds a program, under its name.
    pub fn program(&mut self, program: &Program) {
        self.add(SectionKind::Program, [&program.name, "", ""], codec::encode(program));
    }

    /// Adds the code of a program for a target, over weights of a layout.
    pub fn code(&mut self, program: &str, layout: &str, code: &CodeObject) {
        self.add(SectionKind::Code, [program, &code.target, layout], codec::encode(code));
    }

    /// Adds what the PTX of the code for a target has been assembled to.
    pub fn cubin(&mut self, program: &str, target: &str, layout: &str, cubin: Vec<u8>) {
        self.add(SectionKind::Cubin, [program, target, layout], cubin);
    }

    /// Adds the tokenizer.
    pub fn tokenizer(&mut self, tables: &TokenizerTables) {
        self.add(SectionKind::Tokenizer, [""; 3], tables.to_bytes());
    }

    /// Adds the chat template.
    pub fn chat_template(&mut self, text: &str) {
        self.add(SectionKind::ChatTemplate, [""; 3], text.into());
    }

    /// Adds the generation config's JSON.
    pub fn generation_config(&mut self, json: &str) {
        self.add(SectionKind::GenerationConfig, [""; 3], json.into());
    }

    /// Adds the licence's text.
    pub fn licence(&mut self, text: &str) {
        self.add(SectionKind::Licence, [""; 3], text.into());
    }

    /// Adds the manifest.
    pub fn manifest(&mut self, manifest: &Manifest) {
        self.add(SectionKind::Manifest, [""; 3], manifest.to_json().into());
    }

    /// Adds a text for people (`graph`, `schedule`, `passes`, …).
    pub fn report(&mut self, name: &str, text: &str) {
        self.add(SectionKind::Report, [name, "", ""], text.into());
    }

    /// Adds the manifest, made after the last weight is written.
    pub fn late_manifest(&mut self, manifest: impl FnOnce() -> Manifest + 'a) {
        self.late(SectionKind::Manifest, "", move || manifest().to_json().into());
    }

    /// Adds a text for people, made after the last weight is written.
    pub fn late_report(&mut self, name: &str, text: impl FnOnce() -> String + 'a) {
        self.late(SectionKind::Report, name, move || text().into());
    }

    fn late(&mut self, kind: SectionKind, name: &str, bytes: impl FnOnce() -> Vec<u8> + 'a) {
        self.parts.push((section(kind, [name, "", ""], 0), Content::Late(Box::new(bytes))));
    }

    /// Adds the weights of a program in a layout. When the plan is written, `fill` is called once for each of
    /// [`Program::weights`], in order, and must write that span's bytes.
    pub fn weights(
        &mut self,
        program: &Program,
        layout: &str,
        fill: impl FnMut(usize, &mut dyn Write) -> io::Result<()> + 'a,
    ) {
        let length = program.weights.last().map_or(0, |span| span.offset.saturating_add(span.bytes));
        let digests = length.div_ceil(CHUNK as u64) * size_of::<Digest>() as u64;
        let labels = [program.name.as_str(), "", layout];
        self.parts.push((section(SectionKind::ChunkDigests, labels, digests), Content::ChunkDigests));
        let content = Content::Weights { program: program.clone(), fill: Box::new(fill) };
        self.parts.push((section(SectionKind::Weights, labels, length), content));
    }

    /// Adds what makes the weights of a program in a layout, in place of them.
    pub fn random_weights(&mut self, program: &str, layout: &str, weights: &RandomWeights) {
        self.require(random::FEATURE);
        self.add(SectionKind::RandomWeights, [program, "", layout], codec::encode(weights));
    }

    pub(crate) fn add(&mut self, kind: SectionKind, labels: [&str; 3], bytes: Vec<u8>) {
        self.parts.push((section(kind, labels, bytes.len() as u64), Content::Bytes(bytes)));
    }

    /// The plan in memory.
    pub fn to_bytes(self) -> Result<Vec<u8>, PlanError> {
        let mut bytes = Cursor::new(Vec::new());
        self.stream(&mut bytes, Path::new("the plan in memory"))?;
        Ok(bytes.into_inner())
    }

    /// Writes the plan to a file and opens it.
    pub fn write(self, path: &Path) -> Result<Plan, PlanError> {
        let failed = |action| move |source| PlanError::Io { action, path: path.to_owned(), source };
        let temporary = Temporary::beside(path).map_err(failed("write beside"))?;
        let mut out = BufWriter::with_capacity(1 << 20, &temporary.file);
        self.stream(&mut out, path)?;
        out.flush().map_err(failed("write"))?;
        drop(out);
        temporary.file.sync_all().map_err(failed("bring to the disk"))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Plan::open(&temporary.path)?.verify_weights(threads)?;
        temporary.rename(path).map_err(failed("give its name to"))?;
        Plan::open(path)
    }

    fn stream(self, out: &mut (impl Write + Seek), path: &Path) -> Result<(), PlanError> {
        let PlanWriter { features, mut parts } = self;
        parts.sort_by(|a, b| a.0.key().cmp(&b.0.key()));
        if let Some(pair) = parts.windows(2).find(|pair| pair[0].0.key() == pair[1].0.key()) {
            return Err(PlanError::Twice { section: pair[0].0.to_string() });
        }
        for (section, content) in &parts {
            if let Content::Weights { program, .. } = content {
                verify::check_weights(program, section.length)?;
            }
        }
        let (sections, contents): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let mut head = Head { minor: MINOR, features, length: 0, sections };
        head.place();
        let failed = |source| PlanError::Io { action: "write", path: path.to_owned(), source };

        // Zeros stand where the head and the chunk digests will be.
        let mut end = head.encode().len() as u64;
        zeros(out, end).map_err(failed)?;
        let mut places = Vec::new();
        let mut lists = Vec::new();
        for (index, content) in contents.into_iter().enumerate() {
            let content = match content {
                Content::Late(bytes) => {
                    // The sections before this one keep their places: only what follows it depends on its length.
                    let bytes = bytes();
                    head.sections[index].length = bytes.len() as u64;
                    head.place();
                    Content::Bytes(bytes)
                }
                known => known,
            };
            let section = &mut head.sections[index];
            zeros(out, section.offset - end).map_err(failed)?;
            end = section.offset + section.length;
            match content {
                Content::Late(_) => {}
                Content::Bytes(bytes) => {
                    section.digest = *blake3::hash(&bytes).as_bytes();
                    out.write_all(&bytes).map_err(failed)?;
                }
                Content::ChunkDigests => {
                    zeros(out, section.length).map_err(failed)?;
                    places.push(index);
                }
                Content::Weights { program, mut fill } => {
                    let list = stream_weights(out, &program, &mut fill, &failed)?;
                    section.digest = *blake3::hash(&list).as_bytes();
                    lists.push((section.digest, list));
                }
            }
        }
        // Both are sorted by the same labels, so the first list belongs to the first place.
        for (place, (digest, list)) in places.into_iter().zip(lists) {
            let section = &mut head.sections[place];
            section.digest = digest;
            out.seek(SeekFrom::Start(section.offset)).and_then(|_| out.write_all(&list)).map_err(failed)?;
        }
        out.seek(SeekFrom::Start(0)).and_then(|_| out.write_all(&head.encode())).map_err(failed)
    }
}

fn section(kind: SectionKind, [name, target, layout]: [&str; 3], length: u64) -> Section {
    Section {
        kind,
        optional: matches!(kind, SectionKind::Report | SectionKind::Cubin),
        rank: 0,
        name: name.to_owned(),
        target: target.to_owned(),
        layout: layout.to_owned(),
        offset: 0,
        length,
        alignment: if kind == SectionKind::Weights { WEIGHT_ALIGN } else { ALIGN },
        digest: [0; 32],
    }
}

/// Writes the weights, zeros between them; returns the digests of the chunks.
fn stream_weights(
    out: &mut impl Write,
    program: &Program,
    fill: &mut FillSpan,
    failed: &impl Fn(io::Error) -> PlanError,
) -> Result<Vec<u8>, PlanError> {
    let mut sink = ChunkHasher { out, written: 0, hasher: blake3::Hasher::new(), digests: Vec::new() };
    for (index, span) in program.weights.iter().enumerate() {
        let gap = span.offset - sink.written;
        zeros(&mut sink, gap).map_err(failed)?;
        fill(index, &mut sink).map_err(failed)?;
        let found = sink.written - span.offset;
        if found != span.bytes {
            return Err(PlanError::WeightBytes { weight: span.name.clone(), expected: span.bytes, found });
        }
    }
    if !sink.written.is_multiple_of(CHUNK as u64) {
        sink.end_chunk();
    }
    Ok(sink.digests)
}

/// Passes bytes on and hashes each chunk of them.
struct ChunkHasher<'a, W> {
    out: &'a mut W,
    written: u64,
    hasher: blake3::Hasher,
    digests: Vec<u8>,
}

impl<W: Write> ChunkHasher<'_, W> {
    fn end_chunk(&mut self) {
        self.digests.extend(self.hasher.finalize().as_bytes());
        self.hasher.reset();
    }
}

impl<W: Write> Write for ChunkHasher<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = CHUNK - (self.written % CHUNK as u64) as usize;
        let taken = self.out.write(&bytes[..bytes.len().min(left)])?;
        self.hasher.update(&bytes[..taken]);
        self.written += taken as u64;
        if taken == left {
            self.end_chunk();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn zeros(out: &mut impl Write, count: u64) -> io::Result<()> {
    io::copy(&mut io::repeat(0).take(count), out).map(|_| ())
}

/// A new file beside its final place, removed unless it is renamed.
struct Temporary {
    file: File,
    path: PathBuf,
    folder: PathBuf,
}

impl Temporary {
    fn beside(path: &Path) -> io::Result<Temporary> {
        // One process may write several plans at once.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = path.file_name().ok_or_else(|| io::Error::other("expected the name of a file"))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = folder.join(format!(".{}.{process}.{count}.tmp", name.display()));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Temporary { file, path, folder })
    }

    /// Takes the place of whatever is at `path`, lastingly.
    fn rename(self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        File::open(&self.folder)?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After a rename nothing is there; otherwise the failure that ended the writing is what matters.
        let _ = fs::remove_file(&self.path);
    }
}
