//! What this processor can do at most: multiply-adds in registers, and loops over more memory than its caches hold.
//!
//! All threads of the caller's rayon pool work at once, as they do in attention; each figure is the best of several
//! rounds, since neighbours can only slow a round down.

use std::hint::black_box;
#[cfg(target_arch = "x86_64")]
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use omniflash_core::measure::Peaks;
use omniflash_core::{Buffer, DType, Result};
use rayon::prelude::*;

#[cfg(all(target_arch = "x86_64", feature = "amx-emulation"))]
use crate::amx::Emulation;
#[cfg(target_arch = "x86_64")]
use crate::amx::{Hardware, TILE, TILE_WORDS, TileUnit};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512, PairKernel};
use crate::simd::{Kernel, Simd, dispatch};

/// Independent chains: more than the latency of a multiply-add times how many start in a cycle.
const CHAINS: usize = 12;
/// Multiply-adds of a chain in one piece of work: some tens of microseconds.
const ROUNDS: usize = 10_000;
/// Pieces of work for each thread in one round, which threads take as they come to them: one that is held up by others,
/// or shares its core, takes fewer, as in attention.
const PIECES: usize = 32;
/// Bytes of the buffer that is read, and of each of the two of a copy: beyond any cache of a core's share.
const BUFFER_BYTES: usize = 128 << 20;
const FEWEST_ROUNDS: usize = 3;

/// The peaks of a processor with `isa`, in about `budget` each.
pub(crate) fn measure(isa: Isa, budget: Duration) -> Result<Peaks> {
    let threads = rayon::current_num_threads();
    let of_f32 = fastest(budget, || multiply_adds(isa, threads));
    let of_bf16 = match isa {
        isa if isa.has_bf16_matrices() => fastest(budget, || matrix_products(isa, threads)),
        Isa::Avx512Bf16 => fastest(budget, || pair_products(threads)),
        // Widened to f32, as f16 is.
        _ => of_f32,
    };
    let (source, mut target) = (Buffer::host(BUFFER_BYTES)?, Buffer::host(BUFFER_BYTES)?);
    let invariant = "a host buffer has host memory";
    let (source, target) =
        (source.as_host_bytes().expect(invariant), target.as_host_bytes_mut().expect(invariant));
    // Pages that were never written may all be the same one.
    let copy = fastest(budget, || copy(source, target, threads));
    let read = fastest(budget, || read(isa, target, threads));
    Ok(Peaks {
        flops: vec![(DType::F32, of_f32), (DType::F16, of_f32), (DType::BF16, of_bf16)],
        read: Some(read),
        copy: Some(copy),
    })
}

/// The best rate of rounds, each of which answers its own.
fn fastest(budget: Duration, mut round: impl FnMut() -> f64) -> f64 {
    let end = Instant::now() + budget;
    let (mut best, mut rounds) = (0.0f64, 0);
    while rounds < FEWEST_ROUNDS || Instant::now() < end {
        best = best.max(round());
        rounds += 1;
    }
    best
}

/// Operations a second of all threads.
fn multiply_adds(isa: Isa, threads: usize) -> f64 {
    let lanes = dispatch(isa, Chains { value: black_box(0.999) });
    let operations = 2.0 * (lanes * CHAINS * ROUNDS) as f64;
    operations
        * pieces_a_second(threads, || {
            dispatch(isa, Chains { value: black_box(0.999) });
        })
}

/// The same for dot products of bf16 pairs.
#[cfg(target_arch = "x86_64")]
fn pair_products(threads: usize) -> f64 {
    let operations = 2.0 * (2 * 16 * CHAINS * ROUNDS) as f64;
    operations
        * pieces_a_second(threads, || {
            // SAFETY: only called where the instruction set is the one with bf16 pairs, which was checked.
            unsafe { Avx512::<true>::new() }.vectorize_pairs(PairChains { bits: black_box(0x3a80_3a80) });
        })
}

#[cfg(not(target_arch = "x86_64"))]
fn pair_products(threads: usize) -> f64 {
    multiply_adds(Isa::best(), threads)
}

/// The same for products of matrices of such pairs.
#[cfg(target_arch = "x86_64")]
fn matrix_products(isa: Isa, threads: usize) -> f64 {
    let operations = 2.0 * (2 * TILE * TILE_WORDS * MATRIX_CHAINS * MATRIX_ROUNDS) as f64;
    operations
        * pieces_a_second(threads, || {
            // SAFETY: only called where the instruction set has such products, which was checked.
            let simd = unsafe { Avx512::<true>::new() };
            match isa {
                #[cfg(feature = "amx-emulation")]
                Isa::AmxBf16Emulated => simd.vectorize_pairs(MatrixChains::<Emulation>(PhantomData)),
                _ => simd.vectorize_pairs(MatrixChains::<Hardware>(PhantomData)),
            }
        })
}

#[cfg(not(target_arch = "x86_64"))]
fn matrix_products(isa: Isa, threads: usize) -> f64 {
    multiply_adds(isa, threads)
}

/// How many pieces of work all threads together do in a second.
fn pieces_a_second(threads: usize, piece: impl Fn() + Sync) -> f64 {
    let pieces = PIECES * threads;
    let start = Instant::now();
    (0..pieces).into_par_iter().with_max_len(1).for_each(|_| piece());
    pieces as f64 / start.elapsed().as_secs_f64()
}

