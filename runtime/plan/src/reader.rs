//! Opening a plan: everything but the weights is read, verified and decoded at once; weights when they are loaded.

use std::fmt;
use std::path::Path;

use crate::codec::{self, DecodeError};
use crate::error::PlanError;
use crate::format::{self, CHUNK, Digest, HEADER_BYTES, Head, Section, SectionKind};
use crate::manifest::Manifest;
use crate::program::{CodeObject, Program};
use crate::random::RandomWeights;
use crate::skip;
use crate::source::Source;
use crate::tokenizer::PackedTokenizer;
use crate::verify;
use crate::weights::{self, Expected, LoadMode, Weights};

/// An opened plan. Its file is opened once; nothing else is ever opened.
#[derive(Debug)]
pub struct Plan {
    source: Source,
    head: Head,
    root: Digest,
    programs: Vec<Program>,
    codes: Vec<Code>,
    tokenizer: Option<PackedTokenizer>,
    chat_template: Option<String>,
    generation_config: Option<String>,
    licence: Option<String>,
    manifest: Option<Manifest>,
    reports: Vec<(String, String)>,
    /// Index and content of the sections of chunk digests.
    chunks: Vec<(usize, Vec<Digest>)>,
    /// Program, target and content of assembled code.
    cubins: Vec<(String, String, Vec<u8>)>,
    /// Program, layout and content of what stands for weights.
    random: Vec<(String, String, RandomWeights)>,
}

/// Machine code of a program for a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Code {
    /// The program.
    pub program: String,
    /// The layout of the weights that it reads.
    pub layout: String,
    /// The code.
    pub object: CodeObject,
}

impl Plan {
    /// Opens a file and checks all of it but the weights.
    pub fn open(path: &Path) -> Result<Plan, PlanError> {
        Plan::read(Source::open(path)?)
    }

