//! The recorded kernels in CUDA C++ and Triton, launched through the driver on two chips, against NumPy.

#![expect(unsafe_code, reason = "launches of kernels")]

#[path = "../../../tests/recorded/cases.rs"]
mod cases;

use std::sync::Arc;

use cudarc::{
    driver::{CudaContext, CudaStream, LaunchConfig, PushKernelArg},
    nvrtc::Ptx,
};

use self::cases::{Argument, Case, cases};
use crate::child;

/// The folder of the emulator's tests, from this package's manifest.
const TESTS: &str = "../tests";

/// Runs a case and compares every array that it is to leave.
fn run(case: &Case, context: &Arc<CudaContext>, stream: &Arc<CudaStream>, chip: &str) {
    let module = context.load_module(Ptx::from_src(case.ptx())).expect("the module loads");
    let kernel = module.load_function(&case.kernel).expect("the kernel");
    let arrays: Vec<_> = case
        .buffers()
        .map(|buffer| match &buffer.before {
            Some(before) => stream.clone_htod(before).expect("a copy"),
            // SAFETY: the kernel writes it before anything reads it, and any bytes are numbers.
            None => unsafe { stream.alloc::<u8>(buffer.bytes) }.expect("memory"),
        })
        .collect();
    let mut launch = stream.launch_builder(&kernel);
    let mut next = arrays.iter();
    for argument in &case.arguments {
        match argument {
            Argument::Value(bits) => launch.arg(bits),
            Argument::Buffer(_) => launch.arg(next.next().expect("an array for each buffer")),
            Argument::Null => launch.arg(&0u64),
        };
    }
    let [grid_dim, block_dim] = [case.grid, case.block].map(<(u32, u32, u32)>::from);
    let shape = LaunchConfig { grid_dim, block_dim, shared_mem_bytes: case.shared };
    // SAFETY: the arguments are those that were recorded with the kernel.
    unsafe { launch.launch(shape) }.expect("a launch");
    let found: Vec<_> = arrays.iter().map(|array| stream.clone_dtoh(array).expect("a copy")).collect();
    case.check(chip, &found);
}

#[test]
fn every_recorded_kernel_agrees_with_numpy() {
    let test = "recorded::every_recorded_kernel_agrees_with_numpy";
    child::run(test, &[("LATHE_EMULATE", "sm_80,sm_90")], || {
        let cases = cases();
        assert_eq!(cases.len(), 36);
        for (ordinal, chip) in ["sm_80", "sm_90"].into_iter().enumerate() {
            let context = CudaContext::new(ordinal).expect("two devices");
            let stream = context.new_stream().expect("a stream");
            for case in &cases {
                run(case, &context, &stream, chip);
            }
        }
    });
}
