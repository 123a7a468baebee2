//! The one converter from the compiler's types to those of the plan.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;

use lathe_ir::graph::StepInput;
use lathe_ir::types::{Dim, StepSize};
use lathe_kernels::packing::random;
use lathe_kernels::recipes::recipe;
use lathe_kernels::spec::{self, KernelSpec, PAGE_TOKENS, page_bytes};
use lathe_kernels::targets::{Machine, Target};
use lathe_models::Model;
use lathe_models::hf::generation::Generation;
use lathe_models::tokenizer::{Algorithm, Matching, Merge, SpacePrefix, TokenKind, Tokenizer};
use lathe_plan::manifest::{Drafter, Knob, Manifest, Source, Tensor};
use lathe_plan::{self as plan, Affine, PlanWriter};
use serde_json::Value;

use crate::ahead::ahead;
use crate::assemble::Assembled;
use crate::dry_run;
use crate::error::CompileError;
use crate::options::{Options, Weights};
use crate::pass::Record;
use crate::report;
use crate::schedule::{self, Bucket, Buffer, Launch, Schedule, ScheduledCache, Share};
use crate::weights::{self, ErrorSum, Piece, Stored};

/// The layout of packed weights: one serves every x86-64 target.
pub const LAYOUT: &str = "x86-64";
/// Each weight starts at a multiple of this.
const WEIGHT_ALIGN: u64 = 64;
/// The program that the runtime executes.
pub fn program(schedule: &Schedule, vocabulary: usize) -> plan::Program {
    let kernels = schedule.kernels();
    let mut end = 0;
    let spans = schedule.weights.iter().map(|weight| {
        let offset = u64::next_multiple_of(end, WEIGHT_ALIGN);
        end = offset + weight.bytes;
        plan::WeightSpan { name: weight.weight.name.clone(), offset, bytes: weight.bytes }
    });
    let tensors = |group: usize| {
        let of_group = schedule.caches.iter().filter(move |cache| cache.group == group);
        of_group.map(|ScheduledCache { name, ty, .. }| {
            let page_bytes = page_bytes(ty.heads, ty.head_dim, ty.dtype) as u64;
            plan::CacheTensor { name: name.clone(), page_bytes }
        })
    };
    let groups = schedule.groups.iter().enumerate().map(|(at, group)| plan::CacheGroup {
        name: group.name.clone(),
        page_tokens: PAGE_TOKENS as u32,
        retention: match group.window {
            None => plan::Retention::All,
            Some(tokens) => plan::Retention::Window { tokens: u32::try_from(tokens).unwrap_or(u32::MAX) },
        },
        tensors: tensors(at).collect(),
    });
    let tables = (0..schedule.groups.len()).map(|group| plan::Input::BlockTable { group: group as u32 });
    let picks = schedule.samples().then_some(plan::Input::Picks);
    plan::Program {
        name: schedule.name.clone(),
        vocabulary: vocabulary as u32,
        max_context: schedule.max_context as u32,
        inputs: INPUTS.into_iter().chain(tables).chain(picks).collect(),
        cache_groups: groups.collect(),
        weights: spans.collect(),
        kernels: kernels.iter().map(|of| kernel(of, schedule.machine)).collect(),
        buckets: schedule.buckets.iter().map(|of| bucket(schedule, of, &kernels)).collect(),
    }
}

/// Step inputs by index; the block tables of the cache groups follow, and then how rows are sampled, where steps do that.
const INPUTS: [plan::Input; 4] =
    [plan::Input::Tokens, plan::Input::Positions, plan::Input::Sequences, plan::Input::Rows];

fn input(input: StepInput) -> u32 {
    match input {
        StepInput::Tokens => 0,
        StepInput::Positions => 1,
        StepInput::Sequences => 2,
        StepInput::Rows => 3,
    }
}

fn kernel(kernel: &KernelSpec, machine: Machine) -> plan::Kernel {
    let operands = kernel.operands().into_iter().map(|operand| plan::Operand {
        access: match operand.access {
            spec::Access::Read => plan::Access::Read,
            spec::Access::Write => plan::Access::Write,
            spec::Access::ReadWrite => plan::Access::ReadWrite,
        },
        extent: operand
            .extent
            .iter()
            .map(|term| plan::Term { coefficient: term.coefficient, factors: term.factors })
            .collect(),
    });
    let recipe = recipe(kernel, machine).map_or_else(String::new, |recipe| recipe.to_string());
    let spec::Grid { threads, units, rows } = kernel.grid();
    plan::Kernel {
        name: kernel.to_string(),
        recipe,
        params: kernel.params().len() as u32,
        grid: plan::Grid { threads, units, rows },
        operands: operands.collect(),
    }
}

