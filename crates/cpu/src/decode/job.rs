//! One call's work, as tasks that any thread may take.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use omniflash_core::{AttentionProblem, Result};

use crate::decode::geometry;
use crate::decode::scores::Scores;
use crate::decode::split::{Geometry, Pieces};
use crate::mask::LoweredMask;
use crate::rows::{KeyValues, LogSumExp, Rows, Sequence, sequences, sinks};
use crate::scratch::{List, listed};
use crate::simd::{MAX_LANES, Storage};

/// A problem made ready for workers.
pub(super) struct Job<'p, T> {
    pub(super) geometry: Geometry,
    pub(super) q: Rows<T>,
    pub(super) kv: KeyValues<'p, T>,
    pub(super) out: Rows<T>,
    pub(super) lse: Option<LogSumExp>,
    pub(super) sinks: List<f32>,
    pub(super) mask: LoweredMask<'p>,
    /// Whether some key of a sequence may be hidden by an interval or by bits.
    pub(super) is_masked: bool,
    /// Whether bits differ from head to head.
    pub(super) bits_by_head: bool,
    pub(super) scores: Scores<'p>,
    /// Sequences that have query rows.
    pub(super) entries: List<Entry>,
    /// Tasks that compute pieces; the tasks after them join pieces.
    pub(super) num_pieces: usize,
    pub(super) num_tasks: usize,
    /// The next task to take.
    pub(super) claimed: AtomicUsize,
    /// Set when a worker panics: others stop waiting for it.
    pub(super) is_broken: AtomicBool,
    /// Bytes of keys and values to read.
    pub(super) bytes: usize,
    /// Words of the workspace: records of all rows of all pieces that are to be joined.
    pub(super) record_words: usize,
    /// The most rows of a key head, padded.
    pub(super) most_rows: usize,
    pub(super) most_pieces: usize,
    pub(super) most_queries: usize,
}

/// A sequence as work.
pub(super) struct Entry {
    pub(super) sequence: Sequence,
    /// Keys that some row may see.
    pub(super) keys: (usize, usize),
    pub(super) pieces: Pieces,
    /// Its first task among pieces, and among joins.
    first_piece: usize,
    first_join: usize,
    /// Its records in the workspace.
    records: usize,
    /// Pieces not yet computed.
    pub(super) pending: AtomicUsize,
}

listed!(Entry);

/// Some heads of a piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) entry: usize,
    pub(super) piece: usize,
    pub(super) first_head: usize,
    pub(super) heads: usize,
}

impl<'p, T: Storage> Job<'p, T> {
    /// The sequences of a problem that are taken.
    pub(super) fn new(problem: &'p AttentionProblem<'_>, takes: impl Fn(&Sequence) -> bool) -> Result<Self> {
        let mut sequences = sequences(problem)?;
        sequences.retain(|sequence| sequence.q_len > 0 && takes(sequence));
        let kv = KeyValues::<T>::new(problem.kv());
        let mask = LoweredMask::new(problem);
        let most_queries = sequences.iter().map(|sequence| sequence.q_len).max().unwrap_or(0);
        let geometry = geometry(problem);
        let scores = Scores::new(problem, mask.additive());
        let mut job = Job {
            geometry,
            q: Rows::new(problem.query().tensor()),
            kv,
            out: Rows::new_mut(problem.out()),
            lse: problem.lse().map(LogSumExp::new),
            sinks: sinks(problem),
            is_masked: !problem.mask().is_none(),
            bits_by_head: mask.has_bits() && !mask.bits_are_shared_by_heads(),
            mask,
            scores,
            entries: List::new(),
            num_pieces: 0,
            num_tasks: 0,
            claimed: AtomicUsize::new(0),
            is_broken: AtomicBool::new(false),
            bytes: 0,
            record_words: 0,
            most_rows: padded_rows(geometry.rows(most_queries)),
            most_pieces: 1,
            most_queries,
        };
        let mut joins = 0;
        for sequence in sequences.iter() {
            job.add(*sequence, &mut joins);
        }
        job.num_tasks = job.num_pieces + joins;
        Ok(job)
    }

    fn add(&mut self, sequence: Sequence, joins: &mut usize) {
        let geometry = &self.geometry;
        let keys = self.visible_keys(&sequence);
        let len = keys.1 - keys.0;
        let pieces = geometry.pieces(len);
        let tasks = pieces.count * geometry.head_groups();
        self.entries.push(Entry {
            keys,
            pieces,
            first_piece: self.num_pieces,
            first_join: *joins,
            records: self.record_words,
            pending: AtomicUsize::new(tasks),
            sequence,
        });
        if pieces.count > 1 {
            *joins += geometry.num_kv_heads;
            let words = pieces.count.saturating_mul(geometry.num_kv_heads * self.head_words(sequence.q_len));
            self.record_words = self.record_words.saturating_add(words);
        }
        self.num_pieces += tasks;
        self.most_pieces = self.most_pieces.max(pieces.count);
        self.bytes +=
            len * geometry.num_kv_heads * (geometry.head_dim + geometry.value_dim) * geometry.element;
    }

    /// The smallest range of keys that holds all rows' intervals.
    fn visible_keys(&self, sequence: &Sequence) -> (usize, usize) {
        if !self.is_masked {
            return (0, sequence.kv_len);
        }
        let mut range: Option<(i64, i64)> = None;
        for row in 0..sequence.q_len {
            let (low, high) = self.mask.interval(sequence, sequence.query_start + row as i64);
            if low < high {
                range = Some(range.map_or((low, high), |range| (range.0.min(low), range.1.max(high))));
            }
        }
        range.map_or((0, 0), |(low, high)| (low as usize, high as usize))
    }

    /// The task with this index, if it is a piece.
    pub(super) fn piece(&self, index: usize) -> Option<Task> {
        if index >= self.num_pieces {
            return None;
        }
        let entry = self.entries.partition_point(|entry| entry.first_piece <= index) - 1;
        let groups = self.geometry.head_groups();
        let at = index - self.entries[entry].first_piece;
        let first_head = at % groups * self.geometry.heads;
        let heads = self.geometry.heads.min(self.geometry.num_kv_heads - first_head);
        Some(Task { entry, piece: at / groups, first_head, heads })
    }

    /// The entry and key head that the task with this index joins, for an index past all pieces.
    pub(super) fn join(&self, index: usize) -> Option<(usize, usize)> {
        if index >= self.num_tasks {
            return None;
        }
        let index = index - self.num_pieces;
        // The last of several entries that begin here: those before it have nothing to join.
        let entry = self.entries.partition_point(|entry| entry.first_join <= index) - 1;
        Some((entry, index - self.entries[entry].first_join))
    }

    /// Words of one row's sums, and of its record with its maximum and its sum of weights.
    pub(super) fn record(&self) -> usize {
        self.geometry.value_dim.next_multiple_of(MAX_LANES) + MAX_LANES
    }

    /// Words of the records of a key head.
    pub(super) fn head_words(&self, q_len: usize) -> usize {
        padded_rows(self.geometry.rows(q_len)) * self.record()
    }

    /// Where in the workspace the records of a key head of a piece are.
    pub(super) fn records(&self, entry: usize, piece: usize, head: usize) -> usize {
        let entry = &self.entries[entry];
        let heads = piece * self.geometry.num_kv_heads + head;
        entry.records + heads * self.head_words(entry.sequence.q_len)
    }
}

/// Rows of a key head, taken four, two or one at a time: three have a fourth beside them.
pub(super) fn padded_rows(rows: usize) -> usize {
    if rows % 4 == 3 { rows + 1 } else { rows }
}
