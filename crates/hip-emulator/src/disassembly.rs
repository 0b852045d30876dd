//! Turns a code object into lines of assembly by LLVM's disassembler, which is in the library that clang is linked with.
//!
//! LLVM knows every encoding (literals, DPP, SDWA, VOPD, true 16-bit registers), so the text is the decoder.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::LazyLock;

use libloading::{Library, Symbol};
use object::read::elf::ElfFile64;
use object::{Endianness, Object as _, ObjectSection as _, SectionKind};

use crate::configuration::LLVM;
use crate::fault::LoadError;
use crate::target::Target;

/// One instruction as the disassembler prints it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// Virtual address in the code object.
    pub(crate) address: u64,
    /// Encoded length in bytes.
    pub(crate) bytes: u64,
    pub(crate) text: String,
}

/// What the library is called.
const NAMES: [&str; 3] = ["libLLVM.so.22.1", "libLLVM-22.so.1", "libLLVM-22.so"];

/// Padding behind a kernel's last instruction, never executed.
const PADDING: &str = "s_code_end";

/// Room for the longest text of an instruction.
const TEXT_BYTES: usize = 512;

type Create = unsafe extern "C" fn(
    triple: *const c_char,
    cpu: *const c_char,
    info: *mut c_void,
    tag: c_int,
    operand: *const c_void,
    symbol: *const c_void,
) -> *mut c_void;
type Disassemble = unsafe extern "C" fn(
    context: *mut c_void,
    code: *const u8,
    bytes: u64,
    address: u64,
    text: *mut c_char,
    text_bytes: usize,
) -> usize;
type Dispose = unsafe extern "C" fn(context: *mut c_void);

/// The functions of `llvm-c/Disassembler.h`.
struct Llvm {
    create: Symbol<'static, Create>,
    disassemble: Symbol<'static, Disassemble>,
    dispose: Symbol<'static, Dispose>,
}

/// Loaded when the first module is.
static LOADED: LazyLock<Result<Llvm, String>> = LazyLock::new(|| {
    if let Ok(path) = std::env::var(LLVM) {
        return Llvm::load(&path);
    }
    let mut reasons = Vec::new();
    for name in NAMES {
        match Llvm::load(name) {
            Ok(llvm) => return Ok(llvm),
            Err(reason) => reasons.push(reason),
        }
    }
    Err(reasons.join("; "))
});

impl Llvm {
    fn load(path: &str) -> Result<Self, String> {
        // SAFETY: LLVM's initialisers register its options and targets and need nothing of the process.
        let library = unsafe { Library::new(path) }.map_err(|error| format!("{path}: {error}"))?;
        // Its symbols are used until the process ends.
        let library: &'static Library = Box::leak(Box::new(library));
        for part in ["TargetInfo", "TargetMC", "Disassembler"] {
            let name = format!("LLVMInitializeAMDGPU{part}");
            // SAFETY: `llvm-c/Target.h` declares these functions without arguments and results.
            let initialize = unsafe { library.get::<unsafe extern "C" fn()>(&name) };
            let initialize = initialize.map_err(|error| error.to_string())?;
            // SAFETY: registering a target again does nothing, and `LOADED` lets one thread in.
            unsafe { initialize() };
        }
        // SAFETY: the type that `llvm-c/Disassembler.h` declares.
        let create = unsafe { library.get::<Create>("LLVMCreateDisasmCPU") };
        // SAFETY: as above.
        let disassemble = unsafe { library.get::<Disassemble>("LLVMDisasmInstruction") };
        // SAFETY: as above.
        let dispose = unsafe { library.get::<Dispose>("LLVMDisasmDispose") };
        let text = |error: libloading::Error| error.to_string();
        Ok(Llvm {
            create: create.map_err(text)?,
            disassemble: disassemble.map_err(text)?,
            dispose: dispose.map_err(text)?,
        })
    }
}

/// Why LLVM's disassembler, without which no module is loaded, is not on this machine; `None` where it is.
pub fn disassembler_absence() -> Option<&'static str> {
    LOADED.as_ref().err().map(String::as_str)
}

/// The disassembler for one processor.
struct Disassembler {
    llvm: &'static Llvm,
    context: *mut c_void,
}

impl Disassembler {
    fn new(llvm: &'static Llvm, target: Target) -> Option<Self> {
        let cpu = CString::new(target.name()).ok()?;
        // SAFETY: both names end in a zero; the callbacks and what they would be given may be null.
        let context = unsafe {
            (llvm.create)(
                c"amdgcn-amd-amdhsa".as_ptr(),
                cpu.as_ptr(),
                ptr::null_mut(),
                0,
                ptr::null(),
                ptr::null(),
            )
        };
        (!context.is_null()).then_some(Disassembler { llvm, context })
    }

    /// The text and the length of the first instruction; none where there is no instruction.
    fn first(&self, code: &[u8], address: u64) -> Option<(String, usize)> {
        let mut text = [0u8; TEXT_BYTES];
        // SAFETY: the context is live, and both buffers have the lengths that are given.
        let bytes = unsafe {
            (self.llvm.disassemble)(
                self.context,
                code.as_ptr(),
                code.len() as u64,
                address,
                text.as_mut_ptr().cast(),
                text.len(),
            )
        };
        let text = CStr::from_bytes_until_nul(&text).ok()?.to_string_lossy().trim().to_owned();
        (bytes > 0).then_some((text, bytes))
    }
}

impl Drop for Disassembler {
    fn drop(&mut self) {
        // SAFETY: made by `create` and not disposed of before.
        unsafe { (self.llvm.dispose)(self.context) };
    }
}

/// The instructions of an ELF file's code.
pub(crate) fn disassemble(file: &[u8], target: Target) -> Result<Vec<Line>, LoadError> {
    let failure = |reason: &str| LoadError::Disassembler { reason: reason.to_owned() };
    let llvm = LOADED.as_ref().map_err(|reason| failure(reason))?;
    let disassembler = Disassembler::new(llvm, target)
        .ok_or_else(|| failure(&format!("LLVM has no disassembler for {target}")))?;
    let malformed = |error: object::Error| LoadError::Malformed(error.to_string());
    let elf = ElfFile64::<Endianness>::parse(file).map_err(malformed)?;
    let mut lines = Vec::new();
    for section in elf.sections().filter(|section| section.kind() == SectionKind::Text) {
        let (mut code, mut address) = (section.data().map_err(malformed)?, section.address());
        while !code.is_empty() {
            let (text, bytes) = disassembler
                .first(code, address)
                .unwrap_or_else(|| ("no instruction".into(), code.len().min(size_of::<u32>())));
            if text != PADDING {
                lines.push(Line { address, bytes: bytes as u64, text });
            }
            (code, address) = (&code[bytes.min(code.len())..], address + bytes as u64);
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_read_with_its_literal_and_what_is_none_is_not() {
        let Ok(llvm) = LOADED.as_ref() else {
            println!("skipped: LLVM's library is absent: {}", disassembler_absence().unwrap_or_default());
            return;
        };
        let disassembler = Disassembler::new(llvm, Target::Gfx942).unwrap();
        let code = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let first = |words: &[u32]| disassembler.first(&code(words), 0x17f0);
        let with_literal = Some(("v_mul_f32_e32 v2, 0x4f7ffffe, v2".to_owned(), 8));
        assert_eq!(first(&[0x0a04_04ff, 0x4f7f_fffe, 0xbf85_ffe1]), with_literal);
        assert_eq!(first(&[0xbf85_ffe1]), Some(("s_cbranch_scc1 65505".to_owned(), 4)));
        assert_eq!(first(&[0xffff_ffff]), None);
    }
}
