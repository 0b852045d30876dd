//! The kernels' source through the store with this machine's compilers; no GPU is needed, skipped without a compiler.

#![allow(clippy::print_stdout, reason = "a skipped test says why")]

#[allow(dead_code, unreachable_pub, reason = "shared with other tests")]
mod support;

use std::sync::Arc;

use omniflash_core::{
    AttentionOptions, AttentionPlan, DType, DeviceSource, Error, Mask, MaskFunction, ReferenceBackend,
    Result, Stream,
};
use omniflash_cuda::OfflinePlanner;
use omniflash_cuda::compiler::Nvrtc;
use omniflash_kernel_store::{Compiler, DiskCache, KernelStore, StoreOptions};
use support::{Case, MaskKind, with_dense_problem, with_host_problem};

/// A store that compiles with NVRTC and caches in `folder`; `None`, with a word on why, without NVRTC.
fn store(folder: &std::path::Path) -> Option<Arc<KernelStore>> {
    let nvrtc = Nvrtc::of_system();
    if let Err(reason) = nvrtc.version() {
        println!("skipped: NVRTC is absent: {reason}");
        return None;
    }
    Some(Arc::new(KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(folder)),
        compilers: vec![Box::new(nvrtc)],
        ..StoreOptions::default()
    })))
}

/// A store with the same cache and no compiler.
fn without_compiler(folder: &std::path::Path) -> Arc<KernelStore> {
    Arc::new(KernelStore::new(StoreOptions {
        cache: Some(DiskCache::new(folder)),
        advice: "install a compiler".into(),
        ..StoreOptions::default()
    }))
}

fn plan(arch: &str, store: &Arc<KernelStore>, case: &Case) -> Result<AttentionPlan> {
    let planner = OfflinePlanner::new(arch, Arc::clone(store))?;
    with_host_problem(case, |problem| planner.plan(problem))
}

#[test]
fn kernels_are_compiled_for_each_architecture_and_then_found_without_a_compiler() {
    let folder = tempfile::tempdir().unwrap();
    let Some(store) = store(folder.path()) else { return };
    let split = Case { mask: MaskKind::Causal, partitions: Some(2), ..Case::new(DType::BF16) };
    for (number, arch) in ["sm_80", "sm_90", "sm_120"].into_iter().enumerate() {
        let begin = std::time::Instant::now();
        let first = plan(arch, &store, &split).unwrap();
        println!("{first}: two kernels in {:.2} s", begin.elapsed().as_secs_f64());
        assert_eq!(store.cache().unwrap().entries().unwrap().len(), 2 * (number + 1), "forward and combine");
        let cached = plan(arch, &without_compiler(folder.path()), &split).unwrap();
        assert_eq!(cached.to_string(), first.to_string());
    }
    let other = Case { mask: MaskKind::Document, ..split };
    let error = plan("sm_90", &without_compiler(folder.path()), &other).unwrap_err();
    assert!(
        matches!(&error, Error::NoKernel { arch, hint, .. } if arch == "sm_90" && hint.contains("install")),
        "{error}"
    );
}

/// Every third key, as device source.
struct Thirds(&'static str);

impl MaskFunction for Thirds {
    fn visible(&self, _: usize, _: usize, _: i64, k: i64) -> bool {
        k % 3 == 0
    }
    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("Thirds", self.0, &3i32))
    }
}

#[test]
fn a_users_functor_is_compiled_and_its_errors_reach_the_user() {
    let folder = tempfile::tempdir().unwrap();
    let Some(store) = store(folder.path()) else { return };
    let planner = OfflinePlanner::new("sm_90", store).unwrap();
    let plan = |source| {
        let options = AttentionOptions::new().mask(Mask::custom(Thirds(source)));
        let shape = (1, (64, 64), (2, 2), 64);
        with_dense_problem(&ReferenceBackend::new(), shape, &options, &Stream::host(), |problem| {
            planner.plan(problem)
        })
    };
    let good = "struct Thirds { int period; OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const \
                { return at.k % period == 0; } };";
    assert!(plan(good).unwrap().kernel_id.contains("-thirds-"));
    let error = plan("struct Thirds { int period; no_such_type x; };").unwrap_err();
    let Error::Driver { api, text, .. } = &error else { panic!("{error}") };
    assert!(api.starts_with("nvrtc compiling fwd-sm_90"), "{api}");
    assert!(text.contains("no_such_type") && text.contains("functor 0"), "{text}");
}
