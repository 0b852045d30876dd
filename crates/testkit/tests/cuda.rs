//! The CUDA backend of every GPU of this machine passes the table, and the golden and random cases.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::sync::Arc;

use omniflash_core::{Algorithm, Backend, Error};
use omniflash_testkit::conformance::{self, Filter};
use omniflash_testkit::expectations::EXPECTATIONS;
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::tolerance::{Precision, difference};
use omniflash_testkit::{Oracle, golden};
use proptest::prelude::*;

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
    let filter = std::env::var("OMNIFLASH_CONFORMANCE").map_or_else(|_| Filter::all(), Filter::only);
    for backend in backends() {
        let (mut taken, mut wrong) = (0, Vec::new());
        for spec in conformance::TABLE.iter().flat_map(|row| filter.select(row)) {
            let mut case = spec.build();
            if case.config.algorithm != Algorithm::Auto {
                continue;
            }
            case.config.algorithm = Algorithm::Flash3;
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
        println!("{} cases by flash3 on {}", taken, backend.info().arch);
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn random_cases_come_out_right_on_every_gpu(spec in valid(Dims::MultiplesOf8)) {
        for backend in backends() {
            let case = spec.build();
            // A closure on scores is the one thing that a GPU refuses.
            let outcome = match case.run(&*backend) {
                Err(Error::Unsupported { .. }) => continue,
                outcome => outcome.unwrap(),
            };
            let oracle = Oracle::new(&case).unwrap();
            let violations = oracle.judge(&case, &outcome, Precision::of(backend.info()));
            prop_assert!(violations.is_empty(), "{violations:?}");
        }
    }
}