    /// Opens a plan that is in memory already.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Plan, PlanError> {
        Plan::read(Source::Bytes(bytes))
    }

    fn read(source: Source) -> Result<Plan, PlanError> {
        let length = source.len();
        let start = source.read(0, length.min(HEADER_BYTES as u64) as usize)?;
        let start = format::parse_start(&start, length)?;
        let bytes = source.read(0, start.head_bytes)?;
        let head = format::parse_head(&start, &bytes)?;
        let mut plan = Plan {
            source,
            root: format::root(&bytes),
            head,
            programs: Vec::new(),
            codes: Vec::new(),
            tokenizer: None,
            chat_template: None,
            generation_config: None,
            licence: None,
            manifest: None,
            reports: Vec::new(),
            chunks: Vec::new(),
            cubins: Vec::new(),
            random: Vec::new(),
        };
        plan.check_padding(bytes.len() as u64)?;
        plan.read_sections()?;
        plan.check_fit()?;
        Ok(plan)
    }

    fn check_padding(&self, head_bytes: u64) -> Result<(), PlanError> {
        let mut end = head_bytes;
        for section in &self.head.sections {
            let mut at = end;
            while at < section.offset {
                let bytes = self.source.read(at, (section.offset - at).min(CHUNK as u64) as usize)?;
                if let Some(index) = bytes.iter().position(|&byte| byte != 0) {
                    return Err(PlanError::Padding { offset: at + index as u64, found: bytes[index] });
                }
                at += bytes.len() as u64;
            }
            end = section.offset + section.length;
        }
        Ok(())
    }

    /// Reads, verifies and decodes the small sections.
    fn read_sections(&mut self) -> Result<(), PlanError> {
        for index in 0..self.head.sections.len() {
            let section = &self.head.sections[index];
            if !section.is_small() {
                continue;
            }
            let bytes = self.source.read(section.offset, section.length as usize)?;
            if blake3::hash(&bytes) != section.digest {
                return Err(PlanError::Digest { section: section.to_string() });
            }
            self.keep(index, bytes)
                .map_err(|source| PlanError::Malformed { section: self.head.sections[index].to_string(), source })?;
        }
        Ok(())
    }

    fn keep(&mut self, index: usize, bytes: Vec<u8>) -> Result<(), DecodeError> {
        let section = &self.head.sections[index];
        let named = |expected: &str| {
            let wrong = || DecodeError::Inconsistent(format!("it says that it is `{expected}`"));
            if section.name == expected { Ok(()) } else { Err(wrong()) }
        };
        match section.kind {
            SectionKind::Program => {
                let program: Program = codec::decode(&bytes)?;
                named(&program.name)?;
                self.programs.push(program);
            }
            SectionKind::Code => {
                let object: CodeObject = codec::decode(&bytes)?;
                if object.target != section.target {
                    return Err(DecodeError::Inconsistent(format!("it is for target `{}`", object.target)));
                }
                self.codes.push(Code { program: section.name.clone(), layout: section.layout.clone(), object });
            }
            SectionKind::Tokenizer => self.tokenizer = Some(PackedTokenizer::from_bytes(bytes)?),
            SectionKind::ChatTemplate => self.chat_template = Some(text(&bytes)?),
            SectionKind::GenerationConfig => self.generation_config = Some(text(&bytes)?),
            SectionKind::Licence => self.licence = Some(text(&bytes)?),
            SectionKind::Manifest => self.manifest = Some(Manifest::from_json(&text(&bytes)?)?),
            SectionKind::Report => self.reports.push((section.name.clone(), text(&bytes)?)),
            SectionKind::ChunkDigests => {
                if !bytes.len().is_multiple_of(size_of::<Digest>()) {
                    return Err(DecodeError::Inconsistent(format!("{} bytes are no list of digests", bytes.len())));
                }
                self.chunks.push((index, bytes.as_chunks().0.to_vec()));
            }
            SectionKind::Cubin => self.cubins.push((section.name.clone(), section.target.clone(), bytes)),
            SectionKind::RandomWeights => {
                let weights: RandomWeights = codec::decode(&bytes)?;
                self.random.push((section.name.clone(), section.layout.clone(), weights));
            }
            SectionKind::Weights | SectionKind::Unknown(_) => {}
        }
        Ok(())
    }

    /// Checks that the sections fit each other, and that no launch can leave its buffers.
    fn check_fit(&self) -> Result<(), PlanError> {
        if self.programs.is_empty() {
            return Err(PlanError::Missing { what: "program".to_owned() });
        }
        self.programs.iter().try_for_each(verify::check_program)?;
        self.head.sections.iter().try_for_each(|section| self.check_section(section))?;
        self.codes.iter().try_for_each(|code| self.check_code(code))?;
        if let (Some(own), Some(main)) = (self.program(skip::PROGRAM), self.program("main")) {
            let same = own.kernels == main.kernels
                && own.weights == main.weights
                && own.cache_groups == main.cache_groups
                && own.inputs == main.inputs
                && (own.vocabulary, own.max_context) == (main.vocabulary, main.max_context);
            if !same || self.codes(skip::PROGRAM).next().is_some() {
                let why =
                    "expected the kernels, weights, caches and inputs of the main program, and no code of its own";
                return Err(mismatch(&format!("program `{}`", skip::PROGRAM), why.to_owned()));
            }
        }
        for code in self.codes("main") {
            let lacks = |program: &&Program| {
                program.name != skip::PROGRAM
                    && self.codes(&program.name).all(|other| other.object.target != code.object.target)
            };
            if let Some(program) = self.programs.iter().find(lacks) {
                let why = format!("expected code for `{}`, which the main program has", code.object.target);
                return Err(mismatch(&format!("program `{}`", program.name), why));
            }
        }
        for program in &self.programs {
            let (most, found) = (program.vocabulary as usize, self.tokenizer.as_ref().map_or(0, PackedTokenizer::len));
            if found > most {
                let why = format!("expected at most the {most} tokens of program `{}`, found {found}", program.name);
                return Err(mismatch(&SectionKind::Tokenizer, why));
            }
        }
        Ok(())
    }

    fn check_section(&self, section: &Section) -> Result<(), PlanError> {
        if matches!(section.kind, SectionKind::Unknown(_)) {
            return Ok(());
        }
        if let Some(label) = section.stray_label() {
            return Err(mismatch(section, format!("expected no label `{label}`")));
        }
        if section.rank != 0 {
            return Err(mismatch(section, "expected rank 0, the only one that this lathe runs".to_owned()));
        }
        if section.kind == SectionKind::ChunkDigests && self.weights_section(&section.name, &section.layout).is_none() {
            return Err(mismatch(section, "expected weights of the same name and layout, found none".to_owned()));
        }
        if section.kind == SectionKind::Weights {
            let (expected, found) = (section.length.div_ceil(CHUNK as u64), self.expected(section)?.digests.len());
            if expected != found as u64 {
                return Err(mismatch(section, format!("expected {expected} chunk digests, found {found}")));
            }
            verify::check_weights(self.owner(section, &section.name)?, section.length)?;
        }
        if section.kind == SectionKind::RandomWeights {
            self.check_random(section)?;
        }
        let has_code = || self.codes(&section.name).any(|code| code.object.target == section.target);
        if section.kind == SectionKind::Cubin && !has_code() {
            return Err(mismatch(section, "expected code of its program and target, found none".to_owned()));
        }
        Ok(())
    }

    fn check_random(&self, section: &Section) -> Result<(), PlanError> {
        let program = self.owner(section, &section.name)?;
        if self.weights_section(&section.name, &section.layout).is_some() {
            return Err(mismatch(section, "expected no weights of the same name and layout".to_owned()));
        }
        verify::check_weights(program, RandomWeights::total(program))?;
        match self.random_weights(&section.name, &section.layout).map(|weights| weights.check(program)) {
            Some(Err(why)) => Err(mismatch(section, why.to_string())),
            _ => Ok(()),
        }
    }

    fn check_code(&self, code: &Code) -> Result<(), PlanError> {
        let section = format!("code `{}` `{}` `{}`", code.program, code.object.target, code.layout);
        let program = self.owner(&section, &code.program)?;
        verify::check_code(program, &code.object)?;
        let has_weights = self.weights_section(&code.program, &code.layout).is_some()
            || self.random_weights(&code.program, &code.layout).is_some();
        if !program.weights.is_empty() && !has_weights {
            return Err(mismatch(&section, "expected weights of its program and layout, found none".to_owned()));
        }
        Ok(())
    }

    /// The program that a section belongs to.
    fn owner(&self, section: &dyn fmt::Display, program: &str) -> Result<&Program, PlanError> {
        self.program(program).ok_or_else(|| mismatch(section, format!("expected a program `{program}`, found none")))
    }

    fn weights_section(&self, program: &str, layout: &str) -> Option<&Section> {
        let is_it = |section: &&Section| {
            section.kind == SectionKind::Weights && section.name == program && section.layout == layout
        };
        self.head.sections.iter().find(is_it)
    }

    /// The chunk digests of a weight section, which have the digest that the section names.
    fn expected<'a>(&'a self, section: &'a Section) -> Result<Expected<'a>, PlanError> {
        let of_section = |(index, _): &&(usize, Vec<Digest>)| {
            let list = &self.head.sections[*index];
            (&list.name, &list.layout, list.rank, list.digest)
                == (&section.name, &section.layout, section.rank, section.digest)
        };
        let found = self.chunks.iter().find(of_section).map(|(_, digests)| Expected { section, digests });
        found.ok_or_else(|| mismatch(section, "expected the chunk digests that its digest stands for".to_owned()))
    }

    /// Bytes of the file, which the caller knows are there.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>, PlanError> {
        self.source.read(offset, length as usize)
    }

    /// The features that it demands of whoever reads it.
    pub(crate) fn features(&self) -> &[String] {
        &self.head.features
    }

    /// What the weights of a program in a layout are made from, where they are not in the plan.
    pub fn random_weights(&self, program: &str, layout: &str) -> Option<&RandomWeights> {
        let mut random = self.random.iter();
        random.find(|(name, of, _)| name == program && of == layout).map(|(_, _, weights)| weights)
    }

    /// The seed of weights that are made when they are loaded: such a plan is for measuring speed, and says nothing.
    pub fn seed(&self) -> Option<u64> {
        self.random.first().map(|(_, _, weights)| weights.seed)
    }

    /// Loads the weights of a program in a layout (see [`Code::layout`]), verifying each byte, with up to `threads`
    /// threads. Random weights are made by as many.
    pub fn load_weights(
        &self,
        program: &str,
        layout: &str,
        mode: LoadMode,
        threads: usize,
    ) -> Result<Weights, PlanError> {
        if let (Some(random), Some(program)) = (self.random_weights(program, layout), self.program(program)) {
            return weights::make(&self.source, random, program, threads);
        }
        let section = self.weights_section(program, layout).ok_or_else(|| PlanError::Missing {
            what: format!("weights of program `{program}` in layout `{layout}`"),
        })?;
        weights::load(&self.source, &self.expected(section)?, mode, threads)
    }

    /// Verifies all weights without keeping them.
    pub fn verify_weights(&self, threads: usize) -> Result<(), PlanError> {
        let mut weights = self.head.sections.iter().filter(|section| section.kind == SectionKind::Weights);
        weights.try_for_each(|section| weights::verify(&self.source, &self.expected(section)?, threads))
    }

    /// Verifies the chunk of weights that holds byte `at` of the file; `None` when no weights lie there.
    pub fn verify_weights_at(&self, at: u64) -> Option<Result<(), PlanError>> {
        let holds = |section: &&Section| {
            section.kind == SectionKind::Weights && (section.offset..section.offset + section.length).contains(&at)
        };
        let section = self.head.sections.iter().find(holds)?;
        let chunk = (at - section.offset) as usize / CHUNK;
        Some(self.expected(section).and_then(|expected| weights::verify_chunk(&self.source, &expected, chunk)))
    }

    /// The format's minor version.
    pub fn minor(&self) -> u16 {
        self.head.minor
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.head.length
    }

    /// The digest that stands for the whole plan: what a signature signs.
    pub fn root(&self) -> Digest {
        self.root
    }

    /// The section table.
    pub fn sections(&self) -> &[Section] {
        &self.head.sections
    }

    /// All programs, by name.
    pub fn programs(&self) -> &[Program] {
        &self.programs
    }

    /// The program of a name.
    pub fn program(&self, name: &str) -> Option<&Program> {
        self.programs.iter().find(|program| program.name == name)
    }

    /// The machine code of a program, one per target.
    pub fn codes(&self, program: &str) -> impl Iterator<Item = &Code> {
        self.codes.iter().filter(move |code| code.program == program)
    }

    /// What the PTX of a program's code for a target has been assembled to, if the compiler had an assembler.
    pub fn cubin(&self, program: &str, target: &str) -> Option<&[u8]> {
        let mut cubins = self.cubins.iter();
        cubins.find(|(name, of, _)| name == program && of == target).map(|(_, _, cubin)| cubin.as_slice())
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> Option<&PackedTokenizer> {
        self.tokenizer.as_ref()
    }

    /// The chat template, as in the checkpoint.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// The generation config's JSON, as in the checkpoint.
    pub fn generation_config(&self) -> Option<&str> {
        self.generation_config.as_deref()
    }

    /// The licence's text, as in the checkpoint.
    pub fn licence(&self) -> Option<&str> {
        self.licence.as_deref()
    }

    /// What the plan is, for people.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifest.as_ref()
    }

    /// The reports, as (name, text), by name.
    pub fn reports(&self) -> impl Iterator<Item = (&str, &str)> {
        self.reports.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// The report of a name.
    pub fn report(&self, name: &str) -> Option<&str> {
        self.reports().find(|report| report.0 == name).map(|report| report.1)
    }
}

fn mismatch(section: &dyn fmt::Display, why: String) -> PlanError {
    PlanError::Mismatch { section: section.to_string(), why }
}

fn text(bytes: &[u8]) -> Result<String, DecodeError> {
    match str::from_utf8(bytes) {
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(DecodeError::Utf8 { at: error.valid_up_to() }),
    }
}
