//! What serves a model stays small: no C library beyond libc, nothing built from C beyond a named list.

use std::collections::BTreeSet;
use std::process::Command;

use lathe_tests::{cargo, lathe};
use serde_json::Value;

/// Crates that look as if they built or linked what is not Rust, and may: blake3 assembles its hash kernels, libc
/// declares the C library, linux-raw-sys the kernel's interface (the terminal's width comes from there).
const NOT_ONLY_RUST: [&str; 3] = ["blake3", "libc", "linux-raw-sys"];

/// What the binary may ask the dynamic loader for.
const LIBRARIES: [&str; 4] = ["libc.so.6", "libm.so.6", "libgcc_s.so.1", "ld-linux-x86-64.so.2"];

/// Crates that bring a compiler, a native build or a network stack of another language.
const BUILDERS: [&str; 6] = ["cc", "cmake", "pkg-config", "bindgen", "autotools", "vcpkg"];

fn printed(command: &mut Command) -> String {
    let output = command.output().expect("the command starts");
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("the output is text")
}

/// Names of the crates that the runtime's binary is built from and with.
fn runtime_crates() -> BTreeSet<String> {
    let arguments = ["tree", "--locked", "-p", "lathe-runtime", "-e", "normal,build", "--prefix", "none"];
    let tree = printed(cargo().args(arguments).args(["--format", "{p}"]));
    tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

#[test]
fn the_runtime_builds_from_rust_alone() {
    let crates = runtime_crates();
    assert!(crates.contains("lathe-plan"), "the tree was read");
    let metadata = printed(cargo().args(["metadata", "--locked", "--format-version", "1"]));
    let metadata: Value = serde_json::from_str(&metadata).expect("cargo prints JSON");
    for package in metadata["packages"].as_array().expect("a list of packages") {
        let name = package["name"].as_str().expect("a package has a name");
        if !crates.contains(name) || NOT_ONLY_RUST.contains(&name) {
            continue;
        }
        assert!(!name.ends_with("-sys"), "{name} binds a C library");
        assert!(package["links"].is_null(), "{name} links {}", package["links"]);
        for dependency in package["dependencies"].as_array().expect("a list of dependencies") {
            let needs = dependency["name"].as_str().expect("a dependency has a name");
            let used = dependency["kind"] == "build" && dependency["optional"] == false && crates.contains(needs);
            assert!(!(used && BUILDERS.contains(&needs)), "{name} builds with {needs}");
        }
    }
}

#[test]
fn the_runtime_holds_no_compiler() {
    let crates = runtime_crates();
    for name in ["lathe-compiler", "lathe-ir", "lathe-kernels", "lathe-models", "inkwell", "llvm-sys"] {
        assert!(!crates.contains(name), "lathe-runtime reaches {name}");
    }
}

#[test]
fn the_binary_needs_only_the_system_libraries() {
    let dynamic = printed(Command::new("readelf").args(["--dynamic", "--wide"]).arg(lathe()));
    let needed: Vec<&str> =
        dynamic.lines().filter(|l| l.contains("(NEEDED)")).filter_map(|l| l.split(['[', ']']).nth(1)).collect();
    assert!(needed.contains(&"libc.so.6"), "readelf's output was read: {dynamic}");
    for library in needed {
        assert!(LIBRARIES.contains(&library), "`lathe` needs {library}");
    }
}
