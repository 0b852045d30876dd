//! The shipped kernel with something taken out: each time a checker of the emulator, or the comparison with the
//! definition, must notice, on every architecture. So what the other tests do not find is not there to be found by them.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // all of it is test code

use std::process::Command;

use half::bf16;
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, Mask, ScoreMod};
use omniflash_device::parameters::{AttentionParameters, DeviceAddress, Rows};
use omniflash_hip_emulator::{Configuration, Device, Dimensions, LaunchError, Violation};
use omniflash_kernels_hip::{Architecture, COMPILER_OPTIONS, ForwardConfig};

const HEAD_DIM: usize = 64;
/// Two tiles of keys and a part of one.
const KEYS: usize = 150;

fn config(architecture: Architecture) -> ForwardConfig {
    let default = ForwardConfig::new(architecture, DType::BF16, HEAD_DIM, HEAD_DIM, "test").unwrap();
    // With so many waves tiles are copied directly where they can be.
    let warps = if architecture.copies_directly() { 4 } else { 2 };
    let config = ForwardConfig { warps, block_m: warps * architecture.wave_rows(), ..default };
    assert_eq!(config.copies_directly(), architecture.copies_directly());
    config
}

/// The kernel's code object, its source changed before.
fn object(config: &ForwardConfig, change: impl Fn(&str) -> String) -> Vec<u8> {
    let functors = FunctorSpec::new(&Mask::None, &ScoreMod::Identity, 1, "test").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("kernel.hip"), directory.path().join("kernel.co"));
    std::fs::write(&input, change(&config.translation_unit(&functors).source())).unwrap();
    let compiled = Command::new("clang-22")
        .args(COMPILER_OPTIONS)
        .arg(format!("--offload-arch={}", config.architecture))
        .arg("-o")
        .args([&output, &input])
        .output()
        .unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    std::fs::read(&output).unwrap()
}

/// Replaces what must be there exactly `times` times.
fn replaced(source: &str, from: &str, to: &str, times: usize) -> String {
    assert_eq!(source.matches(from).count(), times, "{from}");
    source.replace(from, to)
}

fn values(rows: usize, seed: usize) -> Vec<bf16> {
    (0..rows * HEAD_DIM)
        .map(|i| bf16::from_f32(((i * 7919 + seed * 104_729) % 1009) as f32 / 504.5 - 1.0))
        .collect()
}

/// Runs a code object and gives the largest error of its output.
fn error_of(config: &ForwardConfig, image: &[u8]) -> Result<f64, Violation> {
    let (q, k, v) = (values(config.block_m - 3, 1), values(KEYS, 2), values(KEYS, 3));
    let out = output_of(config, image, 0)?;
    let errors = out.iter().zip(attention(&q, &k, &v)).map(|(found, wanted)| (found.to_f64() - wanted).abs());
    Ok(errors.fold(0.0, |largest, error| if error.is_nan() { f64::INFINITY } else { error.max(largest) }))
}

/// The output of a code object whose waves take turns in the order of a seed.
fn output_of(config: &ForwardConfig, image: &[u8], seed: u64) -> Result<Vec<bf16>, Violation> {
    let rows = config.block_m - 3;
    let (q, k, v) = (values(rows, 1), values(KEYS, 2), values(KEYS, 3));
    let configuration = Configuration { seed, ..Configuration::default() };
    let mut device = Device::new(config.architecture.name().parse().unwrap(), configuration);
    let mut upload = |values: &[bf16]| {
        let address = device.allocate(size_of_val(values)).unwrap();
        device.write(address, bytemuck::cast_slice(values)).unwrap();
        Rows {
            data: DeviceAddress(address),
            batch_stride: values.len() as i64,
            row_stride: HEAD_DIM as i64,
            head_stride: HEAD_DIM as i64,
        }
    };
    let parameters = AttentionParameters {
        q: upload(&q),
        k: upload(&k),
        v: upload(&v),
        out: upload(&q),
        total_q: rows as i64,
        batch: 1,
        num_heads: 1,
        group_size: 1,
        head_dim: HEAD_DIM as u32,
        value_dim: HEAD_DIM as u32,
        seqlen_q: rows as u32,
        seqlen_k: KEYS as u32,
        page_size: 1,
        heads_per_tile: 1,
        num_row_tiles: config.num_row_tiles(rows, 1),
        section: 1,
        num_partitions: 1,
        softmax_scale: 0.5,
        ..Default::default()
    }
    .derived();
    let mut arguments = bytemuck::bytes_of(&parameters).to_vec();
    let functors = FunctorSpec::new(&Mask::None, &ScoreMod::Identity, 1, "test").unwrap().parameters;
    if !functors.is_empty() {
        arguments.resize(arguments.len().next_multiple_of(16), 0);
        arguments.extend(functors);
    }
    let module = device.load(image).unwrap();
    let dimensions = Dimensions {
        grid: config.grid(&parameters).unwrap(),
        block: [config.block_threads(), 1, 1],
        dynamic_lds_bytes: config.shared_memory_bytes() as u32,
    };
    match device.launch(&module, "omniflash_forward", dimensions, &arguments) {
        Ok(()) => {}
        Err(LaunchError::Fault(fault)) => return Err(fault.violation),
        Err(error) => panic!("{error}"),
    }
    let bytes = device.read(parameters.out.data.0, size_of_val(&q[..])).unwrap();
    let (pairs, _) = bytes.as_chunks::<2>();
    Ok(pairs.iter().map(|&pair| bf16::from_le_bytes(pair)).collect())
}

