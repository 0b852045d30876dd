//! The CUDA backend of every GPU of this machine passes the table, and the golden and random cases.

#![allow(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::sync::Arc;

use omniflash_core::{Backend, Error};
use omniflash_testkit::conformance::{self, Filter};
use omniflash_testkit::expectations::EXPECTATIONS;
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::tolerance::Precision;
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
