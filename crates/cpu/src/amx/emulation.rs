//! The matrix instructions, computed one by one as Intel's manual (volume 2, TDPBF16PS) writes them.

use super::{TILE, TILE_WORDS, TileUnit};

/// Eight tiles in memory.
pub(crate) struct Emulation {
    tiles: Box<[[f32; TILE_WORDS]; 8]>,
}

impl TileUnit for Emulation {
    #[inline(always)]
    unsafe fn new() -> Self {
        // What an instruction may not rely on is no number.
        Emulation { tiles: Box::new([[f32::NAN; TILE_WORDS]; 8]) }
    }

    #[inline(always)]
    fn zero<const T: usize>(&mut self) {
        self.tiles[T] = [0.0; TILE_WORDS];
    }

    #[inline(always)]
    unsafe fn load<const T: usize>(&mut self, source: *const f32, stride: usize) {
        for (row, words) in self.tiles[T].chunks_exact_mut(TILE).enumerate() {
            // SAFETY: the caller's duty.
            unsafe {
                std::ptr::copy_nonoverlapping(source.add(row * stride), words.as_mut_ptr(), TILE);
            }
        }
    }

    #[inline(always)]
    unsafe fn store<const T: usize>(&mut self, target: *mut f32, stride: usize) {
        for (row, words) in self.tiles[T].chunks_exact(TILE).enumerate() {
            // SAFETY: the caller's duty.
            unsafe {
                std::ptr::copy_nonoverlapping(words.as_ptr(), target.add(row * stride), TILE);
            }
        }
    }

    #[inline(always)]
    fn multiply<const C: usize, const A: usize, const B: usize>(&mut self) {
        let right = self.tiles[B];
        for row in 0..TILE {
            let (mut even, mut odd) = ([0.0f32; TILE], [0.0f32; TILE]);
            for pair in 0..TILE {
                let a = halves(self.tiles[A][row * TILE + pair]);
                for column in 0..TILE {
                    let b = halves(right[pair * TILE + column]);
                    even[column] = flushed(a.0.mul_add(b.0, even[column]));
                    odd[column] = flushed(a.1.mul_add(b.1, odd[column]));
                }
            }
            for column in 0..TILE {
                let sum = &mut self.tiles[C][row * TILE + column];
                *sum = flushed(flushed(*sum) + flushed(even[column] + odd[column]));
            }
        }
    }
}

/// The lower and the upper bf16 of a word, subnormal ones as 0.
#[inline(always)]
fn halves(word: f32) -> (f32, f32) {
    let bits = word.to_bits();
    (flushed(f32::from_bits(bits << 16)), flushed(f32::from_bits(bits & 0xffff_0000)))
}

#[inline(always)]
fn flushed(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 * x } else { x }
}
