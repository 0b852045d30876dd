//! The threads of the caller's pool.

/// Runs `work` on `threads` threads at a time, of which the calling one is the first.
///
/// Inside a pool nothing is allocated, and outside one a word or two a thread: what waits there for a thread to wake
/// up is on the heap.
pub(crate) fn on_threads(threads: usize, work: &(impl Fn() + Sync)) {
    if threads < 2 {
        return work();
    }
    if rayon::current_thread_index().is_some() {
        return together(threads, work);
    }
    // The caller is one of the workers, so that nothing waits for a thread to wake up.
    rayon::in_place_scope(|scope| {
        for _ in 1..threads {
            scope.spawn(|_| work());
        }
        work();
    });
}

/// As [`on_threads`], on a thread of the pool.
fn together(threads: usize, work: &(impl Fn() + Sync)) {
    match threads {
        0 | 1 => work(),
        _ => {
            rayon::join(|| together(threads.div_ceil(2), work), || together(threads / 2, work));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_share_of_the_work_is_done_once_inside_a_pool_and_outside() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        for threads in [0, 1, 2, 3, 7] {
            let done = AtomicUsize::new(0);
            let work = || {
                done.fetch_add(1, Ordering::Relaxed);
            };
            on_threads(threads, &work);
            pool.install(|| on_threads(threads, &work));
            assert_eq!(done.into_inner(), 2 * threads.max(1));
        }
    }
}
