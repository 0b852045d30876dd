//! Small kernels on every target: arithmetic, LDS, atomics, scratch, buffers, hidden arguments.

use omniflash_hip_emulator::{Class, Device, Dimensions, Module, Target};

use crate::support::{Arguments, compiler_is_missing, device_with, download_f32, download_u32, upload};

fn each_target(test: impl Fn(&mut Device, &Module, usize)) {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let (mut device, module) = device_with("basics", target, &[]);
        test(&mut device, &module, target.wave_size());
    }
}

fn launch(device: &mut Device, module: &Module, kernel: &str, grid: u32, block: u32, arguments: Arguments) {
    let dimensions = Dimensions::new([grid, 1, 1], [block, 1, 1]);
    let target = device.target();
    device
        .launch(module, kernel, dimensions, arguments.bytes())
        .unwrap_or_else(|error| panic!("{target}: {error}"));
}

#[test]
fn vectors_are_added_with_a_ragged_end() {
    each_target(|device, module, _| {
        let a: Vec<f32> = (0..600).map(|i| i as f32 * 0.5).collect();
        let b: Vec<f32> = (0..600).map(|i| 100.0 - i as f32).collect();
        let (pa, pb) = (upload(device, &a), upload(device, &b));
        let pc = device.allocate(2400).unwrap();
        let arguments = Arguments::default().pointer(pa).pointer(pb).pointer(pc).int(600);
        launch(device, module, "add", 3, 256, arguments);
        let c = download_f32(device, pc, 600);
        assert!((0..600).all(|i| c[i] == a[i] + b[i]));
        let counters = device.counters();
        assert_eq!((counters.bytes_stored, counters.bytes_loaded >= 4800), (2400, true));
        assert_eq!((counters.workgroups, counters.launches), (3, 1));
    });
}

#[test]
fn a_table_in_the_code_object_can_be_read() {
    each_target(|device, module, wave| {
        let a = upload(device, &vec![3.0f32; wave]);
        let b = device.allocate(4 * wave).unwrap();
        launch(device, module, "scale_by_table", 1, wave as u32, Arguments::default().pointer(a).pointer(b));
        assert_eq!(download_f32(device, b, 4), [3.0, 6.0, 12.0, 24.0]);
    });
}

#[test]
fn division_is_correctly_rounded() {
    each_target(|device, module, wave| {
        let a: Vec<f32> = (0..wave).map(|i| (i as f32 - 20.0) * 1.7e10).collect();
        let b: Vec<f32> = (0..wave).map(|i| (i as f32 + 0.3) * 3.1e-20).collect();
        let (pa, pb) = (upload(device, &a), upload(device, &b));
        let pc = device.allocate(4 * wave).unwrap();
        launch(
            device,
            module,
            "divide",
            1,
            wave as u32,
            Arguments::default().pointer(pa).pointer(pb).pointer(pc),
        );
        let c = download_f32(device, pc, wave);
        for i in 0..wave {
            assert_eq!(c[i], a[i] / b[i], "{} / {}", a[i], b[i]);
        }
    });
}

#[test]
fn a_workgroup_sums_through_lds() {
    each_target(|device, module, _| {
        let a: Vec<f32> = (0..512).map(|i| i as f32).collect();
        let pa = upload(device, &a);
        let total = device.allocate(8).unwrap();
        launch(device, module, "sum", 2, 256, Arguments::default().pointer(pa).pointer(total));
        assert_eq!(download_f32(device, total, 2), [32640.0, 98176.0]);
        let counters = device.counters();
        assert!(counters.barriers > 0 && counters.of(Class::Lds) > 0 && counters.lds_bytes_read > 0);
    });
}

#[test]
fn atomics_count_in_lds_and_in_memory() {
    each_target(|device, module, _| {
        let values: Vec<u32> = (0..5000).map(|i| i * 7).collect();
        let (pv, bins) = (upload(device, &values), upload(device, &[0u32; 16]));
        launch(device, module, "histogram", 4, 256, Arguments::default().pointer(pv).pointer(bins).int(5000));
        let mut expected = [0; 16];
        values.iter().for_each(|value| expected[*value as usize & 15] += 1);
        assert_eq!(download_u32(device, bins, 16), expected);
    });
}