fn bucket(schedule: &Schedule, bucket: &Bucket, kernels: &[KernelSpec]) -> plan::Bucket {
    let StepSize { tokens, sequences, rows } = bucket.max;
    plan::Bucket {
        max: plan::StepSize { tokens: tokens as u32, sequences: sequences as u32, rows: rows as u32 },
        arena_bytes: bucket.arena_bytes,
        scratch_bytes: bucket.scratch_bytes,
        logits: buffer(schedule, bucket, bucket.logits),
        picks: bucket.picks.map(|picks| buffer(schedule, bucket, picks)),
        launches: bucket.launches.iter().map(|of| launch(schedule, bucket, of, kernels)).collect(),
    }
}

fn launch(schedule: &Schedule, bucket: &Bucket, launch: &Launch, kernels: &[KernelSpec]) -> plan::Launch {
    // Every kernel of a launch is in the list, which was made from the launches.
    let kernel = kernels.iter().position(|kernel| *kernel == launch.kernel).unwrap_or(kernels.len());
    plan::Launch {
        kernel: kernel as u32,
        buffers: launch.buffers.iter().map(|&of| buffer(schedule, bucket, of)).collect(),
        params: launch.params.iter().copied().map(affine).collect(),
        units: affine(launch.units),
        share: match launch.share {
            Share::Even => plan::Share::Even,
            Share::Claim(grain) => plan::Share::Claim { grain },
        },
        barrier: launch.barrier,
        flops: affine(launch.flops),
        bytes: affine(launch.bytes),
    }
}

fn buffer(schedule: &Schedule, bucket: &Bucket, buffer: Buffer) -> plan::Buffer {
    match buffer {
        Buffer::Arena(at) => {
            let schedule::ArenaBuffer { offset, bytes, .. } = bucket.buffers[at];
            plan::Buffer::Arena { offset, bytes: affine(bytes) }
        }
        Buffer::Scratch(bytes) => plan::Buffer::Scratch { bytes },
        Buffer::Weight(at) => plan::Buffer::Weight(at as u32),
        Buffer::Input(of) => plan::Buffer::Input(input(of)),
        Buffer::BlockTable(group) => plan::Buffer::Input((INPUTS.len() + group) as u32),
        Buffer::Picks => plan::Buffer::Input((INPUTS.len() + schedule.groups.len()) as u32),
        Buffer::Cache(at) => {
            let group = schedule.caches[at].group;
            let tensor = schedule.caches[..at].iter().filter(|cache| cache.group == group).count();
            plan::Buffer::Cache { group: group as u32, tensor: tensor as u32 }
        }
    }
}

fn affine(dim: Dim) -> Affine {
    Affine { t: dim.t as u64, s: dim.s as u64, r: dim.r as u64, c: dim.c as u64 }
}

/// The tokenizer as the runtime's tables.
pub fn tokenizer(tokenizer: &Tokenizer) -> plan::TokenizerTables {
    let mut tables = plan::TokenizerTables {
        bos: tokenizer.bos,
        eos: end_tokens(tokenizer),
        unk: tokenizer.unk,
        add_bos: tokenizer.add_bos,
        add_eos: tokenizer.eos.filter(|_| tokenizer.add_eos),
        matching: tokenizer.matching.iter().map(|(id, how)| (*id, matching(*how))).collect(),
        ..plan::TokenizerTables::default()
    };
    let merge = |merge: &Merge| plan::Merge { left: merge.left, right: merge.right, merged: merge.merged };
    match &tokenizer.algorithm {
        Algorithm::Bpe { pre, whole_pieces, nfc, merges } => {
            tables.model = plan::TokenizerModel::Bpe;
            pre.name().clone_into(&mut tables.pretokenizer);
            (tables.whole_pieces, tables.nfc) = (*whole_pieces, *nfc);
            tables.merges = merges.iter().map(merge).collect();
        }
        Algorithm::Spm { scores, space_prefix } => {
            tables.model = plan::TokenizerModel::Spm;
            tables.space_prefix = if *space_prefix { plan::SpacePrefix::Always } else { plan::SpacePrefix::Never };
            tables.ranks = ranks(scores);
        }
        Algorithm::Characters { merges, space_prefix } => {
            tables.model = plan::TokenizerModel::Characters;
            tables.space_prefix = match space_prefix {
                SpacePrefix::Never => plan::SpacePrefix::Never,
                SpacePrefix::Always => plan::SpacePrefix::Always,
                SpacePrefix::Missing => plan::SpacePrefix::Missing,
                SpacePrefix::MissingAtStart => plan::SpacePrefix::MissingAtStart,
            };
            tables.merges = merges.iter().map(merge).collect();
        }
    }
    for token in &tokenizer.tokens {
        let kind = match token.kind {
            TokenKind::Normal => plan::TokenKind::Normal,
            TokenKind::Unknown => plan::TokenKind::Unknown,
            TokenKind::Control => plan::TokenKind::Control,
            TokenKind::UserDefined => plan::TokenKind::UserDefined,
            TokenKind::Unused => plan::TokenKind::Unused,
            TokenKind::Byte => plan::TokenKind::Byte,
        };
        tables.push(&token.bytes, kind);
    }
    tables
}

