//! The CPU backend passes the table with every instruction set of this machine, and with the golden and random cases.

use omniflash_core::Backend;
use omniflash_cpu::{CpuBackend, ISA_VARIABLE, Isa};
use omniflash_testkit::conformance::{self, Filter};
use omniflash_testkit::expectations::EXPECTATIONS;
use omniflash_testkit::generators::{Dims, valid};
use omniflash_testkit::tolerance::Precision;
use omniflash_testkit::{Oracle, golden};
use proptest::prelude::*;

/// One backend per instruction set that this machine has, or the one that is asked for.
fn backends() -> Vec<CpuBackend> {
    if std::env::var_os(ISA_VARIABLE).is_some() {
        return vec![CpuBackend::new().expect("it is asked for")];
    }
    let isas = Isa::available();
    isas.into_iter().map(|isa| CpuBackend::with_isa(isa).expect("it is available")).collect()
}

#[test]
fn every_instruction_set_passes_the_table() {
    let backends = backends();
    let backends: Vec<&dyn Backend> = backends.iter().map(|backend| backend as &dyn Backend).collect();
    // A pattern such as `f7/*` takes a part of the table.
    let filter = std::env::var("OMNIFLASH_CONFORMANCE").map_or_else(|_| Filter::all(), Filter::only);
    let summaries = conformance::run_all(&backends, &filter, EXPECTATIONS);
    for summary in &summaries {
        println!("{summary}");
    }
    for summary in &summaries {
        summary.assert_clean();
    }
}

#[test]
fn every_instruction_set_passes_the_golden_cases() {
    for golden in golden::all() {
        for backend in backends() {
            assert_eq!(golden.check(&backend).unwrap(), [], "{} on {}", golden.case.name, backend.isa());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn random_cases_come_out_right_with_every_instruction_set(spec in valid(Dims::Any)) {
        let case = spec.build();
        let oracle = Oracle::new(&case).unwrap();
        for backend in backends() {
            let outcome = case.run(&backend).unwrap();
            let violations = oracle.judge(&case, &outcome, Precision::of(backend.info()));
            prop_assert!(violations.is_empty(), "{}: {violations:?}", backend.isa());
        }
    }
}
