//! Targets: the machines that kernels are generated for. One line in [`TARGETS`] each.

use std::fmt;

/// What kind of machine a target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// An x86-64 CPU with 512-bit vectors.
    X86,
    /// An NVIDIA GPU, by PTX.
    Nvptx,
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
    /// One line for people.
    pub summary: &'static str,
}

/// Every target.
pub const TARGETS: &[Target] = &[
    Target {
        name: "x86-64-v4+vnni+bf16",
        machine: Machine::X86,
        triple: "x86_64-unknown-linux-gnu",
        cpu: "x86-64-v4",
        llvm_features: "+avx512vnni,+avx512bf16,+prefer-no-gather",
        features: &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "fma", "f16c"],
        summary: "AVX-512 with VNNI and BF16 (Zen 4, Sapphire Rapids and later)",
    },
    Target {
        name: "sm_80",
        machine: Machine::Nvptx,
        triple: "nvptx64-nvidia-cuda",
        cpu: "sm_80",
        llvm_features: "+ptx70",
        features: &[],
        summary: "NVIDIA Ampere and later, as PTX 7.0",
    },
];

/// Why a target cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// No such target.
    #[error("unknown target '{name}'; known targets are native, {}", TARGETS.iter().map(|t| t.name).collect::<Vec<_>>().join(", "))]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// This CPU has no target yet.
    #[error(
        "no target fits this CPU: it lacks {missing}; name another machine's target with --target, for example --target x86-64-v4+vnni+bf16"
    )]
    Native {
        /// The features that are missing.
        missing: String,
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

    fn native() -> Result<&'static Target, TargetError> {
        let mut missing = Vec::new();
        for target in TARGETS.iter().filter(|target| target.machine == Machine::X86) {
            missing = target.features.iter().copied().filter(|feature| !cpu_has(feature)).collect();
            if missing.is_empty() {
                return Ok(target);
            }
        }
        Err(TargetError::Native { missing: missing.join(", ") })
    }
}

#[cfg(target_arch = "x86_64")]
fn cpu_has(feature: &str) -> bool {
    match feature {
        "avx512f" => is_x86_feature_detected!("avx512f"),
        "avx512bw" => is_x86_feature_detected!("avx512bw"),
        "avx512dq" => is_x86_feature_detected!("avx512dq"),
        "avx512vl" => is_x86_feature_detected!("avx512vl"),
        "avx512_vnni" => is_x86_feature_detected!("avx512vnni"),
        "avx512_bf16" => is_x86_feature_detected!("avx512bf16"),
        "fma" => is_x86_feature_detected!("fma"),
        "f16c" => is_x86_feature_detected!("f16c"),
        _ => false,
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
