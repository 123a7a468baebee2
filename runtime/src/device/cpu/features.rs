//! Which CPU features this machine has, by the names of `/proc/cpuinfo`, and which code object suits it.

use lathe_plan::program::CodeObject;

use crate::error::{Error, Result};

/// Whether this CPU and operating system offer a feature. Unknown names are missing ones.
pub fn has(feature: &str) -> bool {
    macro_rules! detect {
        ($($name:literal => $std:tt),* $(,)?) => {
            match feature {
                $($name => std::is_x86_feature_detected!($std),)*
                _ => false,
            }
        };
    }
    detect! {
        "sse" => "sse", "sse2" => "sse2", "pni" => "sse3", "ssse3" => "ssse3", "sse4_1" => "sse4.1", "sse4_2" => "sse4.2",
        "popcnt" => "popcnt", "avx" => "avx", "avx2" => "avx2", "fma" => "fma", "f16c" => "f16c", "bmi1" => "bmi1",
        "bmi2" => "bmi2", "abm" => "lzcnt", "movbe" => "movbe", "aes" => "aes", "pclmulqdq" => "pclmulqdq",
        "avx512f" => "avx512f", "avx512dq" => "avx512dq", "avx512bw" => "avx512bw", "avx512vl" => "avx512vl",
        "avx512cd" => "avx512cd", "avx512ifma" => "avx512ifma", "avx512vbmi" => "avx512vbmi",
        "avx512_vbmi2" => "avx512vbmi2", "avx512_vnni" => "avx512vnni", "avx512_bitalg" => "avx512bitalg",
        "avx512_vpopcntdq" => "avx512vpopcntdq", "avx512_bf16" => "avx512bf16", "avx512_fp16" => "avx512fp16",
        "gfni" => "gfni", "vaes" => "vaes", "vpclmulqdq" => "vpclmulqdq", "avx_vnni" => "avxvnni",
    }
}

/// The object that needs the most features among those that run here.
pub fn choose<'a>(objects: impl Iterator<Item = &'a CodeObject>, has: impl Fn(&str) -> bool) -> Result<&'a CodeObject> {
    let mut best: Option<&CodeObject> = None;
    let mut closest: Option<(Vec<&str>, &str)> = None;
    for object in objects {
        let missing: Vec<&str> = object.features.iter().map(String::as_str).filter(|feature| !has(feature)).collect();
        if missing.is_empty() {
            if best.is_none_or(|best| object.features.len() > best.features.len()) {
                best = Some(object);
            }
        } else if closest.as_ref().is_none_or(|(fewest, _)| missing.len() < fewest.len()) {
            closest = Some((missing, &object.target));
        }
    }
    match (best, closest) {
        (Some(best), _) => Ok(best),
        (None, Some((missing, target))) => {
            Err(Error::MissingFeatures { target: target.to_owned(), missing: missing.join(", ") })
        }
        (None, None) => Err(Error::NoCode),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(target: &str, features: &[&str]) -> CodeObject {
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        CodeObject { target: target.into(), features, ..CodeObject::default() }
    }

    #[test]
    fn the_most_demanding_object_that_fits_is_chosen() {
        let objects = [object("small", &["a"]), object("large", &["a", "b"]), object("huge", &["a", "b", "c"])];
        let chosen = |features: &str| choose(objects.iter(), |name| features.contains(name)).map(|o| o.target.as_str());
        assert_eq!(chosen("a").unwrap(), "small");
        assert_eq!(chosen("ab").unwrap(), "large");
        assert_eq!(chosen("abc").unwrap(), "huge");
        assert_eq!(chosen("ac").unwrap(), "small");
    }

    #[test]
    fn a_cpu_without_the_features_gets_a_sentence_that_names_them() {
        let objects = [object("big", &["x", "y", "z"]), object("less", &["x", "y"])];
        let error = choose(objects.iter(), |name| name == "x").unwrap_err().to_string();
        assert!(error.contains("`less` needs y,"), "{error}");
        assert!(error.contains("--target"), "{error}");
        assert!(matches!(choose([].iter(), |_| true), Err(Error::NoCode)));
    }

    #[test]
    fn names_agree_with_the_kernels_list() {
        let Ok(text) = std::fs::read_to_string("/proc/cpuinfo") else { return };
        let Some(flags) = text.lines().find_map(|line| line.strip_prefix("flags")) else { return };
        let flags: Vec<&str> = flags.trim_start_matches([' ', '\t', ':']).split(' ').collect();
        for name in ["avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_vbmi2", "f16c", "gfni", "abm"] {
            assert_eq!(has(name), flags.contains(&name), "{name}");
        }
        assert!(!has("no_such_feature"));
    }
}
