//! Runs a test's body in a process of its own, in which the emulated driver is the one that is found: the loader reads its
//! path when a process starts.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
};

/// Names the test whose body a process runs.
const BODY: &str = "EMULATED_DRIVER_TEST_BODY";

/// The folder that holds the driver under the names of NVIDIA's.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let own = std::env::current_exe().expect("a test has a path");
        let library = own.parent().expect("it lies in a folder").join("libcuda_emulated.so");
        assert!(library.is_file(), "{} is not there", library.display());
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("driver");
        fs::create_dir_all(&folder).expect("a folder for the links");
        for name in ["libcuda.so", "libcuda.so.1"] {
            match std::os::unix::fs::symlink(&library, folder.join(name)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => panic!("a link: {error}"),
                _ => {}
            }
        }
        folder
    })
}

/// Lets a command find the driver, on a machine that these variables describe.
pub fn emulate<'a>(command: &'a mut Command, variables: &[(&str, &str)]) -> &'a mut Command {
    for name in ["LATHE_EMULATE", "LATHE_EMULATE_LOG", "CUDA_VISIBLE_DEVICES"] {
        command.env_remove(name);
    }
    command.env("LD_LIBRARY_PATH", folder()).envs(variables.iter().copied())
}

/// Runs `body` in a process with the emulated driver, and gives what that printed; `test` is the calling test's full name.
/// In that process itself it runs the body and gives nothing.
pub fn run(test: &str, variables: &[(&str, &str)], body: impl FnOnce()) -> Option<String> {
    if std::env::var(BODY).as_deref() == Ok(test) {
        body();
        return None;
    }
    let own = std::env::current_exe().expect("a test has a path");
    let mut command = Command::new(own);
    emulate(&mut command, variables).env(BODY, test).args(["--exact", test, "--nocapture"]);
    let Output { status, stdout, stderr } = command.output().expect("the test starts itself");
    let text = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(status.success() && text.contains("1 passed"), "{test} in its own process: {status}\n{text}");
    Some(text)
}
