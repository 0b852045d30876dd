//! `omniflash report`: the page, the tables, and the README made from results.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and say what it skips")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Folder, fails, passes, run};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_owned()
}

fn results() -> Vec<PathBuf> {
    let listing = std::fs::read_dir(root().join("benches/results")).unwrap();
    let mut files: Vec<PathBuf> = listing.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn the_readme_is_what_its_sources_give() {
    let readme = root().join("README.md");
    let output = run(["report".as_ref(), "--readme".as_ref(), readme.as_os_str(), "--check".as_ref()]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}run `omniflash report --readme README.md`");
}

#[test]
fn a_stale_readme_is_found_and_mended() {
    let folder = Folder::new();
    let line = r#"{"system": "omniflash-cpu", "case": "dec4k", "dtype": "f32", "ms": 1.0, "gbps": 20.0}
{"system": "other", "case": "dec4k", "dtype": "f32", "ms": 2.0, "gbps": 10.0}
"#;
    let results = folder.write("2026-01-02-box.jsonl", line);
    let text = "# a\n<!-- generated: measured -->\n<!-- /generated -->\n<!-- generated: support -->\n<!-- /generated -->\nb\n";
    let readme = folder.write("README.md", text);
    let report = |more: &[&str]| {
        let mut arguments = vec!["report", results.to_str().unwrap(), "--readme", readme.to_str().unwrap()];
        arguments.extend(more);
        run(arguments).status.code()
    };
    assert_eq!(report(&["--check"]), Some(1));
    assert_eq!(std::fs::read_to_string(&readme).unwrap(), text, "a check writes nothing");
    assert_eq!(report(&[]), Some(0));
    assert_eq!(report(&["--check"]), Some(0));
    let text = std::fs::read_to_string(&readme).unwrap();
    assert!(text.contains("| **20.0** (2.00) | 10.0 other |"), "{text}");
    assert!(
        text.starts_with("# a\n") && text.ends_with("-->\nb\n") && text.contains("| causal | yes |"),
        "{text}"
    );
}

#[test]
fn tables_show_ours_beside_the_best_other() {
    let text = passes(["report".as_ref()].into_iter().chain(results().iter().map(|path| path.as_os_str())));
    assert!(
        text.contains("best other") && text.contains("geometric mean") && text.contains("torch-cudnn"),
        "{text}"
    );
}

#[test]
fn a_file_without_results_is_refused_in_one_line() {
    let folder = Folder::new();
    let file = folder.write("empty", "");
    assert!(fails(["report".as_ref(), file.as_os_str()]).contains("holds no result"));
    assert!(fails(["report"]).contains("FILES"));
}

#[test]
fn the_page_stands_alone_and_a_browser_shows_it() {
    let folder = Folder::new();
    let own = folder.path("own.jsonl");
    passes([
        "bench",
        "decode",
        "overhead",
        "--quick",
        "--budget",
        "0",
        "--backend",
        "cpu",
        "--out",
        own.to_str().unwrap(),
    ]);
    let hostile = folder.write("x", r#"{"system": "<script>alert(1)</script>", "case": "B1_S8_H1_1_D8_full", "dtype": "f32", "ms": 1, "tflops": 1}"#);
    let page = folder.path("report.html");
    let mut arguments = vec!["report".into(), "--out".into(), page.clone().into_os_string()];
    arguments.extend(results().into_iter().chain([own, hostile]).map(PathBuf::into_os_string));
    passes(arguments);
    let html = std::fs::read_to_string(&page).unwrap();
    for part in [
        "prefers-color-scheme: dark",
        "width=device-width",
        "Throughput by length",
        "measured read",
        "operations a byte",
        "overhead_plan",
    ] {
        assert!(html.contains(part), "{part}");
    }
    // Links to its own sections ask for nothing.
    let beside = html.replace("href=\"#file", "");
    for part in ["src=", "href=", "url(", "@import", "<script"] {
        assert!(!beside.contains(part), "the page asks for {part}");
    }
    let Some(browser) = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    }) else {
        println!("skipped: no chromium to load the page in");
        return;
    };
    for width in ["390", "1280"] {
        let picture = folder.path(&format!("{width}.png"));
        let mut command = Command::new(browser);
        command
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--user-data-dir={}", folder.path(&format!("profile-{width}")).display()))
            .arg(format!("--window-size={width},1600"))
            .arg(format!("--screenshot={}", picture.display()))
            .arg("--dump-dom")
            .arg(format!("file://{}", page.display()));
        let output = command.output().unwrap();
        let dom = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // What the browser made of it, not what was written.
        assert_eq!(dom.matches("</svg>").count(), html.matches("</svg>").count());
        assert!(dom.contains("<figcaption>bfloat16") && dom.matches("<circle").count() > 50);
        if let Ok(picture) = std::fs::read(&picture) {
            assert!(picture.starts_with(b"\x89PNG") && picture.len() > 20_000, "{} bytes", picture.len());
        }
    }
}
