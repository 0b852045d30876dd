//! What one thread does: takes pieces, multiplies through their blocks, and at the end joins pieces.

use std::sync::atomic::Ordering;

use crate::decode::block::{Block, Blocks};
use crate::decode::job::{Job, Task, padded_rows};
use crate::decode::join;
use crate::decode::products::{BLOCK_KEYS, Products};
use crate::decode::queue::{Asked, BLOCKS, Queue};
use crate::decode::scores::ScoreRow;
use crate::decode::softmax;
use crate::mask::{Keys, QueryRow};
use crate::scratch::{Parts, rounded};
use crate::simd::{MAX_LANES, Simd, Storage};

/// The records of all pieces, which workers share: each is written by the one worker that has its task, and read
/// when the sequence has no pending pieces.
#[derive(Clone, Copy)]
pub(super) struct Records(pub(super) *mut f32);

// SAFETY: memory that outlives the workers; they keep to the rule above.
unsafe impl Send for Records {}
// SAFETY: as above.
unsafe impl Sync for Records {}

/// Words of each part of a worker's memory.
fn part_words<T: Storage>(job: &Job<'_, T>) -> [usize; 8] {
    let rows = job.geometry.heads * job.most_rows;
    [
        rows * query_words(job),
        rows * BLOCK_KEYS,
        rows * MAX_LANES,
        rows,
        rows * job.record(),
        job.most_pieces,
        job.most_queries * size_of::<Keys>() / size_of::<f32>(),
        (2 + BLOCKS) * bit_rows(job) * size_of::<u64>() / size_of::<f32>(),
    ]
}

/// Words of a packed query, for vectors of any size.
fn query_words<T: Storage>(job: &Job<'_, T>) -> usize {
    job.geometry.head_dim.next_multiple_of(2 * MAX_LANES)
}

/// The most rows of a task that have bits of their own.
fn bit_rows<T: Storage>(job: &Job<'_, T>) -> usize {
    let heads = if job.bits_by_head { job.geometry.heads * job.geometry.group_size } else { 1 };
    job.most_queries * heads
}

/// Words that [`work`] needs.
pub(super) fn worker_words<T: Storage>(job: &Job<'_, T>) -> usize {
    part_words(job).into_iter().map(rounded).sum()
}

/// Takes tasks until there are none; `memory` has [`worker_words`].
///
/// # Safety
/// - `records` has `job.record_words` words that only the workers of this job use.
/// - Nothing else uses the outputs of the job's problem.
#[inline(always)]
pub(super) unsafe fn work<P: Products>(
    products: P,
    job: &Job<'_, P::Element>,
    records: Records,
    memory: &mut [f32],
) {
    let broken = Broken(job);
    let mut parts = Parts::new(memory);
    let [queries, scores, sums, maxima, out, weights, intervals, bits] =
        part_words(job).map(|words| parts.take(words));
    // SAFETY: any bits are integers, and cache lines are aligned for them.
    let (intervals, bits) = unsafe { (integers::<Keys>(intervals), integers::<u64>(bits)) };
    let (own, bits) = bits.split_at_mut(2 * bit_rows(job));
    let mut worker = Worker {
        products,
        job,
        records,
        query_words: query_words(job),
        packed: None,
        queries: queries.as_mut_ptr(),
        scores: scores.as_mut_ptr(),
        sums: sums.as_mut_ptr(),
        maxima: maxima.as_mut_ptr(),
        own_records: out.as_mut_ptr(),
        out: out.as_mut_ptr(),
    };
    let mut queue = Queue::new(Blocks::new(job, intervals, own), bits, bit_rows(job), &job.geometry);
    while let Some((block, bits, asked)) = queue.next() {
        // SAFETY: the caller's duties; the worker's memory has room for every task of the job.
        unsafe { worker.compute(block, bits, asked) };
    }
    let mut index = queue.beyond();
    while let Some((entry, head)) = job.join(index) {
        if !wait(job, entry) {
            break;
        }
        // SAFETY: nothing is pending, so the records of the sequence are complete, and the task is this worker's.
        unsafe { join::join(products.simd(), job, records, entry, head, weights) };
        index = job.claimed.fetch_add(1, Ordering::Relaxed);
    }
    std::mem::forget(broken);
}

