//! Which CPU features this machine has, by the names of `/proc/cpuinfo`, and which code of a plan suits it.

use lathe_plan::Code;

use super::matrix;
use crate::error::{Error, Result};

/// Whether this CPU and operating system offer a feature. Unknown names are missing ones.
pub fn has(feature: &str) -> bool {
    macro_rules! detect {
        ($($name:literal => $std:tt),* $(,)?) => {
            match feature {
                $($name => std::is_x86_feature_detected!($std),)*
                "amx_tile" | "amx_int8" => matrix::has(feature),
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

/// The code that needs the most features among what runs here; of one target only, if one is asked for.
pub fn choose<'a>(codes: &[&'a Code], asked: Option<&str>, has: impl Fn(&str) -> bool) -> Result<&'a Code> {
    let wanted = |code: &&&Code| asked.is_none_or(|asked| code.object.target == asked);
    let mut best: Option<&Code> = None;
    let mut closest: Option<(Vec<&str>, &str)> = None;
    for &code in codes.iter().filter(wanted) {
        let features = &code.object.features;
        let missing: Vec<&str> = features.iter().map(String::as_str).filter(|feature| !has(feature)).collect();
        if missing.is_empty() {
            if best.is_none_or(|best| features.len() > best.object.features.len()) {
                best = Some(code);
            }
        } else if closest.as_ref().is_none_or(|(fewest, _)| missing.len() < fewest.len()) {
            closest = Some((missing, &code.object.target));
        }
    }
    match (best, closest, asked) {
        (Some(best), _, _) => Ok(best),
        (None, Some((missing, target)), _) => {
            Err(Error::MissingFeatures { target: target.to_owned(), missing: missing.join(", ") })
        }
        (None, None, Some(asked)) if !codes.is_empty() => {
            let held = codes.iter().map(|code| code.object.target.as_str()).collect::<Vec<_>>().join(", ");
            Err(Error::NoTarget { asked: asked.to_owned(), held })
        }
        (None, None, _) => Err(Error::NoCode),
    }
}

#[cfg(test)]
mod tests {
    use lathe_plan::program::CodeObject;

    use super::*;

    fn code(target: &str, features: &[&str]) -> Code {
        let features = features.iter().map(|&feature| feature.to_owned()).collect();
        let object = CodeObject { target: target.into(), features, ..CodeObject::default() };
        Code { program: "main".into(), layout: String::new(), object }
    }

    #[test]
    fn the_most_demanding_code_that_fits_is_chosen() {
        let codes = [code("small", &["a"]), code("large", &["a", "b"]), code("huge", &["a", "b", "c"])];
        let codes: Vec<&Code> = codes.iter().collect();
        let target = |code: &Code| code.object.target.clone();
        let chosen = |features: &str| choose(&codes, None, |name| features.contains(name)).map(target);
        assert_eq!(chosen("a").unwrap(), "small");
        assert_eq!(chosen("ab").unwrap(), "large");
        assert_eq!(chosen("abc").unwrap(), "huge");
        assert_eq!(chosen("ac").unwrap(), "small");
        assert_eq!(choose(&codes, Some("small"), |_| true).map(target).unwrap(), "small");
    }

    #[test]
    fn a_cpu_without_the_features_gets_a_sentence_that_names_them() {
        let codes = [code("big", &["x", "y", "z"]), code("less", &["x", "y"])];
        let codes: Vec<&Code> = codes.iter().collect();
        let error = choose(&codes, None, |name| name == "x").unwrap_err().to_string();
        assert!(error.contains("`less` needs y,"), "{error}");
        assert!(error.contains("--target"), "{error}");
        let error = choose(&codes, Some("big"), |name| name == "x").unwrap_err().to_string();
        assert!(error.contains("`big` needs y, z,"), "{error}");
        let error = choose(&codes, Some("other"), |_| true).unwrap_err().to_string();
        assert!(error.contains("`other`") && error.contains("big, less"), "{error}");
        assert!(matches!(choose(&[], None, |_| true), Err(Error::NoCode)));
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