/// By definition, in float64, with a scale of one half.
fn attention(q: &[bf16], k: &[bf16], v: &[bf16]) -> Vec<f64> {
    let mut out = Vec::new();
    for q in q.chunks(HEAD_DIM) {
        let score = |k: &[bf16]| 0.5 * q.iter().zip(k).map(|(q, k)| q.to_f64() * k.to_f64()).sum::<f64>();
        let weights: Vec<f64> = k.chunks(HEAD_DIM).map(|k| score(k).exp()).collect();
        let sum: f64 = weights.iter().sum();
        out.extend((0..HEAD_DIM).map(|column| {
            let products = weights.iter().zip(v.chunks(HEAD_DIM)).map(|(w, v)| w * v[column].to_f64());
            products.sum::<f64>() / sum
        }));
    }
    out
}

fn has_compiler() -> bool {
    let reason = match Command::new("clang-22").arg("--version").output() {
        Err(_) => Some("clang-22 not installed"),
        Ok(_) => omniflash_hip_emulator::disassembler_absence(),
    };
    reason.inspect(|reason| println!("skipped: {reason}")).is_none()
}

/// The outcome of a mutant of the source on every architecture; none without a compiler.
fn outcomes(change: impl Fn(&str) -> String) -> Vec<(Architecture, Result<f64, Violation>)> {
    outcomes_on(|_| true, change)
}

fn outcomes_on(
    is_chosen: impl Fn(Architecture) -> bool,
    change: impl Fn(&str) -> String,
) -> Vec<(Architecture, Result<f64, Violation>)> {
    if !has_compiler() {
        return Vec::new();
    }
    let outcome = |architecture| {
        let config = config(architecture);
        (architecture, error_of(&config, &object(&config, &change)))
    };
    Architecture::ALL.into_iter().filter(|&architecture| is_chosen(architecture)).map(outcome).collect()
}

/// Two roundings to bf16 of numbers up to 1.
const TOLERANCE: f64 = 8e-3;

#[test]
fn the_kernel_as_it_is_passes_in_every_order_of_waves_and_without_its_waits_it_does_not() {
    for (architecture, error) in outcomes(str::to_owned) {
        assert!(error.clone().unwrap() < TOLERANCE, "{architecture}: {error:?}");
        let config = config(architecture);
        let object = object(&config, str::to_owned);
        let outputs = [0, 1, 2, 3].map(|seed| output_of(&config, &object, seed).unwrap());
        assert!(outputs.iter().all(|output| *output == outputs[0]), "{architecture}");
        let found = error_of(&config, &without_waits(architecture, object));
        assert!(matches!(found, Err(Violation::MissingWait(_))), "{architecture}: {found:?}");
    }
}

/// Every wait for memory becomes `s_nop 0`.
fn without_waits(architecture: Architecture, mut image: Vec<u8>) -> Vec<u8> {
    // SOPP: 1_0111_1111, the operation in 7 bits, 16 bits of operand.
    const SOPP: u32 = 0xbf80_0000;
    let operations: &[u32] = match architecture {
        Architecture::Gfx90a | Architecture::Gfx942 | Architecture::Gfx950 => &[0x0c],
        Architecture::Gfx1100 => &[0x09],
        // s_wait_loadcnt, s_wait_storecnt, s_wait_dscnt, s_wait_kmcnt, and the first two with s_wait_dscnt.
        Architecture::Gfx1200 | Architecture::Gfx1201 => &[0x40, 0x41, 0x46, 0x47, 0x48, 0x49],
    };
    let mut count = 0;
    for word in image.as_chunks_mut::<4>().0 {
        let bits = u32::from_le_bytes(*word);
        if operations.iter().any(|operation| bits >> 16 == (SOPP >> 16) + operation) {
            *word = SOPP.to_le_bytes();
            count += 1;
        }
    }
    assert!(count > 10, "{architecture}: {count} waits");
    image
}