fn matching(how: Matching) -> plan::Matching {
    let Matching { lstrip, rstrip, single_word, second } = how;
    plan::Matching { lstrip, rstrip, single_word, second }
}

/// Each score's place among the different scores, the highest first: all that joining by score needs to know of them.
fn ranks(scores: &[f32]) -> Vec<u32> {
    let mut order: Vec<f32> = scores.to_vec();
    order.sort_unstable_by(|a, b| b.total_cmp(a));
    order.dedup();
    scores.iter().map(|score| order.partition_point(|other| other > score) as u32).collect()
}

/// The tokens that end an answer, each once.
fn end_tokens(tokenizer: &Tokenizer) -> Vec<u32> {
    tokenizer
        .eos
        .into_iter()
        .chain(tokenizer.eot)
        .chain(tokenizer.ends.iter().copied())
        .collect::<BTreeSet<u32>>()
        .into_iter()
        .collect()
}

/// What generation needs to know of the model, with the names of Hugging Face's `generation_config.json`.
fn generation_config(tokenizer: &Tokenizer, generation: &Generation) -> String {
    let Generation { do_sample, temperature, top_k, top_p, min_p, repetition_penalty } = *generation;
    let mut config = serde_json::json!({ "bos_token_id": tokenizer.bos, "eos_token_id": end_tokens(tokenizer) });
    let stated = [
        ("do_sample", do_sample.map(Value::from)),
        ("temperature", temperature.map(Value::from)),
        ("top_k", top_k.map(Value::from)),
        ("top_p", top_p.map(Value::from)),
        ("min_p", min_p.map(Value::from)),
        ("repetition_penalty", repetition_penalty.map(Value::from)),
    ];
    for (name, value) in stated {
        if let Some(value) = value {
            config[name] = value;
        }
    }
    config.to_string()
}

/// What the plan is; `errors` are those of its weights, in order.
pub fn manifest(
    model: &Model,
    source: Source,
    schedule: &Schedule,
    options: &Options,
    drafters: Vec<Drafter>,
    errors: &[Option<ErrorSum>],
) -> Manifest {
    let checkpoint = &*model.checkpoint;
    let tensors = schedule.weights.iter().zip(errors).map(|(weight, error)| {
        let sources: BTreeSet<String> =
            weight.weight.parts.iter().filter_map(|part| checkpoint.type_name(&part.tensor)).collect();
        Tensor {
            name: weight.weight.name.clone(),
            shape: shape(weight),
            source: sources.into_iter().collect::<Vec<_>>().join(" and "),
            scheme: weights::scheme(&weight.ty).map_or_else(|| "f32".to_owned(), |scheme| scheme.to_string()),
            bytes: weight.bytes,
            error: error.and_then(ErrorSum::relative),
        }
    });
    let knobs = model.config.describe();
    Manifest {
        name: model.config.name.clone(),
        architecture: model.config.architecture.clone(),
        parameters: parameters(schedule),
        max_context: schedule.max_context as u64,
        vocabulary: model.config.vocab as u64,
        targets: options.targets.iter().map(|target| target.name.to_owned()).collect(),
        quantization: options.passes.formats.to_string(),
        activations: options.passes.activations.name().to_owned(),
        licence: model.licence.clone(),
        compiler: COMPILER.to_owned(),
        flags: options.flags(),
        source,
        weights_bytes: schedule.weights.iter().map(|weight| weight.bytes).sum(),
        weights_bytes_per_token: schedule::cost::weight_bytes_per_token(schedule),
        knobs: knobs.into_iter().map(|(name, value)| Knob { name: name.to_owned(), value }).collect(),
        attention: report::attentions(schedule),
        drafters,
        tensors: tensors.collect(),
    }
}

