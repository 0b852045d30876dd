//! Runs AMD GPU code objects on a CPU behind the HIP C API, so that a HIP backend, its loader and its kernels are
//! tested end to end on a machine without an AMD card. Test only.
//!
//! A module is disassembled by LLVM once, decoded into typed instructions and executed wave by wave: the very
//! machine code that a device would run, for gfx90a, gfx942, gfx950, gfx1100, gfx1200 and gfx1201. Workgroups run on
//! several threads; waves and streams take turns in an order drawn from a seed.
//!
//! Load the shared library as `libamdhip64.so`, whose functions and hipRTC's it has, or use [`Device`] from Rust.
//!
//! # What is checked
//!
//! | checker | what it finds |
//! |---|---|
//! | always | accesses outside every allocation, with the nearest one named; freed memory; LDS and scratch bounds; unknown instructions; deadlocks; WMMA with inactive lanes or differing half-wave copies |
//! | `lds_race` | LDS bytes that two waves touch with no barrier between, split barriers and outstanding writes included |
//! | `uninitialised` | LDS that nothing wrote; registers that nothing wrote and that reach an address, a store, a branch or EXEC |
//! | `wait_count` | registers and LDS bytes used before the wait that covers their load |
//! | `alignment` | addresses that are not a multiple of the element, at most four bytes |
//!
//! # Environment
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `OMNIFLASH_EMULATOR_DEVICE` | devices to imitate, for example `gfx942,gfx1100`, or `none` | `gfx942` |
//! | `OMNIFLASH_EMULATOR_CHECKS` | `all`, `none` or a list of the names above | `all` |
//! | `OMNIFLASH_EMULATOR_SEED` | order of waves and streams | 0 |
//! | `OMNIFLASH_EMULATOR_THREADS` | threads that execute workgroups | all cores |
//! | `OMNIFLASH_EMULATOR_FAIL` | faults to inject: `hipMalloc:3`, `hipMemcpy:*`, `hipFree:1=719` | none |
//! | `OMNIFLASH_EMULATOR_LLVM` | LLVM's library, whose disassembler is used | `libLLVM.so.22.1` |
//! | `OMNIFLASH_EMULATOR_CLANG` | what hipRTC's functions compile with | `clang-22` |
//! | `OMNIFLASH_EMULATOR_QUIET` | set: faults are not printed to stderr | unset |
//!
//! # What it cannot show
//!
//! Time, occupancy, caches and the memory model; the rounding inside a matrix instruction; hazards that need `s_nop`;
//! whether AMD's runtime accepts an object.

#![allow(clippy::needless_range_loop, reason = "a lane number indexes several registers at once")]

mod checker;
mod code_object;
mod configuration;
mod counters;
mod device;
mod disassembly;
mod fault;
#[allow(non_snake_case, reason = "the functions are named by HIP")]
pub mod hip_api;
mod instruction;
mod memory;
mod program;
mod target;
mod wave;
mod workgroup;

pub use checker::Checks;
pub use configuration::{Configuration, ConfigurationError};
pub use counters::{CLASSES, Class, Counters};
pub use device::{Device, Dimensions, MemoryError, Module};
pub use disassembly::disassembler_absence;
pub use fault::{Fault, LaunchError, LoadError, Violation};
pub use target::{Target, UnknownTarget};
