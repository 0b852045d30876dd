//! Compiles the test kernels and packs their arguments.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use omniflash_hip_emulator::{Configuration, Device, Module, Target, disassembler_absence};

/// Whether kernels cannot be compiled, or not be disassembled; says so.
pub(crate) fn compiler_is_missing() -> bool {
    let reason = match Command::new("clang-22").arg("--version").output() {
        Err(_) => Some("clang-22 not installed"),
        Ok(_) => disassembler_absence(),
    };
    reason.inspect(|reason| eprintln!("skipped: {reason}")).is_some()
}

/// The object of `tests/kernels/<name>.hip` for a target, compiled once a process.
pub(crate) fn compile(name: &str, target: Target, defines: &[&str]) -> Arc<Vec<u8>> {
    type Slot = Arc<OnceLock<Arc<Vec<u8>>>>;
    static COMPILED: Mutex<BTreeMap<String, Slot>> = Mutex::new(BTreeMap::new());
    let slot = COMPILED.lock().unwrap().entry(format!("{name} {target} {defines:?}")).or_default().clone();
    slot.get_or_init(|| Arc::new(run_compiler(name, target, defines))).clone()
}

fn run_compiler(name: &str, target: Target, defines: &[&str]) -> Vec<u8> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
    let output = tempfile::NamedTempFile::new().unwrap();
    let result = Command::new("clang-22")
        .args(["-x", "hip", "--cuda-device-only", "--no-gpu-bundle-output", "-O3", "-std=c++17"])
        .args(["-nogpuinc", "-nogpulib", "-mcode-object-version=5"])
        .arg(format!("--offload-arch={target}"))
        .args(defines.iter().map(|define| format!("-D{define}")))
        .arg(directory.join(format!("{name}.hip")))
        .arg("-o")
        .arg(output.path())
        .output()
        .unwrap();
    assert!(result.status.success(), "{name} for {target}: {}", String::from_utf8_lossy(&result.stderr));
    std::fs::read(output.path()).unwrap()
}

/// A device with a test kernel file loaded.
pub(crate) fn device_with(name: &str, target: Target, defines: &[&str]) -> (Device, Module) {
    let mut device = Device::new(target, Configuration::from_environment().unwrap());
    let module = device.load(&compile(name, target, defines)).unwrap();
    (device, module)
}

/// Kernel arguments, each at its natural alignment.
#[derive(Default)]
pub(crate) struct Arguments(Vec<u8>);

impl Arguments {
    pub(crate) fn pointer(mut self, address: u64) -> Arguments {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self.0.extend(address.to_le_bytes());
        self
    }

    pub(crate) fn int(mut self, value: i32) -> Arguments {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn float(mut self, value: f32) -> Arguments {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

pub(crate) fn upload<T: Copy>(device: &mut Device, values: &[T]) -> u64 {
    let address = device.allocate(size_of_val(values)).unwrap();
    // SAFETY: plain numbers, read as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), size_of_val(values)) };
    device.write(address, bytes).unwrap();
    address
}

pub(crate) fn download_f32(device: &Device, address: u64, count: usize) -> Vec<f32> {
    let bytes = device.read(address, 4 * count).unwrap();
    bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
}

pub(crate) fn download_u32(device: &Device, address: u64, count: usize) -> Vec<u32> {
    download_f32(device, address, count).into_iter().map(f32::to_bits).collect()
}

pub(crate) fn download_bf16(device: &Device, address: u64, count: usize) -> Vec<f64> {
    let bytes = device.read(address, 2 * count).unwrap();
    bytes.as_chunks::<2>().0.iter().map(|half| from_bf16(u16::from_le_bytes(*half))).collect()
}

pub(crate) fn from_bf16(bits: u16) -> f64 {
    f64::from(f32::from_bits(u32::from(bits) << 16))
}

/// Numbers between -1 and 1 as bf16, from a linear congruential generator.
pub(crate) fn random_bf16(seed: u64, count: usize) -> Vec<u16> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
            (value.to_bits() >> 16) as u16
        })
        .collect()
}
