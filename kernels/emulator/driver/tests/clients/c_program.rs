//! The program in C: compiled by the machine's compiler, linked as against NVIDIA's library.

use std::{path::Path, process::Command};

use crate::child::{emulate, folder};

#[test]
fn a_program_in_c_runs() {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver_client");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients/program.c");
    let mut compile = Command::new("cc");
    compile.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-o"]).arg(&out).arg(source);
    let compiled = compile.arg("-L").arg(folder()).args(["-lcuda", "-ldl"]).output().expect("cc starts");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));

    let ran = emulate(&mut Command::new(&out), &[("LATHE_EMULATE", "sm_89")]).output().expect("the program starts");
    let told = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{told}{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(told.lines().last(), Some("all of it works on a device of capability 8.9"), "{told}");
}
