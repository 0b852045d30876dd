//! Launches of code objects on an emulated device, compared with the reference.

use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Float};
use omniflash_device::parameters::{AttentionParameters, DeviceAddress};
use omniflash_kernels_hip::{
    Architecture, ForwardConfig, Launch, NaiveConfig, combine, combine_launch, verify_page_table,
    verify_page_table_launch,
};
use omniflash_testkit::kernel::{Case, KvForm, Tolerance, assert_finds_bad_pages, attend};

use super::memory::Memory;
use super::module::Module;

/// Runs a case and compares with the reference.
pub(crate) fn check<T: Float>(module: &Module, config: &ForwardConfig, case: &Case<'_, T>) {
    config.check().unwrap();
    compare(module.architecture(), case, config.block_m, |memory, mut p, functors| {
        let (out_bytes, lse_bytes) = ForwardConfig::workspace_bytes(&p);
        p.partial_out = DeviceAddress(memory.allocate(out_bytes));
        p.partial_lse = DeviceAddress(memory.allocate(lse_bytes));
        let launch = Launch {
            grid: config.grid(&p).unwrap(),
            block_threads: config.block_threads(),
            shared_memory_bytes: config.shared_memory_bytes(),
        };
        memory.run(module, launch, bytemuck::bytes_of(&p), functors);
        if case.partitions > 1 {
            let combine = Module::build(config.architecture, &combine(T::DTYPE));
            let launch = combine_launch(config.architecture, &p).unwrap();
            memory.run(&combine, launch, bytemuck::bytes_of(&p), &[]);
        }
    });
}

pub(crate) fn check_naive<T: Float>(architecture: Architecture, case: &Case<'_, T>) {
    let functors = FunctorSpec::new(&case.mask, &case.score_mod, case.heads, "test").unwrap();
    let config = NaiveConfig { dtype: T::DTYPE, paged: matches!(case.kv_form, KvForm::Paged(_)) };
    let module = Module::build(architecture, &config.translation_unit(&functors));
    compare(architecture, case, 1, |memory, p, functors| {
        memory.run(&module, NaiveConfig::launch(&p).unwrap(), bytemuck::bytes_of(&p), functors);
    });
}

fn compare<T: Float>(
    architecture: Architecture,
    case: &Case<'_, T>,
    block_m: usize,
    launch: impl FnOnce(&mut Memory, AttentionParameters, &[u8]),
) {
    // Its f32 is all of it.
    let tolerance = if T::DTYPE == DType::F32 { Tolerance::Exact } else { Tolerance::OfDtype };
    let case = Case { tolerance, ..case.clone() };
    attend(Memory::new(architecture), &case, block_m, launch).assert_right(&case);
}

pub(crate) fn check_verify_page_table(architecture: Architecture) {
    let module = Module::build(architecture, &verify_page_table());
    assert_finds_bad_pages(
        || Memory::new(architecture),
        |memory, p| memory.run(&module, verify_page_table_launch(p), bytemuck::bytes_of(p), &[]),
    );
}
