//! Kernels that wait in a loop for what another stream, or the program, is still to do.

#![expect(unsafe_code, reason = "launches of kernels, and copies that the program waits for")]

use std::sync::Arc;

use cudarc::{
    driver::{
        CudaContext, CudaModule, CudaSlice, CudaStream, DriverError, PushKernelArg, result, sys::CUresult as Code,
    },
    nvrtc::Ptx,
};

use crate::{child, kernels::shape};

/// `wait` raises word `own + 2`, and then waits until word `own` is not zero; it leaves what it saw in word `own + 1`.
/// `set` makes word 0 five.
const PTX: &str = "
.version 7.0
.target sm_80
.address_size 64
.visible .entry wait(.param .u64 p, .param .u32 own)
{
    .reg .b64 %rd<4>; .reg .b32 %r<4>; .reg .pred %p<2>;
    ld.param.u64 %rd1, [p]; ld.param.u32 %r1, [own]; mul.wide.u32 %rd2, %r1, 4; add.s64 %rd1, %rd1, %rd2;
    st.relaxed.sys.global.u32 [%rd1+8], 1;
L:  ld.acquire.sys.global.u32 %r2, [%rd1]; setp.eq.u32 %p1, %r2, 0; @%p1 bra L;
    st.global.u32 [%rd1+4], %r2;
    ret;
}
.visible .entry set(.param .u64 p)
{
    .reg .b64 %rd<2>;
    ld.param.u64 %rd1, [p]; st.release.sys.global.u32 [%rd1], 5; ret;
}";

/// A module, two streams, and eight words of zeros.
fn begin() -> (Arc<CudaModule>, [Arc<CudaStream>; 2], CudaSlice<u32>) {
    let context = CudaContext::new(0).expect("a device");
    // What orders the streams here is memory alone.
    // SAFETY: every buffer outlives the work on it, which each test waits for.
    unsafe { context.disable_event_tracking() };
    let module = context.load_module(Ptx::from_src(PTX)).expect("the module loads");
    let streams = [(); 2].map(|()| context.new_stream().expect("a stream"));
    let words = streams[0].alloc_zeros::<u32>(8).expect("memory");
    streams[0].synchronize().expect("no error");
    (module, streams, words)
}

fn wait(module: &Arc<CudaModule>, stream: &Arc<CudaStream>, words: &CudaSlice<u32>, own: u32) {
    let function = module.load_function("wait").expect("the kernel");
    // SAFETY: the words are within the buffer.
    unsafe { stream.launch_builder(&function).arg(words).arg(&own).launch(shape(1, 1)) }.expect("a launch");
}

fn set(module: &Arc<CudaModule>, stream: &Arc<CudaStream>, words: &CudaSlice<u32>) {
    let function = module.load_function("set").expect("the kernel");
    // SAFETY: the word is within the buffer.
    unsafe { stream.launch_builder(&function).arg(words).launch(shape(1, 1)) }.expect("a launch");
}

/// Asks by copies in a stream until the kernel that waits for word 0 runs, and so often again that it has noticed that it
/// can do nothing.
fn until_it_runs(stream: &Arc<CudaStream>, words: &CudaSlice<u32>) {
    let copy = || stream.clone_dtoh(words).expect("a copy");
    while copy()[2] == 0 {}
    for _ in 0..300 {
        copy();
    }
}

#[test]
fn a_kernel_waits_for_one_that_is_launched_later() {
    child::run("spinning::a_kernel_waits_for_one_that_is_launched_later", &[], || {
        let (module, [first, second], words) = begin();
        wait(&module, &first, &words, 0);
        until_it_runs(&second, &words);
        set(&module, &second, &words);
        first.synchronize().expect("the other kernel ends the wait");
        assert_eq!(second.clone_dtoh(&words).expect("a copy")[..3], [5, 5, 1]);
    });
}

#[test]
fn a_kernel_waits_for_a_copy_while_the_program_waits_for_it() {
    child::run("spinning::a_kernel_waits_for_a_copy_while_the_program_waits_for_it", &[], || {
        let (module, [first, second], words) = begin();
        wait(&module, &first, &words, 0);
        until_it_runs(&second, &words);
        let program = std::thread::spawn({
            let first = Arc::clone(&first);
            move || first.synchronize()
        });
        {
            use cudarc::driver::DevicePtr;
            let (address, _kept) = words.device_ptr(&second);
            second.context().bind_to_thread().expect("it is sound");
            // SAFETY: the word is within the buffer.
            unsafe { result::memcpy_htod_sync(address, &[9u32]) }.expect("a copy");
        }
        program.join().expect("it does not panic").expect("the copy ends the wait");
        assert_eq!(second.clone_dtoh(&words).expect("a copy")[..3], [9, 9, 1]);
    });
}

#[test]
fn kernels_that_wait_for_nobody_are_a_deadlock() {
    let told = child::run("spinning::kernels_that_wait_for_nobody_are_a_deadlock", &[], || {
        let (module, [first, second], words) = begin();
        // Each waits for a word that the other would write after its own wait.
        wait(&module, &first, &words, 0);
        wait(&module, &second, &words, 4);
        let ended: [Result<(), DriverError>; 2] = [first.synchronize(), second.synchronize()];
        for ended in ended {
            assert_eq!(ended.expect_err("a deadlock").0, Code::CUDA_ERROR_LAUNCH_TIMEOUT);
        }
    });
    if let Some(told) = told {
        assert!(told.contains("Deadlock in kernel wait") && told.contains("which holds 0"), "{told}");
    }
}
