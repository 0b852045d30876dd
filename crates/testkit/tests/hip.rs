#![allow(clippy::print_stdout, reason = "x")]
use omniflash_core::Backend;
use omniflash_hip::HipBackend;
use omniflash_kernel_store::*;
use omniflash_testkit::conformance::{self, Filter};
use omniflash_testkit::expectations::EXPECTATIONS;
use std::path::PathBuf;
use std::sync::Arc;

#[test]
fn table() {
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    let library = deps.join("libomniflash_hip_emulator.so");
    let store = Arc::new(KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(PathBuf::from("/tmp/target-hiphost/hipcache"))),
        compilers: vec![Box::new(omniflash_hip::compiler::Clang::of_system())],
        ..Default::default()
    }));
    let backends = HipBackend::discover_in(&library, &store).unwrap();
    let filter = std::env::var("OMNIFLASH_CONFORMANCE").map_or_else(|_| Filter::all(), Filter::only);
    let budget: u64 = std::env::var("BUDGET").ok().map_or(u64::MAX, |b| b.parse().unwrap());
    let filter = if budget == u64::MAX { filter } else { filter.budget(budget) }.repeat_up_to(0);
    for b in &backends {
        let summary = conformance::run_all(&[b as &dyn Backend], &filter, EXPECTATIONS).remove(0);
        println!("{summary}");
    }
}
