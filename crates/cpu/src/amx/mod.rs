//! Intel's matrix instructions (AMX): eight tiles of 16 rows of 64 bytes, and products of two of bf16 pairs.
//!
//! | tile | rows | a row's 64 bytes |
//! |---|---|---|
//! | sums | 16 | 16 f32 |
//! | left operand | 16, one for each row of the sums | 32 bf16 along what is summed over |
//! | right operand | 16, one for each pair summed over | 16 pairs of bf16, one for each column of the sums |
//!
//! A product adds up even and odd elements by themselves in f32, and both to the sums. Subnormal operands and sums
//! count as 0, whatever the thread has set.

mod detection;
#[cfg(feature = "amx-emulation")]
mod emulation;
mod instructions;

pub(crate) use detection::absence;
#[cfg(feature = "amx-emulation")]
pub(crate) use emulation::Emulation;
pub(crate) use instructions::Hardware;

/// Rows of a tile, and 32-bit words of a row.
pub(crate) const TILE: usize = 16;

/// Words of a tile.
pub(crate) const TILE_WORDS: usize = TILE * TILE;

/// The eight tiles of a thread, configured alike, for as long as a value of this lives.
///
/// Their contents are lost when anything else on the thread makes one meanwhile, which a user's function may do.
pub(crate) trait TileUnit: Sized + 'static {
    /// # Safety
    /// The processor has the instructions, and the process has leave to use them.
    unsafe fn new() -> Self;

    /// Tile `T` to zeros.
    fn zero<const T: usize>(&mut self);

    /// Tile `T` from rows that are `stride` words apart.
    ///
    /// # Safety
    /// [`TILE`] rows of [`TILE`] words can be read.
    unsafe fn load<const T: usize>(&mut self, source: *const f32, stride: usize);

    /// Tile `T` to rows that are `stride` words apart.
    ///
    /// # Safety
    /// [`TILE`] rows of [`TILE`] words can be written.
    unsafe fn store<const T: usize>(&mut self, target: *mut f32, stride: usize);

    /// Adds the product of tiles `A` and `B` to the sums of tile `C`.
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self);
}

#[cfg(test)]
mod tests;
