//! Everything that is wrong is told in one line, with exit code 2.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::ffi::OsStr;
use std::process::Stdio;

use common::{Folder, attend, constants, fails, omniflash, one_line, scalars, sequence, wide_integers};
use omniflash_cli::case_file::{NamedTensor, to_bytes};

/// The line that attending these bytes leaves; the output must not appear.
fn attending(bytes: &[u8], options: &str) -> String {
    let folder = Folder::new();
    let (case, options) = (folder.write("case.safetensors", bytes), folder.write("options.json", options));
    let out = folder.path("out.safetensors");
    let line = fails(attend("reference", &case, &options, &out));
    assert!(!out.exists() && folder.entries().len() == 2, "{line}");
    line
}

fn assert_says(line: &str, parts: &[&str]) {
    for part in parts {
        assert!(line.contains(part), "{line:?} lacks {part:?}");
    }
}

fn small() -> Vec<NamedTensor> {
    sequence(&[0.0; 2], &[1.0; 2], &[1.0, 2.0])
}

#[test]
fn usage_errors_are_one_line() {
    for (arguments, parts) in [
        (&["frobnicate"][..], &["frobnicate"][..]),
        (&["attend"], &["--output", "CASE"]),
        (&["attend", "a", "--output", "b", "--frob"], &["--frob"]),
        (&["bench", "--dtype", "f64"], &["--dtype", "f64", "bf16"]),
        (&["bench", "--threads", "0"], &["--threads", "0"]),
        (&["bench", "--budget", "nan"], &["--budget", "seconds"]),
        (&["bench", "--mode", "warm"], &["--mode", "warm", "cool", "hot"]),
        (&["bench", "--mode", "hot", "--backend", "cpu"], &["--mode hot", "GPU"]),
        (&["bench", "--algorithm", "flash9"], &["--algorithm", "flash9", "flash2"]),
        (&["bench", "jit", "--algorithm", "flash2"], &["--algorithm", "flash2", "auto", "jit"]),
        (&["bench", "--systems", "fa3"], &["--peers"]),
        (&["bench", "--b", "1"], &["--hq"]),
        (&["bench", "--case", "nothing"], &["nothing", "dec_B1"]),
        (&["bench", "sideways"], &["sideways", "prefill"]),
        (&["verify"], &["CASE"]),
        (&["verify", "/nowhere/case", "--backend", "tpu"], &["tpu", "reference"]),
        (&["verify", "/nowhere/case"], &["/nowhere/case"]),
        (&["--quick", "info"], &["--quick"]),
    ] {
        assert_says(&fails(arguments), parts);
    }
}

#[test]
fn an_unknown_backend_in_the_environment_is_named() {
    let output = omniflash().arg("demo").env("OMNIFLASH_BACKEND", "abacus").output().unwrap();
    assert_says(&one_line(&output), &["OMNIFLASH_BACKEND", "abacus", "reference"]);
}

