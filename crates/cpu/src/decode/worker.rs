//! What one thread does: takes pieces, multiplies through their blocks, and at the end joins pieces.

use std::sync::atomic::Ordering;

use crate::decode::block::{Block, Blocks};
use crate::decode::job::{Job, Task, padded_rows};
use crate::decode::join;
use crate::decode::products::{BLOCK_KEYS, LINE, Products, STEP_KEYS, Weighing};
use crate::decode::queue::{Asked, BLOCKS, Distances, Queue, Upcoming, ask};
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

struct Worker<'j, 'p, P: Products> {
    products: P,
    job: &'j Job<'p, P::Element>,
    records: Records,
    query_words: usize,
    /// Whose queries are packed: entry and first head.
    packed: Option<(usize, usize)>,
    queries: *mut f32,
    scores: *mut f32,
    /// Sums of weights, a vector for each row.
    sums: *mut f32,
    maxima: *mut f32,
    /// Records of a piece that is a whole sequence.
    own_records: *mut f32,
    /// Records of the present piece.
    out: *mut f32,
}

/// Some keys of a head.
struct KeyRows<'b, T> {
    keys: &'b [*const T],
    /// Where from each of them others are that are asked for beside it; none beside rows after the first.
    asked: Option<Distances>,
    /// From the task's first head, in elements.
    offset: isize,
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

    /// Scaled dot products of all rows with the keys of a block, in the order of memory: a tile of keys of all heads,
    /// then the next.
    #[inline(always)]
    unsafe fn score(&self, block: &Block<P::Element>, rows: usize, upcoming: &Upcoming<P::Element>) {
        let head_stride = self.job.kv.k().head_stride();
        // What the tiles of the last rows, which are the fewest, have most of.
        let step = if rows.is_multiple_of(4) { tile_keys::<P>(4) } else { STEP_KEYS };
        for first in (0..block.len).step_by(step) {
            for index in 0..block.task.heads {
                let offset = index as isize * head_stride;
                for (row, taken) in row_blocks(rows) {
                    let keys = KeyRows {
                        keys: &block.keys[first..first + step],
                        asked: (row == 0).then(|| upcoming.distances(first, block.keys[first])),
                        offset,
                    };
                    let row = index * padded_rows(rows) + row;
                    let queries = self.queries.wrapping_add(row * self.query_words);
                    let scores = self.scores.wrapping_add(row * BLOCK_KEYS + first);
                    // SAFETY: rows of the worker's memory; the block's keys are inside the problem.
                    unsafe {
                        match (taken, P::Simd::LANES) {
                            (4, 8) => self.score_rows::<4, 2>(&keys, queries, scores),
                            (4, _) => self.score_rows::<4, 4>(&keys, queries, scores),
                            (2, 8) => self.score_rows::<2, 4>(&keys, queries, scores),
                            (2, _) => self.score_rows::<2, 8>(&keys, queries, scores),
                            (_, 8) => self.score_rows::<1, 8>(&keys, queries, scores),
                            _ => self.score_rows::<1, 16>(&keys, queries, scores),
                        }
                    }
                }
            }
        }
    }

    /// Dot products of `ROWS` rows with some keys, `KEYS` at a time.
    #[inline(always)]
    unsafe fn score_rows<const ROWS: usize, const KEYS: usize>(
        &self,
        rows: &KeyRows<'_, P::Element>,
        queries: *const f32,
        scores: *mut f32,
    ) {
        let (products, simd) = (self.products, self.products.simd());
        let (lanes, dim) = (P::Simd::LANES, self.job.geometry.head_dim);
        let scale = simd.splat(self.job.scores.scale);
        let vectors_of_line = LINE / (P::KEY_VECTOR * size_of::<P::Element>());
        for (tile, pointers) in rows.keys.chunks_exact(KEYS).enumerate() {
            let mut keys = [std::ptr::null::<P::Element>(); KEYS];
            for (key, pointer) in keys.iter_mut().zip(pointers) {
                *key = pointer.wrapping_offset(rows.offset);
            }
            let mut sums = [[simd.splat(0.0); KEYS]; ROWS];
            let mut left = dim;
            let mut query = queries;
            while left > 0 {
                if let Some(distances) = &rows.asked {
                    for key in keys {
                        ask(simd, key, distances);
                    }
                }
                for _ in 0..vectors_of_line {
                    // SAFETY: the elements of the keys that are left, and a vector of each packed row.
                    unsafe {
                        let queries = Queries { first: query, stride: self.query_words };
                        if left >= P::KEY_VECTOR {
                            multiply::<P, ROWS, KEYS>(products, &keys, queries, None, &mut sums);
                        } else if left > 0 {
                            multiply::<P, ROWS, KEYS>(products, &keys, queries, Some(left), &mut sums);
                        }
                    }
                    for key in &mut keys {
                        *key = key.wrapping_add(P::KEY_VECTOR);
                    }
                    left = left.saturating_sub(P::KEY_VECTOR);
                    query = query.wrapping_add(lanes);
                }
            }
            let mut finished = [0.0f32; 16];
            for part in 0..ROWS * KEYS / lanes {
                let mut vectors = simd.block();
                for (i, vector) in vectors.as_mut().iter_mut().enumerate() {
                    let at = part * lanes + i;
                    *vector = sums[at / KEYS][at % KEYS];
                }
                // SAFETY: a tile has at most 16 scores.
                unsafe {
                    simd.store(finished.as_mut_ptr().add(part * lanes), simd.mul(scale, simd.sums(&vectors)));
                }
            }
            for r in 0..ROWS {
                // SAFETY: keys of a block are padded to a multiple of 16, of which BLOCK_KEYS is one.
                unsafe {
                    let target = scores.add(r * BLOCK_KEYS + tile * KEYS);
                    finished.as_ptr().add(r * KEYS).copy_to_nonoverlapping(target, KEYS);
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

    /// Adds weighted values to all rows' sums, in the order of memory.
    #[inline(always)]
    unsafe fn weigh(
        &self,
        block: &Block<P::Element>,
        rows: usize,
        is_sparse: bool,
        upcoming: &Upcoming<P::Element>,
    ) {
        let (job, products) = (self.job, self.products);
        let value_dim = job.geometry.value_dim;
        let head_stride = job.kv.v().head_stride();
        if !is_sparse {
            for index in 0..block.task.heads {
                for row in 0..rows {
                    let weights = self.scores.wrapping_add((index * padded_rows(rows) + row) * BLOCK_KEYS);
                    // SAFETY: a row of the worker's memory.
                    unsafe { products.prepare_weights(weights, block.len) };
                }
            }
        }
        for first in (0..block.len).step_by(STEP_KEYS) {
            for index in 0..block.task.heads {
                let (mut row, mut taken) = (0, 0);
                while row + taken < rows {
                    row += taken;
                    taken = if is_sparse { 1 } else { block_rows(rows - row) };
                    let at = index * padded_rows(rows) + row;
                    let word = if is_sparse { first } else { first / P::KEYS_A_WORD };
                    let weighing = Weighing {
                        weights: self.scores.wrapping_add(at * BLOCK_KEYS + word),
                        values: &block.values[first..first + STEP_KEYS],
                        offset: index as isize * head_stride,
                        column: 0,
                        out: self.out.wrapping_add(at * job.record()),
                        out_stride: job.record(),
                        len: STEP_KEYS.min(block.len - first),
                        asked: (row == 0).then(|| upcoming.distances(first, block.values[first])),
                    };
                    // SAFETY: rows of the worker's memory and of its task's records; the block's values are in the
                    // problem.
                    unsafe {
                        match taken {
                            _ if is_sparse => weigh_seen::<P>(products, weighing, value_dim),
                            4 => weigh_rows::<P, 4>(products, weighing, value_dim),
                            2 => weigh_rows::<P, 2>(products, weighing, value_dim),
                            _ => weigh_rows::<P, 1>(products, weighing, value_dim),
                        }
                    }
                }
            }
        }
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

/// Rows as blocks of four, two or one: first row and size. Three rows are four, the last of which counts for nothing.
#[inline(always)]
fn row_blocks(rows: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows.div_ceil(4)).map(move |i| (4 * i, block_rows(rows - 4 * i)))
}

/// Rows of the next block where `left` are left.
#[inline(always)]
fn block_rows(left: usize) -> usize {
    if left >= 3 { 4 } else { left }
}

/// One vector of each of some packed rows.
#[derive(Clone, Copy)]
struct Queries {
    first: *const f32,
    /// Words from a row to the next.
    stride: usize,
}

/// Adds the products of one vector of each key with one of each row; of the first `count` elements if that is said.
///
/// # Safety
/// `KEY_VECTOR` elements of each key, or `count`, and a vector of each row can be read.
#[inline(always)]
unsafe fn multiply<P: Products, const ROWS: usize, const KEYS: usize>(
    products: P,
    keys: &[*const P::Element; KEYS],
    queries: Queries,
    count: Option<usize>,
    sums: &mut [[<P::Simd as Simd>::Vector; KEYS]; ROWS],
) {
    let simd = products.simd();
    let mut vectors = [simd.splat(0.0); ROWS];
    for (r, row) in vectors.iter_mut().enumerate() {
        // SAFETY: the caller's duty.
        *row = unsafe { simd.load(queries.first.add(r * queries.stride)) };
    }
    for t in 0..KEYS {
        // SAFETY: the caller's duty.
        let key = unsafe {
            match count {
                None => products.load_key(keys[t]),
                Some(count) => products.load_key_first(keys[t], count),
            }
        };
        for (sums, row) in sums.iter_mut().zip(vectors) {
            sums[t] = products.multiply(key, row, sums[t]);
        }
    }
}

/// Keys of a tile of `rows` rows: as many as give sums that one reduction takes.
#[inline(always)]
fn tile_keys<P: Products>(rows: usize) -> usize {
    if P::Simd::LANES == 8 { 8 / rows } else { 16 / rows }
}

/// Vectors of columns that are summed at once beside `rows` rows.
#[inline(always)]
const fn most_columns<P: Products>(rows: usize) -> usize {
    match rows {
        1 => 8,
        4 if P::Simd::LANES == 8 => 2,
        _ => 4,
    }
}

/// Goes through the columns of some rows.
#[inline(always)]
unsafe fn weigh_rows<P: Products, const ROWS: usize>(
    products: P,
    mut weighing: Weighing<'_, P::Element>,
    value_dim: usize,
) {
    let lanes = P::Simd::LANES;
    let most = most_columns::<P>(ROWS);
    let mut left = value_dim / lanes;
    // SAFETY: columns that values and sums have.
    unsafe {
        while left > 0 {
            let taken = if left >= 8 && most >= 8 {
                products.weigh::<ROWS, 8>(&weighing, None);
                8
            } else if left >= 4 && most >= 4 {
                products.weigh::<ROWS, 4>(&weighing, None);
                4
            } else if left >= 2 {
                products.weigh::<ROWS, 2>(&weighing, None);
                2
            } else {
                products.weigh::<ROWS, 1>(&weighing, None);
                1
            };
            left -= taken;
            weighing.column += taken * lanes;
            weighing.out = weighing.out.add(taken * lanes);
        }
        let rest = value_dim % lanes;
        if rest > 0 {
            products.weigh::<ROWS, 1>(&weighing, Some(rest));
        }
    }
}

/// One row whose weights are f32 and may be 0 for keys that it does not see: their values are not looked at.
#[inline(always)]
unsafe fn weigh_seen<P: Products>(products: P, mut weighing: Weighing<'_, P::Element>, value_dim: usize) {
    let simd = products.simd();
    let lanes = P::Simd::LANES;
    while weighing.column < value_dim {
        let count = lanes.min(value_dim - weighing.column);
        // SAFETY: a vector of the row's sums, and elements of values that have them.
        unsafe {
            let mut sum = simd.load(weighing.out);
            for (key, value) in weighing.values[..weighing.len].iter().enumerate() {
                let value = value.wrapping_offset(weighing.to_columns());
                weighing.ask(simd, value, lanes);
                let weight = weighing.weights.add(key).read();
                if weight != 0.0 {
                    let value = if count == lanes {
                        P::Element::load(simd, value)
                    } else {
                        P::Element::load_first(simd, value, count)
                    };
                    sum = simd.fma(simd.splat(weight), value, sum);
                }
            }
            simd.store(weighing.out, sum);
            weighing.out = weighing.out.add(lanes);
        }
        weighing.column += lanes;
    }
}
