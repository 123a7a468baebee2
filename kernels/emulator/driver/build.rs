//! Gives the library the name under which programs ask for NVIDIA's, so that one linked against it runs with either.

fn main() {
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
    // Its threads outlive a `dlclose`, so it stays, as the real one does.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rerun-if-changed=build.rs");
}
