//! The laws of the house that no compiler checks: which crate may know which, where a hazard may be named, how large a
//! file may grow. Each failure lists all offenders.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use lathe_tests::{cargo, root};
use serde_json::Value;

/// Which crates of ours each crate may depend on. A crate that is missing here may depend on none.
const EDGES: &[(&str, &[&str])] = &[
    ("lathe-models", &["lathe-ir"]),
    ("lathe-kernels", &["lathe-ir", "lathe-emulator"]),
    ("lathe-emulator-driver", &["lathe-emulator"]),
    ("lathe-compiler", &["lathe-ir", "lathe-models", "lathe-kernels", "lathe-plan"]),
    ("lathe-runtime", &["lathe-plan"]),
    (
        "lathe-fuzz",
        &[
            "lathe-ir",
            "lathe-models",
            "lathe-kernels",
            "lathe-emulator",
            "lathe-compiler",
            "lathe-plan",
            "lathe-runtime",
        ],
    ),
    (
        "lathe-tests",
        &[
            "lathe-ir",
            "lathe-models",
            "lathe-kernels",
            "lathe-emulator",
            "lathe-compiler",
            "lathe-plan",
            "lathe-runtime",
        ],
    ),
];

/// Crates from which LLVM must not be reachable.
const WITHOUT_LLVM: &[&str] =
    &["lathe-ir", "lathe-plan", "lathe-models", "lathe-emulator", "lathe-emulator-driver", "lathe-runtime", "xtask"];

/// Where `unsafe` may be written: the LLVM builder, the device layer, the mapping of memory and files, the emulator's exported
/// C functions with the programs that call them, the tests' own stand-in for the device, and in the emulator the choice of
/// code for the processor's vectors and one conversion in it.
const UNSAFE_PLACES: &[&str] = &[
    "kernels/emulator/src/exec/mma/tile.rs",
    "kernels/emulator/src/exec/mma/wide.rs",
    "kernels/emulator/src/exec/regs.rs",
    "kernels/src/llvm",
    "kernels/emulator/driver",
    "kernels/tests/against_eval/machine.rs",
    "kernels/tests/against_eval/tiles.rs",
    "runtime/src/device",
    "runtime/plan/src/memory.rs",
    "models/src/mapping.rs",
];

/// The longest file that is still one thought.
const MOST_LINES: usize = 600;

/// The workspace as cargo sees it: each package's name and JSON, by package id.
fn packages() -> (Value, BTreeMap<String, Value>) {
    let output = cargo().args(["metadata", "--locked", "--format-version", "1"]).output().expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let by_id =
        metadata["packages"].as_array().expect("packages").iter().map(|p| (text(&p["id"]), p.clone())).collect();
    (metadata, by_id)
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

/// The ids in a list of `cargo metadata`.
fn ids(list: &Value) -> Vec<String> {
    list.as_array().expect("a list").iter().map(text).collect()
}

/// Names of all packages that are reachable from one through dependencies of any kind.
fn reachable(metadata: &Value, by_id: &BTreeMap<String, Value>, from: &str) -> BTreeSet<String> {
    let nodes: BTreeMap<_, _> =
        metadata["resolve"]["nodes"].as_array().expect("nodes").iter().map(|n| (text(&n["id"]), n)).collect();
    let (mut seen, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(id) = open.pop() {
        if seen.insert(id.clone()) {
            open.extend(ids(&nodes[&id]["dependencies"]));
        }
    }
    seen.iter().map(|id| text(&by_id[id]["name"])).collect()
}

/// Tracked files and new ones that git does not ignore, by path from the root, with their text.
fn files() -> Vec<(String, String)> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]).current_dir(root());
    let output = git.output().expect("git starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let list = String::from_utf8(output.stdout).expect("paths are text");
    let read = |path: &str| Some((path.to_owned(), String::from_utf8(fs::read(root().join(path)).ok()?).ok()?));
    let files: Vec<_> = list.lines().filter_map(read).collect();
    assert!(files.iter().any(|(path, _)| path == "Cargo.toml"), "the list of files was read");
    files
}