/// # Safety
/// Any bits are a `U`, and the memory is aligned for it.
unsafe fn integers<U>(memory: &mut [f32]) -> &mut [U] {
    // SAFETY: the caller's duty.
    unsafe { memory.align_to_mut::<U>().1 }
}

/// Waits until a sequence has no pending pieces; false when some worker will never finish.
fn wait<T>(job: &Job<'_, T>, entry: usize) -> bool {
    let mut turns = 0u32;
    while job.entries[entry].pending.load(Ordering::Acquire) > 0 {
        if job.is_broken.load(Ordering::Relaxed) {
            return false;
        }
        turns += 1;
        if turns.is_multiple_of(64) {
            std::thread::yield_now();
        } else {
            std::hint::spin_loop();
        }
    }
    true
}

/// Tells others on drop that this worker has panicked, in a user's function.
struct Broken<'j, 'p, T>(&'j Job<'p, T>);

impl<T> Drop for Broken<'_, '_, T> {
    fn drop(&mut self) {
        self.0.is_broken.store(true, Ordering::Relaxed);
    }
}

pub(super) struct Worker<'j, 'p, P: Products> {
    pub(super) products: P,
    pub(super) job: &'j Job<'p, P::Element>,
    pub(super) records: Records,
    pub(super) query_words: usize,
    /// Whose queries are packed: entry and first head.
    pub(super) packed: Option<(usize, usize)>,
    pub(super) queries: *mut f32,
    pub(super) scores: *mut f32,
    /// Sums of weights, a vector for each row.
    pub(super) sums: *mut f32,
    pub(super) maxima: *mut f32,
    /// Records of a piece that is a whole sequence.
    pub(super) own_records: *mut f32,
    /// Records of the present piece.
    pub(super) out: *mut f32,
}

impl<P: Products> Worker<'_, '_, P> {
    /// Computes a block, and asks for rows that are read some time later.
    ///
    /// # Safety
    /// - Blocks come in the order of [`Blocks`], with their bits.
    /// - The duties of [`work`].
    #[inline(always)]
    unsafe fn compute(&mut self, block: &Block<P::Element>, bits: &[u64], asked: &Asked<P::Element>) {
        let entry = &self.job.entries[block.task.entry];
        let rows = self.job.geometry.rows(entry.sequence.q_len);
        // SAFETY: the caller's duties.
        unsafe {
            if block.opens {
                self.open(block.task, rows);
            }
            if block.len > 0 {
                self.score(block, rows, &asked.keys);
                let is_sparse = self.normalize(block, bits, rows);
                self.weigh(block, rows, is_sparse, &asked.values);
            }
            if block.closes {
                self.close(block.task, rows);
            }
        }
    }

    /// # Safety
    /// As [`compute`](Worker::compute).
    #[inline(always)]
    unsafe fn open(&mut self, task: Task, rows: usize) {
        let entry = &self.job.entries[task.entry];
        if self.packed != Some((task.entry, task.first_head)) {
            // SAFETY: the task is inside the problem, and the worker's memory has room for it.
            unsafe { self.pack(task, rows) };
            self.packed = Some((task.entry, task.first_head));
        }
        self.out = if entry.pieces.count == 1 {
            self.own_records
        } else {
            self.records.0.wrapping_add(self.job.records(task.entry, task.piece, task.first_head))
        };
        let padded = task.heads * padded_rows(rows);
        // SAFETY: memory of the worker, and records of its task.
        unsafe {
            std::slice::from_raw_parts_mut(self.maxima, padded).fill(f32::NEG_INFINITY);
            std::slice::from_raw_parts_mut(self.sums, padded * MAX_LANES).fill(0.0);
            std::slice::from_raw_parts_mut(self.out, padded * self.job.record()).fill(0.0);
        }
    }

