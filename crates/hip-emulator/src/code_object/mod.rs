//! Reads an AMDGPU code object: segments, kernel descriptors, metadata.

mod metadata;

use std::collections::HashMap;

use object::elf;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, Object as _, ObjectSymbol as _};

pub(crate) use metadata::{Argument, KernelMetadata};

use crate::fault::LoadError;
use crate::target::Target;

const BUNDLE_MAGIC: &[u8] = b"__CLANG_OFFLOAD_BUNDLE__";

/// A code object with its segments laid out at their virtual addresses.
pub(crate) struct CodeObject {
    /// The ELF file, as it was given.
    pub(crate) file: Vec<u8>,
    /// The loadable segments, index 0 being virtual address 0.
    pub(crate) image: Vec<u8>,
    pub(crate) kernels: HashMap<String, KernelDescriptor>,
    pub(crate) variables: HashMap<String, Variable>,
}

/// A device variable: `__device__` or `__constant__`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variable {
    pub(crate) address: u64,
    pub(crate) bytes: u64,
}

/// The 64-byte kernel descriptor and the kernel's metadata.
#[derive(Clone, Debug)]
pub(crate) struct KernelDescriptor {
    /// Virtual address of the first instruction.
    pub(crate) entry: u64,
    pub(crate) lds_bytes: u32,
    pub(crate) scratch_bytes: u32,
    pub(crate) kernarg_bytes: u32,
    rsrc2: u32,
    properties: u16,
    pub(crate) metadata: KernelMetadata,
}

impl KernelDescriptor {
    /// SGPRs that hold user data; the workgroup's index follows them on gfx9 and gfx11.
    pub(crate) fn user_sgprs(&self) -> usize {
        (self.rsrc2 >> 1 & 0x1f) as usize
    }

    /// Whether an SGPR is set to the workgroup's index along `axis`.
    pub(crate) fn wants_workgroup_id(&self, axis: usize) -> bool {
        self.rsrc2 >> (7 + axis) & 1 == 1
    }

    /// Whether an SGPR follows for the wave's scratch offset.
    pub(crate) fn wants_scratch_offset(&self) -> bool {
        self.rsrc2 & 1 == 1
    }

    /// Which of the optional user SGPRs are present.
    pub(crate) fn has(&self, user_data: UserData) -> bool {
        self.properties & user_data as u16 != 0
    }

    fn parse(bytes: &[u8; 64], address: u64, metadata: KernelMetadata) -> KernelDescriptor {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let entry_offset = u64::from(word(16)) | u64::from(word(20)) << 32;
        KernelDescriptor {
            entry: address.wrapping_add(entry_offset),
            lds_bytes: word(0),
            scratch_bytes: word(4),
            kernarg_bytes: word(8),
            rsrc2: word(52),
            properties: word(56) as u16,
            metadata,
        }
    }
}

/// Bits of the descriptor's `kernel_code_properties`.
#[derive(Clone, Copy)]
#[repr(u16)]
pub(crate) enum UserData {
    PrivateSegmentBuffer = 1,
    DispatchPointer = 2,
    QueuePointer = 4,
    KernargPointer = 8,
    DispatchId = 16,
    FlatScratchInit = 32,
    PrivateSegmentSize = 64,
}

