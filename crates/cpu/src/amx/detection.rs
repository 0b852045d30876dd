//! Whether the matrix instructions can be used: the processor, the operating system, and the process.

use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};
use std::sync::OnceLock;

/// Why the matrix instructions for bf16 cannot be used; `None` where they can.
///
/// The first call asks the operating system for leave, for the whole process.
pub(crate) fn absence() -> Option<&'static str> {
    static ABSENCE: OnceLock<Option<&str>> = OnceLock::new();
    *ABSENCE.get_or_init(|| find().err())
}

const LEAF: u32 = 7;
/// In EDX of the leaf.
const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
/// In ECX of leaf 1.
const OSXSAVE: u32 = 1 << 27;
/// In XCR0: the configuration of tiles, and their data.
const TILE_STATE: u64 = 1 << 17 | 1 << 18;

fn find() -> Result<(), &'static str> {
    if __cpuid(0).eax < LEAF {
        return Err("CPUID has no leaf 7");
    }
    let features = __cpuid_count(LEAF, 0).edx;
    if features & AMX_TILE == 0 {
        return Err("CPUID names no AMX-TILE");
    }
    if features & AMX_BF16 == 0 {
        return Err("CPUID names no AMX-BF16");
    }
    if __cpuid(1).ecx & OSXSAVE == 0 {
        return Err("the operating system saves no extended state");
    }
    if enabled_state() & TILE_STATE != TILE_STATE {
        return Err("the operating system does not save tiles");
    }
    ask_leave()
}

/// The kinds of state that the operating system saves; call it where CPUID has OSXSAVE.
fn enabled_state() -> u64 {
    #[target_feature(enable = "xsave")]
    fn compiled() -> u64 {
        // SAFETY: XCR0 can be read where this function can be called.
        unsafe { _xgetbv(0) }
    }
    // SAFETY: OSXSAVE says that the processor has XGETBV and that it may be used.
    unsafe { compiled() }
}

/// Linux gives a process the memory to save tiles in only when it has asked, once for all its threads.
#[cfg(target_os = "linux")]
fn ask_leave() -> Result<(), &'static str> {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes two numbers and changes nothing but what this process may use.
    match unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) } {
        0 => Ok(()),
        _ => Err("the operating system gives this process no leave to use tiles"),
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_leave() -> Result<(), &'static str> {
    Err("leave to use tiles is asked of Linux only")
}
