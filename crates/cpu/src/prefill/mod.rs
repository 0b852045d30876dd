//! The tiled kernels: many query rows at once.
//!
//! Everything is computed transposed, with query rows in the lanes of vectors (see [`tile`]). A *strip* of rows meets
//! one *block* of keys after the other: scores, online softmax (Milakov and Gimelshein 2018), weighted values. A *task*
//! is a few strips of one key head, which share the packing of each block; tasks go heaviest first from one counter to
//! whichever thread asks next, head by head, so that the keys of a head stay in cache.
//!
//! Every row's sums run over its keys in their order, block boundaries are the same for all rows, and what a row does
//! not see changes nothing in it: results are bitwise the same for any number of threads and of strips in a task. Few
//! strips against many keys are split into pieces of keys, by sizes alone, and joined in order.

#[cfg(target_arch = "x86_64")]
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};

use omniflash_core::{AttentionProblem, DType, Result};

#[cfg(all(target_arch = "x86_64", feature = "amx-emulation"))]
use crate::amx::Emulation;
#[cfg(target_arch = "x86_64")]
use crate::amx::{Hardware, TileUnit};
use crate::decode;
use crate::isa::Isa;
use crate::mask::LoweredMask;
use crate::rows::{KeyValues, LogSumExp, Rows, Sequence, sequences, sinks};
use crate::score::Scores;
use crate::scratch::{List, with_scratch, with_workspace};
#[cfg(target_arch = "x86_64")]
use crate::simd::{Avx512, PairKernel};
use crate::simd::{Kernel, Simd, Storage, dispatch};
use crate::threads::on_threads;

#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod matrices;
mod memory;
mod operands;
mod output;
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod pack;
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod softmax;
mod strip;
mod task;
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod tile;

#[cfg(target_arch = "x86_64")]
use matrices::Matrices;
pub(crate) use memory::Sizes;
#[cfg(target_arch = "x86_64")]
use operands::Pairs;
use operands::{Operands, Widened};
use task::Worker;
pub(crate) use tile::PANEL;

/// Work below this many multiplications stays on the calling thread: about 100 us.
const SMALL_WORK: f64 = 4e6;

/// What a plan fixes for the tiled kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tiling {
    /// Memory of a worker.
    pub(crate) sizes: Sizes,
    /// Pieces of each sequence's keys.
    pub(crate) pieces: usize,
    /// Whether sequences with few rows are left to other kernels.
    pub(crate) leaves_short: bool,
}

/// Everything that the tasks of one call share.
pub(crate) struct Call<'p, T> {
    q: Rows<T>,
    kv: KeyValues<'p, T>,
    out: Rows<T>,
    lse: Option<LogSumExp>,
    sinks: List<f32>,
    sequences: List<Sequence>,
    mask: LoweredMask<'p>,
    scores: Scores<'p>,
    head_dim: usize,
    value_dim: usize,
    group_size: usize,
    sizes: Sizes,
    pieces: usize,
    /// `[strips of all heads][pieces]` partial results, if keys are split.
    partials: Option<Partials>,
}

/// Strips of one key head against a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    sequence: usize,
    kv_head: usize,
    /// The first of the task's strips, counted within sequence and head.
    strip: usize,
    strips: usize,
    /// The first strip, counted over all.
    index: usize,
    piece: usize,
    keys: (i64, i64),
}

#[derive(Clone, Copy)]
struct Partials(*mut f32);

// SAFETY: an address; every task writes a place of its own.
unsafe impl Send for Partials {}
// SAFETY: as above.
unsafe impl Sync for Partials {}

