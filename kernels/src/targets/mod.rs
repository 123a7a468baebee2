//! Targets: the machines that kernels are generated for. One line in [`TARGETS`] each.

use std::fmt;

/// What kind of machine a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// An x86-64 CPU.
    X86,
    /// An NVIDIA GPU, by PTX.
    Nvptx,
}

/// How many weights and rows of activations a product keeps in registers at once. Every tile gives the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegisterTile {
    /// Most rows of activations beside weights that are decoded in registers.
    pub stream_rows: usize,
    /// Most rows of activations beside unpacked weights.
    pub unpack_rows: usize,
    /// Most blocks of unpacked weights.
    pub unpack_blocks: usize,
    /// Most dot products of queries with keys at once.
    pub dots: usize,
    /// Most sums of values at once.
    pub sums: usize,
}

/// A target: its name, and what LLVM and the runtime need to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The name on the command line and in the plan.
    pub name: &'static str,
    /// The machine.
    pub machine: Machine,
    /// LLVM's triple.
    pub triple: &'static str,
    /// LLVM's name of the processor.
    pub cpu: &'static str,
    /// LLVM's feature string.
    pub llvm_features: &'static str,
    /// Features that the runtime must find, by the names in `/proc/cpuinfo`.
    pub features: &'static [&'static str],
    /// Bits of a vector register; 0 where lanes are threads.
    pub vector_bits: usize,
    /// What fits the registers.
    pub tile: RegisterTile,
    /// Whether its code has run on such a machine. What has not is generated and assembled only, and chosen only by
    /// name.
    pub proven: bool,
    /// One line for people.
    pub summary: &'static str,
}

/// LLVM's triple of every CPU target.
const LINUX: &str = "x86_64-unknown-linux-gnu";
/// The features of `x86-64-v3` that its code may use, then those of `x86-64-v4`, then extensions, each as a list with
/// all before it.
macro_rules! features {
    (v3 $(, $more:literal)*) => { &["avx2", "fma", "f16c", "bmi1", "bmi2", "abm", "movbe" $(, $more)*] };
    (v4 $(, $more:literal)*) => {
        features!(v3, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl" $(, $more)*)
    };
}
/// 32 registers of 16 lanes: four rows of sums beside weights and scales. With two unpacked blocks that is 8 sums and 8
/// dot products; 6 and 8 rows spill and measured 5 to 8 % slower at 512 tokens on Zen 4.
const TILE_512: RegisterTile = RegisterTile { stream_rows: 4, unpack_rows: 4, unpack_blocks: 2, dots: 12, sums: 16 };
/// 16 registers of 8 lanes: a quarter of that.
const TILE_256: RegisterTile = RegisterTile { stream_rows: 2, unpack_rows: 2, unpack_blocks: 1, dots: 6, sums: 4 };

/// Every target; those of CPUs from the best to the least, but the one with matrix registers, which has never run, is not
/// the first.
pub const TARGETS: &[Target] = &[
    Target {
        name: "x86-64-v4+vnni+bf16",
        machine: Machine::X86,
        triple: LINUX,
        cpu: "x86-64-v4",
        llvm_features: "+avx512vnni,+fast-dpwssd,+avx512bf16,+prefer-no-gather",
        features: features!(v4, "avx512_vnni", "avx512_bf16"),
        vector_bits: 512,
        tile: TILE_512,
        proven: true,
        summary: "AVX-512 with VNNI and BF16 (Zen 4, Sapphire Rapids and later)",
    },
    Target {
        name: "x86-64-v4+vnni+bf16+amx",
        machine: Machine::X86,
        triple: LINUX,
        cpu: "x86-64-v4",
        llvm_features: "+avx512vnni,+fast-dpwssd,+avx512bf16,+amx-tile,+amx-int8,+prefer-no-gather",
        features: features!(v4, "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"),
        vector_bits: 512,
        tile: TILE_512,
        proven: false,
        summary: "AVX-512 with VNNI, BF16 and AMX (Sapphire Rapids and later); its matrix instructions have run in an \
                  emulation only: untested",
    },
    Target {
        name: "x86-64-v4+vnni",
        machine: Machine::X86,
        triple: LINUX,
        cpu: "x86-64-v4",
        llvm_features: "+avx512vnni,+fast-dpwssd,+prefer-no-gather",
        features: features!(v4, "avx512_vnni"),
        vector_bits: 512,
        tile: TILE_512,
        proven: true,
        summary: "AVX-512 with VNNI (Cascade Lake, Ice Lake, Tiger Lake)",
    },
    Target {
        name: "x86-64-v4",
        machine: Machine::X86,
        triple: LINUX,
        cpu: "x86-64-v4",
        llvm_features: "+prefer-no-gather",
        features: features!(v4),
        vector_bits: 512,
        tile: TILE_512,
        proven: true,
        summary: "AVX-512 with F, BW, CD, DQ and VL (Skylake servers)",
    },
    Target {
        name: "x86-64-v3+vnni",
        machine: Machine::X86,
        triple: LINUX,
        cpu: "x86-64-v3",
        llvm_features: "+avxvnni,+fast-dpwssd,+prefer-no-gather",
        features: features!(v3, "avx_vnni"),
        vector_bits: 256,
        tile: TILE_256,
        proven: false,
        summary: "AVX2 with AVX-VNNI (Alder Lake and later); generated and assembled, never run: untested",
    },
    Target {
        name: "x86-64-v3",
        machine: Machine::X86,
        triple: LINUX,
        cpu: "x86-64-v3",
        llvm_features: "+prefer-no-gather",
        features: features!(v3),
        vector_bits: 256,
        tile: TILE_256,
        proven: true,
        summary: "AVX2 with FMA and F16C (Haswell, Zen 1 and later)",
    },
    gpu("sm_120", "+ptx87", "NVIDIA Blackwell of workstations (RTX 50, RTX PRO), as PTX 8.7"),
    gpu("sm_100", "+ptx86", "NVIDIA Blackwell of data centres (B200), as PTX 8.6"),
    gpu("sm_90", "+ptx78", "NVIDIA Hopper (H100, H200) and later, as PTX 7.8"),
    gpu("sm_89", "+ptx78", "NVIDIA Ada (L4, L40S, RTX 40) and later, as PTX 7.8"),
    gpu("sm_86", "+ptx71", "NVIDIA Ampere of workstations (A10, RTX 30) and later, as PTX 7.1"),
    gpu("sm_80", "+ptx70", "NVIDIA Ampere (A100) and later, as PTX 7.0"),
];

/// A GPU, by its architecture and the least PTX version that knows it.
const fn gpu(name: &'static str, ptx: &'static str, summary: &'static str) -> Target {
    Target {
        name,
        machine: Machine::Nvptx,
        triple: "nvptx64-nvidia-cuda",
        cpu: name,
        llvm_features: ptx,
        features: &[],
        vector_bits: 0,
        tile: TILE_512,
        proven: false,
        summary,
    }
}

/// Why a target cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No such target.
    #[error("unknown target '{name}'; known targets are native, all-cpu, {}", TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// This CPU has no target yet.
    #[error(
        "no target fits this CPU: the least of them needs {missing}, which it lacks; name another machine's target with \
         --target, for example --target all-cpu"
    )]
    Native {
        /// The features that are missing.
        missing: String,
    },
    /// One plan for CPUs and GPUs.
    #[error("'{names}' names CPUs and GPUs; a plan is for several kinds of one of them: compile one plan for each")]
    Mixed {
        /// What was asked for.
        names: String,
    },
}

