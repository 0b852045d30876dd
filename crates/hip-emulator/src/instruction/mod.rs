//! Typed instructions. Each class decodes its own mnemonics once, when a module is loaded, and executes them.

pub(crate) mod atomic;
pub(crate) mod buffer;
pub(crate) mod cross_lane;
pub(crate) mod dpp;
pub(crate) mod ds;
pub(crate) mod float;
pub(crate) mod format;
pub(crate) mod global;
pub(crate) mod lane_function;
pub(crate) mod mfma;
pub(crate) mod operand;
pub(crate) mod scalar;
pub(crate) mod sdwa;
pub(crate) mod smem;
pub(crate) mod sop1;
pub(crate) mod sop2;
pub(crate) mod sopc;
pub(crate) mod sopk;
pub(crate) mod sopp;
pub(crate) mod statement;
pub(crate) mod vector;
pub(crate) mod vop1;
pub(crate) mod vop2;
pub(crate) mod vop3;
pub(crate) mod vop3p;
pub(crate) mod vopc;
pub(crate) mod vopd;
pub(crate) mod wmma;

#[cfg(test)]
pub(crate) mod test_support;

use crate::checker::Checks;
use crate::checker::lds_race::Lds;
use crate::checker::wait_count::Touched;
use crate::counters::{Class, Counters};
use crate::fault::Violation;
use crate::memory::View;
use crate::program::Program;
use crate::target::Target;
use crate::wave::Wave;
use operand::Operand;
use statement::Statement;

/// A decoded instruction.
#[derive(Debug)]
pub(crate) struct Instruction {
    /// Virtual address in the code object.
    pub(crate) address: u64,
    pub(crate) bytes: u64,
    pub(crate) text: String,
    pub(crate) class: Class,
    /// Registers that must not be the destination of an outstanding load.
    pub(crate) touched: Touched,
    pub(crate) operation: Operation,
}

/// What an instruction does.
#[derive(Debug)]
pub(crate) enum Operation {
    Program(sopp::Program),
    Scalar(scalar::Scalar),
    ScalarMemory(smem::ScalarLoad),
    Vector(Box<vector::Vector>),
    Dual(Box<[vector::Vector; 2]>),
    Compare(Box<vopc::Compare>),
    Packed(Box<vop3p::Packed>),
    CrossLane(cross_lane::CrossLane),
    Mfma(Box<mfma::Mfma>),
    Wmma(Box<wmma::Wmma>),
    Lds(Box<ds::LdsAccess>),
    Global(Box<global::GlobalAccess>),
    Buffer(Box<buffer::BufferAccess>),
    /// Reported when it is executed, not when it is loaded: most kernels of an object may be fine.
    Unknown(String),
}

/// What the scheduler does after an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    Next,
    /// Continue at an instruction index.
    Jump(usize),
    /// Signal the workgroup's barrier and wait for it.
    Barrier,
    /// Signal the workgroup's barrier and go on.
    Signal,
    /// Wait for the barrier that was signalled before.
    AwaitBarrier,
    End,
}

/// What an instruction may touch besides its wave.
pub(crate) struct Context<'a> {
    pub(crate) program: &'a Program,
    pub(crate) memory: &'a View,
    pub(crate) lds: &'a mut Lds,
    pub(crate) counters: &'a mut Counters,
    pub(crate) checks: Checks,
}

type Decoder = fn(&mut Statement, &[Operand]) -> Result<Option<(Class, Operation)>, String>;

/// The classes whose operands are registers and constants, in the order they are asked.
const DECODERS: &[Decoder] = &[
    scalar::decode,
    smem::decode,
    mfma::decode,
    wmma::decode,
    vopc::decode,
    cross_lane::decode,
    vop3p::decode,
    vector::decode,
    ds::decode,
    global::decode,
    buffer::decode,
];

impl Instruction {
    /// Decodes one line; text that no class knows becomes [`Operation::Unknown`].
    pub(crate) fn decode(address: u64, bytes: u64, text: String, target: Target) -> Instruction {
        let mut touched = Touched::default();
        let decoded = decode(&text, target, &mut touched);
        let (class, operation) = decoded
            .unwrap_or_else(|reason| (Class::Program, Operation::Unknown(format!("{text} ({reason})"))));
        Instruction { address, bytes, text, class, touched, operation }
    }

    /// Executes the instruction on one wave.
    ///
    /// The classes' own functions must stay out of line: inlined, the matrix tiles of one would make every instruction
    /// pay for a stack frame of many pages.
    #[inline]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &mut Context<'_>) -> Result<Flow, Violation> {
        context.counters.instructions[self.class as usize] += 1;
        if context.checks.wait_count {
            wave.outstanding.check(&self.touched)?;
        }
        match &self.operation {
            Operation::Vector(vector) => vector.execute(wave)?,
            Operation::Dual(pair) => vopd::execute(pair, wave)?,
            Operation::Compare(compare) => compare.execute(wave),
            Operation::Packed(packed) => packed.execute(wave),
            Operation::CrossLane(operation) => operation.execute(wave, context)?,
            Operation::Mfma(mfma) => mfma.execute(wave, context.counters),
            Operation::Wmma(wmma) => wmma.execute(wave, context)?,
            Operation::Lds(access) => access.execute(wave, context)?,
            Operation::Global(access) => access.execute(wave, context)?,
            Operation::Buffer(access) => access.execute(wave, context)?,
            Operation::ScalarMemory(load) => load.execute(wave, context)?,
            Operation::Scalar(scalar) => return scalar.execute(wave, context, self),
            Operation::Program(operation) => return operation.execute(wave, context, self),
            Operation::Unknown(reason) => return Err(Violation::UnknownInstruction(reason.clone())),
        }
        Ok(Flow::Next)
    }
}

fn decode(text: &str, target: Target, touched: &mut Touched) -> Result<(Class, Operation), String> {
    if text.contains(" :: ") {
        return vopd::decode(text, target, touched);
    }
    let mut statement = Statement::parse(text, target);
    if let Some(operation) = sopp::decode(&mut statement)? {
        return Ok((Class::Program, operation));
    }
    if let Some(operation) = sopk::decode_special(&statement) {
        statement
            .words
            .iter()
            .filter_map(|word| Operand::parse(word))
            .for_each(|operand| touched.add(&operand));
        return Ok((Class::Scalar, Operation::Scalar(operation)));
    }
    let operands = statement.operands()?;
    for decoder in DECODERS {
        let Some((class, operation)) = decoder(&mut statement, &operands)? else { continue };
        if let Some(modifier) = statement.modifiers.first() {
            return Err(format!("modifier {modifier}"));
        }
        // A load may overwrite the destination of an earlier load: both return in order.
        let skip = usize::from(is_load(&operation));
        operands.iter().skip(skip).for_each(|operand| touched.add(operand));
        return Ok((class, operation));
    }
    Err("no such mnemonic in the emulator".into())
}

fn is_load(operation: &Operation) -> bool {
    match operation {
        Operation::ScalarMemory(_) => true,
        Operation::Lds(access) => access.is_load(),
        Operation::Global(access) => access.is_load(),
        Operation::Buffer(access) => access.is_load(),
        _ => false,
    }
}
