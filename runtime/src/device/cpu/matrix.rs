//! The matrix registers of x86 CPUs (AMX). They enlarge what the system saves for each thread, so it asks that a process
//! say once that it uses them, before any thread does.

#![expect(unsafe_code, reason = "the system call has no safe interface")]

use std::sync::LazyLock;

/// `arch_prctl` to ask for the use of a part of the state, by Linux's `Documentation/arch/x86/xstate.rst`.
const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
/// The number of that part which holds the registers' contents.
const XFEATURE_XTILEDATA: libc::c_long = 18;

/// Whether the CPU has a feature of matrix registers (`amx_tile`, `amx_int8`) and the system grants this process their
/// use, which is asked for where the CPU has them.
pub fn has(feature: &str) -> bool {
    static FLAGS: LazyLock<Vec<String>> = LazyLock::new(flags);
    static GRANTED: LazyLock<bool> = LazyLock::new(request);
    FLAGS.iter().any(|flag| flag == feature) && *GRANTED
}

/// The flags of `/proc/cpuinfo` that are about matrix registers.
fn flags() -> Vec<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    flags.split_whitespace().filter(|flag| flag.starts_with("amx_")).map(str::to_owned).collect()
}

fn request() -> bool {
    // SAFETY: the call takes two numbers and touches no memory of ours.
    let status = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
    status == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_grants_what_the_cpu_has() {
        assert!(flags().is_empty() || request(), "Linux from 5.16 on grants what the CPU has: {:?}", flags());
        assert_eq!(has("amx_tile"), flags().iter().any(|flag| flag == "amx_tile"));
        assert!(!has("amx_nothing"));
    }
}
