//! What a program sees of the machine that the variables describe.

#![expect(unsafe_code, reason = "calls of the driver's C functions")]

use std::ffi::{CStr, CString, c_void};

use cudarc::driver::{
    CudaContext,
    result::{self, DriverError},
    sys::{self, CUdevice_attribute as Attribute, CUresult as Code},
};

use crate::child;

#[test]
fn an_a100_is_there_unless_told_otherwise() {
    child::run("machines::an_a100_is_there_unless_told_otherwise", &[], || {
        let context = CudaContext::new(0).expect("a device");
        assert_eq!(CudaContext::device_count().expect("a count"), 1);
        assert_eq!(context.compute_capability().expect("a capability"), (8, 0));
        assert!(context.name().expect("a name").contains("sm_80"));
        let attribute = |attribute| context.attribute(attribute).expect("an attribute");
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_WARP_SIZE), 32);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT), 108);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK), 49_152);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN), 166_912);
        assert_eq!(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MANAGED_MEMORY), 0);
        let before = context.mem_get_info().expect("memory");
        let stream = context.default_stream();
        let held = stream.alloc_zeros::<u8>(1 << 20).expect("memory");
        assert_eq!(context.mem_get_info().expect("memory").0, before.0 - (1 << 20));
        drop(held);
        context.synchronize().expect("nothing has failed");
        assert_eq!(context.mem_get_info().expect("memory"), before);
    });
}

#[test]
fn several_devices_have_memory_of_their_own() {
    child::run("machines::several_devices_have_memory_of_their_own", &[("LATHE_EMULATE", "sm_90,sm_86")], || {
        let (first, second) = (CudaContext::new(0).expect("a device"), CudaContext::new(1).expect("a device"));
        assert_eq!(first.compute_capability().expect("a capability"), (9, 0));
        assert_eq!(second.compute_capability().expect("a capability"), (8, 6));
        assert_ne!(first.uuid().expect("an id").bytes, second.uuid().expect("an id").bytes);
        // Not the default streams: which one that is depends on the current context, which cudarc changes meanwhile.
        let (here, there) = (first.new_stream().expect("a stream"), second.new_stream().expect("a stream"));
        let held = here.clone_htod(&[1u32, 2, 3]).expect("a copy");
        let mut copy = there.alloc_zeros::<u32>(3).expect("memory");
        there.memcpy_dtod(&held, &mut copy).expect("a copy between devices");
        assert_eq!(there.clone_dtoh(&copy).expect("a copy"), [1, 2, 3]);
        assert!(CudaContext::new(2).is_err());
    });
}

fn no_device(test: &str, variables: &[(&str, &str)]) {
    child::run(test, variables, || {
        assert_eq!(result::init().expect_err("no device").0, Code::CUDA_ERROR_NO_DEVICE);
        // SAFETY: the pointer is to a value; the driver is not initialized, which it says.
        let error = unsafe { sys::cuDeviceGetCount(&mut 0) };
        assert_eq!(error, Code::CUDA_ERROR_NOT_INITIALIZED);
    });
}

#[test]
fn there_may_be_no_device() {
    no_device("machines::there_may_be_no_device", &[("LATHE_EMULATE", "none")]);
}

#[test]
fn devices_may_be_hidden() {
    no_device("machines::devices_may_be_hidden", &[("CUDA_VISIBLE_DEVICES", "")]);
}

#[test]
fn a_wrong_setting_is_told() {
    let told = child::run("machines::a_wrong_setting_is_told", &[("LATHE_EMULATE", "sm_35")], || {
        assert_eq!(result::init().expect_err("no such chip").0, Code::CUDA_ERROR_INVALID_VALUE);
    });
    if let Some(told) = told {
        assert!(told.contains("LATHE_EMULATE is `sm_35`; expected one of sm_80"), "{told}");
    }
}

