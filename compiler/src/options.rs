//! The choices of a compile.

use std::path::PathBuf;

use lathe_ir::types::{DType, KEY_GROUP};
use lathe_kernels::targets::{Machine, Target};
use lathe_models::config::ModelConfig;

use crate::error::CompileError;
use crate::pass::{Activations, PassOptions, Selection};
use crate::quantize::Formats;
use crate::self_draft::LeftOut;

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Weights {
    /// The checkpoint.
    #[default]
    Checkpoint,
    /// A generator with this seed, when the plan is loaded: for measuring speed alone.
    Random(u64),
}

impl std::fmt::Display for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Weights::Checkpoint => f.write_str("checkpoint"),
            Weights::Random(seed) => write!(f, "random:{seed}"),
        }
    }
}

impl std::str::FromStr for Weights {
    type Err = String;

    fn from_str(text: &str) -> Result<Weights, String> {
        let seed = text.strip_prefix("random:").and_then(|seed| seed.parse().ok());
        match (text, seed) {
            ("checkpoint", _) => Ok(Weights::Checkpoint),
            (_, Some(seed)) => Ok(Weights::Random(seed)),
            _ => Err(format!("'{text}' is no source of weights; expected checkpoint, or random:SEED with a number")),
        }
    }
}

/// The choices of a compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// The machines that the plan is for, at least one; one program and one copy of the weights serve them all.
    pub targets: Vec<&'static Target>,
    /// What passes read.
    pub passes: PassOptions,
    /// How the weights of a draft are stored.
    pub draft_formats: Formats,
    /// Layers without which the model guesses what it will say, where it does.
    pub self_draft: Option<LeftOut>,
    /// Which passes run.
    pub selection: Selection,
    /// Element type of the cache; see [`Options::cache_of`] where it is not given.
    pub cache: Option<DType>,
    /// Most positions of a sequence; what the model was trained for where it is not given.
    pub max_context: Option<usize>,
    /// Where weights come from.
    pub weights: Weights,
    /// The assembler that makes cubins for GPUs beside their PTX; none are made without.
    pub ptxas: Option<PathBuf>,
    /// Threads that pack weights. The plan does not depend on it.
    pub threads: usize,
    /// Whether the plan carries texts of its levels.
    pub report: bool,
    /// Whether progress is shown on stderr.
    pub progress: bool,
}

impl Options {
    /// Defaults for a target.
    pub fn new(target: &'static Target) -> Options {
        Options {
            targets: vec![target],
            passes: PassOptions::default(),
            draft_formats: Formats::of_drafts(),
            self_draft: None,
            selection: Selection::default(),
            cache: None,
            max_context: None,
            weights: Weights::default(),
            ptxas: None,
            threads: 1,
            report: true,
            progress: false,
        }
    }

    /// The element type of a model's cache. Where none is asked for it is bf16 on CPUs, whose attention then multiplies pairs of
    /// them; but f16 on GPUs, for heads that are not whole groups of pairs, and where activations are f32 because
    /// rounding is not wanted.
    pub fn cache_of(&self, config: &ModelConfig) -> DType {
        let on_cpu = self.targets.iter().all(|target| target.machine == Machine::X86);
        let in_pairs =
            on_cpu && self.passes.activations == Activations::Int8 && config.head_dim.is_multiple_of(KEY_GROUP);
        self.cache.unwrap_or(if in_pairs { DType::Bf16 } else { DType::F16 })
    }

    /// The flags that change the plan and differ from their defaults, as they are typed.
    pub fn flags(&self) -> Vec<String> {
        let defaults = Options::new(self.targets[0]);
        let mut flags = Vec::new();
        if self.passes.formats != defaults.passes.formats {
            flags.push(format!("--quantize {}", self.passes.formats));
        }
        if self.draft_formats != defaults.draft_formats {
            flags.push(format!("--draft-quantize {}", self.draft_formats));
        }
        flags.extend(self.self_draft.as_ref().map(|layers| format!("--self-draft {layers}")));
        if self.passes.activations != defaults.passes.activations {
            flags.push(format!("--activations {}", self.passes.activations.name()));
        }
        flags.extend(self.cache.map(|cache| format!("--cache {cache}")));
        flags.extend(self.max_context.map(|positions| format!("--max-context {positions}")));
        if self.weights != defaults.weights {
            flags.push(format!("--weights {}", self.weights));
        }
        flags.extend(self.selection.disabled.iter().map(|pass| format!("--disable-pass {pass}")));
        if !self.report {
            flags.push("--strip-report".to_owned());
        }
        flags
    }

    /// Most positions of a sequence of a model that was trained for `most`.
    ///
    /// # Errors
    /// When none or more than `most` are asked for.
    pub fn max_context(&self, most: usize) -> Result<usize, CompileError> {
        match self.max_context {
            None => Ok(most),
            Some(found) if (1..=most).contains(&found) => Ok(found),
            Some(found) => Err(CompileError::Context { most, found }),
        }
    }
}
