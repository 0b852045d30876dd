//! `omniflash kernels` on a cache of its own.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic and say what it skips")]

mod common;

use std::process::Output;

use common::{Folder, omniflash, one_line};

fn kernels(folder: &Folder, arguments: &[&str]) -> Output {
    let mut command = omniflash();
    command
        .arg("kernels")
        .args(arguments)
        .env("OMNIFLASH_CACHE", folder.path("cache"))
        .env_remove("OMNIFLASH_KERNELS");
    command.output().unwrap()
}

fn text(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn an_empty_cache_lists_and_clears_nothing_and_asks_first() {
    let folder = Folder::new();
    assert!(text(&kernels(&folder, &["list"])).contains("0 kernels"));
    assert!(text(&kernels(&folder, &["list", "--json"])).is_empty());
    assert!(one_line(&kernels(&folder, &["clear"])).contains("--yes"));
    assert!(text(&kernels(&folder, &["clear", "--yes"])).contains("0 kernels removed"));
}

#[test]
fn an_architecture_that_is_not_known_is_refused() {
    let folder = Folder::new();
    assert!(one_line(&kernels(&folder, &["build", "--arch", "sm_1"])).contains("sm_80"));
    assert!(one_line(&kernels(&folder, &["build", "--arch", "vax"])).contains("--arch is vax"));
}

#[test]
fn kernels_are_built_where_a_compiler_is_then_listed_and_cleared() {
    let folder = Folder::new();
    let arguments = ["build", "--arch", "sm_90", "--dtype", "bf16", "--head-dim", "64"];
    let built = kernels(&folder, &arguments);
    if built.status.code() == Some(2) {
        let reason = one_line(&built);
        assert!(reason.contains("no kernel") || reason.contains("NVRTC"), "{reason}");
        println!("skipped: {reason}");
        return;
    }
    assert!(text(&built).contains("fwd-sm_90-bf16-d64"));
    let held = text(&kernels(&folder, &["list", "--json"])).lines().count();
    assert!(held >= 3, "{held} kernels");
    // A second build finds all of them.
    assert!(text(&kernels(&folder, &arguments)).contains("are ready"));
    assert_eq!(text(&kernels(&folder, &["list", "--json"])).lines().count(), held);
    assert!(text(&kernels(&folder, &["clear", "--yes"])).contains(&format!("{held} kernels removed")));
    assert!(text(&kernels(&folder, &["list"])).contains("0 kernels"));
}
