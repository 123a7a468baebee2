//! What the emulated machine is, from variables of the environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `LATHE_EMULATE` | the chips of the devices, with commas between, or `none` | `sm_80` |
//! | `LATHE_EMULATE_MEMORY` | bytes of memory of each device, `K`, `M` or `G` allowed | `16G` |
//! | `LATHE_EMULATE_DRIVER` | the CUDA version of the driver, which bounds the PTX that it takes | `13.0` |
//! | `LATHE_EMULATE_CHECKS` | `off`: unwritten memory and races are no faults | `on` |
//! | `LATHE_EMULATE_THREADS` | host threads that execute CTAs; one makes their order the same each time | all |
//! | `LATHE_EMULATE_STEPS` | the most instructions of warps of one kernel; past it, that has a fault | 2^40 |
//! | `LATHE_EMULATE_LOSE` | `N`: a device is lost at its Nth kernel, counted from 1 | never |
//! | `LATHE_EMULATE_LOG` | a file to which faults and the reasons of refused calls are appended | none |
//! | `CUDA_VISIBLE_DEVICES` | which devices the program sees, in which order; empty hides all | all |

use std::env;

use lathe_emulator::{Chip, Options};

/// The emulated machine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The visible devices.
    pub chips: Vec<Chip>,
    /// Bytes of each one's memory.
    pub memory: u64,
    /// The driver's CUDA version, as `cuDriverGetVersion` gives it.
    pub version: i32,
    /// What launches check.
    pub launch: Options,
    /// At which kernel a device is lost.
    pub lose: Option<u64>,
}

impl Settings {
    /// Reads the environment.
    pub fn read() -> Result<Settings, String> {
        let value = |name: &str| env::var(name).ok();
        Self::parse(&value)
    }

    fn parse(value: &dyn Fn(&str) -> Option<String>) -> Result<Settings, String> {
        let wrong = |name: &str, found: &str, expected: &str| format!("{name} is `{found}`; expected {expected}");
        let chips = match value("LATHE_EMULATE").as_deref() {
            None => vec![Chip::Sm80],
            Some("none") => vec![],
            Some(names) => names
                .split(',')
                .map(|name| {
                    let known = || Chip::ALL.map(Chip::name).join(", ");
                    let expected = || format!("one of {}, several with commas between, or none", known());
                    Chip::parse(name.trim()).ok_or_else(|| wrong("LATHE_EMULATE", names, &expected()))
                })
                .collect::<Result<_, _>>()?,
        };
        let chips = match value("CUDA_VISIBLE_DEVICES") {
            Some(list) => visible(&chips, &list),
            None => chips,
        };
        let memory = match value("LATHE_EMULATE_MEMORY") {
            None => 16 << 30,
            Some(text) => {
                bytes(&text).ok_or_else(|| wrong("LATHE_EMULATE_MEMORY", &text, "bytes such as 512M or 4G"))?
            }
        };
        let version = match value("LATHE_EMULATE_DRIVER") {
            None => 13_000,
            Some(text) => {
                cuda_version(&text).ok_or_else(|| wrong("LATHE_EMULATE_DRIVER", &text, "10.0 to 13.2, such as 12.4"))?
            }
        };
        let number = |name: &str| match value(name) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(number) if number > 0 => Ok(Some(number)),
                _ => Err(wrong(name, &text, "a whole number from 1")),
            },
        };
        let checks = match value("LATHE_EMULATE_CHECKS").as_deref() {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => return Err(wrong("LATHE_EMULATE_CHECKS", other, "on or off")),
        };
        let mut launch = Options { checks, ..Options::default() };
        if let Some(threads) = number("LATHE_EMULATE_THREADS")? {
            launch.threads = threads.min(256) as usize;
        }
        if let Some(steps) = number("LATHE_EMULATE_STEPS")? {
            launch.step_limit = steps;
        }
        Ok(Settings { chips, memory, version, launch, lose: number("LATHE_EMULATE_LOSE")? })
    }
}

