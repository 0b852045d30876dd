//! The subcommands beside `attend`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Folder, omniflash, passes, run, sequence};
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn info_lists_the_reference_and_names_the_best() {
    let info: Value = serde_json::from_str(&passes(["info", "--json"])).unwrap();
    let names: Vec<&str> = info["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|backend| backend["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"reference") && names.contains(&info["best"].as_str().unwrap()), "{info}");
    let text = passes(["info"]);
    assert!(text.contains("reference") && text.contains("OMNIFLASH_BACKEND") && text.contains("best: "));
    assert!(!text.contains('\u{1b}'), "no colours without a terminal");
}

#[test]
fn info_tells_of_an_environment_that_names_a_missing_backend() {
    let output = omniflash().arg("info").env("OMNIFLASH_BACKEND", "abacus").output().unwrap();
    common::one_line(&output);
    assert!(String::from_utf8(output.stdout).unwrap().contains("= abacus"));
}

#[test]
fn verify_passes_a_right_backend_and_reports_its_errors() {
    let folder = Folder::new();
    let options = folder.write("options", r#"{"mask": "causal", "lse": true}"#);
    let a = folder.write_case("a", &sequence(&[0.3, -1.0, 2.0], &[0.5, 1.0, -1.0], &[1.0, -2.0, 3.0]));
    let b = folder.write_case("b", &sequence(&[1.0; 5], &[0.5; 5], &[1.0, -2.0, 3.0, 0.0, 4.0]));
    let arguments = ["verify".as_ref(), a.as_os_str(), b.as_os_str(), "--options".as_ref(), options.as_ref()];
    let lines = json_lines(&passes(arguments.into_iter().chain(["--json".as_ref()])));
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!((&line["passed"], &line["repeats"]), (&Value::Bool(true), &Value::Bool(true)));
        assert!(line["rms_error"].as_f64().unwrap() <= line["rms_tolerance"].as_f64().unwrap());
        assert!(line["max_tolerance"].as_f64().unwrap() > 0.0 && line["lse"]["fraction"].is_number());
        assert!(line["plan"].as_str().unwrap().contains("f32"));
    }
    let text = passes(arguments);
    assert!(text.contains("2 of 2 cases are within tolerance") && text.contains("max of lse"), "{text}");
}

#[test]
fn verify_takes_nan_that_is_seen_for_nan() {
    let folder = Folder::new();
    let case = folder.write_case("case", &sequence(&[0.0; 2], &[f32::NAN; 2], &[1.0, 2.0]));
    passes(["verify".as_ref(), case.as_os_str()]);
}

#[test]
fn bench_answers_a_single_case_with_samples_and_the_right_outputs() {
    let arguments =
        "bench --b 1 --hq 2 --hkv 1 --sq 8 --skv 16 --d 8 --causal 1 --dtype f32 --threads 2 --budget 0.01";
    let text = passes(arguments.split(' '));
    let lines = json_lines(&text);
    assert_eq!(lines.len(), 1, "{text}");
    let samples = lines[0]["samples_ms"].as_array().unwrap();
    assert!(samples.len() >= 3 && samples.iter().all(|sample| sample.as_f64().unwrap() > 0.0));
    // Row 0 of 8 sees keys 0 to 8 of 16.
    let element = |index: usize, seed: u64| fill(index, seed);
    let scores: Vec<f64> = (0..9)
        .map(|j| (0..8).map(|d| element(d, 1) * element(j * 8 + d, 2)).sum::<f64>() / 8f64.sqrt())
        .collect();
    let sum: f64 = scores.iter().map(|score| score.exp()).sum();
    let head = lines[0]["head"].as_array().unwrap();
    assert_eq!(head.len(), 8);
    for (d, found) in head.iter().enumerate() {
        let expected: f64 =
            scores.iter().enumerate().map(|(j, score)| score.exp() / sum * element(j * 8 + d, 3)).sum();
        let found = found.as_f64().unwrap();
        assert!((found - expected).abs() < 1e-5, "{d}: {found} {expected}");
    }
}

/// The data of the protocol, as its documentation writes them.
fn fill(index: usize, seed: u64) -> f64 {
    let mut h = (index as u64 * 2_654_435_761 + seed * 0x9E37_79B9) & 0xFFFF_FFFF;
    h ^= h >> 15;
    h = (h * 0x85EB_CA6B) & 0xFFFF_FFFF;
    h ^= h >> 13;
    ((h >> 8) as f64 / f64::from(1 << 24) - 0.5) * 2.0
}