/// What the plan says of a program that guesses.
pub fn drafter(model: &Model, source: Source, schedule: &Schedule, options: &Options) -> Drafter {
    Drafter {
        program: schedule.name.clone(),
        name: model.config.name.clone(),
        architecture: model.config.architecture.clone(),
        parameters: parameters(schedule),
        max_context: schedule.max_context as u64,
        quantization: options.draft_formats.to_string(),
        weights_bytes: schedule.weights.iter().map(|weight| weight.bytes).sum(),
        weights_bytes_per_token: schedule::cost::weight_bytes_per_token(schedule),
        source,
        ..Drafter::default()
    }
}

/// How many numbers the weights of a schedule stand for.
pub fn parameters(schedule: &Schedule) -> u64 {
    schedule.weights.iter().map(|weight| shape(weight).iter().product::<u64>()).sum()
}

/// The compiler and its version.
const COMPILER: &str = concat!("lathe-compile ", env!("CARGO_PKG_VERSION"));

fn shape(weight: &schedule::ScheduledWeight) -> Vec<u64> {
    weight.ty.shape().unwrap_or_default().iter().map(|dim| dim.c as u64).collect()
}

/// A program and what goes into a plan with it.
pub struct Parts<'a> {
    /// The model.
    pub model: &'a Model,
    /// The schedule.
    pub schedule: &'a Schedule,
    /// Its kernels as machine code of each target.
    pub objects: Vec<(&'static Target, lathe_kernels::Object)>,
    /// Their PTX assembled, where there is an assembler.
    pub assembled: Vec<Assembled>,
}

/// How the main program came to be, for the reports.
pub struct Story<'a> {
    /// Texts of the graph before and after the passes.
    pub graphs: [&'a str; 2],
    /// What became of the passes.
    pub passes: &'a [Record],
}

/// Writes the plan of a main program, of one that leaves layers out of it, and of others that guess for it, weights
/// streamed and packed by several threads.
/// `manifest` is asked for when they are written, with the error of each of the main program's.
///
/// # Errors
/// When a weight cannot be supplied, or the file cannot be written.
pub fn write(
    main: Parts<'_>,
    own: Option<&plan::Program>,
    others: Vec<Parts<'_>>,
    story: &Story<'_>,
    options: &Options,
    path: &Path,
    manifest: impl FnOnce(&[Option<ErrorSum>]) -> Manifest,
) -> Result<(), CompileError> {
    let (Parts { model, schedule, .. }, Story { graphs: [graph, fused], passes }) = (&main, story);
    // What packing the weights found out, for what is written behind them.
    let packed: RefCell<Vec<Option<ErrorSum>>> = RefCell::default();
    let errors: RefCell<String> = RefCell::default();
    let mut writer = PlanWriter::new();
    let usage = |target: &Target| main.assembled.iter().find(|of| of.target == target).map(|of| of.usage.as_slice());
    let kernels: Vec<String> =
        options.targets.iter().map(|target| dry_run::kernels(schedule, target, usage(target))).collect();
    if options.weights == Weights::Checkpoint {
        writer.tokenizer(&tokenizer(&model.tokenizer));
        writer.generation_config(&generation_config(&model.tokenizer, &model.generation));
        if let Some(template) = &model.chat_template {
            writer.chat_template(template);
        }
    }
    if let Some(licence) = &model.licence {
        writer.licence(licence);
    }
    writer.late_manifest(|| {
        let manifest = manifest(&packed.borrow());
        errors.replace(report::errors(&manifest, options.weights));
        manifest
    });
    if options.report {
        writer.report("graph", graph);
        writer.report("fused", fused);
        writer.report("kernels", &kernels.join("\n"));
        writer.report("passes", &report::passes(passes));
        writer.report("schedule", &schedule::print::schedule(schedule));
        writer.report("attention", &report::attention(schedule));
        writer.report("memory", &schedule::print::memory(schedule));
        // The manifest stands before every report.
        writer.late_report("errors", || errors.take());
    }
    if let Weights::Random(_) = options.weights {
        packed.borrow_mut().resize(schedule.weights.len(), None);
    }
    if let Some(own) = own {
        writer.program(own);
    }
    let mut streams = Vec::new();
    for (index, Parts { model, schedule, objects, assembled }) in std::iter::once(main).chain(others).enumerate() {
        let program = program(schedule, model.config.vocab);
        writer.program(&program);
        for (target, object) in objects {
            writer.code(&program.name, LAYOUT, &code(object, target));
        }
        for Assembled { target, cubin, .. } in assembled {
            writer.cubin(&program.name, target.name, LAYOUT, cubin);
        }
        match options.weights {
            Weights::Checkpoint => {
                let packed = (index == 0).then_some(&packed);
                streams.push(Stream { program, model, schedule, packed });
            }
            Weights::Random(seed) => writer.random_weights(&program.name, LAYOUT, &random_weights(schedule, seed)),
        }
    }
    stream_weights(writer, &streams, options, path)
}