#[test]
fn options_are_named_with_their_file_key_and_value() {
    let bytes = to_bytes(&small()).unwrap();
    for (options, parts) in [
        (r#"{"mask": "diagonal"}"#, &["options.json", "mask", "diagonal", "causal"][..]),
        (r#"{"msak": "causal"}"#, &["msak", "softmax_scale"]),
        (r#"{"mask": {"chunked": {"size": 0}}}"#, &["chunked", "0", "at least 1"]),
        (r#"{"mask": {"chunked": {}}}"#, &["mask.chunked", "size"]),
        (r#"{"softcap": 0}"#, &["softcap is 0", "above 0"]),
        (r#"{"softcap": -3.5}"#, &["softcap is -3.5"]),
        (r#"{"softmax_scale": 1e999}"#, &["softmax_scale", "line 1"]),
        (r#"{"num_partitions": 0}"#, &["num_partitions", "0", "at least 1"]),
        (r#"{"num_partitions": 4}"#, &["reference", "num_partitions 1"]),
        (r#"{"config": {"block_m": 64}}"#, &["reference", "tile"]),
        (r#"{"config": {"swizzle": "b256"}}"#, &["config.swizzle", "b256", "b128"]),
        (r#"{"mask": "prefix_lm"}"#, &["prefix_len", "missing"]),
        (r#"{"mask": {"not": "document"}}"#, &["document_ids", "missing"]),
        ("{", &["options.json", "EOF"]),
    ] {
        assert_says(&attending(&bytes, options), parts);
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let f32s =
        |name: &str, shape: &[usize]| NamedTensor::new(name, shape, &vec![0.5f32; shape.iter().product()]);
    let i32s = |name: &str, values: &[i32]| NamedTensor::new(name, &[values.len()], values);
    let (options, none) = ("{}", &[][..]);
    for (remove, add, parts) in [
        (&["q"][..], vec![], &["case.safetensors", "q is missing"][..]),
        (none, vec![f32s("qq", &[1])], &["unknown tensor `qq`", "page_table"]),
        (&["q"], vec![f32s("q", &[2, 8])], &["q", "[2, 8]"]),
        (&["q"], vec![f32s("q", &[2, 1, 8])], &["cu_seqlens_q", "rank 3"]),
        (&["k"], vec![f32s("k", &[1, 2, 1, 16])], &["k", "16", "8"]),
        (&["k", "v"], vec![f32s("k", &[1, 2, 3, 8]), f32s("v", &[1, 2, 3, 8])], &["3 heads"]),
        (&["v"], vec![f32s("v", &[1, 3, 1, 8])], &["v", "[1, 3, 1, 8]"]),
        (&["q"], vec![NamedTensor::new("q", &[1, 2, 1, 8], &[0i32; 16])], &["q is i32", "f32, f16 or bf16"]),
        (&["q"], vec![NamedTensor::new("q", &[1, 2, 1, 8], &[half::f16::ONE; 16])], &["k is f32", "f16"]),
        (none, vec![i32s("kv_lengths", &[3])], &["kv_lengths[0] is 3", "0 to 2"]),
        (none, vec![i32s("kv_lengths", &[-1])], &["kv_lengths[0] is -1"]),
        (none, vec![i32s("kv_lengths", &[1, 1])], &["kv_lengths", "[2]", "[1]"]),
        (none, vec![i32s("q_lengths", &[9])], &["q_lengths[0] is 9"]),
        (none, vec![f32s("q_lengths", &[1])], &["q_lengths is f32", "i64"]),
        (
            none,
            vec![wide_integers("kv_lengths", "u64", &[1], &[1 << 40])],
            &["kv_lengths[0] is 1099511627776", "2147483647"],
        ),
        (none, vec![i32s("lookup_table", &[0])], &["kv_lengths", "missing"]),
        (
            none,
            vec![i32s("lookup_table", &[5]), i32s("kv_lengths", &[1])],
            &["lookup_table[0] is 5", "below 1"],
        ),
        (
            none,
            vec![wide_integers("page_table", "i64", &[1, 1], &[1 << 40]), i32s("kv_lengths", &[1])],
            &["page_table[0, 0] is 1099511627776"],
        ),
        (
            none,
            vec![
                i32s("lookup_table", &[0]),
                NamedTensor::new("page_table", &[1, 1], &[0i32]),
                i32s("kv_lengths", &[1]),
            ],
            &["page_table", "lookup_table"],
        ),
        (none, vec![i32s("prefix_len", &[1])], &["prefix_len is given", "prefix_lm"]),
        (none, vec![f32s("sinks", &[3])], &["sinks", "[3]", "[1]"]),
        (none, vec![f32s("mask", &[1, 2, 3])], &["mask", "[1, 2, 3]"]),
        (none, vec![NamedTensor::new("mask", &[1, 2, 2], &[0i32; 4])], &["mask is i32", "bool, u8"]),
        (&["v"], vec![f32s("v", &[1, 2, 1, 0])], &["v", "value_dim 0", "at least 1"]),
        (&["q", "k"], vec![f32s("q", &[1, 2, 1, 0]), f32s("k", &[1, 2, 1, 0])], &["q", "head_dim 0"]),
        (&["v"], vec![f32s("v", &[1, 2, 1, 8, 1, 1, 1])], &["v", "rank 7"]),
    ] {
        let mut tensors = small();
        tensors.retain(|tensor| !remove.contains(&tensor.name.as_str()));
        tensors.extend(add);
        assert_says(&attending(&to_bytes(&tensors).unwrap(), options), parts);
    }
}

#[test]
fn ragged_offsets_must_rise_within_their_tensor() {
    for (offsets, parts) in [
        (&[0i32, 3, 2][..], ["cu_seqlens_q[2] is 2", "3"]),
        (&[0, 1, 5], ["cu_seqlens_q[2] is 5", "3"]),
        (&[-1, 1, 3], ["cu_seqlens_q[0] is -1", "0 to 3"]),
        (&[], ["cu_seqlens_q", "[batch + 1]"]),
    ] {
        let tensors = [
            NamedTensor::new("q", &[3, 1, 8], &scalars(&[0.0; 3])),
            NamedTensor::new("k", &[2, 2, 1, 8], &scalars(&[1.0; 4])),
            NamedTensor::new("v", &[2, 2, 1, 8], &constants(&[1.0; 4])),
            NamedTensor::new("cu_seqlens_q", &[offsets.len()], offsets),
        ];
        assert_says(&attending(&to_bytes(&tensors).unwrap(), "{}"), &parts);
    }
}

/// A safetensors file from its header.
fn with_header(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

#[test]
fn broken_and_hostile_files_are_refused() {
    let good = to_bytes(&small()).unwrap();
    let huge_header = [&u64::MAX.to_le_bytes()[..], b"{}"].concat();
    let tensor = |name: &str, shape: &str, begin: u64, end: u64| {
        format!(r#""{name}":{{"dtype":"F32","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
    };
    let twice = format!("{{{},{}}}", tensor("q", "[1]", 0, 4), tensor("q", "[1]", 0, 4));
    let overlapping = format!("{{{},{}}}", tensor("q", "[2]", 0, 8), tensor("k", "[2]", 4, 12));
    let outside = format!("{{{}}}", tensor("q", "[1000]", 0, 4000));
    let backwards = format!("{{{}}}", tensor("q", "[1]", 8, 4));
    let absurd = format!("{{{}}}", tensor("q", "[18446744073709551615,18446744073709551615]", 0, 4));
    let deep = format!(r#"{{"q":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
    let newline = format!("{{{}}}", tensor(r"q\n\u001b[31m", "[1]", 0, 4));
    for (bytes, part) in [
        (&[][..], "safetensors"),
        (&good[..7], "safetensors"),
        (&good[..good.len() - 1], "safetensors"),
        (&huge_header, "safetensors"),
        (&with_header(&twice, 4), "occurs twice"),
        (&with_header(&overlapping, 12), "safetensors"),
        (&with_header(&outside, 4), "safetensors"),
        (&with_header(&backwards, 4), "safetensors"),
        (&with_header(&absurd, 4), "safetensors"),
        (&with_header(&deep, 0), "safetensors"),
        (&with_header(&newline, 4), "unknown tensor"),
        (&with_header("{}", 0), "q is missing"),
        (&with_header("[]", 0), "safetensors"),
        (&b"\x89PNG\r\n\x1a\n and then some more bytes"[..], "safetensors"),
    ] {
        assert_says(&attending(bytes, "{}"), &["case.safetensors", part]);
    }
}

#[test]
fn a_claim_of_values_without_keys_allocates_nothing() {
    let tensors = [
        NamedTensor::new("q", &[1, 4096, 1, 8], &[0.0f32; 4096 * 8]),
        NamedTensor::new("k", &[1, 0, 1, 8], &[0.0f32; 0]),
        NamedTensor::new("v", &[1, 0, 1, 1 << 40], &[0.0f32; 0]),
    ];
    assert_says(&attending(&to_bytes(&tensors).unwrap(), "{}"), &["value_dim of v", "1024"]);
}

#[test]
fn an_output_that_cannot_be_written_is_an_error() {
    let folder = Folder::new();
    let case = folder.write_case("case", &small());
    for out in ["/nowhere/out", "/"] {
        let line = fails([OsStr::new("attend"), case.as_ref(), "--output".as_ref(), out.as_ref()]);
        assert_says(&line, &[out]);
    }
}

#[cfg(unix)]
#[test]
fn a_reader_that_has_gone_away_ends_the_command_quietly() {
    let bench = "bench --backend cpu --b 1 --hq 1 --hkv 1 --sq 1 --skv 8 --d 8 --causal 0 --budget 0.01";
    for arguments in ["info", "info --json", "--help", bench] {
        let arguments: Vec<&str> = arguments.split(' ').collect();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = omniflash().args(&arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
        // As `cat` ends where its reader is gone: 128 and the number of SIGPIPE.
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn memory_that_cannot_be_had_is_an_error() {
    // 1 GiB of keys in a process that may have 512 MiB.
    let folder = Folder::new();
    let limited = format!(
        "ulimit -v 524288; exec {} bench --b 1 --hq 1 --hkv 1 --sq 1 --skv 4194304 --d 64 --causal 0",
        env!("CARGO_BIN_EXE_omniflash")
    );
    let output = std::process::Command::new("sh")
        .args(["-c", &limited])
        .env("RAYON_NUM_THREADS", "1")
        .current_dir(folder.path("."))
        .output()
        .unwrap();
    // A measurement that cannot be taken is an answer; the process lives on.
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_says(&String::from_utf8_lossy(&output.stdout), &["skip", "out of memory"]);
}
