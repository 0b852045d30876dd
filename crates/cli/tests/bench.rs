//! `omniflash bench` over grids, against earlier runs, and beside peers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{Folder, fails, omniflash, passes, run};
use serde_json::Value;

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_family_of_kernels_that_is_asked_for_is_a_system_of_its_own() {
    let arguments = "bench decode --quick --budget 0 --backend cpu --algorithm naive";
    let lines = json_lines(&passes(arguments.split(' ')));
    assert!(!lines.is_empty());
    for line in &lines {
        assert_eq!(line["system"], "omniflash-cpu-naive", "{line}");
    }
    let arguments = "bench decode --quick --budget 0 --backend cpu --algorithm flash3";
    let lines = json_lines(&passes(arguments.split(' ')));
    assert!(!lines.is_empty());
    for line in &lines {
        assert!(line["skip"].as_str().unwrap().contains("flash3"), "{line}");
    }
}

#[test]
fn a_grid_gives_one_json_line_a_case_with_its_share_of_the_peak() {
    let arguments = "bench decode paged --quick --budget 0 --dtype f32,bf16 --threads 2";
    let lines = json_lines(&passes(arguments.split(' ')));
    let of_cpu: Vec<&Value> = lines.iter().filter(|line| line["backend"] == "cpu").collect();
    assert_eq!(of_cpu.len(), 6, "{lines:?}");
    for line in &of_cpu {
        assert_eq!(line["system"], "omniflash-cpu");
        assert!(line.get("mode").is_none(), "a CPU has none: {line}");
        assert!(line["case"].as_str().unwrap().starts_with("dec_B"));
        assert!(line["ms"].as_f64().unwrap() > 0.0 && line["tbps"].as_f64().unwrap() > 0.0, "{line}");
        assert!(line["threads"] == 2 && line["n"].as_u64().unwrap() >= 1, "{line}");
        let (share, peak) = (line["share"].as_f64().unwrap(), line["peak_read_tbps"].as_f64().unwrap());
        assert!((share * peak / line["tbps"].as_f64().unwrap() - 1.0).abs() < 1e-3, "{line}");
    }
    let dtypes: Vec<&str> = of_cpu.iter().map(|line| line["dtype"].as_str().unwrap()).collect();
    assert_eq!(dtypes, ["float32", "bfloat16"].repeat(3), "the types of a case beside each other");
}

#[test]
fn steps_of_a_call_and_first_uses_are_timed() {
    let lines = json_lines(&passes("bench jit overhead --backend cpu --budget 0".split(' ')));
    let names: Vec<&str> = lines.iter().map(|line| line["case"].as_str().unwrap()).collect();
    let expected = [
        "jit_first",
        "jit_cached",
        "jit_planned",
        "overhead_validate",
        "overhead_plan",
        "overhead_enqueue",
        "overhead_call",
    ];
    assert_eq!(names, expected);
    assert!(lines.iter().all(|line| line["ms"].as_f64().unwrap() > 0.0 && line.get("share").is_none()));
}

#[test]
fn a_case_slower_than_before_is_told_and_fails() {
    let folder = Folder::new();
    let lines = folder.path("lines");
    let bench = |more: &[&str]| {
        let mut arguments = vec!["bench", "--backend", "cpu", "--budget", "0", "--dtype", "f32"];
        arguments.extend(["overhead", "--out", lines.to_str().unwrap()]);
        arguments.extend(more);
        run(arguments)
    };
    let page = folder.path("page.html");
    assert_eq!(bench(&["--page", page.to_str().unwrap()]).status.code(), Some(0));
    assert!(std::fs::read_to_string(&page).unwrap().contains("overhead_call"));
    let baseline = folder.path("baseline");
    let scale = |factor: f64| {
        let scaled = json_lines(&std::fs::read_to_string(&lines).unwrap()).into_iter().map(|mut line| {
            line["ms"] = (line["ms"].as_f64().unwrap() * factor).into();
            format!("{line}\n")
        });
        std::fs::write(&baseline, scaled.collect::<String>()).unwrap();
    };
    let compare = ["--compare", baseline.to_str().unwrap(), "--threshold", "50"];
    scale(1e6);
    assert_eq!(bench(&compare).status.code(), Some(0));
    scale(1e-9);
    let output = bench(&compare);
    assert_eq!(output.status.code(), Some(1));
    let marked = json_lines(&String::from_utf8(output.stdout).unwrap());
    assert!(marked.iter().all(|line| line["regressed"] == true && line["was_ms"].is_number()), "{marked:?}");
    folder.write("other", "{\"system\": \"x\", \"case\": \"y\", \"ms\": 1.0}\n");
    let other = folder.path("other");
    assert_eq!(bench(&["--compare", other.to_str().unwrap()]).status.code(), Some(2));
}

