//! Launches of kernels compiled for the host, compared with the reference.

use std::sync::OnceLock;

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Float};
use omniflash_device::parameters::{AttentionParameters, DeviceAddress};
use omniflash_kernels_cuda::{
    DecodeConfig, ForwardConfig, NaiveConfig, combine, combine_launch, verify_page_table,
    verify_page_table_launch,
};
use omniflash_testkit::kernel::{Case, HostMemory, KvForm, assert_finds_bad_pages, attend};

use super::module::{COMBINE, FORWARD, Module, VERIFY};

/// Runs a case with both orders of warps, and compares with the reference.
pub(crate) fn check<T: Float>(module: &Module, config: &ForwardConfig, case: &Case<'_, T>) {
    for last_warp_first in [false, true] {
        let answer = attend(HostMemory, case, config.block_m, |_, mut p, functors| {
            let (out_bytes, lse_bytes) = ForwardConfig::workspace_bytes(&p);
            let partial_out = vec![f32::NAN; out_bytes / 4];
            let partial_lse = vec![f32::NAN; lse_bytes / 4];
            p.partial_out = DeviceAddress(partial_out.as_ptr().expose_provenance() as u64);
            p.partial_lse = DeviceAddress(partial_lse.as_ptr().expose_provenance() as u64);
            let (grid, shared) = (ForwardConfig::grid(&p).unwrap(), config.shared_memory_bytes());
            module.run(grid, config.block_threads(), shared, &p, functors, last_warp_first);
            if case.partitions > 1 {
                let launch = combine_launch(&p).unwrap();
                combine_module(T::DTYPE).run(launch.grid, launch.block_threads, 0, &p, &[], last_warp_first);
            }
        });
        answer.assert_right(case);
    }
}

/// The same for the decode kernel: `workers` share all keys, or with 0 each item has the case's partitions.
pub(crate) fn check_decode<T: Float>(
    module: &Module,
    config: &DecodeConfig,
    case: &Case<'_, T>,
    workers: u32,
) {
    for last_warp_first in [false, true] {
        let answer = attend(HostMemory, case, config.block_m, |_, p, functors| {
            run_decode(module, config, p, workers, last_warp_first, functors);
        });
        answer.assert_right(case);
    }
}

/// What the decode kernel leaves in the output.
pub(crate) fn decode_output<T: Float>(
    module: &Module,
    config: &DecodeConfig,
    case: &Case<'_, T>,
    workers: u32,
) -> Vec<T> {
    let run =
        |_: &mut HostMemory, p, functors: &[u8]| run_decode(module, config, p, workers, false, functors);
    attend(HostMemory, case, config.block_m, run).out
}

fn run_decode(
    module: &Module,
    config: &DecodeConfig,
    mut p: AttentionParameters,
    workers: u32,
    last_warp_first: bool,
    functors: &[u8],
) {
    p.num_workers = workers;
    let workspace = config.workspace(&p);
    let partial_out = vec![f32::NAN; workspace.partial_out / 4];
    let partial_lse = vec![f32::NAN; workspace.partial_lse / 4];
    let counters = vec![0u32; workspace.counters / 4];
    p.partial_out = DeviceAddress(partial_out.as_ptr().expose_provenance() as u64);
    p.partial_lse = DeviceAddress(partial_lse.as_ptr().expose_provenance() as u64);
    p.counters = DeviceAddress(counters.as_ptr().expose_provenance() as u64);
    let launch = config.launch(&p).unwrap();
    let (shared, cluster) = (launch.shared_memory_bytes, config.cluster as u32);
    module.run_clusters(launch.grid, cluster, launch.block_threads, shared, &p, functors, last_warp_first);
    for (i, counter) in counters.iter().enumerate() {
        // SAFETY: the kernel wrote through the address; the vector is still there.
        let left = unsafe { std::ptr::from_ref(counter).read_volatile() };
        assert_eq!(left, 0, "counter {i} is not as it was");
    }
}

fn combine_module(dtype: DType) -> &'static Module {
    static MODULES: [OnceLock<Module>; 3] = [OnceLock::new(), OnceLock::new(), OnceLock::new()];
    let index = [DType::F32, DType::F16, DType::BF16].iter().position(|&other| other == dtype).unwrap();
    MODULES[index].get_or_init(|| Module::build(&combine(dtype), COMBINE))
}

pub(crate) fn check_naive<T: Float>(case: &Case<'_, T>) {
    let functors = FunctorSpec::new(&case.mask, &case.score_mod, case.heads, "test").unwrap();
    let config = NaiveConfig { dtype: T::DTYPE, paged: matches!(case.kv_form, KvForm::Paged(_)) };
    let module = Module::build(&config.translation_unit(&functors), FORWARD);
    let answer = attend(HostMemory, case, 1, |_, p, functors| {
        let launch = NaiveConfig::launch(&p).unwrap();
        module.run(launch.grid, launch.block_threads, 0, &p, functors, false);
    });
    answer.assert_right(case);
}

pub(crate) fn check_verify_page_table() {
    let module = Module::build(&verify_page_table(), VERIFY);
    assert_finds_bad_pages(
        || HostMemory,
        |_, p| {
            let launch = verify_page_table_launch(p);
            module.run(launch.grid, launch.block_threads, 0, p, &[], false);
        },
    );
}
