//! What a benchmark asks of a backend beside attention itself: times by the device's own clock, what a launch costs the
//! host, and the most that the device was measured to do.

use std::time::{Duration, Instant};

use crate::backend::{Backend, check_device};
use crate::device::Stream;
use crate::dtype::DType;
use crate::error::Result;
use crate::problem::AttentionProblem;

/// What a device was measured to do at most, by loops that do nothing else.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peaks {
    /// Floating-point operations a second of the instructions that products of a dtype can use, every unit busy.
    pub flops: Vec<(DType, f64)>,
    /// Bytes a second that are read from memory.
    pub read: Option<f64>,
    /// Bytes a second that a copy reads and writes, both counted.
    pub copy: Option<f64>,
}

impl Peaks {
    /// The operations a second for products of `dtype`.
    pub fn flops_of(&self, dtype: DType) -> Option<f64> {
        self.flops.iter().find(|(of, _)| *of == dtype).map(|(_, rate)| *rate)
    }
}

/// Milliseconds of each of `repeats` runs of a problem by the device's own clock, its caches displaced before each;
/// `None` where the device has no clock of its own.
///
/// # Errors
/// Those of [`Backend::plan`] and [`Backend::time_launches`].
pub fn time_on_device(
    backend: &dyn Backend,
    problem: &AttentionProblem<'_>,
    stream: &Stream,
    repeats: usize,
) -> Result<Option<Vec<f64>>> {
    check_device(backend, problem)?;
    let plan = backend.plan(problem)?;
    // SAFETY: the plan is this backend's for this problem; the problem borrows its tensors, the outputs exclusively,
    // and they stay borrowed until the stream is done, below.
    let timed = unsafe { backend.time_launches(&plan, problem, stream, repeats) };
    // Even after an error: part of the work may be under way.
    let synchronized = backend.synchronize(stream);
    timed.and_then(|times| synchronized.map(|()| times))
}

/// The time that the host spends on planning and launching a problem, a call, over `calls` calls that follow one another
/// without waiting; then waits for them.
///
/// # Errors
/// Those of [`Backend::plan`], [`Backend::launch`] and [`Backend::synchronize`].
pub fn time_enqueue(
    backend: &dyn Backend,
    problem: &AttentionProblem<'_>,
    stream: &Stream,
    calls: u32,
) -> Result<Duration> {
    check_device(backend, problem)?;
    let calls = calls.max(1);
    let start = Instant::now();
    let enqueued = (0..calls).try_for_each(|_| {
        let plan = backend.plan(problem)?;
        // SAFETY: the plan is this backend's for this problem; the problem borrows its tensors, the outputs exclusively,
        // and they stay borrowed until the stream is done, below. Launches on one stream run one after another.
        unsafe { backend.launch(&plan, problem, stream) }
    });
    let elapsed = start.elapsed();
    let synchronized = backend.synchronize(stream);
    enqueued.and(synchronized)?;
    Ok(elapsed / calls)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AttentionOptions, KvCache, Query, ReferenceBackend, TensorMut, TensorRef};

    #[test]
    fn a_backend_without_a_clock_gives_no_times_and_still_enqueues() {
        let (q, kv) = ([1.0f32; 8], [1.0f32; 16]);
        let mut out = [0.0f32; 8];
        let problem = AttentionProblem::new(
            Query::padded(TensorRef::from_slice(&q, &[1, 1, 1, 8]).unwrap()),
            KvCache::dense(
                TensorRef::from_slice(&kv, &[1, 2, 1, 8]).unwrap(),
                TensorRef::from_slice(&kv, &[1, 2, 1, 8]).unwrap(),
            ),
            TensorMut::from_slice(&mut out, &[1, 1, 1, 8]).unwrap(),
            None,
            &AttentionOptions::new(),
        )
        .unwrap();
        let (backend, stream) = (ReferenceBackend::new(), Stream::host());
        assert_eq!(time_on_device(&backend, &problem, &stream, 3).unwrap(), None);
        assert_eq!(backend.measure_peaks(&stream, Duration::ZERO).unwrap(), Peaks::default());
        assert!(time_enqueue(&backend, &problem, &stream, 2).unwrap() > Duration::ZERO);
        drop(problem);
        assert_eq!(out, [1.0; 8]);
    }

    #[test]
    fn a_peak_is_found_by_its_dtype() {
        let peaks = Peaks { flops: vec![(DType::F32, 1e9), (DType::BF16, 2e9)], ..Peaks::default() };
        assert_eq!((peaks.flops_of(DType::BF16), peaks.flops_of(DType::F16)), (Some(2e9), None));
    }
}
