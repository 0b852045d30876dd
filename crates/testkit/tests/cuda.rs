//! The CUDA backend of every GPU of this machine passes the table, and the golden and random cases.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use omniflash_core::{Algorithm, Backend, Error};
use omniflash_testkit::conformance::{self, Filter};
use omniflash_testkit::expectations::EXPECTATIONS;
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::tolerance::{Precision, difference};
use omniflash_testkit::{Oracle, golden};
use proptest::prelude::*;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

/// The GPUs of this machine; prints why there is none.
fn backends() -> Vec<Arc<dyn Backend>> {
    omniflash_cuda::discover().unwrap_or_else(|absent| {
        println!("skipped: {absent}");
        Vec::new()
    })
}

#[test]
fn every_gpu_passes_the_table() {
    // A pattern such as `f7/*` takes a part of the table.
    let filter = std::env::var("OMNIFLASH_CONFORMANCE").map_or_else(|_| Filter::all(), Filter::only);
    for backend in backends() {
        let summary = conformance::run_all(&[&*backend], &filter, EXPECTATIONS).remove(0);
        println!("{summary}");
        summary.assert_clean();
    }
}

/// Small cases go to other kernels unless this family is asked for.
#[test]
fn every_gpu_passes_what_flash3_takes_of_the_table() {
    passes_what_it_takes(Algorithm::Flash3);
}

/// On Hopper most of the table goes to its own kernels.
#[test]
fn every_gpu_passes_what_flash2_takes_of_the_table() {
    passes_what_it_takes(Algorithm::Flash2);
}

fn passes_what_it_takes(algorithm: Algorithm) {
    let filter = std::env::var("OMNIFLASH_CONFORMANCE").map_or_else(|_| Filter::all(), Filter::only);
    for backend in backends() {
        let (mut taken, mut wrong) = (0, Vec::new());
        for spec in conformance::TABLE.iter().flat_map(|row| filter.select(row)) {
            let mut case = spec.build();
            if case.config.algorithm != Algorithm::Auto {
                continue;
            }
            case.config.algorithm = algorithm;
            let outcome = match case.run(&*backend) {
                Err(Error::Unsupported { .. } | Error::Value { .. }) => continue,
                outcome => outcome.unwrap_or_else(|error| panic!("{}: {error}", case.name)),
            };
            taken += 1;
            let oracle = Oracle::new(&case).unwrap();
            let mut violations = oracle.judge(&case, &outcome, Precision::of(backend.info()));
            violations.extend(difference(&outcome, &case.run(&*backend).unwrap()));
            wrong.extend(violations.iter().map(|violation| format!("{}: {violation}", case.name)));
        }
        println!("{taken} cases by {algorithm} on {}", backend.info().arch);
        assert!(wrong.is_empty(), "{} findings:\n{}", wrong.len(), wrong.join("\n"));
    }
}

#[test]
fn every_gpu_passes_the_golden_cases() {
    for backend in backends() {
        for golden in golden::all() {
            assert_eq!(golden.check(&*backend).unwrap(), [], "{}", golden.case.name);
        }
    }
}

/// Random cases: as many, and no new one after so long. Most need a kernel of their own, which takes a second or two to
/// compile, so that they run side by side.
const RANDOM_CASES: usize = 160;
const RANDOM_BUDGET: Duration = Duration::from_secs(45);

#[test]
fn random_cases_come_out_right_on_every_gpu() {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(RANDOM_CASES);
    for backend in backends() {
        let (begin, ran, refused) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for worker in 0..workers {
                let (backend, ran, refused) = (&*backend, &ran, &refused);
                scope.spawn(move || {
                    let config = ProptestConfig {
                        failure_persistence: None,
                        ..ProptestConfig::with_cases((RANDOM_CASES / workers) as u32)
                    };
                    let seed = [worker as u8 + 1; 32];
                    let mut runner =
                        TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
                    let outcome = runner.run(&valid(Dims::MultiplesOf8), |spec| {
                        if begin.elapsed() > RANDOM_BUDGET {
                            return Ok(());
                        }
                        let case = spec.build();
                        // A closure on scores is the one thing that a GPU refuses.
                        let outcome = match case.run(backend) {
                            Err(Error::Unsupported { .. }) => {
                                refused.fetch_add(1, Ordering::Relaxed);
                                return Ok(());
                            }
                            outcome => outcome.unwrap(),
                        };
                        let oracle = Oracle::new(&case).unwrap();
                        let violations = oracle.judge(&case, &outcome, Precision::of(backend.info()));
                        prop_assert!(violations.is_empty(), "{violations:?}");
                        ran.fetch_add(1, Ordering::Relaxed);
                        Ok(())
                    });
                    outcome.unwrap_or_else(|failure| panic!("worker {worker}: {failure}"));
                });
            }
        });
        let (ran, refused) = (ran.into_inner(), refused.into_inner());
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "{ran} random cases passed on {} in {seconds:.1} s, {refused} were refused, {} found no time",
            backend.info().name,
            RANDOM_CASES / workers * workers - ran - refused
        );
        assert!(ran > 0, "no case ran");
    }
}
