//! The reference backend passes the table: its rounding is the only difference from the float64 answers.

use omniflash_core::ReferenceBackend;
use omniflash_testkit::conformance::{self, Filter};

#[test]
fn the_reference_backend_passes_the_table() {
    let summary = conformance::run(&ReferenceBackend::new(), &Filter::all().repeat_up_to(1_000_000));
    println!("{summary}");
    summary.assert_clean();
}
