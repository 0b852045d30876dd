//! Kernels for few query rows, whose time is that of reading keys and values once.
//!
//! A task is a piece of a sequence's keys for the heads that lie side by side in memory. A worker goes through it in
//! blocks of keys: dot products of all rows, softmax, weighted sums. The pieces' sums are joined in their order by
//! whichever workers are free, so that results are bitwise the same for any number of threads and whatever else is in
//! the batch.
//!
//! Keys and values are gone through in the order of memory, some keys of all heads and then the next keys, while
//! [`queue`] says what to ask for.

use half::{bf16, f16};
use omniflash_core::{Algorithm, AttentionPlan, AttentionProblem, DType, Error, Result, TensorRef};

use crate::decode::job::Job;
use crate::decode::products::Widen;
use crate::decode::split::{Geometry, HeadStrides};
use crate::decode::worker::{Records, work, worker_words};
use crate::isa::Isa;
use crate::rows::Sequence;
use crate::scratch::{with_scratch, with_workspace};
use crate::simd::{Kernel, Simd, Storage, dispatch};
use crate::threads::on_threads;

mod block;
mod job;
mod join;
mod keys;
mod products;
mod queue;
mod scores;
mod softmax;
mod split;
mod values;
mod worker;

/// Reading less than this takes less time than waking another thread is worth.
const ALONE_BYTES: usize = 1 << 20;

/// The most query rows of a key head for which reading is all that matters: with more, tiles of rows are faster.
const MOST_ROWS: usize = 16;

/// Whether these kernels are the ones for a problem.
pub(crate) fn applies(problem: &AttentionProblem<'_>) -> bool {
    let (shape, config) = (problem.shape(), problem.config());
    let is_tiled = config.block_m.is_some() || config.block_n.is_some();
    // Ragged queries without a bound have at most `total_q` rows a sequence; no more rows than sequences are one each.
    let seqlen_q = if shape.total_q <= shape.batch { 1 } else { shape.seqlen_q };
    !is_tiled && is_short(seqlen_q, shape.group_size())
}

/// Whether a sequence of `q_len` query rows has so few that these kernels are the ones for it.
pub(crate) fn is_short(q_len: usize, group_size: usize) -> bool {
    q_len <= 1 || q_len * group_size <= MOST_ROWS
}

/// The plan of a problem for which these kernels are the ones, as if all sequences had the most keys.
pub(crate) fn plan(problem: &AttentionProblem<'_>, kernel_id: String) -> AttentionPlan {
    let shape = problem.shape();
    let geometry = geometry(problem);
    let pieces = geometry.pieces(shape.seqlen_k);
    let rows = geometry.rows(shape.seqlen_q);
    let row_bytes = (2 * shape.value_dim + shape.head_dim + 2 * geometry.block_keys) * size_of::<f32>();
    let joined = if pieces.count > 1 { shape.batch * pieces.count * shape.num_kv_heads } else { 0 };
    let grid = [pieces.count, geometry.head_groups(), shape.batch];
    AttentionPlan {
        kernel_id: kernel_id.replacen("fwd-", "decode-", 1).into(),
        algorithm: Algorithm::Flash2,
        grid: grid.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX)),
        block_threads: 1,
        block_m: rows,
        block_n: geometry.block_keys,
        num_pipeline_stages: 1,
        shared_memory_bytes: geometry.heads * rows * row_bytes,
        workspace_bytes: joined * rows * shape.value_dim * size_of::<f32>(),
        num_partitions: pieces.count,
        reason: format!(
            "{rows} rows of a key head: reading is all that matters; {} heads side by side, pieces of {} keys",
            geometry.heads, pieces.keys
        )
        .into(),
        detail: None,
    }
}

/// How tasks are cut: from sizes and strides.
fn geometry(problem: &AttentionProblem<'_>) -> Geometry {
    let shape = problem.shape();
    let head_stride = |tensor: &TensorRef<'_>| tensor.strides()[tensor.strides().len() - 2] as isize;
    let strides = HeadStrides { k: head_stride(problem.kv().k()), v: head_stride(problem.kv().v()) };
    let geometry = Geometry {
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
        group_size: shape.group_size(),
        num_kv_heads: shape.num_kv_heads,
        heads: 1,
        block_keys: 64,
        element: shape.dtype.size(),
        num_partitions: problem.config().num_partitions,
    };
    geometry.with_tasks(strides)
}

/// Computes those sequences of a problem that are taken.
///
/// # Errors
/// [`Error::Value`] for lengths, offsets and ids out of range.
///
/// # Safety
/// Nothing else reads or writes the outputs.
pub(crate) unsafe fn attention(
    isa: Isa,
    problem: &AttentionProblem<'_>,
    takes: impl Fn(&Sequence) -> bool,
) -> Result<()> {
    // SAFETY: the caller's duty.
    unsafe {
        match problem.shape().dtype {
            DType::F32 => compute::<f32>(problem, takes, |job, records, memory| {
                dispatch(isa, Work { job, records, memory })
            }),
            DType::F16 => compute::<f16>(problem, takes, |job, records, memory| {
                dispatch(isa, Work { job, records, memory })
            }),
            #[cfg(target_arch = "x86_64")]
            DType::BF16 if isa.has_bf16_pairs() => compute::<bf16>(problem, takes, work_in_pairs),
            DType::BF16 => compute::<bf16>(problem, takes, |job, records, memory| {
                dispatch(isa, Work { job, records, memory })
            }),
            dtype => Err(Error::dtype("q", dtype, "f32, f16 or bf16")),
        }
    }
}

/// # Safety
/// Nothing else reads or writes the outputs.
unsafe fn compute<T: Storage>(
    problem: &AttentionProblem<'_>,
    takes: impl Fn(&Sequence) -> bool,
    work: impl Fn(&Job<'_, T>, Records, &mut [f32]) + Sync,
) -> Result<()> {
    let job = Job::<T>::new(problem, takes)?;
    if job.num_pieces == 0 {
        return Ok(());
    }
    let threads = if job.bytes < ALONE_BYTES { 1 } else { rayon::current_num_threads().min(job.num_pieces) };
    with_workspace(job.record_words, |memory| {
        let records = Records(memory.as_mut_ptr());
        // Lent out here: a closure below the kernels' entry would be compiled without their instructions.
        on_threads(threads, &|| with_scratch(worker_words(&job), |memory| work(&job, records, memory)));
    })
}

struct Work<'w, 'p, T> {
    job: &'w Job<'p, T>,
    records: Records,
    memory: &'w mut [f32],
}

impl<T: Storage> Kernel for Work<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: records and outputs are the job's, as `compute` has made it.
        unsafe { work(Widen::<S, T>::new(simd), self.job, self.records, self.memory) }
    }
}

/// For a processor with AVX512-BF16.
#[cfg(target_arch = "x86_64")]
fn work_in_pairs(job: &Job<'_, bf16>, records: Records, memory: &mut [f32]) {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
    fn compiled(job: &Job<'_, bf16>, records: Records, memory: &mut [f32]) {
        // SAFETY: this function's features are what the proof is of; records and outputs are the job's.
        unsafe { work(products::Pairs(crate::simd::Avx512::new()), job, records, memory) }
    }
    // SAFETY: `attention` has been told that the processor has them.
    unsafe { compiled(job, records, memory) }
}

#[cfg(test)]
mod tests;