/// The devices of a list of ordinals; as with the real driver, the first that does not exist ends it.
fn visible(chips: &[Chip], list: &str) -> Vec<Chip> {
    let ordinals = list.split(',').map(|ordinal| ordinal.trim().parse::<usize>().ok());
    ordinals.map_while(|ordinal| chips.get(ordinal?).copied()).collect()
}

/// A number of bytes with an optional unit.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift).filter(|&bytes| bytes > 0 && bytes < 1 << 44)
}

/// `12.4` as 12040.
fn cuda_version(text: &str) -> Option<i32> {
    let (major, minor) = text.split_once('.')?;
    let version =
        major.parse::<i32>().ok()?.checked_mul(1000)?.checked_add(minor.parse::<i32>().ok()?.checked_mul(10)?)?;
    (10_000..=13_020).contains(&version).then_some(version)
}

/// The newest PTX that a driver of a CUDA version takes, from the release notes of the PTX ISA.
pub fn newest_ptx(version: i32) -> (u32, u32) {
    let (major, minor) = (version / 1000, version % 1000 / 10);
    match (major, minor) {
        (10, minor) => (6, 3 + minor as u32),
        (11, minor) => (7, minor as u32),
        (12, 0..=5) => (8, minor as u32),
        // 12.6 came with the PTX of 12.5, and 12.7 with 8.6.
        (12, 6) => (8, 5),
        (12, 7) => (8, 6),
        (12, 8) => (8, 7),
        (12, _) => (8, 8),
        (_, minor) => (9, minor as u32),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::parse(&|name| pairs.iter().find(|(found, _)| *found == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn devices_are_listed_and_hidden() {
        let chips = |pairs: &[(&str, &str)]| parse(pairs).expect("sound settings").chips;
        assert_eq!(chips(&[]), [Chip::Sm80]);
        assert_eq!(chips(&[("LATHE_EMULATE", "none")]), []);
        assert_eq!(chips(&[("LATHE_EMULATE", "sm_90,sm_80")]), [Chip::Sm90, Chip::Sm80]);
        let two = ("LATHE_EMULATE", "sm_90,sm_80");
        assert_eq!(chips(&[two, ("CUDA_VISIBLE_DEVICES", "1,0")]), [Chip::Sm80, Chip::Sm90]);
        assert_eq!(chips(&[two, ("CUDA_VISIBLE_DEVICES", "1,7,0")]), [Chip::Sm80]);
        assert_eq!(chips(&[two, ("CUDA_VISIBLE_DEVICES", "")]), []);
    }

    #[test]
    fn sizes_and_versions_are_read() {
        assert_eq!(parse(&[("LATHE_EMULATE_MEMORY", "3M")]).expect("a size").memory, 3 << 20);
        assert_eq!(parse(&[("LATHE_EMULATE_DRIVER", "12.4")]).expect("a version").version, 12_040);
        assert_eq!(parse(&[("LATHE_EMULATE_STEPS", "5000")]).expect("a number").launch.step_limit, 5000);
        assert_eq!(newest_ptx(10_020), (6, 5));
        assert_eq!(newest_ptx(12_040), (8, 4));
        assert_eq!(newest_ptx(13_000), (9, 0));
    }

    #[test]
    fn wrong_values_say_what_was_expected() {
        for (name, value, expected) in [
            ("LATHE_EMULATE", "sm_35", "sm_80"),
            ("LATHE_EMULATE", "", "none"),
            ("LATHE_EMULATE_MEMORY", "much", "512M"),
            ("LATHE_EMULATE_MEMORY", "99999999999G", "512M"),
            ("LATHE_EMULATE_DRIVER", "9.0", "12.4"),
            ("LATHE_EMULATE_CHECKS", "no", "on or off"),
            ("LATHE_EMULATE_LOSE", "0", "from 1"),
            ("LATHE_EMULATE_STEPS", "many", "from 1"),
        ] {
            let error = parse(&[(name, value)]).expect_err(value);
            assert!(error.contains(name) && error.contains(expected), "{error}");
        }
    }
}
