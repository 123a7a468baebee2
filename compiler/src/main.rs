//! `lathe-compile`: compiles a model into a plan.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use lathe_compiler::CompileError;
use lathe_compiler::assemble;
use lathe_compiler::error::exit;
use lathe_compiler::options::{Options, Weights};
use lathe_compiler::pass::{Activations, PassOptions, Selection};
use lathe_compiler::pipeline::{self, Goal, Level, Outcome};
use lathe_compiler::quantize::Formats;
use lathe_compiler::report;
use lathe_compiler::self_draft::LeftOut;
use lathe_ir::types::DType;
use lathe_kernels::targets::{TARGETS, Target};
use lathe_models::shapes;

const AFTER_HELP: &str = "\
Examples:
  lathe-compile model.gguf -o model.plan
  lathe-compile model.gguf -o small.plan --quantize int4 --max-context 2048
  lathe-compile model.gguf -o mixed.plan --quantize int4,head=int6,layers.0-1.down=int8
  lathe-compile hf://org/name -o model.plan
  lathe-compile large.gguf --draft small.gguf -o pair.plan
  lathe-compile llama-3.1-8b --dry-run --quantize int4 --target native,sm_80
  lathe-compile llama-3.1-8b -o 8b.plan --weights random:1 --quantize bf16 --target sm_90
  lathe-compile model.gguf --emit fused
  lathe-compile model.gguf --stop-after merge_qkv
  lathe-compile model.gguf -o any.plan --target x86-64-v3,x86-64-v4+vnni+bf16
  lathe-compile model.gguf --target sm_80 --emit ptx

Exit codes:
  0  done
  1  the machine failed, or Lathe has a mistake
  2  the command line is wrong
  3  the model cannot be read or is damaged
  4  the target, or something that the model needs, is not supported";

fn after_help() -> String {
    let names: Vec<&str> = shapes::SHAPES.iter().map(|shape| shape.0).collect();
    format!("{AFTER_HELP}\n\nShapes for --dry-run and --weights random:\n  {}", names.join(", "))
}

/// Compiles a model into one plan file that the lathe runtime executes.
#[derive(Debug, Parser)]
#[command(name = "lathe-compile", version, after_help = after_help())]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of the command line")]
struct Arguments {
    /// The model: a GGUF file, a Hugging Face directory, or the name of one in the hub's local cache (see below)
    #[arg(required_unless_present = "list_passes")]
    model: Option<PathBuf>,
    /// The plan to write
    #[arg(short, long, value_name = "PLAN", required_unless_present_any = ["emit", "stop_after", "dry_run", "list_passes"])]
    output: Option<PathBuf>,
    /// The machines that the plan is for
    #[arg(long, value_name = "TARGET,…", default_value = "native", help = targets())]
    target: String,
    /// How weights are stored: auto (as in the file, but for CPUs a head apart keeps 6 of 8 bits), source, f32, bf16, f16,
    /// int8, int6, int5, int4 or a scheme that `lathe inspect` names; then others for matrices by name (embed, head, q, k,
    /// v, o, gate, up, down) or layer. Codes that are no wider in the file than a form of integers are kept as in the
    /// file; the name of a scheme re-encodes them
    #[arg(long, value_name = "FORM[,NAME=FORM...]", default_value_t)]
    quantize: Formats,
    /// How activations enter matrix products with integer weights
    #[arg(long, value_enum, default_value_t)]
    activations: Activations,
    /// Element type of the key/value cache: f16, f32, and for CPUs bf16, or int8 with scales beside it in half the memory
    /// [default: bf16 on CPUs with int8 activations and heads of a multiple of 32 elements, else f16]
    #[arg(long, value_enum)]
    cache: Option<Cache>,
    /// Most positions of a sequence [default: what the model was trained for]
    #[arg(long, value_name = "N")]
    max_context: Option<usize>,
    /// Where weights come from: checkpoint, or random:SEED for a small plan whose weights are made when it is loaded, which
    /// `lathe bench` alone takes; MODEL may then be a config.json without weights, or one of the shapes below
    #[arg(long, value_name = "SOURCE", default_value_t)]
    weights: Weights,
    /// A smaller model with the same vocabulary that guesses what MODEL will say; both are in the plan, compiled alike
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["emit", "stop_after", "dry_run"])]
    draft: Option<PathBuf>,
    /// How weights of the draft are stored, as with --quantize. Fewer bits make guesses faster and wrong more often; no
    /// answer depends on it
    #[arg(long, value_name = "FORM[,NAME=FORM...]", default_value_t = Formats::of_drafts(), requires = "draft")]
    draft_quantize: Formats,
    /// Guess what MODEL will say by itself without these layers (for example 5,9-11): a program over the same weights.
    /// auto, in `lathe compile` alone, searches for them by running the plan
    #[arg(long, value_name = "auto|LAYERS", conflicts_with_all = ["emit", "stop_after", "dry_run"])]
    self_draft: Option<LeftOut>,
    /// Print a level of representation to stdout instead of writing a plan
    #[arg(long, value_enum, value_name = "LEVEL", conflicts_with = "output")]
    emit: Option<Level>,
    /// Print sizes, schedule and predicted times instead of writing a plan; MODEL may be a config.json without weights, or
    /// one of the shapes below
    #[arg(long, conflicts_with_all = ["output", "emit", "stop_after"])]
    dry_run: bool,
    /// Print the graph after this pass instead of writing a plan
    #[arg(long, value_name = "PASS", conflicts_with_all = ["output", "emit"])]
    stop_after: Option<String>,
    /// Leave a pass out; may be given several times
    #[arg(long, value_name = "PASS")]
    disable_pass: Vec<String>,
    /// Write the graph after each pass that changed it into this folder
    #[arg(long, value_name = "DIR")]
    dump_dir: Option<PathBuf>,
    /// List the passes in the order in which they run
    #[arg(long)]
    list_passes: bool,
    /// Leave the texts for people out of the plan
    #[arg(long)]
    strip_report: bool,
    /// Hold PTX alone for GPUs, even where ptxas is at hand to make cubins of it
    #[arg(long)]
    no_cubin: bool,
    /// Threads that pack weights; the plan does not depend on it [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<std::num::NonZeroUsize>,
    /// Show no progress and no summary
    #[arg(short, long)]
    quiet: bool,
}