impl<T: Storage> Call<'_, T> {
    /// Where the partial result of a task's strip `i` is kept; `None` when keys are not split.
    fn partial_of(&self, task: &Task, i: usize) -> Option<*mut f32> {
        let place = (task.index + i) * self.pieces + task.piece;
        self.partials.map(|partials| partials.0.wrapping_add(place * self.sizes.partial_words()))
    }

    /// Strips of a key head of a sequence.
    fn strips_of(&self, sequence: &Sequence) -> usize {
        (sequence.q_len * self.group_size).div_ceil(self.sizes.rows)
    }

    /// All tasks, and how many strips there are.
    fn tasks(&self, kv_heads: usize) -> (Vec<Task>, usize) {
        let mut tasks = Vec::new();
        let mut index = 0;
        for (s, sequence) in self.sequences.iter().enumerate() {
            let strips = self.strips_of(sequence);
            let piece_keys =
                sequence.kv_len.div_ceil(self.pieces).next_multiple_of(self.sizes.block).max(1) as i64;
            for kv_head in 0..kv_heads {
                // From the last rows to the first: under causal masks from the heaviest to the lightest.
                let mut end = strips;
                while end > 0 {
                    let begin = end.saturating_sub(self.sizes.strips);
                    for piece in 0..self.pieces {
                        let keys = (
                            (piece as i64 * piece_keys).min(sequence.kv_len as i64),
                            ((piece as i64 + 1) * piece_keys).min(sequence.kv_len as i64),
                        );
                        tasks.push(Task {
                            sequence: s,
                            kv_head,
                            strip: begin,
                            strips: end - begin,
                            index: index + begin,
                            piece,
                            keys,
                        });
                    }
                    end = begin;
                }
                index += strips;
            }
        }
        (tasks, index)
    }

    /// Multiplications of all tasks, as if every row saw every key.
    fn work(&self, num_heads: usize) -> f64 {
        let pairs: f64 =
            self.sequences.iter().map(|sequence| sequence.q_len as f64 * sequence.kv_len as f64).sum();
        pairs * num_heads as f64 * (self.head_dim + self.value_dim) as f64
    }
}

/// Numbers in a packed word: bf16 goes in pairs where dot products take them.
pub(crate) fn depth(isa: Isa, dtype: DType) -> usize {
    if isa.has_bf16_pairs() && dtype == DType::BF16 { 2 } else { 1 }
}

/// Whether the products are those of matrix instructions.
pub(crate) fn in_matrices(isa: Isa, dtype: DType) -> bool {
    isa.has_bf16_matrices() && dtype == DType::BF16
}

/// Keys of a block are packed in multiples of this.
pub(crate) fn key_step(isa: Isa, dtype: DType) -> usize {
    match in_matrices(isa, dtype) {
        #[cfg(target_arch = "x86_64")]
        true => matrices::KEY_STEP,
        _ => pack::KEY_STEP,
    }
}

/// Query rows of a strip.
pub(crate) fn strip_rows(isa: Isa) -> usize {
    struct Rows;
    impl Kernel for Rows {
        type Output = usize;
        fn run<S: Simd>(self, _simd: S) -> usize {
            tile::strip_rows::<S>()
        }
    }
    dispatch(isa, Rows)
}

/// Computes a problem by tiles, or those of its sequences that are not [left](Tiling::leaves_short) to others.
///
/// # Errors
/// [`omniflash_core::Error::Value`] for lengths, offsets and ids out of range.
///
/// # Safety
/// Nothing else reads or writes the outputs.
pub(crate) unsafe fn attention<T: Storage>(
    problem: &AttentionProblem<'_>,
    tiling: &Tiling,
    isa: Isa,
) -> Result<()> {
    let shape = problem.shape();
    let mut sequences = sequences(problem)?;
    if tiling.leaves_short {
        sequences.retain(|sequence| !decode::is_short(sequence.q_len, shape.group_size()));
    }
    if shape.is_empty() || sequences.is_empty() {
        return Ok(());
    }
    let mask = LoweredMask::new(problem);
    let scores = Scores::new(problem, mask.additive());
    let mut call = Call::<T> {
        q: Rows::new(problem.query().tensor()),
        kv: KeyValues::new(problem.kv()),
        out: Rows::new_mut(problem.out()),
        lse: problem.lse().map(LogSumExp::new),
        sinks: sinks(problem),
        sequences,
        mask,
        scores,
        head_dim: shape.head_dim,
        value_dim: shape.value_dim,
        group_size: shape.group_size(),
        sizes: tiling.sizes,
        pieces: tiling.pieces,
        partials: None,
    };
    let (tasks, strips) = call.tasks(shape.num_kv_heads);
    let is_small = call.work(shape.num_heads) < SMALL_WORK;
    if tiling.pieces == 1 {
        work_through(&call, &tasks, Part::Run, isa, is_small);
        return Ok(());
    }
    with_workspace(strips * tiling.pieces * tiling.sizes.partial_words(), |workspace| {
        call.partials = Some(Partials(workspace.as_mut_ptr()));
        work_through(&call, &tasks, Part::Run, isa, is_small);
        let joins: Vec<Task> = tasks
            .iter()
            .filter(|task| task.piece == 0)
            .flat_map(|task| {
                (0..task.strips).map(|i| Task {
                    strip: task.strip + i,
                    index: task.index + i,
                    strips: 1,
                    ..*task
                })
            })
            .collect();
        work_through(&call, &joins, Part::Join, isa, is_small);
    });
    Ok(())
}

