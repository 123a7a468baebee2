//! The kernels that nvcc made for the emulator's tests, launched through the driver.

#![expect(unsafe_code, reason = "launches of kernels")]

use std::sync::Arc;

use cudarc::{
    driver::{CudaContext, CudaModule, LaunchConfig, PushKernelArg},
    nvrtc::Ptx,
};

use crate::child;

/// The module of all kernels.
pub const PTX: &str = include_str!("../../../tests/fixtures/kernels.ptx");

/// The first device, with the module loaded.
pub fn load() -> (Arc<CudaContext>, Arc<CudaModule>) {
    let context = CudaContext::new(0).expect("a device");
    let module = context.load_module(Ptx::from_src(PTX)).expect("nvcc's PTX loads");
    (context, module)
}

/// A launch of so many CTAs and threads.
pub fn shape(grid: u32, block: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (grid, 1, 1), block_dim: (block, 1, 1), shared_mem_bytes: 0 }
}

/// Whole numbers from -4 to 4, whose sums are exact.
fn small(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 + salt * 11 + i / 7) % 9) as f32 - 4.0).collect()
}

#[test]
fn elements_and_sums() {
    child::run("kernels::elements_and_sums", &[], || {
        let (context, module) = load();
        let stream = context.new_stream().expect("a stream");
        let (x, y) = (small(1000, 1), small(1000, 2));
        let dx = stream.clone_htod(&x).expect("a copy");
        let mut dy = stream.clone_htod(&y).expect("a copy");
        let saxpy = module.load_function("saxpy").expect("the kernel");
        // SAFETY: the arguments are those of the kernel, with 1000 elements each.
        let launched = unsafe {
            stream.launch_builder(&saxpy).arg(&3.0f32).arg(&dx).arg(&mut dy).arg(&1000i32).launch(shape(8, 128))
        };
        launched.expect("a launch");
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| 3.0 * x + y).collect();
        assert_eq!(stream.clone_dtoh(&dy).expect("a copy"), expected);

        let mut parts = stream.alloc_zeros::<f32>(3).expect("memory");
        let reduce = module.load_function("reduce_sum").expect("the kernel");
        // SAFETY: as above, and one sum for each of three CTAs.
        let launched =
            unsafe { stream.launch_builder(&reduce).arg(&dy).arg(&mut parts).arg(&1000i32).launch(shape(3, 128)) };
        launched.expect("a launch");
        let found: f32 = stream.clone_dtoh(&parts).expect("a copy").iter().sum();
        assert_eq!(found.to_bits(), expected.iter().sum::<f32>().to_bits());
    });
}

#[test]
fn shared_memory_is_bounded_until_more_is_asked_for() {
    child::run("kernels::shared_memory_is_bounded_until_more_is_asked_for", &[], || {
        use cudarc::driver::sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let (context, module) = load();
        let stream = context.default_stream();
        let x: Vec<u32> = (0..100).map(|i| i * 7 % 13).collect();
        let input = stream.clone_htod(&x).expect("a copy");
        let mut out = stream.alloc_zeros::<u32>(100).expect("memory");
        let scan = module.load_function("scan").expect("the kernel");
        let mut launch = |bytes: u32| {
            let shape = LaunchConfig { shared_mem_bytes: bytes, ..shape(1, 128) };
            // SAFETY: the kernel takes 100 elements in and out, and uses 1024 bytes of dynamic shared memory.
            unsafe { stream.launch_builder(&scan).arg(&input).arg(&mut out).arg(&100i32).launch(shape) }.map(drop)
        };
        launch(1024).expect("it needs no more");
        assert!(launch(64 << 10).is_err(), "more than 48 KiB without asking");
        scan.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 64 << 10).expect("an A100 has as much");
        launch(64 << 10).expect("asked for");
        assert!(scan.set_attribute(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, 164 << 10).is_err());
        let expected: Vec<u32> = x
            .iter()
            .scan(0, |sum, x| {
                *sum += x;
                Some(*sum)
            })
            .collect();
        assert_eq!(stream.clone_dtoh(&out).expect("a copy"), expected);
    });
}

#[test]
fn tensor_cores_and_blocks_that_wait_for_each_other() {
    child::run("kernels::tensor_cores_and_blocks_that_wait_for_each_other", &[], || {
        let (context, module) = load();
        let stream = context.default_stream();
        let [m, n, k] = [64usize, 128, 96];
        let (a, b) = (small(m * k, 9), small(k * n, 10));
        let bf16 = |values: &[f32]| values.iter().map(|x| (x.to_bits() >> 16) as u16).collect::<Vec<u16>>();
        let (da, db) = (stream.clone_htod(&bf16(&a)).expect("a copy"), stream.clone_htod(&bf16(&b)).expect("a copy"));
        let mut dc = stream.alloc_zeros::<f32>(m * n).expect("memory");
        let gemm = module.load_function("gemm_bf16").expect("the kernel");
        let sizes = [m, n, k].map(|size| size as i32);
        // SAFETY: the matrices have these sizes.
        let launched = unsafe {
            let mut launch = stream.launch_builder(&gemm);
            launch.arg(&da).arg(&db).arg(&mut dc).arg(&sizes[0]).arg(&sizes[1]).arg(&sizes[2]).launch(shape(2, 128))
        };
        launched.expect("a launch");
        let cell = |at: usize| (0..k).map(|i| a[at / n * k + i] * b[i * n + at % n]).sum::<f32>();
        let expected: Vec<f32> = (0..m * n).map(cell).collect();
        assert_eq!(stream.clone_dtoh(&dc).expect("a copy"), expected);

        let mut turn = stream.alloc_zeros::<u32>(1).expect("memory");
        let mut log = stream.alloc_zeros::<u32>(6).expect("memory");
        let relay = module.load_function("relay").expect("the kernel");
        // SAFETY: one entry of the log for each CTA.
        unsafe { stream.launch_builder(&relay).arg(&mut turn).arg(&mut log).launch(shape(6, 32)) }.expect("a launch");
        assert_eq!(stream.clone_dtoh(&log).expect("a copy"), [5, 9, 12, 14, 15, 15]);
    });
}
