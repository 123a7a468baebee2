//! `cuGetProcAddress`: functions by name and version.

use crate::{
    abi::{Out, Text, api},
    codes::{Answer, Code, invalid},
    exports, report,
};

/// Which CUDA version brought a later version of a function. Those that are not listed came with 3.2.
const SINCE: &[(&str, i32)] = &[
    ("cuCtxCreate_v3", 11_040),
    ("cuCtxCreate_v4", 12_050),
    ("cuCtxGetDevice_v2", 13_000),
    ("cuCtxPopCurrent_v2", 4_000),
    ("cuCtxPushCurrent_v2", 4_000),
    ("cuCtxDestroy_v2", 4_000),
    ("cuDeviceGetUuid_v2", 11_040),
    ("cuDevicePrimaryCtxRelease_v2", 11_000),
    ("cuDevicePrimaryCtxReset_v2", 11_000),
    ("cuDevicePrimaryCtxSetFlags_v2", 11_000),
    ("cuEventDestroy_v2", 4_000),
    ("cuEventElapsedTime_v2", 12_080),
    ("cuGetProcAddress_v2", 12_000),
    ("cuGraphAddKernelNode_v2", 12_000),
    ("cuGraphExecKernelNodeSetParams_v2", 12_000),
    ("cuGraphExecUpdate_v2", 12_000),
    ("cuGraphInstantiate_v2", 11_000),
    ("cuGraphKernelNodeGetParams_v2", 12_000),
    ("cuGraphKernelNodeSetParams_v2", 12_000),
    ("cuMemHostRegister_v2", 6_050),
    ("cuStreamBeginCapture_v2", 10_010),
    ("cuStreamDestroy_v2", 4_000),
    ("cuStreamGetCaptureInfo_v2", 11_030),
];

/// The flag that asks for the variants in which stream 0 is the thread's own.
const PER_THREAD: u64 = 2;

/// A name without the endings of versions and variants, the version's number, and whether it is such a variant.
fn take_apart(symbol: &str) -> (&str, u32, bool) {
    let plain = symbol.strip_suffix("_ptsz").or_else(|| symbol.strip_suffix("_ptds"));
    let name = plain.unwrap_or(symbol);
    let (base, version) = match name.rsplit_once("_v") {
        Some((base, digits)) if digits.parse::<u32>().is_ok() => (base, digits.parse().unwrap_or(1)),
        _ => (name, 1),
    };
    (base, version, plain.is_some())
}

fn all_symbols() -> Vec<(&'static str, usize)> {
    [
        exports::contexts::symbols(),
        exports::copying::symbols(),
        exports::devices::symbols(),
        exports::events::symbols(),
        exports::graphs::symbols(),
        exports::launching::symbols(),
        symbols(),
        exports::memory::symbols(),
        exports::modules::symbols(),
        exports::streams::symbols(),
    ]
    .concat()
}

/// What was found for a name: an address, or nothing, with the number of `CUdriverProcAddressQueryResult`.
enum Found {
    Address(usize),
    Missing,
    TooNew,
}

/// The newest version of a function that is no newer than asked for, by the name that has no ending.
fn find(name: &str, cuda: i32, per_thread: bool) -> Found {
    let all = all_symbols();
    let since = |symbol: &str| {
        let (base, version, _) = take_apart(symbol);
        let plain = if version > 1 { format!("{base}_v{version}") } else { base.to_owned() };
        let listed = SINCE.iter().find(|(name, _)| *name == plain).map(|&(_, since)| since);
        listed.unwrap_or(if version > 1 { 3_020 } else { 2_000 })
    };
    let versions: Vec<_> = all.iter().filter(|(symbol, _)| take_apart(symbol).0 == name).collect();
    if versions.is_empty() {
        return Found::Missing;
    }
    let fitting = versions.into_iter().filter(|(symbol, _)| since(symbol) <= cuda);
    // Among those of the newest version, the variant that was asked for, where there is one.
    let best = fitting.max_by_key(|(symbol, _)| {
        let (_, version, is_variant) = take_apart(symbol);
        (version, is_variant == per_thread)
    });
    best.map_or(Found::TooNew, |&(_, address)| Found::Address(address))
}

/// The address of a function, or null, and the number that says why there is none.
fn get(name: Text, out: Out<usize>, cuda: i32, flags: u64) -> Answer<u32> {
    if flags > PER_THREAD {
        return invalid(format!("flags {flags}"));
    }
    let name = name.get()?;
    let (address, status) = match find(&name, cuda, flags == PER_THREAD) {
        Found::Address(address) => (address, 0),
        Found::Missing => (0, 1),
        Found::TooNew => (0, 2),
    };
    if address == 0 {
        report::note(&format!("the emulated driver has no `{name}` for CUDA {cuda}"));
    }
    out.set(address)?;
    Ok(status)
}

api! {
    fn cuGetProcAddress(name: Text, out: Out<usize>, cuda: i32, flags: u64) {
        match get(name, out, cuda, flags)? {
            0 => Ok(()),
            _ => Err(Code::ERROR_NOT_FOUND.because("there is no such function")),
        }
    }
    // That there is none is told by the status alone, and by the null.
    fn cuGetProcAddress_v2(name: Text, out: Out<usize>, cuda: i32, flags: u64, status: Out<u32>) {
        status.set_if_wanted(get(name, out, cuda, flags)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, cuda: i32, per_thread: bool) -> Option<&'static str> {
        match find(name, cuda, per_thread) {
            Found::Address(address) => {
                all_symbols().into_iter().find(|&(_, other)| other == address).map(|(name, _)| name)
            }
            Found::Missing | Found::TooNew => None,
        }
    }

    #[test]
    fn the_newest_version_that_was_asked_for_is_found() {
        assert_eq!(found("cuMemAlloc", 12_000, false), Some("cuMemAlloc_v2"));
        assert_eq!(found("cuMemAlloc", 3_000, false), None);
        assert_eq!(found("cuMemAlloc_v2", 12_000, false), None, "the version is an argument of its own");
        assert_eq!(found("cuGraphAddKernelNode", 11_080, false), Some("cuGraphAddKernelNode"));
        assert_eq!(found("cuGraphAddKernelNode", 12_000, false), Some("cuGraphAddKernelNode_v2"));
        assert_eq!(found("cuCtxCreate", 11_030, false), Some("cuCtxCreate_v2"));
        assert_eq!(found("cuCtxCreate", 11_040, false), Some("cuCtxCreate_v3"));
        assert_eq!(found("cuTexRefCreate", 13_000, false), None);
    }

    #[test]
    fn variants_are_found_by_flag() {
        assert_eq!(found("cuLaunchKernel", 12_000, false), Some("cuLaunchKernel"));
        assert_eq!(found("cuLaunchKernel", 12_000, true), Some("cuLaunchKernel_ptsz"));
        assert_eq!(found("cuMemcpyHtoD", 12_000, true), Some("cuMemcpyHtoD_v2_ptds"));
        assert_eq!(found("cuInit", 12_000, true), Some("cuInit"));
        assert_eq!(found("cuStreamQuery_ptsz", 12_000, false), None, "the variant is a flag");
    }
}
