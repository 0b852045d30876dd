//! Matrix instructions of every target against a product in f64.

use crate::support::{
    Arguments, compile, compiler_is_missing, device_with, download_f32, from_bf16, random_bf16, upload,
};
use omniflash_hip_emulator::{Dimensions, Target};

const DEPTH: usize = 64;

/// The largest error of one kernel, or none if the target has no such kernel.
fn error(target: Target, kernel: &str, size: usize, defines: &[&str]) -> Option<f64> {
    let (mut device, module) = device_with("matrix", target, defines);
    if !module.kernels().any(|name| name == kernel) {
        return None;
    }
    let (a, b) = (random_bf16(4, size * DEPTH), random_bf16(5, size * DEPTH));
    let (a_address, b_address) = (upload(&mut device, &a), upload(&mut device, &b));
    let d = device.allocate(4 * size * size).unwrap();
    let arguments = Arguments::default().pointer(a_address).pointer(b_address).pointer(d).int(DEPTH as i32);
    let block = [target.wave_size() as u32, 1, 1];
    device.launch(&module, kernel, Dimensions::new([1, 1, 1], block), arguments.bytes()).unwrap();
    let result = download_f32(&device, d, size * size);
    let mut largest = 0.0f64;
    for row in 0..size {
        for column in 0..size {
            let product = |k: usize| from_bf16(a[row * DEPTH + k]) * from_bf16(b[column * DEPTH + k]);
            let expected: f64 = (0..DEPTH).map(product).sum();
            largest = largest.max((f64::from(result[row * size + column]) - expected).abs());
        }
    }
    Some(largest)
}

#[test]
fn every_tile_kernel_multiplies() {
    if compiler_is_missing() {
        return;
    }
    let kernels = [("tile_32", 32), ("tile_16", 16), ("wide_tile_32", 32), ("wide_tile_16", 16)];
    for target in Target::ALL {
        let errors: Vec<f64> =
            kernels.iter().filter_map(|(kernel, size)| error(target, kernel, *size, &[])).collect();
        let expected = match target {
            Target::Gfx950 => 4,
            Target::Gfx90a | Target::Gfx942 => 2,
            _ => 1,
        };
        assert_eq!(errors.len(), expected, "{target}");
        // 64 products of at most 1, each sum rounded to f32.
        assert!(
            errors.iter().all(|&error| error < 64.0 * 64.0 * f64::from(f32::EPSILON)),
            "{target}: {errors:?}"
        );
    }
}

#[test]
fn a_kernel_that_stores_with_the_wrong_lane_layout_is_caught() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let error = error(target, "tile_16", 16, &["WRONG_LANES"]).unwrap();
        assert!(error > 0.5, "{target}: {error}");
    }
}

#[test]
fn an_object_for_another_target_is_refused() {
    if compiler_is_missing() {
        return;
    }
    let image = compile("matrix", Target::Gfx942, &[]);
    let mut device = omniflash_hip_emulator::Device::new(Target::Gfx950, Default::default());
    let error = device.load(&image).err().unwrap().to_string();
    assert_eq!(error, "the code object is for gfx942; the device is gfx950");
}
