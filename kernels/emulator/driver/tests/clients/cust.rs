//! The program in `cust/`, which reaches the driver through the `cust` crate: a package of its own, built here against
//! the emulated driver in the place of a CUDA installation.

use std::{fs, io, os::unix::fs::symlink, path::Path, process::Command};

use crate::child::{emulate, folder};

#[test]
#[ignore = "builds 28 crates: part of `cargo xtask test --all`"]
fn a_program_through_cust_runs() {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cust");
    let libraries = scratch.join("cuda/lib64");
    fs::create_dir_all(&libraries).expect("a folder for the links");
    for name in ["libcuda.so", "libcuda.so.1"] {
        match symlink(folder().join(name), libraries.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => panic!("a link: {error}"),
            _ => {}
        }
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("cust/Cargo.toml");
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(manifest);
    build.arg("--target-dir").arg(scratch.join("target")).env("CUDA_LIBRARY_PATH", scratch.join("cuda"));
    let built = build.output().expect("cargo starts");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let mut program = Command::new(scratch.join("target/debug/cust-client"));
    let ran = emulate(&mut program, &[("LATHE_EMULATE", "sm_86")]).output().expect("the program starts");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{told}{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(told, "cust works on a device of capability 8.6\n");
}
