//! A code object's instructions, decoded once and shared by every launch of its kernels.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};

use crate::code_object::{CodeObject, KernelDescriptor, Variable};
use crate::disassembly;
use crate::fault::{LoadError, Violation};
use crate::instruction::operand::ACCUMULATORS;
use crate::instruction::{Instruction, Operation};
use crate::target::Target;

/// Decoded instructions and kernels.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) target: Target,
    /// Where the image lies in device memory; code addresses are relative to it.
    pub(crate) base: u64,
    pub(crate) code: Arc<Code>,
}

/// What does not depend on where the object was loaded.
pub(crate) struct Code {
    pub(crate) instructions: Vec<Instruction>,
    index_of: HashMap<u64, usize>,
    pub(crate) kernels: HashMap<String, KernelDescriptor>,
    pub(crate) variables: HashMap<String, Variable>,
    pub(crate) image: Vec<u8>,
    /// Vector registers up to the highest that an instruction names.
    pub(crate) vector_registers: usize,
    /// The narrowest LDS access, in bytes.
    pub(crate) lds_granule: usize,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code").field("instructions", &self.instructions.len()).finish_non_exhaustive()
    }
}

/// Decoding takes longer than most kernels run, and every test loads the same few objects.
static CACHE: Mutex<Vec<(u64, Arc<Code>)>> = Mutex::new(Vec::new());
const CACHED: usize = 64;

impl Code {
    /// Decodes an object for a device, or finds it among those decoded before.
    pub(crate) fn load(image: &[u8], device: Target) -> Result<Arc<Code>, LoadError> {
        let mut hasher = DefaultHasher::new();
        (image, device).hash(&mut hasher);
        let key = hasher.finish();
        let find = |cache: &Vec<(u64, Arc<Code>)>| {
            cache.iter().find(|(cached, _)| *cached == key).map(|(_, code)| code.clone())
        };
        if let Some(code) = find(&CACHE.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(code);
        }
        let code = Arc::new(Code::decode(image, device)?);
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() == CACHED {
            cache.remove(0);
        }
        cache.push((key, code.clone()));
        Ok(code)
    }

    fn decode(image: &[u8], device: Target) -> Result<Code, LoadError> {
        let object = CodeObject::parse(image, device)?;
        let lines = disassembly::disassemble(&object.file, device)?;
        let instructions: Vec<Instruction> = lines
            .into_iter()
            .map(|line| Instruction::decode(line.address, line.bytes, line.text, device))
            .collect();
        let index_of = instructions.iter().enumerate().map(|(index, i)| (i.address, index)).collect();
        let highest =
            instructions.iter().map(|instruction| instruction.touched.vector_registers()).max().unwrap_or(0);
        // A load's own destination is not among the registers that it must wait for.
        let declared =
            object.kernels.values().map(|kernel| kernel.metadata.vgprs as usize).max().unwrap_or(0);
        let uses_accumulators = highest > usize::from(ACCUMULATORS);
        let vector_registers =
            if uses_accumulators { 2 * usize::from(ACCUMULATORS) } else { highest.max(declared).max(256) };
        let lds_granule = instructions.iter().filter_map(lds_bytes).min().unwrap_or(4).clamp(1, 4);
        Ok(Code {
            instructions,
            index_of,
            kernels: object.kernels,
            variables: object.variables,
            image: object.image,
            vector_registers,
            lds_granule: lds_granule as usize,
        })
    }
}

fn lds_bytes(instruction: &Instruction) -> Option<u32> {
    match &instruction.operation {
        Operation::Lds(access) => access.access_bytes(),
        Operation::Global(access) => access.lds_bytes(),
        _ => None,
    }
}

impl Program {
    /// A program without instructions.
    #[cfg(test)]
    pub(crate) fn empty(target: Target) -> Program {
        let code = Code {
            instructions: Vec::new(),
            index_of: HashMap::new(),
            kernels: HashMap::new(),
            variables: HashMap::new(),
            image: Vec::new(),
            vector_registers: 0,
            lds_granule: 4,
        };
        Program { target, base: 0, code: Arc::new(code) }
    }

    /// The index of the instruction at an address in the code object.
    pub(crate) fn jump(&self, address: u64) -> Result<usize, Violation> {
        let index = self.code.index_of.get(&address).copied();
        index.ok_or_else(|| Violation::Invalid(format!("jump to {address:#x}, where no instruction starts")))
    }
}
