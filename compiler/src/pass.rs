//! The passes: one table, in the order in which they run. Names, summaries, timers, dump files, `--disable-pass` and
//! `--stop-after` all come from it.
//!
//! A pass is a function over the graph. It says whether it changed anything, and it leaves no node behind that it made
//! dead, so that "the only user" means the same to every pass. The runner verifies the graph after each change and
//! names the pass when the graph is wrong.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lathe_ir::graph::Graph;
use lathe_ir::op::OpError;
use lathe_ir::verify;
use lathe_kernels::targets::Target;

use crate::error::CompileError;
use crate::quantize::Formats;
use crate::report;

/// How activations enter matrix products.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Activations {
    /// 8 bits in groups of 32 where the weight is of integers.
    #[default]
    Int8,
    /// Single precision.
    F32,
}

impl Activations {
    /// The spelling on the command line and in the manifest.
    pub fn name(self) -> &'static str {
        match self {
            Activations::Int8 => "int8",
            Activations::F32 => "f32",
        }
    }
}

/// The choices that passes read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassOptions {
    /// How weights are stored.
    pub formats: Formats,
    /// How activations enter matrix products.
    pub activations: Activations,
}

/// What a pass may read, and where it says why it chose.
#[derive(Clone, Debug)]
pub struct PassContext {
    /// The machine that the plan is for.
    pub target: &'static Target,
    /// The user's choices.
    pub options: PassOptions,
    /// Reasons, one sentence each, for the report.
    pub notes: Vec<Note>,
}

impl PassContext {
    /// A context without notes.
    pub fn new(target: &'static Target, options: PassOptions) -> PassContext {
        PassContext { target, options, notes: Vec::new() }
    }
}

/// Why a pass chose what it chose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What was chosen for: the name of a weight, for example.
    pub subject: String,
    /// The choice and its reason.
    pub reason: String,
    /// Whether a matrix is kept as it is in the file although the user named another form for it.
    pub kept: bool,
}

/// Why a pass cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PassError {
    /// A rewritten op refused its operands.
    #[error("a rewritten op refuses its operands: {0}; this is a mistake in Lathe, please report it")]
    Op(#[from] OpError),
    /// The user's: a choice for matrices that are not there.
    #[error("--quantize says '{entry}', but the model has no such matrix; --emit graph shows their names")]
    NoSuchWeight {
        /// The entry.
        entry: String,
    },
    /// The user's: a choice for layers that are not there.
    #[error("--quantize says '{entry}', but the model's layers are 0 to {}", layers.saturating_sub(1))]
    NoSuchLayer {
        /// The entry.
        entry: String,
        /// How many layers there are.
        layers: usize,
    },
    /// The user's: a scheme that cannot hold a matrix.
    #[error(
        "--quantize says '{entry}', but rows of {weight} have {width} elements, and the scheme needs a multiple of {span}; \
         give a form such as int4, which takes what fits, or name another scheme for this matrix"
    )]
    SchemeTooWide {
        /// The entry.
        entry: String,
        /// The matrix.
        weight: String,
        /// Elements of its rows.
        width: usize,
        /// What the scheme repeats after.
        span: usize,
    },
}

/// A pass of the table.
#[derive(Clone, Copy, Debug)]
pub struct Pass {
    /// Its name: also of its file, its timer and its dumps.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Rewrites the graph; true when it changed anything.
    pub run: fn(&mut Graph, &mut PassContext) -> Result<bool, PassError>,
}

macro_rules! passes {
    ($($name:ident: $summary:literal),+ $(,)?) => {
        /// Every pass, in order.
        pub const PASSES: &[Pass] =
            &[$(Pass { name: stringify!($name), summary: $summary, run: crate::passes::$name::run }),+];
    };
}

passes! {
    remove_dead: "removes nodes that no output needs",
    fuse_bias: "moves the bias of a projection into its linear",
    choose_weight_format: "chooses the scheme in which each matrix is stored",
    merge_qkv: "computes query, key and value by one product and appends from its result",
    merge_gate_up: "computes gate and up by one product, and activation and mul of them by one glu",
    quantize_activations: "quantizes the activations of products with integer weights",
    fuse_norm: "moves gather, norm and quantization into the one linear that they feed",
    fuse_rope_append: "moves head norms, rope and cache append into the linear before them",
    fuse_activation: "moves glu, silu or gelu into the linear before it",
    fuse_scale: "moves the scale or softcap of a product into its linear",
    fuse_residual: "moves the residual add into the linear or norm before it",
}

/// Which passes run, and what they leave on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Passes to leave out.
    pub disabled: Vec<String>,
    /// The last pass to run.
    pub stop_after: Option<String>,
    /// Where the graph is written after each pass that changed it.
    pub dump_dir: Option<PathBuf>,
}

/// What became of a pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name.
    pub name: &'static str,
    /// Whether it changed the graph; `None` when it was left out.
    pub changed: Option<bool>,
    /// How long it took.
    pub took: Duration,
    /// Its reasons.
    pub notes: Vec<Note>,
}

/// Runs the selected passes in order.
///
/// # Errors
/// When a name in the selection is no pass, a pass fails, or a pass leaves a graph that the verifier refuses.
pub fn run(
    graph: &mut Graph,
    target: &'static Target,
    options: &PassOptions,
    selection: &Selection,
) -> Result<Vec<Record>, CompileError> {
    for name in selection.disabled.iter().chain(&selection.stop_after) {
        if !PASSES.iter().any(|pass| pass.name == name) {
            return Err(CompileError::UnknownPass { name: name.clone() });
        }
    }
    let dumps = selection.dump_dir.as_deref();
    dump(dumps, "0000.source.ir", || graph.to_string())?;
    let mut records = Vec::with_capacity(PASSES.len());
    for (at, pass) in PASSES.iter().enumerate() {
        let mut record = Record { name: pass.name, changed: None, took: Duration::ZERO, notes: Vec::new() };
        if !selection.disabled.iter().any(|name| name == pass.name) {
            let started = Instant::now();
            let mut context = PassContext::new(target, options.clone());
            let changed =
                (pass.run)(graph, &mut context).map_err(|source| CompileError::Pass { pass: pass.name, source })?;
            if changed {
                verify::verify(graph)
                    .map_err(|error| CompileError::Verify { after: pass.name, message: error.to_string() })?;
                dump(dumps, &format!("{:04}.after_{}.ir", at + 1, pass.name), || graph.to_string())?;
            }
            record = Record { changed: Some(changed), took: started.elapsed(), notes: context.notes, ..record };
        }
        records.push(record);
        if selection.stop_after.as_deref() == Some(pass.name) {
            break;
        }
    }
    dump(dumps, "times.txt", || report::pass_times(&records))?;
    Ok(records)
}

/// Writes a text into the folder for dumps, if there is one.
fn dump(dir: Option<&Path>, name: &str, text: impl FnOnce() -> String) -> Result<(), CompileError> {
    let Some(dir) = dir else { return Ok(()) };
    let path = dir.join(name);
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, text()))
        .map_err(|source| CompileError::Write { path, source })
}
