//! Graphs: captured, built by hand, updated.

#![expect(unsafe_code, reason = "calls of the driver's C functions")]

use std::{ffi::c_void, ptr};

use cudarc::driver::{
    CudaFunction, PushKernelArg, result,
    sys::{self, CUgraphInstantiate_flags, CUresult as Code, CUstreamCaptureMode::*},
};

use crate::{
    child,
    kernels::{load, shape},
};

const PLAIN: CUgraphInstantiate_flags = CUgraphInstantiate_flags(0);

#[test]
fn a_captured_step_runs_as_often_as_it_is_launched() {
    child::run("graphs::a_captured_step_runs_as_often_as_it_is_launched", &[], || {
        let (context, module) = load();
        // Events of cudarc's own would tie the capture to work outside of it.
        // SAFETY: one stream does everything, in order.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().expect("a stream");
        let saxpy = module.load_function("saxpy").expect("the kernel");
        let x = stream.clone_htod(&[1.0f32, 2.0, 3.0, 4.0]).expect("a copy");
        let mut y = stream.alloc_zeros::<f32>(4).expect("memory");
        stream.synchronize().expect("no error");
        stream.begin_capture(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).expect("a capture");
        for factor in [2.0f32, 10.0] {
            // SAFETY: four elements each.
            let launched = unsafe {
                stream.launch_builder(&saxpy).arg(&factor).arg(&x).arg(&mut y).arg(&4i32).launch(shape(1, 32))
            };
            launched.expect("a launch");
        }
        let graph = stream.end_capture(PLAIN).expect("a graph").expect("it has nodes");
        // Nothing has run yet.
        assert_eq!(stream.clone_dtoh(&y).expect("a copy"), [0.0; 4]);
        graph.launch().expect("a launch");
        assert_eq!(stream.clone_dtoh(&y).expect("a copy"), [12.0, 24.0, 36.0, 48.0]);
        graph.launch().expect("a launch");
        assert_eq!(stream.clone_dtoh(&y).expect("a copy"), [24.0, 48.0, 72.0, 96.0]);
    });
}

#[test]
fn a_capture_that_other_streams_join() {
    child::run("graphs::a_capture_that_other_streams_join", &[], || {
        let (context, module) = load();
        // SAFETY: the events below order the streams.
        unsafe { context.disable_event_tracking() };
        let (main, side) = (context.new_stream().expect("a stream"), context.new_stream().expect("a stream"));
        let saxpy = module.load_function("saxpy").expect("the kernel");
        let x = main.clone_htod(&[1.0f32; 4]).expect("a copy");
        let mut y = main.alloc_zeros::<f32>(4).expect("memory");
        main.synchronize().expect("no error");
        let mut add = |stream: &std::sync::Arc<cudarc::driver::CudaStream>| {
            // SAFETY: four elements each.
            let launched = unsafe {
                stream.launch_builder(&saxpy).arg(&1.0f32).arg(&x).arg(&mut y).arg(&4i32).launch(shape(1, 32))
            };
            launched.map(drop)
        };
        main.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED).expect("a capture");
        add(&main).expect("a node");
        side.join(&main).expect("it joins the capture");
        add(&side).expect("a node");
        // What the side stream did is not joined yet.
        assert_eq!(
            main.end_capture(PLAIN).map(drop).expect_err("unjoined").0,
            Code::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
        );

        main.begin_capture(CU_STREAM_CAPTURE_MODE_RELAXED).expect("a capture");
        add(&main).expect("a node");
        side.join(&main).expect("it joins the capture");
        add(&side).expect("a node");
        main.join(&side).expect("it is joined");
        let graph = main.end_capture(PLAIN).expect("a graph").expect("it has nodes");
        graph.launch().expect("a launch");
        assert_eq!(main.clone_dtoh(&y).expect("a copy"), [2.0; 4]);
    });
}

