//! The real libraries of ROCm, where there are some: what the driver says without a card, and code objects that hipRTC
//! makes, on the emulated machine.

use std::sync::Arc;

use omniflash_core::{Algorithm, AttentionConfig, AttentionOptions, Backend, Mask, run};
use omniflash_kernel_store::{Compiler as _, KernelStore, Origin, StoreOptions};
use omniflash_testkit::append;

use super::Tensors;
use super::emulator::Emulator;
use crate::compiler::Hiprtc;
use crate::probe::{self, Absent};

#[test]
fn a_real_driver_tells_its_devices_or_that_there_is_none() {
    // Twice, for a driver that has found nothing must not remember it as an error.
    for _ in 0..2 {
        match probe::devices() {
            Err(Absent::NoLibrary(reason)) => println!("skipped: {reason}"),
            Err(absent) => {
                assert!(matches!(absent, Absent::NoDevice | Absent::UnknownArchitecture(_)), "{absent}")
            }
            Ok(devices) => {
                assert!(devices.iter().all(|device| device.wave_size == device.architecture.wave_size()));
            }
        }
    }
}

#[test]
fn code_objects_of_hiprtc_give_the_right_answer() {
    if let Err(reason) = Hiprtc::of_system().version() {
        println!("skipped: {reason}");
        return;
    }
    // The one architecture that hipRTC of every version knows.
    let Some(emulator) = Emulator::with("gfx90a") else { return };
    let compilers = vec![Box::new(Hiprtc::of_system()) as _];
    let store = Arc::new(KernelStore::new(StoreOptions { compilers, ..StoreOptions::default() }));
    let backend = &emulator.backends_with(&store)[0];
    for append in append::appends().into_iter().step_by(7) {
        assert!(append::agrees(backend, &append).unwrap(), "{append:?}");
    }
    let stream = backend.stream().unwrap();
    let mut tensors = Tensors::new(backend, &stream, (3, 200), 7);
    let naive = AttentionConfig { algorithm: Algorithm::Naive, ..AttentionConfig::default() };
    for options in [
        AttentionOptions::new().mask(Mask::Causal).num_partitions(2),
        AttentionOptions::new().mask(Mask::from_fn(|_, _, q, k| (q + k) % 3 != 0)).num_partitions(1),
        AttentionOptions { config: naive, ..AttentionOptions::new() },
    ] {
        let problem = tensors.problem(&options);
        let plan = backend.plan(&problem).unwrap();
        let origin = backend.origin(&plan).unwrap();
        assert!(matches!(origin, Some(Origin::Compiled { .. })), "{origin:?}");
        run(backend, &problem, &stream).unwrap();
        drop(problem);
        tensors.assert_right(backend, &stream, 7, &options);
    }
}
