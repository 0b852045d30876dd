//! The run-time compiler takes every kernel with no header and no include path. Skipped where NVRTC is not installed
//! (`ci/install-nvcc` installs it); no GPU is needed.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // all of it is test code

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libloading::{Library, Symbol};
use omniflash_core::lower::FunctorSpec;
use omniflash_core::{DType, DeviceSource, Mask, MaskFunction, ScoreMod, TensorRef};
use omniflash_device::{PeakWork, TranslationUnit, pack_mask};
use omniflash_kernels_cuda::{
    DecodeConfig, ForwardConfig, HOPPER_ARCH, HopperConfig, KV_APPEND_UNITS, NaiveConfig, combine, kv_append,
    peak, verify_page_table,
};

struct Nvrtc {
    library: Library,
    /// NVRTC looks for its second part by name only; in a wheel it is found because it is loaded already.
    _builtins: Option<Library>,
}

impl Nvrtc {
    fn find() -> Option<Nvrtc> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        let pythons = std::fs::read_dir(root.join(".venv/lib")).into_iter().flatten().flatten();
        let folders = pythons.map(|python| python.path().join("site-packages/nvidia/cu13/lib"));
        for folder in folders.chain([PathBuf::new()]) {
            // SAFETY: the initialisers of NVRTC's parts have no effect on this process.
            let load = |name: &str| unsafe { Library::new(folder.join(name)) }.ok();
            let builtins = load("libnvrtc-builtins.so.13.0");
            if let Some(library) = load("libnvrtc.so.13") {
                return Some(Nvrtc { library, _builtins: builtins });
            }
        }
        None
    }

    /// Compiles a unit to a cubin.
    fn compile(&self, unit: &TranslationUnit, architecture: &str) -> Result<(Vec<u8>, Duration), String> {
        let source = CString::new(unit.source()).unwrap();
        let options = ["--std=c++20".into(), format!("--gpu-architecture={architecture}")];
        let options: Vec<CString> = options.map(|option: String| CString::new(option).unwrap()).into();
        let pointers: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
        let begin = Instant::now();
        // SAFETY: the symbols have NVRTC's documented types; every pointer outlives its call, and the buffers have
        // the sizes that NVRTC names.
        unsafe {
            type Create = unsafe extern "C" fn(
                *mut *mut c_void,
                *const c_char,
                *const c_char,
                c_int,
                *const c_void,
                *const c_void,
            ) -> c_int;
            type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
            type Size = unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int;
            type Get = unsafe extern "C" fn(*mut c_void, *mut c_char) -> c_int;
            let create: Symbol<'_, Create> = self.library.get(b"nvrtcCreateProgram").unwrap();
            let compile: Symbol<'_, Compile> = self.library.get(b"nvrtcCompileProgram").unwrap();
            let text = |size: &[u8], get: &[u8], program: *mut c_void| {
                let size: Symbol<'_, Size> = self.library.get(size).unwrap();
                let get: Symbol<'_, Get> = self.library.get(get).unwrap();
                let mut bytes = 0;
                assert_eq!(size(program, &mut bytes), 0);
                let mut buffer = vec![0u8; bytes];
                assert_eq!(get(program, buffer.as_mut_ptr().cast()), 0);
                buffer
            };
            let mut program = std::ptr::null_mut();
            let none = std::ptr::null();
            assert_eq!(create(&mut program, source.as_ptr(), c"kernel.cu".as_ptr(), 0, none, none), 0);
            if compile(program, pointers.len() as c_int, pointers.as_ptr()) != 0 {
                let log = text(b"nvrtcGetProgramLogSize", b"nvrtcGetProgramLog", program);
                return Err(CStr::from_bytes_until_nul(&log).unwrap().to_string_lossy().into_owned());
            }
            Ok((text(b"nvrtcGetCUBINSize", b"nvrtcGetCUBIN", program), begin.elapsed()))
        }
    }
}