fn targets() -> String {
    let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
    format!(
        "The machines that the plan is for, with commas between: native (this CPU), all-cpu (every CPU target that is \
         tested), {}",
        names.join(", ")
    )
}

/// Element types of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Cache {
    /// Half precision.
    F16,
    /// bfloat16; attention multiplies in it, too.
    Bf16,
    /// Single precision.
    F32,
    /// Codes of 8 bits with an f16 scale per token, head and 32 elements of its key, and per token and head of its value.
    Int8,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), CompileError> {
    let Some(model) = arguments.model.as_deref().filter(|_| !arguments.list_passes) else {
        return print(&report::pass_list());
    };
    let options = options(arguments)?;
    // Without weights a shape will do; a file of weights says more, for example in which types they are stored.
    let takes_shapes = arguments.dry_run || options.weights != Weights::Checkpoint;
    if let Some((name, _)) = shapes::SHAPES.iter().find(|shape| Path::new(shape.0) == model)
        && !takes_shapes
        && !model.exists()
    {
        return Err(CompileError::Shape { name: (*name).to_owned() });
    }
    let is_shape = !model.is_file() || model.extension().is_some_and(|extension| extension == "json");
    let open = || if takes_shapes && is_shape { shapes::open(model) } else { lathe_models::open(model) };
    if arguments.dry_run {
        // Machines of different kinds have schedules of their own.
        for targets in options.targets.chunk_by(|one, other| one.machine == other.machine) {
            let options = Options { targets: targets.to_vec(), ..options.clone() };
            print(&pipeline::compile(open()?, Goal::DryRun, &options)?.text)?;
        }
        return Ok(());
    }
    let model = open()?;
    let draft = arguments.draft.as_deref().map(lathe_models::open).transpose()?;
    let goal = match (&arguments.output, arguments.emit) {
        (Some(path), None) => Goal::Plan(path),
        (_, level) => Goal::Text(level.unwrap_or(Level::Fused)),
    };
    let outcome = pipeline::compile_with(model, draft, goal, &options)?;
    print(&outcome.text)?;
    for missing in &outcome.missing {
        eprintln!("left out: {missing}");
    }
    if let (Goal::Plan(path), false) = (goal, arguments.quiet) {
        let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
        if let Some(first) = outcome.kept.first() {
            let more = match outcome.kept.len() {
                1 => String::new(),
                count => format!(" and {} more", count - 1),
            };
            eprintln!(
                "kept as in the file: {first}{more}, whose codes are no wider than what --quantize names for them; a \
                 scheme's own name, such as int8:g32, re-encodes"
            );
        }
        eprintln!("wrote {}: {:.1} MB ({})", path.display(), bytes as f64 / 1e6, times(&outcome));
    }
    Ok(())
}

fn options(arguments: &Arguments) -> Result<Options, CompileError> {
    let all_cores = || std::thread::available_parallelism().map_or(1, usize::from);
    Ok(Options {
        targets: if arguments.dry_run {
            Target::parse_mixed(&arguments.target)?
        } else {
            Target::parse_list(&arguments.target)?
        },
        self_draft: arguments.self_draft.clone(),
        draft_formats: arguments.draft_quantize.clone(),
        passes: PassOptions { formats: arguments.quantize.clone(), activations: arguments.activations },
        selection: Selection {
            disabled: arguments.disable_pass.clone(),
            stop_after: arguments.stop_after.clone(),
            dump_dir: arguments.dump_dir.clone(),
        },
        cache: arguments.cache.map(|cache| match cache {
            Cache::F16 => DType::F16,
            Cache::Bf16 => DType::Bf16,
            Cache::F32 => DType::F32,
            Cache::Int8 => DType::Int8,
        }),
        max_context: arguments.max_context,
        weights: arguments.weights,
        ptxas: assemble::find().filter(|_| !arguments.no_cubin),
        threads: arguments.threads.map_or_else(all_cores, usize::from),
        report: !arguments.strip_report,
        progress: !arguments.quiet,
    })
}

/// Prints data to stdout. A reader that has gone away (`| head`) is no mistake.
fn print(text: &str) -> Result<(), CompileError> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(source) if source.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CompileError::Write { path: "stdout".into(), source })
        }
        _ => Ok(()),
    }
}

fn times(outcome: &Outcome) -> String {
    let seconds = |(stage, took): &(&str, Duration)| format!("{stage} {:.2} s", took.as_secs_f64());
    outcome.times.iter().map(seconds).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_command_lines() {
        let examples: Vec<&str> = AFTER_HELP.lines().filter(|line| line.starts_with("  lathe-compile ")).collect();
        assert!(examples.len() > 5);
        for example in examples {
            let example = example.replace("native", "x86-64-v3");
            let arguments = Arguments::try_parse_from(example.split_whitespace());
            let arguments = arguments.unwrap_or_else(|error| panic!("{example}: {error}"));
            options(&arguments).unwrap_or_else(|error| panic!("{example}: {error}"));
        }
    }
}
