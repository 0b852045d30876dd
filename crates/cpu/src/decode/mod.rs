//! Kernels for few query rows, whose time is that of reading keys and values once.
//!
//! A task is a piece of a sequence's keys for the heads that lie side by side in memory. A worker goes through it in
//! blocks of keys: dot products of all rows, softmax, weighted sums, while the [`pacer`] brings the next block near
//! in the order of memory. The pieces' sums are joined in their order by whichever workers are free, so that results
//! are bitwise the same for any number of threads and whatever else is in the batch.

use half::{bf16, f16};
use omniflash_core::{AttentionProblem, DType, Error, Result};

use crate::decode::job::Job;
use crate::decode::products::Widen;
use crate::decode::worker::{Records, work};
use crate::isa::Isa;
use crate::scratch::with_workspace;
use crate::simd::{Kernel, Simd, Storage, dispatch};

mod block;
mod job;
mod join;
mod pacer;
mod products;
mod scores;
mod softmax;
mod split;
mod worker;

/// Reading less than this takes less time than waking another thread is worth.
const ALONE_BYTES: usize = 1 << 20;

/// The most query rows of a key head for which reading is all that matters: with more, tiles of rows are faster.
const MOST_ROWS: usize = 16;

/// Whether these kernels are the ones for a problem.
pub(crate) fn applies(problem: &AttentionProblem<'_>) -> bool {
    let shape = problem.shape();
    shape.seqlen_q <= 1 || shape.seqlen_q * shape.group_size() <= MOST_ROWS
}

/// Computes a problem.
///
/// # Errors
/// [`Error::Value`] for lengths, offsets and ids out of range.
///
/// # Safety
/// Nothing else reads or writes the outputs.
pub(crate) unsafe fn attention(isa: Isa, problem: &AttentionProblem<'_>) -> Result<()> {
    // SAFETY: the caller's duty.
    unsafe {
        match problem.shape().dtype {
            DType::F32 => compute::<f32>(problem, |job, records| dispatch(isa, Work { job, records })),
            DType::F16 => compute::<f16>(problem, |job, records| dispatch(isa, Work { job, records })),
            #[cfg(target_arch = "x86_64")]
            DType::BF16 if isa == Isa::Avx512Bf16 => {
                compute::<bf16>(problem, |job, records| work_in_pairs(job, records))
            }
            DType::BF16 => compute::<bf16>(problem, |job, records| dispatch(isa, Work { job, records })),
            dtype => Err(Error::dtype("q", dtype, "f32, f16 or bf16")),
        }
    }
}

/// # Safety
/// Nothing else reads or writes the outputs.
unsafe fn compute<T: Storage>(
    problem: &AttentionProblem<'_>,
    work: impl Fn(&Job<'_, T>, Records) + Sync,
) -> Result<()> {
    let job = Job::<T>::new(problem)?;
    if job.num_pieces == 0 {
        return Ok(());
    }
    let threads = if job.bytes < ALONE_BYTES { 1 } else { rayon::current_num_threads().min(job.num_pieces) };
    with_workspace(job.record_words, |memory| {
        let records = Records(memory.as_mut_ptr());
        if threads == 1 {
            return work(&job, records);
        }
        let (job, work) = (&job, &work);
        rayon::in_place_scope(|scope| {
            for _ in 1..threads {
                scope.spawn(move |_| work(job, records));
            }
            work(job, records);
        });
    });
    Ok(())
}

struct Work<'w, 'p, T> {
    job: &'w Job<'p, T>,
    records: Records,
}

impl<T: Storage> Kernel for Work<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: records and outputs are the job's, as `compute` has made it.
        unsafe { work(Widen::<S, T>::new(simd), self.job, self.records) }
    }
}

/// For a processor with AVX512-BF16.
#[cfg(target_arch = "x86_64")]
fn work_in_pairs(job: &Job<'_, bf16>, records: Records) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn compiled(job: &Job<'_, bf16>, records: Records) {
        // SAFETY: this function's features are what the proof is of; records and outputs are the job's.
        unsafe { work(products::Pairs(crate::simd::Avx512::new()), job, records) }
    }
    // SAFETY: `attention` has been told that the processor has them.
    unsafe { compiled(job, records) }
}

#[cfg(test)]
mod tests;