fn rust_files() -> impl Iterator<Item = (String, String)> {
    files().into_iter().filter(|(path, _)| has_extension(path, "rs"))
}

fn has_extension(path: &str, extension: &str) -> bool {
    Path::new(path).extension().is_some_and(|found| found == extension)
}

/// The code of a Rust file: comments and the contents of literals become spaces, lines stay where they are.
fn code(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let starts = |at: usize, with: &str| with.chars().enumerate().all(|(i, c)| chars.get(at + i) == Some(&c));
    let find = |from: usize, what: &str| (from..chars.len()).find(|&i| starts(i, what)).unwrap_or(chars.len());
    let (mut out, mut at) = (String::with_capacity(source.len()), 0);
    while at < chars.len() {
        let after_word = at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_');
        let hashes = chars[at + 1..].iter().take_while(|&&c| c == '#').count();
        let end = if starts(at, "//") {
            find(at, "\n")
        } else if starts(at, "/*") {
            find(at + 2, "*/") + 2
        } else if chars[at] == 'r' && !after_word && starts(at + 1 + hashes, "\"") {
            find(at + 2 + hashes, &format!("\"{}", "#".repeat(hashes))) + 1 + hashes
        } else if chars[at] == '"' {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            end + 1
        } else if starts(at, "'\\") {
            find(at + 3, "'") + 1
        } else if chars[at] == '\'' && starts(at + 2, "'") {
            at + 3
        } else {
            out.push(chars[at]);
            at += 1;
            continue;
        };
        let end = end.min(chars.len());
        out.extend(chars[at..end].iter().map(|&c| if c == '\n' { '\n' } else { ' ' }));
        at = end;
    }
    out
}

/// Whether a line of code has a word standing alone.
fn has_word(line: &str, word: &str) -> bool {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w == word)
}

fn none(offenders: impl IntoIterator<Item = String>, law: &str) {
    let offenders: Vec<_> = offenders.into_iter().collect();
    assert!(offenders.is_empty(), "{law}:\n  {}", offenders.join("\n  "));
}

#[test]
fn crates_know_only_what_lies_below_them() {
    let (metadata, by_id) = packages();
    let mut offenders = Vec::new();
    for id in ids(&metadata["workspace_members"]) {
        let package = &by_id[&id];
        let name = text(&package["name"]);
        let allowed = EDGES.iter().find(|(of, _)| *of == name).map_or(&[][..], |(_, allowed)| allowed);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let ours = !dependency["path"].is_null();
            let on = text(&dependency["name"]);
            if (ours && !allowed.contains(&on.as_str())) || (on == "inkwell" && name != "lathe-kernels") {
                offenders.push(format!("{name} depends on {on}"));
            }
        }
        if name == "xtask" && package["dependencies"] != Value::Array(vec![]) {
            offenders.push("xtask has a dependency, and must build from std alone".into());
        }
        if WITHOUT_LLVM.contains(&name.as_str()) && reachable(&metadata, &by_id, &id).contains("llvm-sys") {
            offenders.push(format!("{name} reaches llvm-sys"));
        }
    }
    none(offenders, "crates with edges that the design does not have");
}

#[test]
fn default_members_build_without_llvm() {
    let (metadata, by_id) = packages();
    let members = ids(&metadata["workspace_default_members"]);
    assert!(!members.is_empty());
    let needs_llvm = |id: &String| reachable(&metadata, &by_id, id).contains("llvm-sys");
    none(members.into_iter().filter(needs_llvm), "default members that need LLVM");
}

#[test]
fn every_crate_has_the_licence_and_the_lints() {
    let (metadata, by_id) = packages();
    let mut offenders = Vec::new();
    for package in ids(&metadata["workspace_members"]).iter().map(|id| &by_id[id]) {
        let manifest = fs::read_to_string(text(&package["manifest_path"])).expect("a manifest");
        if package["license"] != "MIT OR Apache-2.0" || !manifest.contains("[lints]\nworkspace = true") {
            offenders.push(text(&package["name"]));
        }
    }
    for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
        assert!(root().join(licence).is_file(), "{licence} is there");
    }
    none(offenders, "crates without `license` or `[lints] workspace = true`");
}