/// Weights that are packed while they are written.
struct Stream<'a> {
    program: plan::Program,
    model: &'a Model,
    schedule: &'a Schedule,
    packed: Option<&'a RefCell<Vec<Option<ErrorSum>>>>, // takes their errors
}

/// What the weights of a schedule are made from instead of a checkpoint. What makes sense of text has no use for them, so
/// such a plan has no tokenizer.
fn random_weights(schedule: &Schedule, seed: u64) -> plan::RandomWeights {
    let piece = |run: random::Run| plan::random::Piece { bytes: run.bytes as u32, fixed: run.fixed, free: run.free };
    let pattern = |weight: &schedule::ScheduledWeight| {
        let runs = match weights::scheme(&weight.ty) {
            Some(scheme) => random::runs(scheme, shape(weight).last().map_or(1, |&cols| cols as usize)),
            None => vec![random::VECTOR],
        };
        plan::random::Pattern { pieces: runs.into_iter().map(piece).collect() }
    };
    plan::RandomWeights { seed, patterns: schedule.weights.iter().map(pattern).collect() }
}

fn code(object: lathe_kernels::Object, target: &Target) -> plan::CodeObject {
    plan::CodeObject {
        target: target.name.to_owned(),
        features: target.features.iter().map(|&feature| feature.to_owned()).collect(),
        entries: object.entries,
        code: object.code,
    }
}

/// Writes a plan with all of these weights. Each stream has its packers, which wait while others are written.
fn stream_weights(
    writer: PlanWriter<'_>,
    streams: &[Stream<'_>],
    options: &Options,
    path: &Path,
) -> Result<(), CompileError> {
    let Some((Stream { program, model, schedule, packed }, rest)) = streams.split_first() else {
        writer.write(path)?;
        return Ok(());
    };
    let bar = report::weights_bar(program, options.progress);
    // The writer's errors are of input and output; what stopped the packing is kept beside them.
    let mut failure = None;
    let written = stored(model, schedule, options.threads, |pieces, take| {
        let mut pieces = pieces.iter().peekable();
        let mut fill = |at: usize, sink: &mut dyn std::io::Write| {
            let mut sum = ErrorSum::default();
            while pieces.next_if(|piece| piece.weight == at).is_some() {
                let weight = || schedule.weights[at].weight.name.clone();
                match take().unwrap_or_else(|| Err(CompileError::Packing { weight: weight() })) {
                    Ok(stored) => {
                        bar.inc(stored.bytes.len() as u64);
                        sink.write_all(&stored.bytes)?;
                        sum = sum.plus(stored.error);
                    }
                    Err(error) => {
                        failure = Some(error);
                        return Err(std::io::Error::other("a weight could not be packed"));
                    }
                }
            }
            if let Some(packed) = packed {
                packed.borrow_mut().push(Some(sum));
            }
            Ok(())
        };
        let mut writer = writer;
        writer.weights(program, LAYOUT, &mut fill);
        stream_weights(writer, rest, options, path)
    });
    bar.finish_and_clear();
    match failure {
        Some(error) => Err(error),
        None => written,
    }
}

/// The error of each weight, in order, without a plan; `None` for random ones.
///
/// # Errors
/// When the checkpoint cannot supply a weight.
pub fn errors(model: &Model, schedule: &Schedule, options: &Options) -> Result<Vec<Option<ErrorSum>>, CompileError> {
    if options.weights != Weights::Checkpoint {
        return Ok(vec![None; schedule.weights.len()]);
    }
    stored(model, schedule, options.threads, |pieces, take| {
        let mut errors = vec![ErrorSum::default(); schedule.weights.len()];
        for (piece, stored) in pieces.iter().zip(std::iter::from_fn(take)) {
            errors[piece.weight] = errors[piece.weight].plus(stored?.error);
        }
        Ok(errors.into_iter().map(Some).collect())
    })
}

/// Has all pieces of the weights packed by several threads while `consume` takes them in order.
fn stored<R>(
    model: &Model,
    schedule: &Schedule,
    threads: usize,
    consume: impl FnOnce(&[Piece], &mut dyn FnMut() -> Option<Result<Stored, CompileError>>) -> R,
) -> R {
    let pieces = weights::pieces(&schedule.weights);
    let work = |at: usize| {
        let Piece { weight, rows } = pieces[at].clone();
        weights::store(&*model.checkpoint, &schedule.weights[weight], rows)
    };
    ahead(pieces.len(), threads, work, |take| consume(&pieces, take))
}