impl Target {
    /// The target of this name; `native` is the best that this CPU runs.
    ///
    /// # Errors
    /// When there is no such target, or none that this CPU runs.
    pub fn parse(name: &str) -> Result<&'static Target, TargetError> {
        if name == "native" {
            return Target::native();
        }
        TARGETS.iter().find(|target| target.name == name).ok_or_else(|| TargetError::Unknown { name: name.to_string() })
    }

    /// The targets of a list of names with commas between them, each once, in the order of [`TARGETS`]; `all-cpu` is
    /// every proven CPU target. All of a list are for one kind of machine.
    ///
    /// # Errors
    /// As [`Target::parse`], and when CPUs and GPUs are mixed.
    pub fn parse_list(names: &str) -> Result<Vec<&'static Target>, TargetError> {
        let targets = Target::parse_mixed(names)?;
        if targets.iter().any(|target| target.machine != targets[0].machine) {
            return Err(TargetError::Mixed { names: names.to_string() });
        }
        Ok(targets)
    }

    /// The targets of a list as [`Target::parse_list`] reads it, of one kind of machine or several.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn parse_mixed(names: &str) -> Result<Vec<&'static Target>, TargetError> {
        let mut chosen = Vec::new();
        for name in names.split(',') {
            match name.trim() {
                "all-cpu" => chosen.extend(Target::proven_cpus()),
                name => chosen.push(Target::parse(name)?),
            }
        }
        Ok(TARGETS.iter().filter(|target| chosen.contains(target)).collect())
    }

    /// The CPU targets whose code has run, from the best to the least.
    pub fn proven_cpus() -> impl Iterator<Item = &'static Target> {
        TARGETS.iter().filter(|target| target.machine == Machine::X86 && target.proven)
    }

    /// Whether a kernel can begin before the one before it has ended, and wait for that by itself.
    pub fn begins_kernels_early(&self) -> bool {
        let capability = self.name.strip_prefix("sm_").and_then(|digits| digits.parse::<u32>().ok());
        capability.is_some_and(|capability| capability >= 90)
    }

    /// Whether code of this target may use a feature.
    pub fn has(&self, feature: &str) -> bool {
        self.features.contains(&feature)
    }

    /// The features that code of this target needs and this CPU lacks.
    pub fn missing_here(&self) -> Vec<&'static str> {
        self.features.iter().copied().filter(|feature| !cpu_has(feature)).collect()
    }

    fn native() -> Result<&'static Target, TargetError> {
        let mut missing = Vec::new();
        for target in Target::proven_cpus() {
            missing = target.missing_here();
            if missing.is_empty() {
                return Ok(target);
            }
        }
        Err(TargetError::Native { missing: missing.join(", ") })
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has(feature: &str) -> bool {
    macro_rules! detect {
        ($($name:literal => $std:tt),* $(,)?) => {
            match feature {
                $($name => is_x86_feature_detected!($std),)*
                _ => false,
            }
        };
    }
    detect! {
        "avx2" => "avx2", "fma" => "fma", "f16c" => "f16c", "bmi1" => "bmi1", "bmi2" => "bmi2", "abm" => "lzcnt",
        "movbe" => "movbe", "avx512f" => "avx512f", "avx512bw" => "avx512bw", "avx512cd" => "avx512cd",
        "avx512dq" => "avx512dq", "avx512vl" => "avx512vl", "avx512_vnni" => "avx512vnni",
        "avx512_bf16" => "avx512bf16", "avx_vnni" => "avxvnni",
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_has(_feature: &str) -> bool {
    false
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