#[test]
fn calls_that_a_capture_forbids_spoil_it() {
    child::run("graphs::calls_that_a_capture_forbids_spoil_it", &[], || {
        let (context, _module) = load();
        let stream = context.new_stream().expect("a stream");
        stream.begin_capture(CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a capture");
        assert_eq!(stream.synchronize().expect_err("forbidden").0, Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert_eq!(
            stream.end_capture(PLAIN).map(drop).expect_err("spoilt").0,
            Code::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
        );
        stream.begin_capture(CU_STREAM_CAPTURE_MODE_GLOBAL).expect("a new capture");
        // SAFETY: nothing is allocated where it is forbidden.
        let error = unsafe { result::malloc_sync(64) }.expect_err("forbidden");
        assert_eq!(error.0, Code::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
        assert!(stream.end_capture(PLAIN).is_err());
        stream.synchronize().expect("the stream is sound");
    });
}

/// A kernel's node of a graph: `saxpy` on four elements.
fn add_saxpy(
    graph: sys::CUgraph,
    after: &[sys::CUgraphNode],
    saxpy: &CudaFunction,
    arguments: (f32, u64, u64),
) -> sys::CUgraphNode {
    let (mut factor, mut x, mut y) = arguments;
    let mut count = 4i32;
    let mut params = [
        ptr::from_mut(&mut factor).cast::<c_void>(),
        ptr::from_mut(&mut x).cast(),
        ptr::from_mut(&mut y).cast(),
        ptr::from_mut(&mut count).cast(),
    ];
    let node = node_params(saxpy, &mut params);
    let mut out = ptr::null_mut();
    // SAFETY: the parameters are those of the kernel, and read before the call returns.
    let code =
        unsafe { sys::cuGraphAddKernelNode_v2(&raw mut out, graph, after.as_ptr(), after.len(), &raw const node) };
    assert_eq!(code, Code::CUDA_SUCCESS);
    out
}

fn node_params(saxpy: &CudaFunction, params: &mut [*mut c_void]) -> sys::CUDA_KERNEL_NODE_PARAMS_v2 {
    // SAFETY: all zeros are a value of this structure.
    let empty: sys::CUDA_KERNEL_NODE_PARAMS_v2 = unsafe { std::mem::zeroed() };
    sys::CUDA_KERNEL_NODE_PARAMS_v2 {
        func: saxpy.cu_function(),
        gridDimX: 1,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: 32,
        blockDimY: 1,
        blockDimZ: 1,
        kernelParams: params.as_mut_ptr(),
        ..empty
    }
}

#[test]
fn a_graph_built_by_hand_is_updated() {
    child::run("graphs::a_graph_built_by_hand_is_updated", &[], || {
        let (context, module) = load();
        context.bind_to_thread().expect("it is sound");
        let stream = context.new_stream().expect("a stream");
        let saxpy = module.load_function("saxpy").expect("the kernel");
        // SAFETY: the memory holds four elements each and outlives the graphs; handles are destroyed once.
        unsafe {
            let (x, y) = (result::malloc_sync(16).expect("memory"), result::malloc_sync(16).expect("memory"));
            result::memcpy_htod_sync(x, &[1.0f32, 2.0, 3.0, 4.0]).expect("a copy");
            result::memset_d8_sync(y, 0, 16).expect("a fill");
            let build = |factors: [f32; 2]| {
                let mut graph = ptr::null_mut();
                assert_eq!(sys::cuGraphCreate(&raw mut graph, 0), Code::CUDA_SUCCESS);
                let first = add_saxpy(graph, &[], &saxpy, (factors[0], x, y));
                add_saxpy(graph, &[first], &saxpy, (factors[1], x, y));
                graph
            };
            let read = || {
                let mut found = [0.0f32; 4];
                stream.synchronize().expect("no error");
                result::memcpy_dtoh_sync(&mut found, y).expect("a copy");
                found.map(|x| x as i32)
            };
            let graph = build([1.0, 2.0]);
            let exec = result::graph::instantiate(graph, PLAIN).expect("an executable graph");
            result::graph::launch(exec, stream.cu_stream()).expect("a launch");
            assert_eq!(read(), [3, 6, 9, 12]);

            // The same shape with other arguments takes its place.
            let other = build([0.0, -3.0]);
            let mut info = std::mem::zeroed();
            assert_eq!(sys::cuGraphExecUpdate_v2(exec, other, &raw mut info), Code::CUDA_SUCCESS);
            result::graph::launch(exec, stream.cu_stream()).expect("a launch");
            assert_eq!(read(), [0; 4]);

            // Another shape does not.
            add_saxpy(other, &[], &saxpy, (1.0, x, y));
            let refused = sys::cuGraphExecUpdate_v2(exec, other, &raw mut info);
            assert_eq!(refused, Code::CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE);
            assert_eq!(info.result, sys::CUgraphExecUpdateResult::CU_GRAPH_EXEC_UPDATE_ERROR_TOPOLOGY_CHANGED);

            // A single node is replaced.
            let mut count = 2;
            let mut nodes = [ptr::null_mut(); 2];
            assert_eq!(sys::cuGraphGetNodes(graph, nodes.as_mut_ptr(), &raw mut count), Code::CUDA_SUCCESS);
            let (mut factor, mut from, mut to, mut four) = (5.0f32, x, y, 4i32);
            let mut params: [*mut c_void; 4] = [
                ptr::from_mut(&mut factor).cast(),
                ptr::from_mut(&mut from).cast(),
                ptr::from_mut(&mut to).cast(),
                ptr::from_mut(&mut four).cast(),
            ];
            let node = node_params(&saxpy, &mut params);
            assert_eq!(sys::cuGraphExecKernelNodeSetParams_v2(exec, nodes[0], &raw const node), Code::CUDA_SUCCESS);
            result::graph::launch(exec, stream.cu_stream()).expect("a launch");
            assert_eq!(read(), [2, 4, 6, 8]);

            result::graph::exec_destroy(exec).expect("it is ours");
            assert_eq!(
                result::graph::launch(exec, stream.cu_stream()).expect_err("gone").0,
                Code::CUDA_ERROR_INVALID_VALUE
            );
            result::graph::destroy(graph).expect("it is ours");
            result::graph::destroy(other).expect("it is ours");
        }
    });
}