#[test]
fn what_cannot_be_measured_is_refused_in_one_line() {
    assert!(fails(["bench", "--case", "nothing"]).contains("expected a part of one of"));
    assert!(fails(["bench", "--backend", "abacus"]).contains("abacus"));
    assert!(fails(["bench", "--threshold", "5"]).contains("--compare"));
    assert!(fails(["bench", "--page", "page.html"]).contains("--out"));
    assert!(fails(["bench", "overhead", "--compare", "/nowhere"]).contains("cannot read /nowhere"));
}

#[cfg(unix)]
#[test]
fn peers_are_listed_measured_and_told_absent() {
    use std::os::unix::fs::PermissionsExt;
    let folder = Folder::new();
    let python = folder.write(
        "python",
        r#"#!/bin/sh
if [ "$2" = --list ]; then
  echo '{"system": "here", "absent": null}'
  echo '{"system": "gone", "absent": "No module named gone"}'
else
  case "$*" in *"--systems here --ext omniflash-cpu="*"--cases dec4k --time-limit "*) ;; *) echo "$*" >&2; exit 3;; esac
  echo '{"system": "here", "case": "dec4k", "dtype": "bf16", "ms": 2.0, "gbps": 8.4}'
fi
"#,
    );
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let bench = |group: &str, python: &str, more: &[&str]| {
        let mut command = omniflash();
        command.args([
            "bench",
            group,
            "--case",
            "KV4096",
            "--backend",
            "cpu",
            "--budget",
            "0",
            "--time-limit",
            "60",
            "--peers",
            "--python",
            python,
        ]);
        command.args(more).output().unwrap()
    };
    let output = bench("decode", python.to_str().unwrap(), &[]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && notes.contains("gone is absent: No module named gone"), "{notes}");
    let lines = json_lines(&String::from_utf8(output.stdout).unwrap());
    let peer = lines.last().unwrap();
    assert_eq!((&peer["system"], &peer["case"]), (&"here".into(), &"dec_B1_H32_8_D128_KV4096".into()));
    assert_eq!(peer["dtype"], "bfloat16");
    assert!((peer["tbps"].as_f64().unwrap() - 0.0084).abs() < 1e-12, "{peer}");
    // Peers that were not asked for are not even told to be absent; nor is one asked for that is not known.
    let output = bench("decode", python.to_str().unwrap(), &["--systems", "here"]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !notes.contains("gone"), "{notes}");
    let output = bench("decode", python.to_str().unwrap(), &["--systems", "elsewhere"]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && notes.contains("expected some of here, gone"), "{notes}");
    assert!(output.stdout.is_empty(), "nothing is measured before it is refused");
    // What is not measured of ours is not measured of others.
    let output = bench("paged", python.to_str().unwrap(), &[]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && notes.contains("none of the chosen cases"), "{notes}");
    // A Python that is not there is a peer that is not there.
    let output = bench("decode", "/nowhere/python", &[]);
    let notes = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && notes.contains("the peers of cpu are absent"), "{notes}");
}
