//! The tiled kernels: many query rows at once.
//!
//! Everything is computed transposed, with query rows in the lanes of vectors (see [`tile`]). A *strip* of rows meets
//! one *block* of keys after the other: scores, online softmax (Milakov and Gimelshein 2018), weighted values. A *task*
//! is a few strips of one key head, which share each packed block; tasks go heaviest first from one counter to whichever
//! thread asks next. Keys and values are packed ahead, once for all tasks of some heads (see [`copy`]), or by each task
//! as it goes: where few rows see them, where masks may hide whole blocks, and where a head has too many.
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

mod copy;
#[cfg(target_arch = "x86_64")]
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod matrices;
mod memory;
mod operands;
mod output;
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod pack;
mod schedule;
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod softmax;
mod strip;
mod task;
#[allow(clippy::needless_range_loop, reason = "lanes and rows are counted; closures lose target features")]
mod tile;

use copy::Packing;
pub(crate) use copy::head_words;
#[cfg(target_arch = "x86_64")]
use matrices::Matrices;
pub(crate) use memory::Sizes;
#[cfg(target_arch = "x86_64")]
use operands::Pairs;
use operands::{Operands, Widened};
pub(crate) use schedule::{COPY_ROWS, COPY_WORDS};
use schedule::{Schedule, Task};
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
    /// Words that keys and values of some heads are packed to, ahead of their tasks and once for all; 0 where tasks pack
    /// themselves.
    pub(crate) copy_words: usize,
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
    partials: Option<Shared>,
    /// Words of the copy of keys and values at most,
    copy_words: usize,
    /// and where it is.
    copy: Option<Shared>,
}

/// Memory that the threads of a call share.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: an address; every task writes a place of its own, and what others read is written before they begin.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl<'p, T: Storage> Call<'p, T> {
    fn new(problem: &'p AttentionProblem<'_>, tiling: &Tiling) -> Result<Self> {
        let shape = problem.shape();
        let mut sequences = sequences(problem)?;
        if tiling.leaves_short {
            sequences.retain(|sequence| !decode::is_short(sequence.q_len, shape.group_size()));
        }
        let mask = LoweredMask::new(problem);
        let scores = Scores::new(problem, mask.additive());
        Ok(Call {
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
            copy_words: tiling.copy_words,
            copy: None,
        })
    }

    /// Where the partial result of a task's strip `i` is kept; `None` when keys are not split.
    fn partial_of(&self, task: &Task, i: usize) -> Option<*mut f32> {
        let place = (task.index + i) * self.pieces + task.piece;
        self.partials.map(|partials| partials.0.wrapping_add(place * self.sizes.partial_words()))
    }

    /// Strips of a key head of a sequence.
    fn strips_of(&self, sequence: &Sequence) -> usize {
        (sequence.q_len * self.group_size).div_ceil(self.sizes.rows)
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
    let mut call = Call::<T>::new(problem, tiling)?;
    let shape = problem.shape();
    if shape.is_empty() || call.sequences.is_empty() {
        return Ok(());
    }
    let schedule = Schedule::new(&call, shape.num_kv_heads);
    let is_small = call.work(shape.num_heads) < SMALL_WORK;
    if tiling.pieces == 1 {
        with_workspace(schedule.copy_words(), |workspace| {
            call.copy = Some(Shared(workspace.as_mut_ptr()));
            for round in &schedule.rounds {
                work_through(&call, Part::Pack(&schedule.packings[round.packings.clone()]), isa, is_small);
                work_through(&call, Part::Run(&schedule.tasks[round.tasks.clone()]), isa, is_small);
            }
        })?;
        return Ok(());
    }
    with_workspace(schedule.strips * tiling.pieces * tiling.sizes.partial_words(), |workspace| {
        call.partials = Some(Shared(workspace.as_mut_ptr()));
        work_through(&call, Part::Run(&schedule.tasks), isa, is_small);
        let joins: Vec<Task> = schedule
            .tasks
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
        work_through(&call, Part::Join(&joins), isa, is_small);
    })
}

/// Parts of a call, one after the other.
#[derive(Clone, Copy)]
enum Part<'t> {
    /// What tasks share is packed.
    Pack(&'t [Packing]),
    Run(&'t [Task]),
    /// The pieces of one strip each are joined.
    Join(&'t [Task]),
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Part::Pack(packings) => packings.len(),
            Part::Run(tasks) | Part::Join(tasks) => tasks.len(),
        }
    }
}

/// Lets the threads of the caller's pool do a part until nothing is left of it.
fn work_through<T: Storage>(call: &Call<'_, T>, part: Part<'_>, isa: Isa, is_small: bool) {
    if part.len() == 0 {
        return;
    }
    let next = AtomicUsize::new(0);
    let work = || with_scratch(call.sizes.words(), |memory| run_worker(call, part, isa, &next, memory));
    on_threads(if is_small { 1 } else { rayon::current_num_threads().min(part.len()) }, &work);
}

fn run_worker<T: Storage>(
    call: &Call<'_, T>,
    part: Part<'_>,
    isa: Isa,
    next: &AtomicUsize,
    memory: &mut [f32],
) {
    let queue = Queue { call, part, next, memory };
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

/// A part of a call, and a worker's memory.
struct Queue<'w, 'p, T> {
    call: &'w Call<'p, T>,
    part: Part<'w>,
    next: &'w AtomicUsize,
    memory: &'w mut [f32],
}

impl<'w, 'p, T: Storage> Queue<'w, 'p, T> {
    /// Takes task after task.
    #[inline(always)]
    fn drain<S: Simd, O: Operands<S, Element = T>>(self, simd: S) {
        let mut worker = Worker::<S, O>::new(simd, self.call, self.memory);
        loop {
            let index = self.next.fetch_add(1, Ordering::Relaxed);
            if index >= self.part.len() {
                return;
            }
            // SAFETY: each index is taken once, and no two tasks write the same rows, partial results or blocks of the
            // copy; joins come when all partial results are stored, tasks when what they share is packed.
            unsafe {
                match self.part {
                    Part::Pack(packings) => worker.pack_copy(&packings[index]),
                    Part::Run(tasks) => worker.run(&tasks[index]),
                    Part::Join(tasks) => worker.join(&tasks[index]),
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
        Queue { call, part: self.part, next: self.next, memory: self.memory }
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

#[cfg(test)]
mod tests;
