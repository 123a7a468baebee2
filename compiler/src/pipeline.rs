//! The whole compiler as one function: open, graph, passes, schedule, kernels, emit.

use std::io::Read;
use std::path::Path;
use std::time::{Duration, Instant};

use lathe_ir::graph::Graph;
use lathe_ir::verify;
use lathe_kernels::spec::KernelSpec;
use lathe_kernels::targets::{Machine, Target};
use lathe_kernels::{KernelError, Object, TextLevel};
use lathe_models::Model;
use lathe_plan::manifest::Source;

use crate::ahead::ahead;
use crate::assemble::{self, Assembled};
use crate::draft::{self, Draft};
use crate::error::CompileError;
use crate::options::Options;
use crate::pass;
use crate::weights::ErrorSum;
use crate::{dry_run, emit, output, schedule, self_draft, template};

/// Bytes of a file that are digested at once.
const DIGEST_BUFFER: usize = 1 << 20;

/// A level of representation that can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Level {
    /// The graph as the model's family builds it.
    Graph,
    /// The graph after the passes.
    Fused,
    /// Launches, buffers and costs of every bucket.
    Schedule,
    /// Where every intermediate lies.
    Memory,
    /// The kernels in LLVM's language, before its optimizer.
    Llvm,
    /// The kernels in x86-64 assembly.
    Asm,
    /// The kernels in PTX.
    Ptx,
    /// What the plan would say of itself.
    Manifest,
}

/// What a compile should give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal<'a> {
    /// A plan in this file.
    Plan(&'a Path),
    /// The text of a level.
    Text(Level),
    /// What a plan would need and how long its steps would take; no weight is read and no code generated.
    DryRun,
}

/// What a compile gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The text that was asked for; empty when a plan was written.
    pub text: String,
    /// Kernels without a generator on the target, left out of the text.
    pub missing: Vec<String>,
    /// Matrices that a plan keeps as they are in the file, although another form was named for them.
    pub kept: Vec<String>,
    /// How long each stage took.
    pub times: Vec<(&'static str, Duration)>,
}

/// Compiles a model, as far as the goal needs it.
///
/// # Errors
/// See [`CompileError`].
pub fn compile(model: Model, goal: Goal<'_>, options: &Options) -> Result<Outcome, CompileError> {
    compile_with(model, None, goal, options)
}

/// Compiles a model together with another one that guesses what it will say. Texts are of the first alone.
///
/// # Errors
/// See [`CompileError`].
pub fn compile_with(
    model: Model,
    draft: Option<Model>,
    goal: Goal<'_>,
    options: &Options,
) -> Result<Outcome, CompileError> {
    let mut clock = Clock::start();
    model.chat_template.as_deref().map_or(Ok(()), template::check)?;
    if let Goal::Plan(path) = goal {
        output::check(path, std::iter::once(&model).chain(&draft).flat_map(|model| &model.origin.files))?;
    }
    let cache = options.cache_of(&model.config);
    let model = model.with_cache(cache)?;
    let max_context = options.max_context(model.config.context)?;
    let mut graph = checked(&model)?;
    let unfused = graph.to_string();
    if goal == Goal::Text(Level::Graph) {
        return Ok(clock.text(unfused));
    }

    let passes = pass::run(&mut graph, options.targets[0], &options.passes, &options.selection)?;
    clock.lap("passes");
    let fused = graph.to_string();
    if goal == Goal::Text(Level::Fused) {
        return Ok(clock.text(fused));
    }

    let schedule = schedule::build(&graph, max_context, options.targets[0].machine)?;
    clock.lap("schedule");
    match goal {
        Goal::Text(Level::Schedule) => return Ok(clock.text(schedule::print::schedule(&schedule))),
        Goal::Text(Level::Memory) => return Ok(clock.text(schedule::print::memory(&schedule))),
        Goal::DryRun => return Ok(clock.text(dry_run::text(&model, &schedule, &options.targets))),
        _ => {}
    }

    let kernels = schedule.kernels();
    let path = match goal {
        Goal::Plan(path) => path,
        Goal::Text(Level::Manifest) => {
            let errors = emit::errors(&model, &schedule, options)?;
            let manifest = emit::manifest(&model, digest(&model)?, &schedule, options, Vec::new(), &errors);
            return Ok(clock.text(manifest.to_json() + "\n"));
        }
        Goal::Text(level) => return kernel_texts(&kernels, level, &options.targets, clock),
        Goal::DryRun => return Ok(clock.text(String::new())),
    };
    let draft = draft.map(|draft| draft::lower(draft, &model, &schedule, options)).transpose()?;
    let (source, objects) = digest_and_objects(&model, &kernels, options)?;
    let mut drafters = Vec::new();
    let mut others = Vec::new();
    if let Some(Draft { model, schedule }) = &draft {
        let (source, objects) = digest_and_objects(model, &schedule.kernels(), options)?;
        drafters.push(emit::drafter(model, source, schedule, options));
        let assembled = assembled(&objects, options)?;
        others.push(emit::Parts { model, schedule, objects, assembled });
    }
    let own = options.self_draft.as_ref().map(|layers| self_draft::lower(&model, &schedule, &source, layers));
    let own = own.transpose()?.map(|(program, drafter)| {
        drafters.push(drafter);
        program
    });
    clock.lap("kernels");
    let assembled = assembled(&objects, options)?;
    if !assembled.is_empty() {
        clock.lap("cubins");
    }
    let main = emit::Parts { model: &model, schedule: &schedule, objects, assembled };
    let story = emit::Story { graphs: [&unfused, &fused], passes: &passes };
    let manifest = |errors: &[Option<ErrorSum>]| emit::manifest(&model, source, &schedule, options, drafters, errors);
    emit::write(main, own.as_ref(), others, &story, options, path, manifest)?;
    clock.lap("weights");
    let kept = passes.iter().flat_map(|pass| &pass.notes).filter(|note| note.kept).map(|note| note.subject.clone());
    Ok(Outcome { kept: kept.collect(), ..clock.text(String::new()) })
}