    /// Writes the queries of a task as the words that keys are multiplied with.
    #[inline(always)]
    unsafe fn pack(&mut self, task: Task, rows: usize) {
        let (job, products) = (self.job, self.products);
        let sequence = &job.entries[task.entry].sequence;
        let (dim, group_size) = (job.geometry.head_dim, job.geometry.group_size);
        for index in 0..task.heads {
            let padded = padded_rows(rows);
            for row in 0..padded {
                let head = (task.first_head + index) * group_size + row % group_size;
                let source = job.q.at(sequence.batch, sequence.q_begin + row / group_size, head).cast_const();
                let target = self.queries.wrapping_add((index * padded + row) * self.query_words);
                for (i, d) in (0..dim).step_by(P::KEY_VECTOR).enumerate() {
                    // SAFETY: elements of a query's row, or none for a row that only fills a tile; the target has
                    // room for all of the row.
                    unsafe {
                        let count = if row < rows { P::KEY_VECTOR.min(dim - d) } else { 0 };
                        let vector = if count == 0 {
                            products.simd().splat(0.0)
                        } else if count == P::KEY_VECTOR {
                            products.load_key(source.add(d))
                        } else {
                            products.load_key_first(source.add(d), count)
                        };
                        products.store_query(target.add(i * P::Simd::LANES), vector);
                    }
                }
            }
        }
    }

    /// Turns scores to weights and rescales sums where a maximum has grown; whether some weight is of a hidden key.
    #[inline(always)]
    unsafe fn normalize(&mut self, block: &Block<P::Element>, bits: &[u64], rows: usize) -> bool {
        let (job, simd) = (self.job, self.products.simd());
        let entry = &job.entries[block.task.entry];
        let group_size = job.geometry.group_size;
        let is_plain = job.scores.is_plain();
        let mut is_sparse = false;
        for index in 0..block.task.heads {
            for row in 0..rows {
                let at = index * padded_rows(rows) + row;
                let scores = self.scores.wrapping_add(at * BLOCK_KEYS);
                let visible = match (block.is_mixed, job.bits_by_head) {
                    (false, _) => u64::MAX,
                    (true, false) => bits[row / group_size],
                    (true, true) => bits[index * rows + row],
                };
                // SAFETY: rows of the worker's memory; queries and keys inside the problem.
                unsafe {
                    if !is_plain {
                        let query = QueryRow {
                            batch: entry.sequence.batch,
                            head: (block.task.first_head + index) * group_size + row % group_size,
                            row: row / group_size,
                            position: entry.sequence.query_start + (row / group_size) as i64,
                        };
                        let positions = &block.positions[..block.len];
                        job.scores.apply(simd, &ScoreRow { query, scores, positions, visible });
                    }
                    if block.is_mixed || !is_plain {
                        is_sparse |= softmax::hide(simd, scores, block.len, visible);
                    }
                    let row = softmax::Row {
                        scores,
                        len: block.len,
                        maximum: self.maxima.wrapping_add(at),
                        sums: self.sums.wrapping_add(at * MAX_LANES),
                        out: self.out.wrapping_add(at * job.record()),
                        out_words: job.record() - MAX_LANES,
                    };
                    softmax::normalize(simd, &row, P::WEIGHTS);
                }
            }
        }
        is_sparse
    }

    /// Completes the records of a piece, and the rows of a sequence that is one piece.
    #[inline(always)]
    unsafe fn close(&mut self, task: Task, rows: usize) {
        let (job, simd) = (self.job, self.products.simd());
        let entry = &job.entries[task.entry];
        let words = job.record() - MAX_LANES;
        for index in 0..task.heads {
            for row in 0..rows {
                let at = index * padded_rows(rows) + row;
                // SAFETY: a row of the worker's memory, and its record.
                unsafe {
                    let record = self.out.add(at * job.record());
                    record.add(words).write(self.maxima.add(at).read());
                    record.add(words + 1).write(simd.sum(simd.load(self.sums.add(at * MAX_LANES))));
                }
            }
            if entry.pieces.count == 1 {
                let mut weights = [0.0f32; MAX_LANES];
                let records = join::HeadRecords {
                    entry: task.entry,
                    head: task.first_head + index,
                    records: self.out.wrapping_add(at_head(job, index, rows)),
                    piece_stride: 0,
                    pieces: 1,
                };
                // SAFETY: complete records of all rows of the head, which are this task's to write.
                unsafe { join::write_rows(simd, job, &records, &mut weights) };
            }
        }
        entry.pending.fetch_sub(1, Ordering::Release);
    }
}

/// Words before the records of a head of a piece.
fn at_head<T: Storage>(job: &Job<'_, T>, index: usize, rows: usize) -> usize {
    index * padded_rows(rows) * job.record()
}

/// Rows of the next block where `left` are left.
#[inline(always)]
pub(super) fn block_rows(left: usize) -> usize {
    if left >= 3 { 4 } else { left }
}
