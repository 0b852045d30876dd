//! Memory that a thread keeps between calls.

use std::cell::Cell;

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static WORKSPACE: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Words of a cache line.
const LINE_WORDS: usize = 16;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    _words: [f32; LINE_WORDS],
}

/// Lends `words` words of a worker's memory, aligned to cache lines, whose contents are whatever the last user left.
///
/// The memory is taken out of its place meanwhile: a call within the call (a user's function may make one, and so may
/// a thread that waits for others) gets memory of its own.
pub(crate) fn with_scratch<R>(words: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    SCRATCH.with(|memory| lend(memory, words, f))
}

/// As [`with_scratch`], for memory that the threads of a call share.
pub(crate) fn with_workspace<R>(words: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    WORKSPACE.with(|memory| lend(memory, words, f))
}

fn lend<R>(place: &Cell<Vec<Line>>, words: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = place.take();
    let count = words.div_ceil(LINE_WORDS);
    if lines.len() < count {
        lines.resize(count, Line { _words: [0.0; LINE_WORDS] });
    }
    // SAFETY: lines are arrays of words without padding.
    let memory =
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), lines.len() * LINE_WORDS) };
    let result = f(&mut memory[..words]);
    place.set(lines);
    result
}

/// Cuts memory into aligned parts.
pub(crate) struct Parts<'m> {
    rest: &'m mut [f32],
}

impl<'m> Parts<'m> {
    pub(crate) fn new(memory: &'m mut [f32]) -> Self {
        Parts { rest: memory }
    }

    /// The next `words` words, at a cache line.
    ///
    /// # Panics
    /// When less is left.
    pub(crate) fn take(&mut self, words: usize) -> &'m mut [f32] {
        let (part, rest) = std::mem::take(&mut self.rest).split_at_mut(rounded(words));
        self.rest = rest;
        part
    }
}

/// Words of whole cache lines.
pub(crate) const fn rounded(words: usize) -> usize {
    words.next_multiple_of(LINE_WORDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_aligned_and_kept() {
        let first = with_scratch(1000, |memory| {
            memory[999] = 7.0;
            memory.as_ptr() as usize
        });
        assert_eq!(first % 64, 0);
        with_scratch(500, |memory| assert_eq!(memory.as_ptr() as usize, first));
        with_scratch(1000, |memory| assert_eq!(memory[999], 7.0));
    }

    #[test]
    fn a_call_within_a_call_has_its_own() {
        with_scratch(100, |outer| {
            outer.fill(1.0);
            with_scratch(100, |inner| inner.fill(2.0));
            assert!(outer.iter().all(|&word| word == 1.0));
        });
    }

    #[test]
    fn parts_do_not_meet() {
        with_scratch(64, |memory| {
            let mut parts = Parts::new(memory);
            let (a, b) = (parts.take(3), parts.take(17));
            assert_eq!((a.len(), b.len()), (16, 32));
            assert_eq!(b.as_ptr() as usize % 64, 0);
        });
    }
}
