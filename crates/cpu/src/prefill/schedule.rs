//! What is done in which order: rounds of heads whose keys are packed ahead, and their tasks, the heaviest first.

use std::ops::Range;

use super::Call;
use super::copy::{Packing, Place, head_words};
use crate::mask::Keys;
use crate::rows::Sequence;
use crate::simd::Storage;

/// Words that the copy of a round's keys and values takes at most: a part of the last-level cache.
pub(crate) const COPY_WORDS: usize = (16 << 20) / size_of::<f32>();

/// Rows of a key head at least for which keys are packed ahead: fewer are a task or two, which are as fast packing as they
/// go.
pub(crate) const COPY_ROWS: usize = 2048;

/// Strips of one key head against a range of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Task {
    pub(super) sequence: usize,
    pub(super) kv_head: usize,
    /// The first of the task's strips, counted within sequence and head.
    pub(super) strip: usize,
    pub(super) strips: usize,
    /// The first strip, counted over all.
    pub(super) index: usize,
    pub(super) piece: usize,
    pub(super) keys: Keys,
    /// Where the head's keys are packed, unless the task packs them itself.
    pub(super) place: Option<Place>,
}

/// Tasks that run at the same time, once what they share is packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    pub(super) packings: Range<usize>,
    pub(super) tasks: Range<usize>,
    /// Words of its copy.
    words: usize,
}

/// The rounds of a call.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    pub(super) rounds: Vec<Round>,
    pub(super) packings: Vec<Packing>,
    pub(super) tasks: Vec<Task>,
    /// Strips of all tasks.
    pub(super) strips: usize,
}

impl Schedule {
    pub(super) fn new<T: Storage>(call: &Call<'_, T>, kv_heads: usize) -> Self {
        let mut schedule = Schedule { rounds: vec![Round::default()], ..Schedule::default() };
        for s in 0..call.sequences.len() {
            match call.packed_ahead(&call.sequences[s]) {
                Some(seen) => schedule.add_packed(call, (s, seen), kv_heads),
                None => (0..kv_heads).for_each(|kv_head| schedule.add_head(call, s, kv_head)),
            }
        }
        schedule
    }

    /// Words of the largest round's copy.
    pub(super) fn copy_words(&self) -> usize {
        self.rounds.iter().map(|round| round.words).max().unwrap_or(0)
    }

    fn round(&mut self) -> &mut Round {
        self.rounds.last_mut().expect("a schedule begins with a round")
    }

    /// The tasks of a sequence whose keys are packed ahead: of as many heads together as a round has room for, or nearly
    /// so, that the last round is not much smaller than others.
    fn add_packed<T: Storage>(&mut self, call: &Call<'_, T>, (s, seen): (usize, Keys), kv_heads: usize) {
        let words = head_words(&call.sizes, (seen.1 - seen.0) as usize);
        let most = call.copy_words / words;
        let together = kv_heads.div_ceil(kv_heads.div_ceil(most));
        for first_head in (0..kv_heads).step_by(together) {
            let heads = together.min(kv_heads - first_head);
            if self.round().words + heads * words > call.copy_words {
                let (packings, tasks) = (self.packings.len(), self.tasks.len());
                self.rounds.push(Round { packings: packings..packings, tasks: tasks..tasks, words: 0 });
            }
            let offset = self.round().words;
            self.round().words += heads * words;
            Packing::of_heads(call, (s, seen), first_head..first_head + heads, offset, &mut self.packings);
            self.round().packings.end = self.packings.len();
            let strips = call.strips_of(&call.sequences[s]);
            let mut add = |group: Range<usize>, i: usize| {
                let place = Place { offset: offset + i * words, first: seen.0 };
                self.add_tasks(call, (s, first_head + i), (group, i * strips), Some(place));
            };
            if call.heads_are_near() {
                // Queries and outputs of the heads lie on the same pages.
                groups(strips, call.sizes.strips)
                    .for_each(|group| (0..heads).for_each(|i| add(group.clone(), i)));
            } else {
                (0..heads).for_each(|i| groups(strips, call.sizes.strips).for_each(|group| add(group, i)));
            }
            self.strips += heads * strips;
        }
    }

    /// The tasks of one head, which pack its keys themselves.
    fn add_head<T: Storage>(&mut self, call: &Call<'_, T>, s: usize, kv_head: usize) {
        let strips = call.strips_of(&call.sequences[s]);
        for group in groups(strips, call.sizes.strips) {
            self.add_tasks(call, (s, kv_head), (group, 0), None);
        }
        self.strips += strips;
    }

    /// The tasks of some strips of a head, one for each piece of its keys; `before` strips are counted before its first.
    fn add_tasks<T: Storage>(
        &mut self,
        call: &Call<'_, T>,
        (s, kv_head): (usize, usize),
        (strips, before): (Range<usize>, usize),
        place: Option<Place>,
    ) {
        let kv_len = call.sequences[s].kv_len;
        let piece_keys = kv_len.div_ceil(call.pieces).next_multiple_of(call.sizes.block).max(1);
        let bound = |piece: usize| piece.saturating_mul(piece_keys).min(kv_len) as i64;
        let index = self.strips + before + strips.start;
        for piece in 0..call.pieces {
            self.tasks.push(Task {
                sequence: s,
                kv_head,
                strip: strips.start,
                strips: strips.len(),
                index,
                piece,
                keys: (bound(piece), bound(piece + 1)),
                place,
            });
        }
        self.round().tasks.end = self.tasks.len();
    }
}

/// Strips of a head as tasks have them, from the last rows to the first: under causal masks from the heaviest to the
/// lightest.
fn groups(strips: usize, together: usize) -> impl Iterator<Item = Range<usize>> {
    (0..strips.div_ceil(together)).map(move |i| {
        let end = strips - i * together;
        end.saturating_sub(together)..end
    })
}

impl<T: Storage> Call<'_, T> {
    /// The keys of a sequence that are packed ahead, if they are: those of the blocks that some row sees.
    fn packed_ahead(&self, sequence: &Sequence) -> Option<Keys> {
        if self.copy_words == 0 || self.strips_of(sequence) * self.sizes.rows < COPY_ROWS {
            return None;
        }
        let rows = (0..sequence.q_len as i64)
            .map(|row| self.mask.interval(sequence, sequence.query_start + row))
            .filter(|keys| keys.0 < keys.1);
        let seen = rows.reduce(|all, keys| (all.0.min(keys.0), all.1.max(keys.1)))?;
        let block = self.sizes.block as i64;
        let end = (seen.1 as usize).next_multiple_of(self.sizes.block).min(sequence.kv_len);
        let seen = (seen.0 / block * block, end as i64);
        (head_words(&self.sizes, (seen.1 - seen.0) as usize) <= self.copy_words).then_some(seen)
    }
}
