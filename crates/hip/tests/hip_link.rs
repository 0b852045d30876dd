//! A program that is linked with the driver, which is the emulator where `ci/hip-link` builds this.

#![cfg(feature = "hip-link")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

/// The emulator's machine has one gfx942 unless the environment says otherwise.
#[test]
fn a_linked_driver_is_found_without_loading_any() {
    let devices = omniflash_hip::probe::devices().unwrap();
    assert_eq!((devices[0].arch_name.as_str(), devices[0].wave_size), ("gfx942:sramecc+:xnack-", 64));
}