#[test]
fn llvm_is_named_by_the_kernels_alone() {
    let names_llvm = |(path, source): &(String, String)| {
        let code = code(source);
        !path.starts_with("kernels/") && ["inkwell", "llvm_sys"].iter().any(|word| has_word(&code, word))
    };
    none(rust_files().filter(names_llvm).map(|(path, _)| path), "files outside kernels/ that name LLVM's crates");
}

#[test]
fn unsafe_is_written_where_it_must_be_and_says_why() {
    let mut offenders = Vec::new();
    for (path, source) in rust_files() {
        let code = code(&source);
        let lines: Vec<&str> = source.lines().collect();
        for (number, line) in code.lines().enumerate().filter(|(_, line)| has_word(line, "unsafe")) {
            if !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)) {
                offenders.push(format!("{path}:{}: unsafe has no place here", number + 1));
            }
            // A declaration hands the duty to its callers, and clippy asks for its `# Safety` where they are many.
            if !has_word(line, "fn") && !is_explained(&lines, number) {
                offenders.push(format!("{path}:{}: no `// SAFETY:` above", number + 1));
            }
        }
    }
    none(offenders, "unsafe code against the law");
}

/// Whether a line, or the comments and the lines of the same statement above it, say why it is safe.
fn is_explained(lines: &[&str], number: usize) -> bool {
    let is_end = |line: &str| line.is_empty() || line.ends_with(['}', ';']);
    let says = |line: &str| line.contains("SAFETY:");
    let above = lines[..number].iter().rev().map(|line| line.trim());
    says(lines[number]) || above.take_while(|line| line.starts_with("//") || !is_end(line)).any(says)
}

#[test]
fn every_file_says_what_it_is_and_stays_short() {
    let mut offenders = Vec::new();
    for (path, source) in files() {
        let is_rust = has_extension(&path, "rs");
        if is_rust && !source.starts_with("//! ") {
            offenders.push(format!("{path}: does not open with `//!`"));
        }
        let lines = source.lines().count();
        if (is_rust || has_extension(&path, "py")) && lines > MOST_LINES {
            offenders.push(format!("{path}: {lines} lines, and {MOST_LINES} is the most"));
        }
    }
    none(offenders, "files without a word of what they are, or too long");
}

#[test]
fn lints_are_expected_never_allowed() {
    let is_allow = |line: &str| line.trim_start().starts_with('#') && has_word(line, "allow");
    let offends = |(_, source): &(String, String)| code(source).lines().any(is_allow);
    none(rust_files().filter(offends).map(|(path, _)| path), "files with `allow` instead of `expect`");
}

#[test]
fn files_name_no_machine_of_ours() {
    // Written in halves, for this file is checked too.
    let words =
        [("/wor", "k/"), ("/tm", "p/"), ("/roo", "t/"), ("../sha", "red"), ("py", "pi.org"), ("artifac", "tory")];
    let words: Vec<String> = words.iter().map(|(a, b)| format!("{a}{b}")).collect();
    let mut offenders = Vec::new();
    for (path, source) in files() {
        for (number, line) in source.lines().enumerate() {
            for word in words.iter().filter(|w| line.contains(w.as_str())) {
                offenders.push(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    none(offenders, "paths of one machine, or hosts of registries");
}

#[test]
fn the_scanner_tells_code_from_text() {
    let source =
        "let a = \"unsafe \\\" x\"; // unsafe\nlet b = r#\"un\"safe\"#; let c = '\"'; /* unsafe\n */ let d: &'a u8;";
    let found = code(source);
    assert_eq!(found.lines().count(), 3);
    assert!(!has_word(&found, "unsafe") && !has_word(&found, "safe"));
    assert!(["let a =", "let b =", "let c =", "let d: &'a u8;"].iter().all(|part| found.contains(part)), "{found}");
}

#[test]
fn an_explanation_belongs_to_its_statement() {
    let explained = ["// SAFETY: the pointer is ours.", "let x =", "    unsafe { f() };", "unsafe { g() };"];
    assert!(is_explained(&explained, 2), "a statement may span lines");
    assert!(!is_explained(&explained, 3), "the next statement needs its own");
}
