//! Flash attention on every target against a reference in f64, with every checker on.

use crate::problem::{Case, LSE_TOLERANCE, OUT_TOLERANCE, Problem};
use crate::support::{compiler_is_missing, device_with};
use omniflash_hip_emulator::{Class, Target};

const CASES: [Case; 5] = [
    Case { queries: 40, keys: 70, heads: 2, kv_heads: 1, is_causal: true },
    Case { queries: 33, keys: 50, heads: 1, kv_heads: 1, is_causal: false },
    Case { queries: 128, keys: 160, heads: 1, kv_heads: 1, is_causal: true },
    Case { queries: 1, keys: 300, heads: 4, kv_heads: 2, is_causal: true },
    Case { queries: 200, keys: 256, heads: 2, kv_heads: 2, is_causal: false },
];

fn matches_the_reference(target: Target) {
    if compiler_is_missing() {
        return;
    }
    let (mut device, module) = device_with("attention", target, &[]);
    for case in CASES {
        let problem = Problem::new(case);
        let (out, lse) = problem.run(&mut device, &module).unwrap();
        let (out_error, lse_error) = problem.errors(&out, &lse);
        assert!(
            out_error < OUT_TOLERANCE && lse_error < LSE_TOLERANCE,
            "{target} {case:?}: {out_error:e} {lse_error:e}"
        );
    }
    assert_eq!(device.live_allocations(), 0);
    assert!(device.counters().of(Class::Matrix) > 0);
}

#[test]
fn gfx90a_matches_the_reference() {
    matches_the_reference(Target::Gfx90a);
}

#[test]
fn gfx942_matches_the_reference() {
    matches_the_reference(Target::Gfx942);
}

#[test]
fn gfx950_matches_the_reference() {
    matches_the_reference(Target::Gfx950);
}

#[test]
fn gfx1100_matches_the_reference() {
    matches_the_reference(Target::Gfx1100);
}

#[test]
fn gfx1200_matches_the_reference() {
    matches_the_reference(Target::Gfx1200);
}

#[test]
fn gfx1201_matches_the_reference() {
    matches_the_reference(Target::Gfx1201);
}

#[test]
fn the_order_of_waves_does_not_change_the_result() {
    if compiler_is_missing() {
        return;
    }
    for target in [Target::Gfx942, Target::Gfx1200] {
        let (mut device, module) = device_with("attention", target, &[]);
        let problem = Problem::new(crate::problem::tail_case(target));
        let mut results = (0..4).map(|seed| {
            let mut configuration = device.configuration();
            configuration.seed = seed;
            configuration.threads = 1 + seed as usize % 2;
            device.configure(configuration);
            problem.run(&mut device, &module).unwrap()
        });
        let first = results.next().unwrap();
        assert!(results.all(|result| result == first), "{target}");
    }
}
