//! What every API function does before and after its own work.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::{Mutex, PoisonError};

use super::error::{self, HipError};
use crate::configuration::FAIL;

thread_local! {
    static LAST_ERROR: Cell<c_int> = const { Cell::new(0) };
}

/// The faults to inject: `hipMalloc:3` fails the third call, `hipMalloc:*` every call, `hipMalloc:3=719` with a code.
#[derive(Default)]
pub(crate) struct Faults {
    rules: Vec<Rule>,
    calls: HashMap<&'static str, u64>,
    is_initialised: bool,
}

struct Rule {
    function: String,
    /// The call that fails, or every call.
    call: Option<u64>,
    code: Option<c_int>,
}

pub(crate) static FAULTS: Mutex<Option<Faults>> = Mutex::new(None);

impl Faults {
    /// Replaces the rules and starts counting calls anew.
    pub(crate) fn set(&mut self, text: &str) {
        self.rules = text.split(',').filter_map(Rule::parse).collect();
        self.calls.clear();
        self.is_initialised = true;
    }

    fn enter(&mut self, function: &'static str) -> Result<(), HipError> {
        if !self.is_initialised {
            self.set(&std::env::var(FAIL).unwrap_or_default());
        }
        let count = self.calls.entry(function).or_default();
        *count += 1;
        let count = *count;
        match self
            .rules
            .iter()
            .find(|rule| rule.function == function && rule.call.is_none_or(|call| call == count))
        {
            Some(rule) => Err(rule.code.map_or_else(|| typical_error(function), HipError)),
            None => Ok(()),
        }
    }
}

impl Rule {
    fn parse(text: &str) -> Option<Rule> {
        let (function, call) = text.trim().split_once(':')?;
        let (call, code) = match call.split_once('=') {
            Some((call, code)) => (call, Some(code.parse().ok()?)),
            None => (call, None),
        };
        let call = if call == "*" { None } else { Some(call.parse().ok()?) };
        Some(Rule { function: function.to_string(), call, code })
    }
}

/// What a function most often fails with.
fn typical_error(function: &str) -> HipError {
    match function {
        "hipMalloc"
        | "hipMallocAsync"
        | "hipHostMalloc"
        | "hipStreamCreate"
        | "hipStreamCreateWithFlags"
        | "hipStreamCreateWithPriority"
        | "hipEventCreate"
        | "hipEventCreateWithFlags"
        | "hipGraphInstantiate"
        | "hipGraphInstantiateWithFlags" => error::OUT_OF_MEMORY,
        "hipModuleLoad" | "hipModuleLoadData" | "hipModuleLoadDataEx" => error::NO_BINARY_FOR_GPU,
        "hipModuleGetFunction" | "hipModuleGetGlobal" => error::NOT_FOUND,
        "hipInit" | "hipGetDeviceCount" => error::NO_DEVICE,
        "hipSetDevice" | "hipDeviceGet" => error::INVALID_DEVICE,
        "hipModuleLaunchKernel"
        | "hipGraphLaunch"
        | "hipDeviceSynchronize"
        | "hipStreamSynchronize"
        | "hipEventSynchronize" => error::LAUNCH_FAILURE,
        function if is_of_hiprtc(function) => super::hiprtc::INTERNAL,
        _ => error::UNKNOWN,
    }
}

/// Whether a function has hipRTC's codes, which the driver's functions do not know of.
fn is_of_hiprtc(function: &str) -> bool {
    function.starts_with("hiprtc")
}

/// Runs an API function's body: counts the call, injects a fault, remembers the error.
pub(crate) fn call(function: &'static str, body: impl FnOnce() -> Result<(), HipError>) -> c_int {
    let entered =
        FAULTS.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default().enter(function);
    let result = entered.and_then(|()| {
        // A panic in the emulator is its own bug; unwinding into C would be undefined.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(Err(error::UNKNOWN))
    });
    let code = result.err().map_or(0, |HipError(code)| code);
    if code != 0 && code != error::NOT_READY.0 && !is_of_hiprtc(function) {
        LAST_ERROR.set(code);
    }
    code
}

/// The error of this thread's last failed call, which it forgets.
#[unsafe(no_mangle)]
pub extern "C" fn hipGetLastError() -> c_int {
    LAST_ERROR.replace(0)
}

/// The error of this thread's last failed call.
#[unsafe(no_mangle)]
pub extern "C" fn hipPeekAtLastError() -> c_int {
    LAST_ERROR.get()
}

/// Defines API functions whose bodies give `Result<(), HipError>`.
macro_rules! hip_functions {
    ($($(#[$documentation:meta])* fn $name:ident($($parameter:ident: $type:ty),* $(,)?) $body:block)+) => {
        $(
            $(#[$documentation])*
            ///
            /// # Safety
            /// Pointers are null where the HIP documentation allows it, and otherwise valid for what it says.
            #[unsafe(no_mangle)]
            #[allow(clippy::too_many_arguments, reason = "the signature is HIP's")]
            pub unsafe extern "C" fn $name($($parameter: $type),*) -> std::ffi::c_int {
                $crate::hip_api::call::call(stringify!($name), move || $body)
            }
        )+
    };
}
pub(crate) use hip_functions;

/// Writes a result through a caller's pointer.
///
/// # Safety
/// `pointer` must be null or valid for writing.
pub(crate) unsafe fn put<T>(pointer: *mut T, value: T) -> Result<(), HipError> {
    if pointer.is_null() {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: not null, and valid by the caller's promise; C callers may not align it.
    unsafe { pointer.write_unaligned(value) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_count_calls_of_their_function_only() {
        let mut faults = Faults::default();
        faults.set("hipMalloc:2, hipFree:*=1,hipEventRecord:1=719");
        assert_eq!(faults.enter("hipMalloc"), Ok(()));
        assert_eq!(faults.enter("hipMemcpy"), Ok(()));
        assert_eq!(faults.enter("hipMalloc"), Err(error::OUT_OF_MEMORY));
        assert_eq!(faults.enter("hipMalloc"), Ok(()));
        assert_eq!(faults.enter("hipFree"), Err(error::INVALID_VALUE));
        assert_eq!(faults.enter("hipFree"), Err(error::INVALID_VALUE));
        assert_eq!(faults.enter("hipEventRecord"), Err(error::LAUNCH_FAILURE));
    }
}