#[test]
fn bench_answers_single_cases_of_every_form() {
    let base = "bench --backend reference --b 2 --hq 2 --hkv 1 --d 8 --causal 0 --dtype f32 --budget 0 --sq";
    let head = |sizes: &str, form: &str| {
        let text = passes(format!("{base} {sizes} --form {form}").split(' '));
        json_lines(&text)[0]["head"].as_array().unwrap_or_else(|| panic!("{form}: {text}")).clone()
    };
    let full = head("8 --skv 8", "full");
    // Row 0 sees key 0 alone, which all but the form that shows everything agree in.
    for form in ["window3", "chunked4", "densecausal", "closurecausal", "alibicausal", "ragged"] {
        let head = head("8 --skv 8", form);
        let expected: Vec<f64> = (0..8).map(|d| fill(d, 3)).collect();
        for (found, expected) in head.iter().zip(expected) {
            assert!((found.as_f64().unwrap() - expected).abs() < 1e-6, "{form}");
        }
        assert_ne!(head, full);
    }
    for form in ["softcap", "bias", "prefix4", "document4"] {
        assert_ne!(head("8 --skv 8", form), full, "{form}");
    }
    assert_ne!(head("1 --skv 8", "page4"), head("1 --skv 8", "page4_mixed"));
}

#[test]
fn bench_skips_a_single_case_that_cannot_be() {
    let text = passes("bench --b 1 --hq 3 --hkv 2 --sq 8 --skv 8 --d 8 --causal 0".split(' '));
    assert!(json_lines(&text)[0]["skip"].as_str().unwrap().contains("divisor"), "{text}");
}

#[test]
fn the_demonstration_passes_and_says_so() {
    let text = passes(["--quick"]);
    for part in ["\"them\" looks at sacks", "the model's own output", "prefill", "decode", "ok every result"]
    {
        assert!(text.contains(part), "{text}");
    }
    assert!(!text.contains('\u{1b}') && !text.contains("FAILED"));
    let report: Value = serde_json::from_str(&passes(["demo", "--quick", "--json"])).unwrap();
    assert_eq!(report["passed"], true);
    assert_eq!(report["steps"].as_array().unwrap().len(), 4);
}

#[test]
fn help_and_version_go_to_standard_output() {
    assert!(passes(["--help"]).contains("attend"));
    assert!(passes(["--version"]).starts_with("omniflash "));
}

#[test]
fn a_pipe_can_be_the_output() {
    let folder = Folder::new();
    let case = folder.write_case("case", &sequence(&[0.0], &[1.0], &[1.0]));
    let output = run(["attend".as_ref(), case.as_os_str(), "--output".as_ref(), "/dev/null".as_ref()]);
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_self_test_reports_every_case_of_every_device_in_one_line() {
    let lines = json_lines(&passes(["verify", "--self-test", "cpu", "--json"]));
    assert_eq!(lines.len(), 1);
    let (report, devices) = (&lines[0], lines[0]["devices"].as_array().unwrap());
    assert_eq!((&report["self_test"], devices.len()), (&Value::from("cpu"), 1));
    let cases = devices[0]["cases"].as_array().unwrap();
    let count = |word: &str| cases.iter().filter(|case| case["outcome"] == word).count();
    assert!(cases.len() >= 40 && count("passed") + count("unsupported") == cases.len(), "{report}");
    assert_eq!(devices[0]["passed"], count("passed"));
    assert!(cases.iter().any(|case| case["case"] == "paged_decode_bf16" && case["outcome"] == "passed"));
    let text = passes(["verify", "--self-test", "cpu"]);
    assert!(text.contains("causal_d64_f32") && text.contains("cases passed"), "{text}");
}

#[test]
fn a_self_test_of_a_backend_that_is_absent_says_why() {
    let output = omniflash()
        .args(["verify", "--self-test", "hip"])
        .env("OMNIFLASH_HIP_LIBRARY", "/nowhere/libamdhip64.so")
        .output()
        .unwrap();
    assert!(common::one_line(&output).contains("/nowhere/libamdhip64.so"));
}
