//! Cases whose answers numpy computed: the reference and the backends agree with them.

use omniflash_core::ReferenceBackend;
use omniflash_testkit::golden;

#[test]
fn the_reference_agrees_with_numpy() {
    for golden in golden::all() {
        let reference = golden.case.reference().unwrap();
        let pairs = reference
            .out
            .iter()
            .zip(&golden.expected.out)
            .chain(reference.lse.iter().zip(&golden.expected.lse));
        let mut compared = 0;
        for (found, expected) in pairs {
            // Rows that are not written are NaN here and 0 there.
            if !found.is_nan() {
                compared += 1;
                assert!(
                    found == expected || (found - expected).abs() < 1e-9,
                    "{}: {found} and {expected}",
                    golden.case.name
                );
            }
        }
        let heads = golden.case.num_heads() * (golden.case.value_dim() + 1);
        assert_eq!(compared, golden.case.rows().count() * heads, "{}", golden.case.name);
    }
}

#[test]
fn the_reference_backend_passes_the_golden_cases() {
    for golden in golden::all() {
        assert_eq!(golden.check(&ReferenceBackend::new()).unwrap(), [], "{}", golden.case.name);
    }
}
