//! Memory that a thread keeps between calls.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use omniflash_core::{Buffer, Result};

thread_local! {
    static SCRATCH: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    static WORKSPACE: Cell<Option<Buffer>> = const { Cell::new(None) };
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
    let mut lines = SCRATCH.take();
    let count = words.div_ceil(LINE_WORDS);
    if lines.len() < count {
        lines.resize(count, Line { _words: [0.0; LINE_WORDS] });
    }
    // SAFETY: lines are arrays of words without padding.
    let memory =
        unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), lines.len() * LINE_WORDS) };
    let result = f(&mut memory[..words]);
    SCRATCH.set(lines);
    result
}

/// As [`with_scratch`], for memory that the threads of a call share: in huge pages where it is large, and as much as a
/// caller's partitions need.
///
/// # Errors
/// [`Error::OutOfMemory`](omniflash_core::Error::OutOfMemory).
pub(crate) fn with_workspace<R>(words: usize, f: impl FnOnce(&mut [f32]) -> R) -> Result<R> {
    let bytes = words.saturating_mul(size_of::<f32>());
    let kept = WORKSPACE.take().filter(|buffer| buffer.bytes() >= bytes);
    let mut buffer = match kept {
        Some(buffer) => buffer,
        None => Buffer::host(bytes)?,
    };
    let memory = buffer.as_host_bytes_mut().expect("a host buffer has host memory");
    // SAFETY: any bits are an f32.
    let (before, memory, _) = unsafe { memory.align_to_mut::<f32>() };
    debug_assert!(before.is_empty(), "buffers begin at cache lines");
    let result = f(&mut memory[..words]);
    WORKSPACE.set(Some(buffer));
    Ok(result)
}

/// Elements of lists whose memory a thread keeps between calls.
pub(crate) trait Listed: Sized + 'static {
    /// The lists that this thread has no use for at the moment.
    fn spares() -> &'static LocalKey<Spares<Self>>;
}

/// Empty lists, with their memory.
pub(crate) type Spares<T> = RefCell<Vec<Vec<T>>>;

macro_rules! listed {
    ($type:ty) => {
        impl crate::scratch::Listed for $type {
            fn spares() -> &'static std::thread::LocalKey<crate::scratch::Spares<Self>> {
                thread_local! {
                    static SPARES: crate::scratch::Spares<$type> = const { std::cell::RefCell::new(Vec::new()) };
                }
                &SPARES
            }
        }
    };
}
pub(crate) use listed;

listed!(f32);

/// A list that takes the memory of an earlier one, and leaves its own to a later one.
pub(crate) struct List<T: Listed>(Vec<T>);

impl<T: Listed> List<T> {
    pub(crate) fn new() -> Self {
        List(T::spares().with(|spares| spares.borrow_mut().pop()).unwrap_or_default())
    }
}

impl<T: Listed> Drop for List<T> {
    fn drop(&mut self) {
        let mut list = std::mem::take(&mut self.0);
        list.clear();
        // A thread that ends has no more use for it.
        let _ = T::spares().try_with(|spares| spares.borrow_mut().push(list));
    }
}

impl<T: Listed> Deref for List<T> {
    type Target = Vec<T>;

    fn deref(&self) -> &Vec<T> {
        &self.0
    }
}

impl<T: Listed> DerefMut for List<T> {
    fn deref_mut(&mut self) -> &mut Vec<T> {
        &mut self.0
    }
}

impl<T: Listed> Extend<T> for List<T> {
    fn extend<I: IntoIterator<Item = T>>(&mut self, elements: I) {
        self.0.extend(elements);
    }
}

impl<T: Listed> FromIterator<T> for List<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        let mut list = List::new();
        list.extend(elements);
        list
    }
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
    use omniflash_core::Error;

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
    fn a_workspace_is_kept_and_aligned_and_an_impossible_one_is_an_error() {
        let first = with_workspace(1000, |memory| {
            memory[999] = 7.0;
            memory.as_ptr() as usize
        });
        assert_eq!(first.clone().unwrap() % 64, 0);
        assert_eq!(
            with_workspace(10, |memory| (memory.len(), memory.as_ptr() as usize)),
            first.map(|at| (10, at))
        );
        for words in [usize::MAX, usize::MAX / 16] {
            let result = with_workspace(words, |_| ());
            assert!(matches!(result, Err(Error::OutOfMemory { .. })), "{result:?}");
        }
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
    fn a_list_takes_the_memory_of_the_one_before() {
        let first: List<f32> = (0..100).map(|i| i as f32).collect();
        let (address, capacity) = (first.as_ptr(), first.capacity());
        drop(first);
        let second: List<f32> = (0..50).map(|_| 1.0).collect();
        assert_eq!((second.as_ptr(), second.capacity(), second.len()), (address, capacity, 50));
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
