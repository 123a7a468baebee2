//! The tests of the CPU kernels once more, with every kernel that has PTX run on the emulator instead: the same vectors
//! against the same reference evaluation. What has no PTX yet runs as machine code here too.

#[path = "../against_eval/main.rs"]
mod against_eval;
mod sampling;

use against_eval::{data, emulated, machine};

#[test]
fn kernels_with_ptx_do_run_on_the_emulator() {
    use lathe_kernels::spec::{KernelSpec, MapOp};
    let spec = KernelSpec::Map { op: MapOp::Add };
    let (a, b) = ([1.5f32; 32], [0.25f32; 32]);
    let operands = [data::f32_bytes(&a), data::f32_bytes(&b), vec![0xff; 128]];
    let found = emulated::run(&spec, &operands, &[2, 16], 2).expect("additions have PTX");
    assert_eq!(data::floats(&found[2]), [1.75; 32]);
    const { assert!(machine::ON_EMULATOR) };
}