impl CodeObject {
    /// Reads an ELF file, or the entry of an offload bundle that fits the device.
    pub(crate) fn parse(bytes: &[u8], device: Target) -> Result<CodeObject, LoadError> {
        let file = if bytes.starts_with(BUNDLE_MAGIC) { bundle_entry(bytes, device)? } else { bytes };
        let malformed = |reason: &dyn std::fmt::Display| LoadError::Malformed(reason.to_string());
        let elf = ElfFile64::<Endianness>::parse(file).map_err(|e| malformed(&e))?;
        let header = elf.elf_header();
        if header.e_machine(Endianness::Little) != elf::EM_AMDGPU {
            return Err(LoadError::Malformed("an ELF file for another machine".into()));
        }
        let machine = header.e_flags(Endianness::Little).0 & 0xff;
        let target = Target::from_machine(machine);
        if target != Some(device) {
            let found = target.map_or_else(|| format!("machine {machine:#x}"), |t| t.to_string());
            return Err(LoadError::WrongTarget { found, device });
        }

        let mut image = Vec::new();
        let mut kernel_metadata = HashMap::new();
        for segment in elf.elf_program_headers() {
            let data = segment
                .data(Endianness::Little, file)
                .map_err(|()| malformed(&"a segment out of the file"))?;
            match segment.p_type(Endianness::Little) {
                elf::PT_LOAD => {
                    let start = segment.p_vaddr(Endianness::Little) as usize;
                    let end = start + segment.p_memsz(Endianness::Little) as usize;
                    if end > 1 << 30 || data.len() > end - start {
                        return Err(malformed(&"a segment of impossible size"));
                    }
                    image.resize(image.len().max(end), 0);
                    image[start..start + data.len()].copy_from_slice(data);
                }
                elf::PT_NOTE => {
                    let notes = segment.notes(Endianness::Little, file).map_err(|e| malformed(&e))?;
                    if let Some(mut notes) = notes {
                        while let Some(note) = notes.next().map_err(|e| malformed(&e))? {
                            if note.name() == b"AMDGPU"
                                && note.n_type(Endianness::Little).0 == metadata::NOTE_TYPE
                            {
                                kernel_metadata.extend(metadata::kernels(note.desc())?);
                            }
                        }
                    }
                }
                _ => {}
            }
        }

        let mut kernels = HashMap::new();
        let mut variables = HashMap::new();
        for symbol in elf.dynamic_symbols().chain(elf.symbols()) {
            let name = symbol.name().map_err(|e| malformed(&e))?;
            if let Some(kernel) = name.strip_suffix(".kd") {
                let address = symbol.address();
                let bytes = usize::try_from(address)
                    .ok()
                    .and_then(|start| image.get(start..start.checked_add(64)?))
                    .and_then(|slice| <&[u8; 64]>::try_from(slice).ok())
                    .ok_or_else(|| malformed(&"a kernel descriptor outside the segments"))?;
                let metadata = kernel_metadata.get(name).cloned().unwrap_or_default();
                kernels.insert(kernel.to_string(), KernelDescriptor::parse(bytes, address, metadata));
            } else if symbol.kind() == object::SymbolKind::Data && symbol.size() > 0 {
                variables
                    .insert(name.to_string(), Variable { address: symbol.address(), bytes: symbol.size() });
            }
        }
        Ok(CodeObject { file: file.to_vec(), image, kernels, variables })
    }
}

/// The entry of an uncompressed offload bundle for `device`.
fn bundle_entry(bytes: &[u8], device: Target) -> Result<&[u8], LoadError> {
    let truncated = || LoadError::Malformed("a truncated offload bundle".into());
    let number = |at: usize| -> Result<usize, LoadError> {
        let field = bytes.get(at..at + 8).and_then(|b| <[u8; 8]>::try_from(b).ok()).ok_or_else(truncated)?;
        usize::try_from(u64::from_le_bytes(field)).map_err(|_| truncated())
    };
    let mut at = BUNDLE_MAGIC.len();
    let count = number(at)?;
    at += 8;
    let mut found = Vec::new();
    for _ in 0..count {
        let (offset, size, length) = (number(at)?, number(at + 8)?, number(at + 16)?);
        let end = (at + 24).checked_add(length).ok_or_else(truncated)?;
        let id = bytes.get(at + 24..end).ok_or_else(truncated)?;
        at = end;
        let id = String::from_utf8_lossy(id);
        let Some((_, processor)) = id.split_once("--") else { continue };
        if processor.parse::<Target>() == Ok(device) {
            let entry = offset.checked_add(size).and_then(|end| bytes.get(offset..end));
            return entry.ok_or_else(truncated);
        }
        found.push(processor.to_string());
    }
    Err(LoadError::WrongTarget { found: found.join(", "), device })
}

/// The length of the image at `pointer`, which a HIP caller passes without its size.
///
/// # Safety
/// `pointer` must be the start of a whole ELF file or offload bundle.
pub(crate) unsafe fn image_length(pointer: *const u8) -> Result<usize, LoadError> {
    let malformed = |text: &str| LoadError::Malformed(text.into());
    // SAFETY: the caller promises a whole image, and both kinds are longer than 64 bytes.
    let head = unsafe { std::slice::from_raw_parts(pointer, 24) };
    let number = |at: usize, bytes: usize| -> u64 {
        (0..bytes).fold(0, |value, i| {
            // SAFETY: `at + i` lies in a header field of a whole image, as the caller promises.
            value | u64::from(unsafe { *pointer.add(at + i) }) << (8 * i)
        })
    };
    if head == BUNDLE_MAGIC {
        let mut at = 24 + 8;
        let mut end = 0;
        for _ in 0..number(24, 8) {
            end = end.max(number(at, 8) + number(at + 8, 8));
            at += 24 + number(at + 16, 8) as usize;
        }
        return Ok(end as usize);
    }
    if head[..4] != elf::ELFMAG || head[4] != elf::ELFCLASS64.0 {
        return Err(malformed("neither an ELF file nor an uncompressed offload bundle"));
    }
    let sections = number(40, 8) + number(58, 2) * number(60, 2);
    let segment_end = (0..number(56, 2)).map(|i| {
        let at = (number(32, 8) + i * number(54, 2)) as usize;
        number(at + 8, 8) + number(at + 32, 8)
    });
    segment_end.chain([sections]).max().map(|end| end as usize).ok_or_else(|| malformed("an empty ELF file"))
}