struct User(&'static str);

impl MaskFunction for User {
    fn visible(&self, _: usize, _: usize, _: i64, _: i64) -> bool {
        true
    }
    fn device_source(&self) -> Option<DeviceSource> {
        Some(DeviceSource::new("User", self.0, &7i32))
    }
}

const GOOD: &str =
    "struct User { int n; OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return at.k % n; } };";
const BAD: &str =
    "struct User { int n;\n OMNIFLASH_DEVICE bool keep(const ScoreIndex& at) const { return att.k; } };";

#[test]
fn every_kernel_compiles_at_run_time_without_headers() {
    let Some(nvrtc) = Nvrtc::find() else {
        println!("skipped: no libnvrtc; run ci/install-nvcc");
        return;
    };
    let floats = [0.0f32; 8];
    let additive = || Mask::Dense(TensorRef::from_slice(&floats, &[1, 2, 4]).unwrap());
    let masks = [
        Mask::Causal,
        Mask::custom(User(GOOD)).and(Mask::custom(User(GOOD))),
        Mask::Causal.and(Mask::from_fn(|_, _, _, _| true)),
        additive(),
    ];
    let config = ForwardConfig::new(DType::BF16, 128, 128, 227 << 10, "test").unwrap();
    let hopper = HopperConfig {
        dtype: DType::BF16,
        head_dim: 128,
        value_dim: 128,
        block_m: 128,
        block_n: 128,
        query_tiles: 2,
        cluster: 1,
        paged: false,
    };
    for mask in &masks {
        let functors = FunctorSpec::new(mask, &ScoreMod::Identity, 4, "test").unwrap();
        let unit = config.translation_unit(&functors);
        let (cubin, elapsed) = nvrtc.compile(&unit, "sm_90").unwrap();
        println!("{mask}: {} bytes in {elapsed:?}", cubin.len());
        assert!(cubin.starts_with(b"\x7fELF"));
        for hopper in [hopper, HopperConfig { paged: true, ..hopper }] {
            let (cubin, elapsed) = nvrtc.compile(&hopper.translation_unit(&functors), HOPPER_ARCH).unwrap();
            println!("{mask} for {HOPPER_ARCH}: {} bytes in {elapsed:?}", cubin.len());
            assert!(cubin.starts_with(b"\x7fELF"));
        }
    }
    let functors = FunctorSpec::new(&Mask::None, &ScoreMod::Identity, 4, "test").unwrap();
    let naive = NaiveConfig { dtype: DType::F16, paged: true };
    let decode = DecodeConfig::new(DType::BF16, 128, 128, 4, 163 << 10).unwrap();
    nvrtc.compile(&decode.translation_unit(&functors), "sm_80").unwrap();
    for architecture in ["sm_80", "sm_90", "sm_120"] {
        let units = [naive.translation_unit(&functors), combine(DType::F32), verify_page_table()];
        let packing = [
            (DType::Bool, 16),
            (DType::Bool, 1),
            (DType::F32, 4),
            (DType::BF16, 16),
            (DType::F16, 2),
            (DType::I32, 4),
        ];
        let packing = packing.map(|(dtype, unit_bytes)| pack_mask(dtype, unit_bytes));
        for unit in units.into_iter().chain(KV_APPEND_UNITS.map(kv_append)).chain(packing) {
            nvrtc.compile(&unit, architecture).unwrap();
        }
    }
    let products = [DType::BF16, DType::F16, DType::F32].map(PeakWork::Product);
    for work in
        products.into_iter().chain([PeakWork::MultiplyAdd, PeakWork::Fill, PeakWork::Read, PeakWork::Copy])
    {
        for architecture in ["sm_80", "sm_90"] {
            let kernel = peak(work, architecture);
            nvrtc.compile(&kernel.unit, &kernel.arch).unwrap();
        }
    }
}

#[test]
fn an_error_in_a_functor_names_its_line() {
    let Some(nvrtc) = Nvrtc::find() else {
        println!("skipped: no libnvrtc; run ci/install-nvcc");
        return;
    };
    let mask = Mask::custom(User(BAD));
    let functors = FunctorSpec::new(&mask, &ScoreMod::Identity, 4, "test").unwrap();
    let unit = NaiveConfig { dtype: DType::F16, paged: false }.translation_unit(&functors);
    let log = nvrtc.compile(&unit, "sm_90").unwrap_err();
    assert!(log.contains("functor 0(2)") && log.contains("att"), "{log}");
}