/// A model's graph, proven to be sound.
pub(crate) fn checked(model: &Model) -> Result<Graph, CompileError> {
    let graph = model.graph.clone();
    verify::verify(&graph)
        .map_err(|error| CompileError::Verify { after: "the model's builder", message: error.to_string() })?;
    Ok(graph)
}

/// Machine code of each target.
type Objects = Vec<(&'static Target, Object)>;

/// The digest of a model's files, which takes all of them and one core, while another core generates code.
fn digest_and_objects(
    model: &Model,
    kernels: &[KernelSpec],
    options: &Options,
) -> Result<(Source, Objects), CompileError> {
    let (source, objects) = std::thread::scope(|scope| {
        let source = scope.spawn(|| digest(model));
        let objects = objects(kernels, options);
        (source.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), objects)
    });
    Ok((source?, objects?))
}

/// The digest of a model's files. A model of one file has that file's own digest; that of several covers the name, length
/// and bytes of each file that was read.
///
/// # Errors
/// When a file cannot be read.
pub fn digest(model: &Model) -> Result<Source, CompileError> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; DIGEST_BUFFER];
    for path in &model.origin.files {
        let failed = |source| CompileError::Read { path: path.clone(), source };
        let mut file = std::fs::File::open(path).map_err(failed)?;
        if model.origin.format == "hf" || model.origin.files.len() > 1 {
            let name = path.file_name().unwrap_or_default().as_encoded_bytes();
            hasher.update(&(name.len() as u64).to_le_bytes()).update(name);
            hasher.update(&file.metadata().map_err(failed)?.len().to_le_bytes());
        }
        loop {
            match file.read(&mut buffer).map_err(failed)? {
                0 => break,
                count => hasher.update(&buffer[..count]),
            };
        }
    }
    let blake3 = if model.origin.files.is_empty() { String::new() } else { hasher.finalize().to_string() };
    Ok(Source { format: model.origin.format.to_owned(), blake3 })
}

/// The kernels as machine code of each target.
fn objects(kernels: &[KernelSpec], options: &Options) -> Result<Objects, CompileError> {
    let generate = |at: usize| lathe_kernels::compile(kernels, options.targets[at]);
    let objects = ahead(options.targets.len(), options.threads, generate, |take| {
        std::iter::from_fn(take).collect::<Result<Vec<Object>, KernelError>>()
    })?;
    Ok(options.targets.iter().copied().zip(objects).collect())
}

/// The cubins of the targets that are GPUs, side by side.
fn assembled(objects: &[(&'static Target, Object)], options: &Options) -> Result<Vec<Assembled>, CompileError> {
    let gpus: Vec<_> = objects.iter().filter(|(target, _)| target.machine == Machine::Nvptx).collect();
    let Some(ptxas) = &options.ptxas else { return Ok(Vec::new()) };
    let assemble = |at: usize| {
        let (target, object) = gpus[at];
        assemble::assemble(ptxas, target, &object.code, object.entries.len())
    };
    ahead(gpus.len(), options.threads, assemble, |take| std::iter::from_fn(take).collect())
}

/// The text of each kernel that has a generator, target after target, and the names of those that have none.
fn kernel_texts(
    kernels: &[KernelSpec],
    level: Level,
    targets: &[&'static Target],
    clock: Clock,
) -> Result<Outcome, CompileError> {
    let mut texts = Vec::new();
    let mut missing = Vec::new();
    for &target in targets {
        let text_level = text_level(level, target)?;
        for kernel in kernels {
            match lathe_kernels::text(std::slice::from_ref(kernel), target, text_level) {
                Ok(text) => texts.push(text),
                Err(error @ KernelError::Unsupported { .. }) => missing.push(error.to_string()),
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(Outcome { missing, ..clock.text(texts.join("\n")) })
}

fn text_level(level: Level, target: &Target) -> Result<TextLevel, CompileError> {
    let mistake = |level, expected| CompileError::Level { level, expected, target: target.to_string() };
    match (level, target.machine) {
        (Level::Asm, Machine::X86) | (Level::Ptx, Machine::Nvptx) => Ok(TextLevel::Assembly),
        (Level::Asm, _) => Err(mistake("asm", "an x86-64 target")),
        (Level::Ptx, _) => Err(mistake("ptx", "an sm target")),
        _ => Ok(TextLevel::Llvm),
    }
}

/// Times of the stages.
struct Clock {
    last: Instant,
    times: Vec<(&'static str, Duration)>,
}

impl Clock {
    fn start() -> Clock {
        Clock { last: Instant::now(), times: Vec::new() }
    }

    fn lap(&mut self, stage: &'static str) {
        let now = Instant::now();
        self.times.push((stage, now - self.last));
        self.last = now;
    }

    fn text(self, text: String) -> Outcome {
        Outcome { text, missing: Vec::new(), kept: Vec::new(), times: self.times }
    }
}
