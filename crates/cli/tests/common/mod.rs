//! Running the built command on files in a temporary folder.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use omniflash_cli::case_file::{NamedTensor, RawTensor, parse, to_bytes};

/// A folder for one test's files.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn write_case(&self, name: &str, tensors: &[NamedTensor]) -> PathBuf {
        self.write(name, to_bytes(tensors).unwrap())
    }

    pub(crate) fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.0.path()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

/// The command with a clean environment.
pub(crate) fn omniflash() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_omniflash"));
    command.env_remove("OMNIFLASH_BACKEND").env_remove("OMNIFLASH_CPU_ISA").env("RAYON_NUM_THREADS", "2");
    command
}

pub(crate) fn run(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
    omniflash().args(arguments).output().unwrap()
}

/// The arguments of `attend`.
pub(crate) fn attend(backend: &str, case: &Path, options: &Path, out: &Path) -> Vec<OsString> {
    let flags: [&OsStr; 8] = [
        "attend".as_ref(),
        case.as_ref(),
        "--backend".as_ref(),
        backend.as_ref(),
        "--options".as_ref(),
        options.as_ref(),
        "--output".as_ref(),
        out.as_ref(),
    ];
    flags.map(OsStr::to_owned).to_vec()
}

/// The standard output of a run that passes.
pub(crate) fn passes(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that a run which fails leaves on standard error.
pub(crate) fn fails(arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> String {
    one_line(&run(arguments))
}

pub(crate) fn one_line(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.ends_with('\n') && text.lines().count() == 1, "not exactly one line: {text:?}");
    assert!(!text.trim_end().contains(|c: char| c.is_control()), "{text:?}");
    text.trim_end().to_owned()
}

/// A tensor of a result file, widened.
pub(crate) struct Found {
    pub(crate) dtype: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f64>,
}

pub(crate) fn read(path: &Path, name: &str) -> Option<Found> {
    let bytes = std::fs::read(path).unwrap();
    let tensors = parse(&bytes).unwrap();
    let tensor: &RawTensor<'_> = tensors.iter().find(|tensor| tensor.name == name)?;
    let dtype = format!("{:?}", tensor.dtype);
    let values = match dtype.as_str() {
        "F32" => tensor.bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
        "F16" => tensor.bytes.as_chunks().0.iter().map(|&b| half::f16::from_le_bytes(b).to_f64()).collect(),
        _ => tensor.bytes.as_chunks().0.iter().map(|&b| half::bf16::from_le_bytes(b).to_f64()).collect(),
    };
    Some(Found { dtype, shape: tensor.shape.clone(), values })
}

/// Vectors of 8 elements of which only the first is not 0: dot products are products.
pub(crate) fn scalars(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|&value| [value, 0., 0., 0., 0., 0., 0., 0.]).collect()
}

/// Vectors of 8 equal elements.
pub(crate) fn constants(values: &[f32]) -> Vec<f32> {
    values.iter().flat_map(|&value| [value; 8]).collect()
}

/// q, k and v of one sequence and one head, by the scalars they stand for.
pub(crate) fn sequence(q: &[f32], k: &[f32], v: &[f32]) -> Vec<NamedTensor> {
    vec![
        NamedTensor::new("q", &[1, q.len(), 1, 8], &scalars(q)),
        NamedTensor::new("k", &[1, k.len(), 1, 8], &scalars(k)),
        NamedTensor::new("v", &[1, v.len(), 1, 8], &constants(v)),
    ]
}

/// A tensor of an integer type that the library itself does not have.
pub(crate) fn wide_integers(name: &str, dtype: &str, shape: &[usize], values: &[i128]) -> NamedTensor {
    let mut tensor = NamedTensor::new(name, shape, &[0i32; 0]);
    let (dtype, bytes) = match dtype {
        "i64" => (safetensors::Dtype::I64, values.iter().flat_map(|&v| (v as i64).to_le_bytes()).collect()),
        "u64" => (safetensors::Dtype::U64, values.iter().flat_map(|&v| (v as u64).to_le_bytes()).collect()),
        "u32" => (safetensors::Dtype::U32, values.iter().flat_map(|&v| (v as u32).to_le_bytes()).collect()),
        _ => (safetensors::Dtype::I32, values.iter().flat_map(|&v| (v as i32).to_le_bytes()).collect()),
    };
    (tensor.dtype, tensor.bytes) = (dtype, bytes);
    tensor
}
