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
    assert!(text(&kernels(&folder, &["clear", "--yes"])).contains("0 files removed"));
}

#[test]
fn an_architecture_that_is_not_known_is_refused() {
    let folder = Folder::new();
    assert!(one_line(&kernels(&folder, &["build", "--arch", "sm_1"])).contains("sm_80"));
    assert!(one_line(&kernels(&folder, &["build", "--arch", "vax"])).contains("--arch is vax"));
}

#[test]
fn a_pack_is_made_installed_listed_and_cleared() {
    let folder = Folder::new();
    let built = folder.path("sm_90a");
    std::fs::create_dir(&built).unwrap();
    std::fs::write(built.join("fwd-bf16-sm_90a-0123456789abcdef.cubin"), "image").unwrap();
    let (from, pack) = (built.to_str().unwrap(), folder.path("omniflash-sm_90a.kernels"));
    let pack = pack.to_str().unwrap();
    let packing =
        |arch: &str, output: &str| kernels(&folder, &["pack", from, "--arch", arch, "--output", output]);
    assert!(text(&packing("sm_90a", pack)).contains("1 kernel for sm_90a, 1 KiB"));
    assert!(one_line(&packing("sm_80", pack)).contains("is for sm_90a, expected sm_80"));
    assert!(one_line(&packing("vax", pack)).contains("--arch is vax"));
    assert!(one_line(&packing("sm_90a", "pack.zip")).contains(".kernels"));
    assert!(text(&kernels(&folder, &["install", pack])).contains("cuda/sm_90a.kernels: 1 kernel"));
    let listed = text(&kernels(&folder, &["list", "--json"]));
    assert!(listed.contains(r#""arch":"sm_90a""#) && listed.contains(r#""kernels":1"#), "{listed}");
    assert!(one_line(&kernels(&folder, &["clear"])).contains("and 1 pack in"));
    assert!(text(&kernels(&folder, &["clear", "--yes"])).contains("1 files removed"));
    let mut bytes = std::fs::read(pack).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(pack, bytes).unwrap();
    assert!(one_line(&kernels(&folder, &["install", pack])).contains("damaged"));
    assert!(one_line(&kernels(&folder, &["install", from])).contains("sm_90a"));
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
    assert!(text(&kernels(&folder, &["clear", "--yes"])).contains(&format!("{held} files removed")));
    assert!(text(&kernels(&folder, &["list"])).contains("0 kernels"));
}
