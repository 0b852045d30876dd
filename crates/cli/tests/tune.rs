//! `omniflash tune` where there is nothing to tune.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{one_line, run};

#[test]
fn tune_without_a_gpu_says_so_and_what_to_do() {
    let output = run(["tune", "B1_S64_H2_1_D16_causal", "--backend", "cpu", "--dtype", "f32"]);
    assert_eq!(output.status.code(), Some(2));
    let line = one_line(&output);
    for part in ["B1_S64_H2_1_D16_causal", "nothing to tune", "omniflash info", "--backend cuda"] {
        assert!(line.contains(part), "{part} in {line}");
    }
}

#[test]
fn tune_refuses_a_case_that_it_cannot_read() {
    let output = run(["tune", "B4_S4096", "--backend", "cpu"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(one_line(&output).contains("CASE is B4_S4096, expected one like"));
}
