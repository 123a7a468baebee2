//! Order within and between streams, and what asynchronous copies read.

#![expect(unsafe_code, reason = "calls of the driver's C functions")]

use std::{
    ffi::c_void,
    sync::mpsc::{Receiver, Sender, channel},
};

use cudarc::driver::{
    CudaContext, PushKernelArg,
    result::{self, stream::StreamKind},
    sys::{self, CUevent_flags, CUresult as Code},
};

use crate::{
    child,
    kernels::{load, shape},
};

/// A function for a stream that waits until a channel has something.
unsafe extern "C" fn wait(data: *mut c_void) {
    // SAFETY: the test passes a receiver that lives until the stream is done.
    let gate = unsafe { &*data.cast::<Receiver<()>>() };
    gate.recv().expect("the test opens the gate");
}

/// A gate that a stream stops at.
struct Gate {
    open: Sender<()>,
    inner: Box<Receiver<()>>,
}

impl Gate {
    fn new() -> Gate {
        let (open, inner) = channel();
        Gate { open, inner: Box::new(inner) }
    }

    fn stop(&self, stream: sys::CUstream) {
        let data = std::ptr::from_ref(self.inner.as_ref()).cast_mut().cast::<c_void>();
        // SAFETY: the receiver outlives the stream's work, which each test waits for.
        unsafe { result::stream::launch_host_function(stream, wait, data) }.expect("a host function");
    }

    fn open(&self) {
        self.open.send(()).expect("the stream waits");
    }
}

#[test]
fn events_order_streams() {
    child::run("streams::events_order_streams", &[], || {
        let (context, module) = load();
        let (first, second) = (context.new_stream().expect("a stream"), context.new_stream().expect("a stream"));
        let gate = Gate::new();
        let x: Vec<u32> = (1..=70).collect();
        let input = first.clone_htod(&x).expect("a copy");
        // Memory that nothing has written: reading it too early would be a fault.
        // SAFETY: the kernel writes all of it before it is read.
        let mut out = unsafe { first.alloc::<u32>(70) }.expect("memory");
        let collatz = module.load_function("collatz").expect("the kernel");
        gate.stop(first.cu_stream());
        // SAFETY: 70 elements in and out.
        let launched =
            unsafe { first.launch_builder(&collatz).arg(&input).arg(&mut out).arg(&70i32).launch(shape(3, 32)) };
        launched.expect("a launch");
        let begin = first.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("an event");
        assert!(!begin.is_complete(), "the gate is closed");
        second.wait(&begin).expect("a wait");
        let end = second.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("an event");
        assert!(!end.is_complete(), "it waits for the other stream");
        gate.open();
        let found = second.clone_dtoh(&out).expect("a copy");
        assert_eq!((found[0], found[2], found[26]), (0, 7, 111), "steps of 1, 3 and 27");
        assert!(begin.elapsed_ms(&end).expect("a time") >= 0.0);
        assert!(end.is_complete() && begin.is_complete());
    });
}

#[test]
fn page_locked_memory_is_read_when_the_stream_gets_there() {
    child::run("streams::page_locked_memory_is_read_when_the_stream_gets_there", &[], || {
        let context = CudaContext::new(0).expect("a device");
        let stream = result::stream::create(StreamKind::NonBlocking).expect("a stream");
        let gate = Gate::new();
        // SAFETY: the memory is freed once below, and used within its length.
        unsafe {
            let device = result::malloc_sync(8).expect("memory");
            let pinned = result::malloc_host(4, 0).expect("memory").cast::<u32>();
            let mut pageable = [1u32];
            pinned.write(1);
            gate.stop(stream);
            result::memcpy_htod_async(device, std::slice::from_raw_parts(pinned, 1), stream).expect("a copy");
            result::memcpy_htod_async(device + 4, &pageable, stream).expect("a copy");
            // The first copy has not happened yet; the second took its bytes along.
            pinned.write(2);
            pageable[0] = 3;
            assert_eq!(sys::cuStreamQuery(stream), Code::CUDA_ERROR_NOT_READY);
            gate.open();
            result::stream::synchronize(stream).expect("no error");
            assert_eq!(sys::cuStreamQuery(stream), Code::CUDA_SUCCESS);
            let mut found = [0u32; 2];
            result::memcpy_dtoh_sync(&mut found, device).expect("a copy");
            assert_eq!((found, pageable), ([2, 1], [3]));
            result::free_host(pinned.cast()).expect("it is ours");
            result::free_sync(device).expect("it is ours");
            result::stream::destroy(stream).expect("it is ours");
            assert_eq!(sys::cuStreamDestroy_v2(stream), Code::CUDA_ERROR_INVALID_HANDLE, "a second time");
        }
        drop(context);
    });
}

#[test]
fn the_default_stream_waits_for_blocking_ones_alone() {
    child::run("streams::the_default_stream_waits_for_blocking_ones_alone", &[], || {
        let context = CudaContext::new(0).expect("a device");
        context.bind_to_thread().expect("it is sound");
        let (blocking, free) =
            (result::stream::create(StreamKind::Default), result::stream::create(StreamKind::NonBlocking));
        let (blocking, free) = (blocking.expect("a stream"), free.expect("a stream"));
        let legacy = result::stream::null();
        let (held, other) = (Gate::new(), Gate::new());
        // SAFETY: the streams and events are alive.
        unsafe {
            other.stop(free);
            held.stop(blocking);
            let event = result::event::create(CUevent_flags::CU_EVENT_DISABLE_TIMING).expect("an event");
            result::event::record(event, legacy).expect("a record");
            assert_eq!(sys::cuEventQuery(event), Code::CUDA_ERROR_NOT_READY, "it waits for the blocking stream");
            held.open();
            result::event::synchronize(event).expect("it does not wait for the other");
            assert_eq!(sys::cuStreamQuery(free), Code::CUDA_ERROR_NOT_READY);
            // And blocking streams wait for the default one.
            held.stop(legacy);
            result::event::record(event, blocking).expect("a record");
            assert_eq!(sys::cuEventQuery(event), Code::CUDA_ERROR_NOT_READY);
            held.open();
            other.open();
            result::ctx::synchronize().expect("no error");
            assert_eq!(sys::cuEventQuery(event), Code::CUDA_SUCCESS);
        }
    });
}
