//! What kernels do wrong, and what programs do: errors that stay where real ones do, reports, and no crash.

#![expect(unsafe_code, reason = "launches that are wrong on purpose, which the emulated driver answers with an error")]

use std::ptr;

use cudarc::driver::{
    CudaContext, PushKernelArg, result,
    sys::{self, CUresult as Code},
};

use crate::{
    child,
    kernels::{load, shape},
};

/// A file for the driver's log, new for each test.
fn log(name: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}.log", std::process::id()));
    path.to_str().expect("a path in UTF-8").to_owned()
}

#[test]
fn an_access_out_of_bounds_ends_the_context_and_is_reported() {
    let file = log("bounds");
    let test = "faults::an_access_out_of_bounds_ends_the_context_and_is_reported";
    let told = child::run(test, &[("LATHE_EMULATE_LOG", &file)], || {
        let (context, module) = load();
        let stream = context.new_stream().expect("a stream");
        let x = stream.clone_htod(&[1.0f32; 40]).expect("a copy");
        let mut y = stream.clone_htod(&[1.0f32; 40]).expect("a copy");
        let saxpy = module.load_function("saxpy").expect("the kernel");
        // SAFETY: the kernel is told of 50 elements, which the emulator finds.
        let launched =
            unsafe { stream.launch_builder(&saxpy).arg(&1.0f32).arg(&x).arg(&mut y).arg(&50i32).launch(shape(2, 32)) };
        // What goes wrong on the device shows in whatever is called next, at the latest when the stream is waited for.
        let ended = launched.map(drop).and_then(|()| stream.synchronize());
        assert_eq!(ended.expect_err("a fault").0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
        // The error stays.
        assert_eq!(stream.alloc_zeros::<u8>(1).expect_err("lost").0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
        assert_eq!(context.synchronize().expect_err("lost").0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
    });
    if let Some(told) = told {
        let logged = std::fs::read_to_string(&file).expect("the log is there");
        std::fs::remove_file(&file).expect("it can be removed");
        for text in [told, logged] {
            assert!(text.contains("OutOfBounds in kernel saxpy, PTX line"), "{text}");
            assert!(text.contains("CTA (1, 0, 0), warp 0, lanes 0x00000100"), "{text}");
            assert!(text.contains("ld.global") && text.contains("0x8000"), "the instruction and the address: {text}");
        }
    }
}

#[test]
fn freed_memory_is_not_touched() {
    let told = child::run("faults::freed_memory_is_not_touched", &[], || {
        let (context, module) = load();
        context.bind_to_thread().expect("it is sound");
        let stream = context.new_stream().expect("a stream");
        let saxpy = module.load_function("saxpy").expect("the kernel");
        // SAFETY: the memory is used after it is freed, which the emulator finds.
        unsafe {
            let (x, y) = (result::malloc_sync(16).expect("memory"), result::malloc_sync(16).expect("memory"));
            result::memset_d8_sync(x, 0, 16).expect("a fill");
            result::memset_d8_sync(y, 0, 16).expect("a fill");
            result::free_sync(x).expect("it is ours");
            assert_eq!(result::free_sync(x).expect_err("twice").0, Code::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(result::memset_d8_sync(x, 0, 16).expect_err("freed").0, Code::CUDA_ERROR_INVALID_VALUE);
            let launched = stream.launch_builder(&saxpy).arg(&1.0f32).arg(&x).arg(&y).arg(&4i32).launch(shape(1, 32));
            let ended = launched.map(drop).and_then(|()| stream.synchronize());
            assert_eq!(ended.expect_err("a fault").0, Code::CUDA_ERROR_ILLEGAL_ADDRESS);
        }
    });
    if let Some(told) = told {
        assert!(told.contains("OutOfBounds in kernel saxpy"), "{told}");
    }
}

#[test]
fn wrong_launches_are_refused_at_once() {
    child::run("faults::wrong_launches_are_refused_at_once", &[], || {
        let (context, module) = load();
        context.bind_to_thread().expect("it is sound");
        let saxpy = module.load_function("saxpy").expect("the kernel");
        let packed = [0u8; 28];
        let launch = |bytes: usize, grid: u32, block: u32| {
            let mut size = bytes;
            let mut extra = [
                ptr::without_provenance_mut(1),
                packed.as_ptr().cast_mut().cast(),
                ptr::without_provenance_mut(2),
                ptr::from_mut(&mut size).cast(),
                ptr::null_mut(),
            ];
            // SAFETY: the buffer has 28 bytes, and the list ends.
            unsafe {
                let (function, none) = (saxpy.cu_function(), ptr::null_mut());
                sys::cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, ptr::null_mut(), none, extra.as_mut_ptr())
            }
        };
        // `saxpy` takes a float, two pointers and an int: 28 bytes. With no element it touches nothing.
        assert_eq!(launch(28, 1, 32), Code::CUDA_SUCCESS);
        assert_eq!(launch(24, 1, 32), Code::CUDA_ERROR_INVALID_VALUE, "too few bytes of arguments");
        assert_eq!(launch(28, 1, 1025), Code::CUDA_ERROR_INVALID_VALUE, "too many threads");
        assert_eq!(launch(28, 0, 32), Code::CUDA_ERROR_INVALID_VALUE, "no CTA");
        // SAFETY: the parameters are missing, which the driver must find.
        let missing = unsafe {
            let (function, none) = (saxpy.cu_function(), ptr::null_mut());
            sys::cuLaunchKernel(function, 1, 1, 1, 32, 1, 1, 0, ptr::null_mut(), none, ptr::null_mut())
        };
        assert_eq!(missing, Code::CUDA_ERROR_INVALID_VALUE);
        // None of this ends the context.
        context.synchronize().expect("the context is sound");
    });
}

#[test]
fn handles_are_looked_up() {
    child::run("faults::handles_are_looked_up", &[], || {
        let (context, module) = load();
        context.bind_to_thread().expect("it is sound");
        let wrong = 0xdead_beef_0000usize;
        // SAFETY: none of these handles was given by the driver, which must find that.
        unsafe {
            for answer in [
                sys::cuStreamSynchronize(wrong as sys::CUstream),
                sys::cuEventSynchronize(wrong as sys::CUevent),
                sys::cuModuleUnload(wrong as sys::CUmodule),
                // A handle of another kind.
                sys::cuEventSynchronize(context.cu_ctx().cast()),
            ] {
                assert_eq!(answer, Code::CUDA_ERROR_INVALID_HANDLE);
            }
            let none = ptr::null_mut();
            assert_eq!(sys::cuGraphLaunch(wrong as sys::CUgraphExec, none), Code::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(sys::cuCtxSetCurrent(wrong as sys::CUcontext), Code::CUDA_ERROR_INVALID_CONTEXT);
            assert_eq!(sys::cuMemAlloc_v2(ptr::null_mut(), 16), Code::CUDA_ERROR_INVALID_VALUE);
            assert_eq!(sys::cuModuleLoadData(&mut ptr::null_mut(), ptr::null()), Code::CUDA_ERROR_INVALID_VALUE);
        }
        assert_eq!(module.load_function("no_such_kernel").expect_err("missing").0, Code::CUDA_ERROR_NOT_FOUND);
    });
}

#[test]
fn a_device_is_lost_at_the_kernel_that_is_named() {
    let told =
        child::run("faults::a_device_is_lost_at_the_kernel_that_is_named", &[("LATHE_EMULATE_LOSE", "2")], || {
            let (context, module) = load();
            let stream = context.new_stream().expect("a stream");
            let x = stream.clone_htod(&[1.0f32; 4]).expect("a copy");
            let mut y = stream.clone_htod(&[1.0f32; 4]).expect("a copy");
            let saxpy = module.load_function("saxpy").expect("the kernel");
            let mut launch = || {
                // SAFETY: four elements each.
                let launched = unsafe {
                    stream.launch_builder(&saxpy).arg(&1.0f32).arg(&x).arg(&mut y).arg(&4i32).launch(shape(1, 32))
                };
                launched.map(drop).and_then(|()| stream.synchronize())
            };
            launch().expect("the first kernel runs");
            assert_eq!(launch().expect_err("lost").0, Code::CUDA_ERROR_ECC_UNCORRECTABLE);
        });
    if let Some(told) = told {
        assert!(told.contains("lost at kernel 2"), "{told}");
    }
}

#[test]
fn work_of_a_destroyed_context_is_refused() {
    child::run("faults::work_of_a_destroyed_context_is_refused", &[], || {
        let context = CudaContext::new(0).expect("a device");
        let raw = context.cu_ctx();
        drop(context);
        // SAFETY: the context is gone, which the driver must find.
        assert_eq!(unsafe { sys::cuCtxSetCurrent(raw) }, Code::CUDA_ERROR_INVALID_CONTEXT);
    });
}
