//! The instructions themselves, one a function.
//!
//! The compiler has no intrinsics for them in its stable form, and uses no tile by itself: what one instruction leaves
//! in a tile, the next one finds there.

use std::arch::asm;

use super::{TILE, TileUnit};

/// What LDTILECFG reads: palette 1, and for each tile its rows and the bytes of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

const TILES: usize = 8;

impl TileConfig {
    /// No tiles.
    const NONE: TileConfig =
        TileConfig { palette: 0, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };

    /// All eight tiles at their full size.
    const FULL: TileConfig = {
        let mut config = TileConfig { palette: 1, ..TileConfig::NONE };
        let mut tile = 0;
        while tile < TILES {
            config.row_bytes[tile] = (TILE * size_of::<f32>()) as u16;
            config.rows[tile] = TILE as u8;
            tile += 1;
        }
        config
    };
}

const _: () = assert!(size_of::<TileConfig>() == 64);

/// The tiles of this thread.
pub(crate) struct Hardware {
    /// What was configured before, to be so again.
    previous: TileConfig,
}

impl TileUnit for Hardware {
    #[inline(always)]
    unsafe fn new() -> Self {
        let mut previous = TileConfig::NONE;
        // SAFETY: the caller's duty.
        unsafe {
            store_config(&mut previous);
            load_config(&TileConfig::FULL);
        }
        Hardware { previous }
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        // SAFETY: `self` proves that the tiles are there.
        unsafe { zero::<T>() }
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, source: *const f32, stride: usize) {
        // SAFETY: as above; the caller's duty.
        unsafe { load::<T>(source, stride * size_of::<f32>()) }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, target: *mut f32, stride: usize) {
        // SAFETY: as above; the caller's duty.
        unsafe { store::<T>(target, stride * size_of::<f32>()) }
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        // SAFETY: as above.
        unsafe { multiply::<C, A, B>() }
    }
}

impl Drop for Hardware {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: as above. Without tiles, as it mostly was, a context switch has none to save.
        unsafe { load_config(&self.previous) }
    }
}

/// An instruction that changes one tile, which `asm!` must be told of by name.
macro_rules! on_tile {
    ($tile:expr, $text:literal, $($operands:tt)*) => {
        match $tile {
            0 => asm!($text, tile = const 0, out("tmm0") _, $($operands)*),
            1 => asm!($text, tile = const 1, out("tmm1") _, $($operands)*),
            2 => asm!($text, tile = const 2, out("tmm2") _, $($operands)*),
            3 => asm!($text, tile = const 3, out("tmm3") _, $($operands)*),
            4 => asm!($text, tile = const 4, out("tmm4") _, $($operands)*),
            5 => asm!($text, tile = const 5, out("tmm5") _, $($operands)*),
            6 => asm!($text, tile = const 6, out("tmm6") _, $($operands)*),
            7 => asm!($text, tile = const 7, out("tmm7") _, $($operands)*),
            _ => unreachable!("there are eight tiles"),
        }
    };
}

/// LDTILECFG: configures the tiles and zeroes them.
///
/// # Safety
/// The processor has the instruction, and the process has leave to use it.
#[inline(always)]
unsafe fn load_config(config: &TileConfig) {
    // SAFETY: the caller's duty; the instruction reads 64 bytes, and all tiles are lost.
    unsafe {
        asm!(
            "ldtilecfg [{config}]",
            config = in(reg) config,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, preserves_flags, readonly),
        );
    }
}

/// STTILECFG: writes the configuration; all zeros where there is none.
///
/// # Safety
/// As [`load_config`].
#[inline(always)]
unsafe fn store_config(config: &mut TileConfig) {
    // SAFETY: the caller's duty; the instruction writes 64 bytes.
    unsafe { asm!("sttilecfg [{config}]", config = in(reg) config, options(nostack, preserves_flags)) };
}

/// TILEZERO.
///
/// # Safety
/// Tiles are configured.
#[inline(always)]
unsafe fn zero<const T: usize>() {
    // SAFETY: the caller's duty.
    unsafe { on_tile!(T, "tilezero tmm{tile}", options(nostack, preserves_flags, nomem)) };
}

/// TILELOADD: rows `stride` bytes apart.
///
/// # Safety
/// Tiles are configured; [`TILE`] rows of 64 bytes can be read.
#[inline(always)]
unsafe fn load<const T: usize>(source: *const f32, stride: usize) {
    // SAFETY: the caller's duties.
    unsafe {
        on_tile!(
            T,
            "tileloadd tmm{tile}, [{source} + {stride}]",
            source = in(reg) source,
            stride = in(reg) stride,
            options(nostack, preserves_flags, readonly)
        );
    }
}

/// TILESTORED: rows `stride` bytes apart.
///
/// # Safety
/// Tiles are configured; [`TILE`] rows of 64 bytes can be written.
#[inline(always)]
unsafe fn store<const T: usize>(target: *mut f32, stride: usize) {
    // SAFETY: the caller's duties; no tile changes.
    unsafe {
        asm!(
            "tilestored [{target} + {stride}], tmm{tile}",
            target = in(reg) target,
            stride = in(reg) stride,
            tile = const T,
            options(nostack, preserves_flags),
        );
    }
}

/// TDPBF16PS: `C += A * B` of bf16 pairs.
///
/// # Safety
/// Tiles are configured.
#[inline(always)]
unsafe fn multiply<const C: usize, const A: usize, const B: usize>() {
    // SAFETY: the caller's duty.
    unsafe {
        on_tile!(
            C,
            "tdpbf16ps tmm{tile}, tmm{a}, tmm{b}",
            a = const A,
            b = const B,
            options(nostack, preserves_flags, nomem)
        );
    }
}