/// What is done with tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Run,
    Join,
}

/// Lets the threads of the caller's pool take tasks until none is left.
fn work_through<T: Storage>(call: &Call<'_, T>, tasks: &[Task], part: Part, isa: Isa, is_small: bool) {
    let next = AtomicUsize::new(0);
    let work =
        || with_scratch(call.sizes.words(), |memory| run_worker(call, tasks, part, isa, &next, memory));
    on_threads(if is_small { 1 } else { rayon::current_num_threads().min(tasks.len()) }, &work);
}

fn run_worker<T: Storage>(
    call: &Call<'_, T>,
    tasks: &[Task],
    part: Part,
    isa: Isa,
    next: &AtomicUsize,
    memory: &mut [f32],
) {
    let queue = Queue { call, tasks, part, next, memory };
    #[cfg(target_arch = "x86_64")]
    if call.sizes.depth == 2 {
        // A plan asks for pairs only of bf16 on an instruction set that has their dot product.
        let queue = queue.of_bf16();
        // SAFETY: `isa` is available.
        let simd = unsafe { Avx512::<true>::new() };
        return match isa {
            Isa::AmxBf16 => simd.vectorize_pairs(MatrixQueue::<Hardware>(queue, PhantomData)),
            #[cfg(feature = "amx-emulation")]
            Isa::AmxBf16Emulated => simd.vectorize_pairs(MatrixQueue::<Emulation>(queue, PhantomData)),
            _ => simd.vectorize_pairs(queue),
        };
    }
    dispatch(isa, queue)
}

/// The tasks of a call, and a worker's memory.
struct Queue<'w, 'p, T> {
    call: &'w Call<'p, T>,
    tasks: &'w [Task],
    part: Part,
    next: &'w AtomicUsize,
    memory: &'w mut [f32],
}

impl<'w, 'p, T: Storage> Queue<'w, 'p, T> {
    /// Takes task after task.
    #[inline(always)]
    fn drain<S: Simd, O: Operands<S, Element = T>>(self, simd: S) {
        let mut worker = Worker::<S, O>::new(simd, self.call, self.memory);
        while let Some(task) = self.tasks.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            // SAFETY: each task is taken once, and no two write the same rows or partial results; joins come when
            // all partial results are stored.
            unsafe {
                match self.part {
                    Part::Run => worker.run(task),
                    Part::Join => worker.join(task),
                }
            }
        }
    }

    /// Itself, known to be of bf16.
    #[cfg(target_arch = "x86_64")]
    fn of_bf16(self) -> Queue<'w, 'p, half::bf16> {
        assert_eq!(T::DTYPE, DType::BF16, "pairs are of bf16");
        // SAFETY: `T` is bf16, the only type with this dtype.
        let call = unsafe { &*std::ptr::from_ref(self.call).cast::<Call<'p, half::bf16>>() };
        Queue { call, tasks: self.tasks, part: self.part, next: self.next, memory: self.memory }
    }
}

impl<T: Storage> Kernel for Queue<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.drain::<S, Widened<T>>(simd);
    }
}

#[cfg(target_arch = "x86_64")]
impl PairKernel for Queue<'_, '_, half::bf16> {
    #[inline(always)]
    fn run(self, simd: Avx512<true>) {
        self.drain::<Avx512<true>, Pairs>(simd);
    }
}

/// A queue whose products are those of tiles.
#[cfg(target_arch = "x86_64")]
struct MatrixQueue<'w, 'p, U>(Queue<'w, 'p, half::bf16>, PhantomData<U>);

#[cfg(target_arch = "x86_64")]
impl<U: TileUnit> PairKernel for MatrixQueue<'_, '_, U> {
    #[inline(always)]
    fn run(self, simd: Avx512<true>) {
        self.0.drain::<Avx512<true>, Matrices<U>>(simd);
    }
}
