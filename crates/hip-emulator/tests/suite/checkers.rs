//! Wrong kernels, each of which a checker must stop; and the right ones beside them, which must pass.

use omniflash_hip_emulator::{Checks, Device, Dimensions, LaunchError, Module, Target, Violation};

use crate::problem::{Problem, tail_case};
use crate::support::{Arguments, compiler_is_missing, device_with, download_u32, upload};

/// Launches one workgroup of a kernel of `basics.hip` on 64 numbers and gives its 64 results.
fn run(
    device: &mut Device,
    module: &Module,
    kernel: &str,
    with_input: bool,
    more: &[i32],
) -> Result<Vec<u32>, LaunchError> {
    let wave = device.target().wave_size();
    let input: Vec<u32> = (0..wave as u32).map(|i| 10 * i).collect();
    let (a, b) = (upload(device, &input), upload(device, &vec![0u32; 256]));
    let mut arguments = Arguments::default();
    if with_input {
        arguments = arguments.pointer(a);
    }
    arguments = more.iter().fold(arguments.pointer(b), |arguments, &value| arguments.int(value));
    let block = if kernel == "deadlock" { 256 } else { wave as u32 };
    device.launch(module, kernel, Dimensions::new([1, 1, 1], [block, 1, 1]), arguments.bytes())?;
    Ok(download_u32(device, b, wave))
}

fn violation(result: Result<Vec<u32>, LaunchError>) -> Violation {
    match result {
        Err(LaunchError::Fault(fault)) => fault.violation,
        other => panic!("a fault expected, not {other:?}"),
    }
}

fn attention_violation(target: Target, define: &str) -> Violation {
    let (mut device, module) = device_with("attention", target, &[define]);
    match Problem::new(tail_case(target)).run(&mut device, &module) {
        Err(LaunchError::Fault(fault)) => fault.violation,
        other => panic!("{target} {define}: a fault expected, not {:?}", other.map(|_| "results")),
    }
}

#[test]
fn attention_without_any_barrier_is_caught() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let found = attention_violation(target, "WITHOUT_BARRIER");
        assert!(matches!(found, Violation::Uninitialised(_) | Violation::LdsRace(_)), "{target}: {found}");
    }
}

#[test]
fn attention_without_the_loops_first_barrier_is_caught_as_a_race() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let found = attention_violation(target, "WITHOUT_LOOP_BARRIER");
        assert!(matches!(found, Violation::LdsRace(_)), "{target}: {found}");
    }
}

#[test]
fn attention_without_the_tail_clamp_is_caught_out_of_bounds() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let found = attention_violation(target, "WITHOUT_TAIL_CLAMP");
        assert!(matches!(found, Violation::OutOfBounds(_)), "{target}: {found}");
        assert!(found.to_string().contains("read of 16 bytes"), "{found}");
    }
}

#[test]
fn a_missing_wait_is_caught() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let (mut device, module) = device_with("basics", target, &[]);
        assert_eq!(run(&mut device, &module, "load_by_hand", true, &[]).unwrap()[3], 31, "{target}");
        let (mut device, module) = device_with("basics", target, &["WITHOUT_WAIT"]);
        let found = violation(run(&mut device, &module, "load_by_hand", true, &[]));
        assert!(matches!(found, Violation::MissingWait(_)), "{target}: {found}");
    }
}

#[test]
fn reading_lds_before_a_direct_load_arrived_is_caught() {
    if compiler_is_missing() {
        return;
    }
    for target in [Target::Gfx90a, Target::Gfx942, Target::Gfx950] {
        let (mut device, module) = device_with("basics", target, &[]);
        assert_eq!(run(&mut device, &module, "direct_to_lds", true, &[]).unwrap()[0], 630, "{target}");
        let (mut device, module) = device_with("basics", target, &["WITHOUT_WAIT"]);
        let found = violation(run(&mut device, &module, "direct_to_lds", true, &[]));
        assert!(matches!(found, Violation::MissingWait(_)), "{target}: {found}");
    }
}

#[test]
fn an_access_past_an_allocation_and_a_misaligned_one_are_caught() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let (mut device, module) = device_with("basics", target, &[]);
        assert_eq!(run(&mut device, &module, "copy_shifted", true, &[0]).unwrap()[2], 20);
        let found = violation(run(&mut device, &module, "copy_shifted", true, &[1]));
        assert!(matches!(found, Violation::OutOfBounds(_)), "{target}: {found}");
        let wave = target.wave_size();
        let (a, b) = (upload(&mut device, &vec![0u32; 256]), upload(&mut device, &vec![0u32; wave]));
        let arguments = Arguments::default().pointer(a + 2).pointer(b).int(0);
        let dimensions = Dimensions::new([1, 1, 1], [wave as u32, 1, 1]);
        match device.launch(&module, "copy_shifted", dimensions, arguments.bytes()) {
            Err(LaunchError::Fault(fault)) => {
                assert!(matches!(fault.violation, Violation::Misaligned(_)), "{fault}")
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn storing_an_uninitialised_register_is_caught() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let (mut device, module) = device_with("basics", target, &[]);
        let wave = target.wave_size() as i32;
        // With every lane taking the initialised value, the other is never used.
        assert_eq!(run(&mut device, &module, "store_uninitialised", false, &[wave]).unwrap()[5], 5);
        let found = violation(run(&mut device, &module, "store_uninitialised", false, &[5]));
        assert!(matches!(found, Violation::Uninitialised(_)), "{target}: {found}");
        let mut configuration = device.configuration();
        configuration.checks = Checks::NONE;
        device.configure(configuration);
        assert!(run(&mut device, &module, "store_uninitialised", false, &[5]).is_ok());
    }
}

#[test]
fn an_unknown_instruction_is_named_when_it_is_reached() {
    if compiler_is_missing() {
        return;
    }
    for target in Target::ALL {
        let (mut device, module) = device_with("basics", target, &[]);
        let found = violation(run(&mut device, &module, "unknown_instruction", false, &[]));
        assert!(
            matches!(&found, Violation::UnknownInstruction(text) if text.contains("v_cubeid_f32")),
            "{found}"
        );
    }
}

#[test]
fn a_barrier_that_some_waves_never_reach_is_a_deadlock() {
    if compiler_is_missing() {
        return;
    }
    for target in [Target::Gfx942, Target::Gfx1100] {
        let (mut device, module) = device_with("basics", target, &[]);
        // The other waves end, which releases the barrier on a device; none may hang here.
        let result = run(&mut device, &module, "deadlock", false, &[]);
        assert!(result.is_ok(), "{target}: {result:?}");
    }
}
