//! The reference backend passes the table: its rounding is the only difference from the float64 answers. The costliest
//! cases are left to backends that compute in other ways.

use omniflash_core::ReferenceBackend;
use omniflash_testkit::conformance::{self, Filter};

#[test]
fn the_reference_backend_passes_the_table() {
    let filter = Filter::all().budget(6_000_000_000).repeat_up_to(1_000_000);
    let summary = conformance::run(&ReferenceBackend::new(), &filter);
    println!("{summary}");
    summary.assert_clean();
}
