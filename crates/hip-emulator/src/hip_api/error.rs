//! `hipError_t` as integers with their names and texts.

use std::ffi::{CStr, c_char, c_int};

/// A HIP error code other than success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HipError(pub(crate) c_int);

macro_rules! errors {
    ($($constant:ident = $code:literal, $name:literal, $text:literal;)+) => {
        $(pub(crate) const $constant: HipError = HipError($code);)+

        /// The name and the text of a code.
        fn describe(code: c_int) -> Option<(&'static CStr, &'static CStr)> {
            match code {
                0 => Some((c"hipSuccess", c"no error")),
                $($code => Some((
                    // The literals end in a zero that is added here.
                    const { c_string(concat!($name, "\0")) },
                    const { c_string(concat!($text, "\0")) },
                )),)+
                _ => None,
            }
        }
    };
}

const fn c_string(text: &str) -> &CStr {
    match CStr::from_bytes_with_nul(text.as_bytes()) {
        Ok(text) => text,
        Err(_) => c"",
    }
}

errors! {
    INVALID_VALUE = 1, "hipErrorInvalidValue", "invalid argument";
    OUT_OF_MEMORY = 2, "hipErrorOutOfMemory", "out of memory";
    NOT_INITIALIZED = 3, "hipErrorNotInitialized", "initialization error";
    INVALID_CONFIGURATION = 9, "hipErrorInvalidConfiguration", "invalid configuration argument";
    INVALID_MEMCPY_DIRECTION = 21, "hipErrorInvalidMemcpyDirection", "invalid copy direction for memcpy";
    INVALID_DEVICE_FUNCTION = 98, "hipErrorInvalidDeviceFunction", "invalid device function";
    NO_DEVICE = 100, "hipErrorNoDevice", "no ROCm-capable device is detected";
    INVALID_DEVICE = 101, "hipErrorInvalidDevice", "invalid device ordinal";
    INVALID_IMAGE = 200, "hipErrorInvalidImage", "device kernel image is invalid";
    NO_BINARY_FOR_GPU = 209, "hipErrorNoBinaryForGpu", "no kernel image is available for execution on the device";
    FILE_NOT_FOUND = 301, "hipErrorFileNotFound", "file not found";
    INVALID_HANDLE = 400, "hipErrorInvalidHandle", "invalid resource handle";
    NOT_FOUND = 500, "hipErrorNotFound", "named symbol not found";
    NOT_READY = 600, "hipErrorNotReady", "device not ready";
    LAUNCH_FAILURE = 719, "hipErrorLaunchFailure", "unspecified launch failure";
    NOT_SUPPORTED = 801, "hipErrorNotSupported", "operation not supported";
    CAPTURE_UNSUPPORTED = 900, "hipErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing";
    CAPTURE_INVALIDATED = 901, "hipErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture";
    CAPTURE_MERGE = 902, "hipErrorStreamCaptureMerge", "operation would result in a merge of separate capture sequences";
    CAPTURE_UNMATCHED = 903, "hipErrorStreamCaptureUnmatched", "capture was not ended in the same stream as it began";
    CAPTURE_UNJOINED = 904, "hipErrorStreamCaptureUnjoined", "capturing stream has unjoined work";
    CAPTURE_IMPLICIT = 906, "hipErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing blocking stream";
    UNKNOWN = 999, "hipErrorUnknown", "unknown error";
}

/// The code's name, for example `hipErrorInvalidValue`. Never fails, and never returns null.
#[unsafe(no_mangle)]
pub extern "C" fn hipGetErrorName(code: c_int) -> *const c_char {
    describe(code).map_or(c"hipErrorUnknown", |(name, _)| name).as_ptr()
}

/// The code's text. Never fails, and never returns null.
#[unsafe(no_mangle)]
pub extern "C" fn hipGetErrorString(code: c_int) -> *const c_char {
    describe(code).map_or(c"unknown error", |(_, text)| text).as_ptr()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_names_and_texts() {
        // SAFETY: both functions return static strings.
        let (name, text) =
            unsafe { (CStr::from_ptr(hipGetErrorName(719)), CStr::from_ptr(hipGetErrorString(2))) };
        assert_eq!(name, c"hipErrorLaunchFailure");
        assert_eq!(text, c"out of memory");
        // SAFETY: as above.
        assert_eq!(unsafe { CStr::from_ptr(hipGetErrorName(12345)) }, c"hipErrorUnknown");
    }
}