#[test]
fn memory_runs_out_where_it_is_told_to() {
    child::run("machines::memory_runs_out_where_it_is_told_to", &[("LATHE_EMULATE_MEMORY", "1M")], || {
        let context = CudaContext::new(0).expect("a device");
        let stream = context.default_stream();
        let held = stream.alloc_zeros::<u8>(700 << 10).expect("memory");
        let error = stream.alloc_zeros::<u8>(700 << 10).expect_err("not twice");
        assert_eq!(error.0, Code::CUDA_ERROR_OUT_OF_MEMORY);
        // What a stream is still to free is waited for.
        drop(held);
        stream.alloc_zeros::<u8>(700 << 10).expect("it was freed");
        // Running out is no error that stays.
        context.synchronize().expect("the context is sound");
    });
}

/// Loads a module with a buffer for the error's text.
fn load(ptx: &str) -> (Code, String) {
    use sys::CUjit_option::{CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES, CU_JIT_OPTIMIZATION_LEVEL};
    let mut log = [0u8; 256];
    let mut options = [CU_JIT_OPTIMIZATION_LEVEL, CU_JIT_ERROR_LOG_BUFFER, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    let mut values = [4 as *mut c_void, log.as_mut_ptr().cast(), log.len() as *mut c_void];
    let text = CString::new(ptx).expect("no zero in it");
    let mut module = std::ptr::null_mut();
    // SAFETY: the text ends with a zero, each option has its value, and the buffer is as long as its size says.
    let code = unsafe {
        sys::cuModuleLoadDataEx(&raw mut module, text.as_ptr().cast(), 3, options.as_mut_ptr(), values.as_mut_ptr())
    };
    let text = CStr::from_bytes_until_nul(&log).expect("it ends").to_string_lossy().into_owned();
    assert_eq!(values[2] as usize, text.len(), "how much was written");
    (code, text)
}

#[test]
fn modules_are_refused_with_a_reason() {
    let variables = [("LATHE_EMULATE_DRIVER", "12.4")];
    child::run("machines::modules_are_refused_with_a_reason", &variables, || {
        let _context = CudaContext::new(0).expect("a device");
        let mut version = 0;
        // SAFETY: the pointer is to a value.
        assert_eq!(unsafe { sys::cuDriverGetVersion(&raw mut version) }, Code::CUDA_SUCCESS);
        assert_eq!(version, 12_040);
        let head = |version: &str, target: &str| format!(".version {version}\n.target {target}\n.address_size 64\n");
        assert_eq!(load(&head("8.4", "sm_80")), (Code::CUDA_SUCCESS, String::new()));
        let (code, text) = load(&head("8.5", "sm_80"));
        assert_eq!(code, Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
        assert!(text.contains("PTX 8.5") && text.contains("up to 8.4"), "{text}");
        let (code, text) = load(&head("8.0", "sm_90"));
        assert_eq!(code, Code::CUDA_ERROR_INVALID_PTX);
        assert!(text.contains("sm_90") && text.contains("sm_80"), "{text}");
        let (code, text) = load(&(head("8.0", "sm_80") + ".visible .entry k()\n{\n    frobnicate.u32 %r1;\n}\n"));
        assert_eq!(code, Code::CUDA_ERROR_INVALID_PTX);
        assert!(text.contains("6:5") || text.contains("line 6"), "{text}");
        assert!(text.contains("frobnicate"), "{text}");
        let (code, _) = load("\u{7f}ELF\u{2}");
        assert_eq!(code, Code::CUDA_ERROR_NO_BINARY_FOR_GPU);
    });
}

#[test]
fn errors_have_names_and_texts() {
    child::run("machines::errors_have_names_and_texts", &[], || {
        let error = DriverError(Code::CUDA_ERROR_OUT_OF_MEMORY);
        assert_eq!(error.error_name().expect("a name"), c"CUDA_ERROR_OUT_OF_MEMORY");
        assert_eq!(error.error_string().expect("a text"), c"out of memory");
    });
}
