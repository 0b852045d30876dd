//! Properties of random cases.

use omniflash_core::{Error, ReferenceBackend};
use omniflash_testkit::Oracle;
use omniflash_testkit::generators::{Dims, fault, valid};
use omniflash_testkit::spec::{KeySpec, QuerySpec};
use omniflash_testkit::tolerance::Precision;
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_valid_case_is_accepted_and_comes_out_right(spec in valid(Dims::Any)) {
        let case = spec.build();
        let oracle = Oracle::new(&case).unwrap();
        let backend = ReferenceBackend::new();
        let outcome = case.run(&backend).unwrap();
        prop_assert_eq!(oracle.judge(&case, &outcome, Precision { f32_slack: 1.0 }), []);
        prop_assert_eq!(case.run(&backend).unwrap(), outcome);
    }

    #[test]
    fn where_keys_are_kept_changes_no_bit(spec in valid(Dims::Any), page_size in 1usize..9) {
        let lengths = spec.kv_lengths();
        let bounded = !matches!(spec.query, QuerySpec::Ragged { bounded: false, .. });
        let forms = [
            KeySpec::Dense { seqlen: 45, lengths: Some(lengths.clone()) },
            KeySpec::Ragged { lengths: lengths.clone(), lead: 1, tail: 2, bounded },
            KeySpec::Continuous { capacity: 50, lengths: lengths.clone() },
            KeySpec::Paged { page_size, lengths, shared_pages: 0 },
        ];
        let mut answers = Vec::new();
        for keys in forms {
            let mut spec = spec.clone().arrange_kv(Default::default());
            spec.keys = keys;
            let case = spec.build();
            let reference = case.reference().unwrap();
            let bits = |values: &[f64]| values.iter().map(|value| value.to_bits()).collect::<Vec<u64>>();
            answers.push((bits(&reference.out), bits(&reference.lse)));
        }
        for answer in &answers[1..] {
            prop_assert!(answer == &answers[0]);
        }
    }

    #[test]
    fn a_faulty_request_is_refused_by_a_typed_error_and_never_panics(
        spec in valid(Dims::Any),
        faults in prop::collection::vec(fault(), 1..4),
    ) {
        let mut case = spec.build();
        for fault in &faults {
            fault.inject(&mut case);
        }
        // Some faults leave a request valid; then it must run.
        match case.run(&ReferenceBackend::new()) {
            Ok(_) => {}
            Err(
                Error::Shape { .. }
                | Error::Dtype { .. }
                | Error::Value { .. }
                | Error::Overlap { .. }
                | Error::Unsupported { .. },
            ) => {}
            Err(error) => prop_assert!(false, "{error}"),
        }
    }
}