/// Chains of multiply-adds in registers; answers the lanes of a vector.
struct Chains {
    value: f32,
}

impl Kernel for Chains {
    type Output = usize;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> usize {
        let (a, b) = (simd.splat(self.value), simd.splat(1.0 - self.value));
        let mut sums = [simd.splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.fma(*sum, a, b);
            }
        }
        let mut all = sums[0];
        for sum in &sums[1..] {
            all = simd.add(all, *sum);
        }
        black_box(simd.sum(all));
        S::LANES
    }
}

/// Chains of dot products of bf16 pairs in registers.
#[cfg(target_arch = "x86_64")]
struct PairChains {
    bits: u32,
}

#[cfg(target_arch = "x86_64")]
impl PairKernel for PairChains {
    #[inline(always)]
    fn run(self, simd: Avx512<true>) {
        let pair = simd.splat(f32::from_bits(self.bits));
        let mut sums = [simd.splat(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = simd.dot_pairs(pair, pair, *sum);
            }
        }
        for sum in sums {
            black_box(simd.sum(sum));
        }
    }
}

/// Chains of products of matrices in tiles.
#[cfg(target_arch = "x86_64")]
struct MatrixChains<U>(PhantomData<U>);

#[cfg(target_arch = "x86_64")]
const MATRIX_CHAINS: usize = 4;
/// Products of a chain in one piece of work, each of which takes some 16 cycles.
#[cfg(target_arch = "x86_64")]
const MATRIX_ROUNDS: usize = 2_000;

#[cfg(target_arch = "x86_64")]
impl<U: TileUnit> PairKernel for MatrixChains<U> {
    #[inline(always)]
    fn run(self, simd: Avx512<true>) {
        let operand = [black_box(f32::from_bits(0x3a80_3a80)); TILE_WORDS];
        let mut sums = [0.0f32; TILE_WORDS];
        // SAFETY: the proof was made for an instruction set with matrices; all the tiles are in arrays of their size.
        unsafe {
            let mut unit = U::new();
            unit.load::<4>(operand.as_ptr(), TILE);
            unit.load::<5>(operand.as_ptr(), TILE);
            unit.zero::<0>();
            unit.zero::<1>();
            unit.zero::<2>();
            unit.zero::<3>();
            for _ in 0..MATRIX_ROUNDS {
                unit.multiply::<0, 4, 5>();
                unit.multiply::<1, 4, 5>();
                unit.multiply::<2, 4, 5>();
                unit.multiply::<3, 4, 5>();
            }
            unit.store::<3>(sums.as_mut_ptr(), TILE);
            black_box(simd.sum(simd.load(sums.as_ptr())));
        }
    }
}

/// Bytes a second that all threads read.
fn read(isa: Isa, data: &[u8], threads: usize) -> f64 {
    let start = Instant::now();
    let part = part_of(data.len(), threads);
    data.par_chunks_exact(part).with_max_len(1).for_each(|part| dispatch(isa, Read { data: part }));
    (part * threads) as f64 / start.elapsed().as_secs_f64()
}

/// The bytes of each thread, in whole pages.
fn part_of(bytes: usize, threads: usize) -> usize {
    (bytes / threads / 4096).max(1) * 4096
}

/// A sum over memory, vector by vector.
struct Read<'d> {
    data: &'d [u8],
}

impl Kernel for Read<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        const VECTORS: usize = 8;
        let mut sums = [simd.splat(0.0); VECTORS];
        let vector_bytes = 4 * S::LANES;
        for block in self.data.chunks_exact(VECTORS * vector_bytes) {
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: the block has `VECTORS` vectors; any bits are an f32, and loads need no more alignment than
                // that, which host buffers and parts of whole pages have.
                let vector = unsafe { simd.load(block.as_ptr().add(i * vector_bytes).cast()) };
                *sum = simd.add(*sum, vector);
            }
        }
        for sum in sums {
            black_box(simd.sum(sum));
        }
    }
}

/// Bytes a second that all threads copy, read and written ones counted.
fn copy(source: &[u8], target: &mut [u8], threads: usize) -> f64 {
    let start = Instant::now();
    let part = part_of(source.len(), threads);
    source
        .par_chunks_exact(part)
        .zip(target.par_chunks_exact_mut(part))
        .with_max_len(1)
        .for_each(|(source, target)| target.copy_from_slice(source));
    2.0 * (part * threads) as f64 / start.elapsed().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_instruction_set_has_plausible_peaks() {
        for isa in Isa::available() {
            let peaks = measure(isa, Duration::ZERO).unwrap();
            let (f32, bf16) = (peaks.flops_of(DType::F32).unwrap(), peaks.flops_of(DType::BF16).unwrap());
            // A loop that was optimised away would seem a thousand times faster, one that is not inlined far slower.
            assert!((1e8..1e14).contains(&f32) && (1e8..1e14).contains(&bf16), "{isa} {peaks:?}");
            for rate in [peaks.read.unwrap(), peaks.copy.unwrap()] {
                assert!((1e7..1e13).contains(&rate), "{isa} {peaks:?}");
            }
        }
    }
}