#[test]
fn private_arrays_live_in_scratch() {
    each_target(|device, module, wave| {
        let a: Vec<u32> = (0..16).map(|i| 1000 * i).collect();
        let pa = upload(device, &a);
        let b = device.allocate(4 * wave).unwrap();
        launch(
            device,
            module,
            "reverse_in_scratch",
            1,
            wave as u32,
            Arguments::default().pointer(pa).pointer(b),
        );
        let result = download_u32(device, b, wave);
        assert!((0..wave).all(|i| result[i] == a[15 - (i & 15)] + i as u32));
    });
}

#[test]
fn half_waves_exchange_their_values() {
    each_target(|device, module, wave| {
        let a: Vec<u32> = (0..wave as u32).collect();
        let pa = upload(device, &a);
        let b = device.allocate(4 * wave).unwrap();
        launch(device, module, "shuffle", 1, wave as u32, Arguments::default().pointer(pa).pointer(b));
        assert!(
            download_u32(device, b, wave)
                .iter()
                .enumerate()
                .all(|(i, &value)| value as usize == i ^ (wave / 2))
        );
    });
}

#[test]
fn dynamic_lds_has_the_size_of_the_launch() {
    each_target(|device, module, wave| {
        let a: Vec<u32> = (0..wave as u32).collect();
        let pa = upload(device, &a);
        let b = device.allocate(4 * wave).unwrap();
        let arguments = Arguments::default().pointer(pa).pointer(b);
        let mut dimensions = Dimensions::new([1, 1, 1], [wave as u32, 1, 1]);
        assert!(device.launch(module, "rotate_in_dynamic_lds", dimensions, arguments.bytes()).is_err());
        dimensions.dynamic_lds_bytes = 4 * wave as u32;
        device.launch(module, "rotate_in_dynamic_lds", dimensions, arguments.bytes()).unwrap();
        assert_eq!(download_u32(device, b, wave)[wave - 1], 0);
        dimensions.dynamic_lds_bytes = 1 << 20;
        let error =
            device.launch(module, "rotate_in_dynamic_lds", dimensions, arguments.bytes()).unwrap_err();
        assert!(error.to_string().contains("bytes of LDS"), "{error}");
    });
}

#[test]
fn a_buffer_ends_at_its_records() {
    each_target(|device, module, wave| {
        let a = upload(device, &vec![5u32; wave]);
        let b = device.allocate(4 * wave).unwrap();
        launch(
            device,
            module,
            "read_buffer",
            1,
            wave as u32,
            Arguments::default().pointer(a).pointer(b).int(40),
        );
        let result = download_u32(device, b, wave);
        assert!(result[..10].iter().all(|&value| value == 5) && result[10..].iter().all(|&value| value == 0));
    });
}

#[test]
fn the_dispatch_packet_tells_the_grid() {
    each_target(|device, module, wave| {
        let b = device.allocate(12).unwrap();
        launch(device, module, "grid_size", 3, wave as u32, Arguments::default().pointer(b));
        assert_eq!(download_u32(device, b, 3), [3 * wave as u32; 3]);
    });
}

#[test]
fn arguments_of_the_wrong_size_and_impossible_blocks_are_refused() {
    each_target(|device, module, _| {
        let dimensions = Dimensions::new([1, 1, 1], [64, 1, 1]);
        assert!(device.launch(module, "shuffle", dimensions, &[0; 8]).is_err());
        assert!(device.launch(module, "shuffle", Dimensions::new([1, 1, 1], [65, 1, 1]), &[0; 16]).is_err());
        assert!(device.launch(module, "shuffle", Dimensions::new([0, 1, 1], [64, 1, 1]), &[0; 16]).is_err());
        assert!(device.launch(module, "no_such_kernel", dimensions, &[0; 16]).is_err());
    });
}
