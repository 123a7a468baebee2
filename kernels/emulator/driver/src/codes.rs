//! The driver's result codes, with their names and texts, and why a call was refused.

use std::ffi::CStr;

/// A result code of the CUDA driver API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(pub u32);

macro_rules! codes {
    ($($number:literal $name:ident $text:literal;)*) => {
        impl Code {
            $(pub const $name: Code = Code($number);)*

            /// What `cuGetErrorName` gives.
            pub fn name(self) -> Option<&'static CStr> {
                let name = match self.0 {
                    $($number => concat!("CUDA_", stringify!($name), "\0"),)*
                    _ => return None,
                };
                CStr::from_bytes_with_nul(name.as_bytes()).ok()
            }

            /// What `cuGetErrorString` gives.
            pub fn text(self) -> Option<&'static CStr> {
                let text = match self.0 {
                    $($number => concat!($text, "\0"),)*
                    _ => return None,
                };
                CStr::from_bytes_with_nul(text.as_bytes()).ok()
            }
        }
    };
}

codes! {
    0 SUCCESS "no error";
    1 ERROR_INVALID_VALUE "invalid argument";
    2 ERROR_OUT_OF_MEMORY "out of memory";
    3 ERROR_NOT_INITIALIZED "initialization error";
    100 ERROR_NO_DEVICE "no CUDA-capable device is detected";
    101 ERROR_INVALID_DEVICE "invalid device ordinal";
    200 ERROR_INVALID_IMAGE "device kernel image is invalid";
    201 ERROR_INVALID_CONTEXT "invalid device context";
    209 ERROR_NO_BINARY_FOR_GPU "no kernel image is available for execution on the device";
    214 ERROR_ECC_UNCORRECTABLE "uncorrectable ECC error encountered";
    215 ERROR_UNSUPPORTED_LIMIT "limit is not supported on this architecture";
    217 ERROR_PEER_ACCESS_UNSUPPORTED "peer access is not supported between these two devices";
    218 ERROR_INVALID_PTX "a PTX JIT compilation failed";
    222 ERROR_UNSUPPORTED_PTX_VERSION "the provided PTX was compiled with an unsupported toolchain.";
    301 ERROR_FILE_NOT_FOUND "file not found";
    400 ERROR_INVALID_HANDLE "invalid resource handle";
    401 ERROR_ILLEGAL_STATE "the operation cannot be performed in the present state";
    500 ERROR_NOT_FOUND "named symbol not found";
    600 ERROR_NOT_READY "device not ready";
    700 ERROR_ILLEGAL_ADDRESS "an illegal memory access was encountered";
    702 ERROR_LAUNCH_TIMEOUT "the launch timed out and was terminated";
    709 ERROR_CONTEXT_IS_DESTROYED "context is destroyed";
    710 ERROR_ASSERT "device-side assert triggered";
    712 ERROR_HOST_MEMORY_ALREADY_REGISTERED "part or all of the requested memory range is already mapped";
    713 ERROR_HOST_MEMORY_NOT_REGISTERED "pointer does not correspond to a registered memory region";
    716 ERROR_MISALIGNED_ADDRESS "misaligned address";
    719 ERROR_LAUNCH_FAILED "unspecified launch failure";
    720 ERROR_COOPERATIVE_LAUNCH_TOO_LARGE "too many blocks in cooperative launch";
    801 ERROR_NOT_SUPPORTED "operation not supported";
    900 ERROR_STREAM_CAPTURE_UNSUPPORTED "operation not permitted when stream is capturing";
    901 ERROR_STREAM_CAPTURE_INVALIDATED "operation failed due to a previous error during capture";
    902 ERROR_STREAM_CAPTURE_MERGE "operation would result in a merge of separate capture sequences";
    903 ERROR_STREAM_CAPTURE_UNMATCHED "capture was not ended in the same stream as it began";
    904 ERROR_STREAM_CAPTURE_UNJOINED "capturing stream has unjoined work";
    905 ERROR_STREAM_CAPTURE_ISOLATION "dependency created on uncaptured work in another stream";
    906 ERROR_STREAM_CAPTURE_IMPLICIT "operation would make the legacy stream depend on a capturing blocking stream";
    907 ERROR_CAPTURED_EVENT "operation not permitted on an event last recorded in a capturing stream";
    908 ERROR_STREAM_CAPTURE_WRONG_THREAD "attempt to terminate a thread-local capture sequence from another thread";
    910 ERROR_GRAPH_EXEC_UPDATE_FAILURE "the graph update was not performed because it included changes which violated \
constraints specific to instantiated graph update";
    999 ERROR_UNKNOWN "unknown error";
}

/// Why a call was refused: the code for the program, and a sentence for the log.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// What the call returns.
    pub code: Code,
    /// What was expected and what was found.
    pub why: String,
}

impl Code {
    /// A refusal with this code.
    pub fn because(self, why: impl Into<String>) -> Refusal {
        Refusal { code: self, why: why.into() }
    }
}

/// What the body of an exported function gives.
pub type Answer<T = ()> = Result<T, Refusal>;

/// An argument that the documentation does not allow.
pub fn invalid<T>(why: impl Into<String>) -> Answer<T> {
    Err(Code::ERROR_INVALID_VALUE.because(why))
}

/// Something that the stand-in does not have.
pub fn unsupported<T>(why: impl Into<String>) -> Answer<T> {
    Err(Code::ERROR_NOT_SUPPORTED.because(why))
}
