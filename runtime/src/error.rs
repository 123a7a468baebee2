//! What can go wrong at run time, and whose mistake it is: each message says what was expected, what was found and what
//! to do.

use std::{io, time::Duration};

use crate::speculate::Mode;

/// An error of the runtime.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The plan file could not be read or did not pass its checks.
    #[error(transparent)]
    Plan(#[from] lathe_plan::PlanError),

    /// The plan holds no code object that this CPU can execute.
    #[error(
        "this CPU cannot run the plan: its code for `{target}` needs {missing}, which this CPU lacks; \
         recompile with --target native on this machine, or with --target set to a kind of CPU that lacks it too"
    )]
    MissingFeatures {
        /// The code object that came closest.
        target: String,
        /// The features that are missing, separated by commas.
        missing: String,
    },

    /// The plan holds no code for the target that was asked for.
    #[error(
        "the plan holds no code for `{asked}`, only for {held}; choose one of them, or recompile with --target {asked}"
    )]
    NoTarget {
        /// What was asked for.
        asked: String,
        /// The targets that the plan has code for, with commas between.
        held: String,
    },

    /// The plan holds no code for CPUs at all.
    #[error("the plan holds no x86-64 code; recompile with --target native")]
    NoCode,

    /// The plan holds nothing that guesses in the way that was asked for.
    #[error(
        "nothing was loaded that guesses by --speculate {0}; a plan holds a draft model when it is compiled with --draft \
         MODEL, and guesses by itself (on CPUs) when it is compiled with --self-draft LAYERS; without these there are \
         --speculate auto and ngram"
    )]
    NoDrafter(Mode),

    /// The plan holds no code for GPUs.
    #[error("the plan holds no PTX; recompile with --target sm_80, or run it with --device cpu")]
    NoPtx,

    /// No CUDA driver can be loaded.
    #[error("no CUDA driver was found (libcuda.so); install NVIDIA's driver, or run a plan for CPUs with --device cpu")]
    NoDriver,

    /// There is no such GPU.
    #[error(
        "there is no GPU {ordinal}: the CUDA driver shows {found}, counted from 0; see CUDA_VISIBLE_DEVICES and \
         nvidia-smi, or run a plan for CPUs with --device cpu"
    )]
    NoGpu {
        /// The GPU that was asked for.
        ordinal: usize,
        /// How many there are.
        found: usize,
    },

    /// The GPU is older than the plan's code.
    #[error(
        "this GPU is of compute capability sm_{found}, the plan's PTX needs at least sm_{needed}; recompile with a \
         target that the GPU has"
    )]
    Capability {
        /// The least that the plan's code needs.
        needed: u32,
        /// The GPU's.
        found: u32,
    },

    /// The driver is older than the plan's PTX.
    #[error(
        "the CUDA driver is too old for the plan: its PTX is version {ptx}, the driver is for CUDA {driver}; install a \
         newer driver"
    )]
    OldDriver {
        /// The `.version` of the PTX.
        ptx: String,
        /// The CUDA version that the driver tells.
        driver: String,
    },

    /// A kernel shares more memory than the GPU has for a block of threads.
    #[error(
        "kernel `{kernel}` of the plan needs {needed} bytes of shared memory, and this GPU gives a block of threads {found}; \
         compile the plan with --target for this GPU, or run a plan for CPUs with --device cpu"
    )]
    SharedMemory {
        /// The kernel.
        kernel: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that there are.
        found: u64,
    },

    /// The GPU has no more memory.
    #[error("the GPU has no {bytes} bytes left for {what}; lower --cache-tokens, or free memory of the GPU")]
    DeviceMemory {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        bytes: usize,
    },

    /// A call of the CUDA driver failed.
    #[error("the CUDA driver's {call} failed with {error}; the device must be loaded again")]
    Driver {
        /// The function.
        call: &'static str,
        /// What the driver calls the error.
        error: String,
    },

    /// The program contradicts itself. The plan's verifier should have refused it, so this is Lathe's mistake.
    #[error("the plan's program is inconsistent: {0}; this is a bug in Lathe, recompile the model and report it")]
    Program(String),

    /// The machine refused memory.
    #[error("cannot map {bytes} bytes for {what}: {source}; free memory, or lower --cache-tokens")]
    Map {
        /// What the memory was for.
        what: &'static str,
        /// How much.
        bytes: usize,
        /// What the operating system said.
        source: io::Error,
    },

    /// A worker thread could not be started.
    #[error("cannot start worker thread {worker}: {source}; lower --threads")]
    Thread {
        /// Index of the worker.
        worker: usize,
        /// What the operating system said.
        source: io::Error,
    },

    /// A number of worker threads that cannot be meant.
    #[error(
        "{asked} worker threads were asked for, expected from 1 to {most}, because this process may use {cpus} CPUs; set \
         --threads to the number of physical cores, or leave it out"
    )]
    Threads {
        /// How many were asked for.
        asked: usize,
        /// The most that are accepted.
        most: usize,
        /// CPUs that the process may use.
        cpus: usize,
    },

    /// The machine lacks the memory that a plan needs.
    #[error(
        "the plan needs {} of memory ({} for weights, {} for intermediate results, {} for a cache of {cache_tokens} \
         positions), but only {} are left here; lower --cache-tokens, take --load mmap, or free memory",
        mib(weights.saturating_add(*results).saturating_add(*cache)), mib(*weights), mib(*results), mib(*cache), mib(*left)
    )]
    Memory {
        /// Bytes for weights.
        weights: u64,
        /// Bytes for intermediate results and scratch.
        results: u64,
        /// Bytes of the cache.
        cache: u64,
        /// Positions that the cache holds.
        cache_tokens: u64,
        /// Bytes that are left.
        left: u64,
    },

    /// A step exceeds what the device was loaded for.
    #[error("the step has {found} {what}, the plan allows at most {limit}")]
    StepTooLarge {
        /// The dimension: tokens, sequences or rows.
        what: &'static str,
        /// What the step has.
        found: usize,
        /// The most that the plan allows.
        limit: usize,
    },

    /// An entry of a step is out of its range.
    #[error("{what} {index} of the step is {found}, it must be below {limit}")]
    StepRange {
        /// The kind of entry.
        what: &'static str,
        /// Its index.
        index: usize,
        /// Its value.
        found: u64,
        /// The first value that is too large.
        limit: u64,
    },

    /// A step breaks a rule about how its parts belong together.
    #[error("the step is inconsistent: {0}")]
    Step(String),

    /// A ticket that the device does not know, or knows no more.
    #[error("ticket {0} is unknown: it was collected already, or another device issued it")]
    Ticket(u64),

    /// As many steps as the device holds are waiting to be collected.
    #[error("{0} steps are in flight already, collect one before submitting the next")]
    InFlight(usize),

    /// The device failed for good.
    #[error("the device has failed and must be loaded again: {0}")]
    DeviceLost(String),

    /// The logits of a row hold a NaN or an infinity.
    #[error(
        "the logits of row {row} are not finite: the model's arithmetic overflowed; \
         recompile with --activations f32 to see whether quantization causes it"
    )]
    NotFinite {
        /// The row of the step.
        row: usize,
    },

    /// A request without tokens.
    #[error("the prompt is empty, a request needs at least one token (most models expect a BOS token)")]
    EmptyPrompt,

    /// A request's token is not in the vocabulary.
    #[error("token {index} of the prompt is {token}, the model's vocabulary has {vocabulary} tokens")]
    UnknownToken {
        /// Index in the prompt.
        index: usize,
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: u32,
    },

    /// A request that does not fit even alone.
    #[error(
        "the request needs {needed} positions ({prompt} of them for the prompt), but {limit} are available ({bound}); \
         shorten the prompt or lower the number of tokens to generate"
    )]
    TooLong {
        /// Positions that it needs.
        needed: usize,
        /// Tokens of its prompt.
        prompt: usize,
        /// Positions that there are.
        limit: usize,
        /// What limits it: the model's context or the cache.
        bound: &'static str,
    },

    /// A sampling parameter out of its range.
    #[error("{name} is {value}, it must be {expected}")]
    Sampling {
        /// The parameter.
        name: &'static str,
        /// Its value.
        value: f32,
        /// Its range in words.
        expected: &'static str,
    },

    /// A bias on a token that is not in the vocabulary.
    #[error("the logit bias names token {token}, the model's vocabulary has {vocabulary} tokens")]
    UnknownBias {
        /// The token.
        token: u32,
        /// Size of the vocabulary.
        vocabulary: u32,
    },

    /// A priority out of its range.
    #[error("the priority is {priority}, it must lie between -{most} and {most}")]
    Priority {
        /// The priority.
        priority: i32,
        /// The largest.
        most: i32,
    },

    /// A deadline that will be missed.
    #[error(
        "the answer is predicted to take {:.3} s and the deadline is in {:.3} s; allow more time, or ask for fewer tokens",
        predicted.as_secs_f64(),
        allowed.as_secs_f64()
    )]
    Late {
        /// How long the answer will take, waiting included.
        predicted: Duration,
        /// How long it may take.
        allowed: Duration,
    },

    /// Too much waits already.
    #[error("{requests} requests with {tokens} prompt tokens are waiting, which is as many as may; try again later")]
    QueueFull {
        /// Answers that wait.
        requests: usize,
        /// Tokens of their prompts.
        tokens: usize,
    },

    /// More answers than can run side by side.
    #[error("{found} answers were asked for at once, at most {limit} are possible")]
    TooManyChoices {
        /// Answers asked for.
        found: usize,
        /// The most.
        limit: usize,
    },

    /// Scoring needs the engine for itself.
    #[error("scoring needs an idle engine, {0} requests are unfinished; step until they are done")]
    Busy(usize),
}

/// Bytes for people.
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// A result of the runtime.
pub type Result<T, E = Error> = std::result::Result<T, E>;