/// Every wait for all loads and for shared memory becomes one for shared memory.
fn without_waits_for_copies(mut image: Vec<u8>) -> Vec<u8> {
    let mut count = 0;
    for word in image.as_chunks_mut::<4>().0 {
        // s_waitcnt vmcnt(0) lgkmcnt(0)
        if u32::from_le_bytes(*word) == 0xbf8c_0070 {
            *word = 0xbf8c_c07fu32.to_le_bytes();
            count += 1;
        }
    }
    assert!(count >= 1);
    image
}

#[test]
fn a_missing_barrier_is_a_race_or_an_uninitialised_read() {
    let loops_first =
        "      if constexpr (!kDirectCopies) barrier();  // all waves have left the tiles of the last one\n";
    for (architecture, found) in outcomes(|source| replaced(source, loops_first, "", 1)) {
        // Direct copies go to the other half of shared memory, which all have left at the barrier before.
        let is_caught = matches!(found, Err(Violation::LdsRace(_))) || architecture.copies_directly();
        assert!(is_caught, "{architecture}: {found:?}");
    }
    let before_reading = "      barrier();\n      if constexpr (kStages == 1) {\n        block.load_values";
    let without = before_reading.trim_start_matches("      barrier();\n");
    for (architecture, found) in outcomes(|source| replaced(source, before_reading, without, 1)) {
        let is_caught = matches!(found, Err(Violation::LdsRace(_) | Violation::Uninitialised(_)));
        assert!(is_caught, "{architecture}: {found:?}");
    }
}

#[test]
fn direct_copies_are_waited_for_and_leave_the_tile_alone_that_is_read() {
    let direct = |change: &dyn Fn(&str) -> String| outcomes_on(Architecture::copies_directly, change);
    // In the object: from the source, clang would wait for the query instead, where copies are on their way.
    for architecture in Architecture::ALL.into_iter().filter(|of| of.copies_directly() && has_compiler()) {
        let config = config(architecture);
        let found = error_of(&config, &without_waits_for_copies(object(&config, str::to_owned)));
        assert!(matches!(found, Err(Violation::MissingWait(_))), "{architecture}: {found:?}");
    }
    // All into the same half.
    let halves =
        "constexpr int kTileBytes = kStages == 2 ? KeyTile::kBytes + ValueTile::kBytes : kLongerBytes;";
    for (architecture, found) in
        direct(&|source| replaced(source, halves, "constexpr int kTileBytes = 0;", 1))
    {
        let is_caught = matches!(found, Err(Violation::LdsRace(_) | Violation::MissingWait(_)));
        assert!(is_caught, "{architecture}: {found:?}");
    }
    // Keys and values of another row.
    let (right, wrong) = ("kChunks * kBlocks + first)", "kChunks * kBlocks + (first ^ 1))");
    let wrong_keys = |source: &str| {
        replaced(source, right, &wrong.replace("(first ^ 1)", "(kInSlots ? first ^ 1 : first)"), 1)
    };
    for (architecture, found) in direct(&wrong_keys) {
        assert!(found.clone().unwrap() > 10.0 * TOLERANCE, "{architecture}: {found:?}");
    }
}

#[test]
fn a_missing_clamp_of_the_last_tile_is_out_of_bounds() {
    let change = |source: &str| {
        let source = replaced(source, "num_valid >= kRows", "num_valid >= 0", 2);
        replaced(&source, "num_valid >= kKeys", "num_valid >= 0", 1)
    };
    for (architecture, found) in outcomes(change) {
        assert!(matches!(found, Err(Violation::OutOfBounds(_))), "{architecture}: {found:?}");
    }
}

#[test]
fn a_wrong_layout_of_lanes_is_a_wrong_result() {
    let change = |source: &str| {
        let (right, wrong) = ("i / 8 * 16 + 8 * group + i % 8", "i / 8 * 16 + 8 * (1 - group) + i % 8");
        replaced(source, &format!("return {right};"), &format!("return {wrong};"), 1)
    };
    for (architecture, found) in outcomes(change) {
        assert!(found.clone().unwrap() > 10.0 * TOLERANCE, "{architecture}: {found:?}");
    }
}
