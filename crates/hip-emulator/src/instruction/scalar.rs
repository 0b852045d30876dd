//! Scalar arithmetic: what SOP1, SOP2, SOPC and SOPK share.

use super::operand::{EXEC, Kind, Operand, Place, VCC};
use super::statement::Statement;
use super::{Context, Flow, Instruction, Operation, sop1, sop2, sopc, sopk};
use crate::counters::Class;
use crate::fault::Violation;
use crate::wave::Wave;

/// The values a scalar operation sees. 32-bit sources are zero-extended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Inputs {
    pub(crate) a: u64,
    pub(crate) b: u64,
    pub(crate) c: u64,
    pub(crate) scc: bool,
    /// The destination before the operation.
    pub(crate) old: u64,
}

/// The result and, if the operation sets it, the condition code.
pub(crate) type Outputs = (u64, Option<bool>);

/// How initialised bits pass through an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    /// Every result bit depends on every source bit.
    Mixed,
    /// Bit by bit; a known 0 decides.
    And,
    /// Bit by bit; a known 1 decides.
    Or,
    /// `a & !b`, bit by bit.
    AndNot,
    /// `a | !b`, bit by bit.
    OrNot,
    /// Bit by bit, both needed.
    Bitwise,
    /// The source that the condition code selects.
    Select,
}

/// An entry of the tables in `sop1`, `sop2`, `sopc` and `sopk`.
#[derive(Clone, Copy)]
pub(crate) struct ScalarOperation {
    pub(crate) function: fn(Inputs) -> Outputs,
    pub(crate) kind: Kind,
    pub(crate) destination: Kind,
    pub(crate) flows: Flows,
    pub(crate) reads_scc: bool,
    pub(crate) reads_destination: bool,
}

impl ScalarOperation {
    pub(crate) const fn new(kind: Kind, function: fn(Inputs) -> Outputs) -> ScalarOperation {
        ScalarOperation {
            function,
            kind,
            destination: kind,
            flows: Flows::Mixed,
            reads_scc: false,
            reads_destination: false,
        }
    }

    pub(crate) const fn flows(self, flows: Flows) -> ScalarOperation {
        ScalarOperation { flows, ..self }
    }

    pub(crate) const fn to(self, destination: Kind) -> ScalarOperation {
        ScalarOperation { destination, ..self }
    }

    pub(crate) const fn with_scc(self) -> ScalarOperation {
        ScalarOperation { reads_scc: true, ..self }
    }

    pub(crate) const fn with_destination(self) -> ScalarOperation {
        ScalarOperation { reads_destination: true, ..self }
    }
}

/// A decoded scalar instruction.
#[derive(Debug)]
pub(crate) enum Scalar {
    Arithmetic(Arithmetic),
    /// `s_*_saveexec`: the old mask goes to the destination, the new one to EXEC.
    SaveExec {
        operation: fn(u64, u64) -> u64,
        keeps_old: bool,
        destination: Operand,
        source: Operand,
    },
    GetPc {
        destination: u16,
    },
    SetPc {
        source: Operand,
    },
    SwapPc {
        destination: u16,
        source: Operand,
    },
    /// `s_call_b64`: saves the return address and jumps by words.
    Call {
        destination: u16,
        words: i64,
    },
    GetRegister {
        destination: u16,
        register: sopk::HardwareRegister,
    },
    SetRegister {
        source: Operand,
        register: sopk::HardwareRegister,
    },
}

/// A function of up to three sources.
pub(crate) struct Arithmetic {
    operation: ScalarOperation,
    destination: Option<Operand>,
    sources: [Operand; 3],
}

impl std::fmt::Debug for Arithmetic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arithmetic")
            .field("destination", &self.destination)
            .field("sources", &self.sources)
            .finish()
    }
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    if let Some(operation) = statement.mnemonic.strip_prefix("v_s_").and_then(sop1::lookup_transcendental) {
        return Ok(Some((Class::Transcendental, Operation::Scalar(arithmetic(operation, true, operands)?))));
    }
    let Some(name) = statement.mnemonic.strip_prefix("s_") else { return Ok(None) };
    let decoded = match sop1::decode_special(name, operands) {
        Some(special) => special,
        None => {
            let found = sop1::lookup(name)
                .or_else(|| sop2::lookup(name))
                .map(|operation| (operation, true))
                .or_else(|| sopc::lookup(name).map(|operation| (operation, false)));
            if let Some((operation, has_destination)) = found {
                arithmetic(operation, has_destination, operands)?
            } else if let Some((operation, has_destination)) = sopk::lookup(name) {
                sopk::arithmetic(operation, has_destination, operands)?
            } else {
                return Ok(None);
            }
        }
    };
    Ok(Some((Class::Scalar, Operation::Scalar(decoded))))
}

fn arithmetic(
    operation: ScalarOperation,
    has_destination: bool,
    operands: &[Operand],
) -> Result<Scalar, String> {
    let (destination, sources) = match operands.split_first() {
        Some((first, rest)) if has_destination => (Some(*first), rest),
        _ => (None, operands),
    };
    Arithmetic::new(operation, destination, sources).map(Scalar::Arithmetic)
}

impl Arithmetic {
    pub(crate) fn new(
        operation: ScalarOperation,
        destination: Option<Operand>,
        sources: &[Operand],
    ) -> Result<Arithmetic, String> {
        let is_scalar = |operand: &Operand| operand.vector().is_none();
        if sources.len() > 3 || !sources.iter().chain(&destination).all(is_scalar) {
            return Err("scalar operands expected".into());
        }
        let mut padded = [Operand::plain(Place::Null, 1); 3];
        padded[..sources.len()].copy_from_slice(sources);
        Ok(Arithmetic { operation, destination, sources: padded })
    }

    fn execute(&self, wave: &mut Wave) {
        let operation = &self.operation;
        let [(a, known_a), (b, known_b), (c, known_c)] =
            [0, 1, 2].map(|source| wave.uniform(&self.sources[source], operation.kind));
        let (old, known_old) = match &self.destination {
            Some(destination) if operation.reads_destination => {
                wave.uniform(destination, operation.destination)
            }
            _ => (0, u64::MAX),
        };
        let scc = wave.scc;
        let (result, condition) = (operation.function)(Inputs { a, b, c, scc, old });
        let scc_is_known = !operation.reads_scc || wave.scc_written;
        let both = known_a & known_b;
        let all_known = both & known_c & known_old == u64::MAX && scc_is_known;
        let known = match operation.flows {
            _ if all_known => u64::MAX,
            Flows::Mixed => 0,
            Flows::And => both | known_a & !a | known_b & !b,
            Flows::Or => both | known_a & a | known_b & b,
            Flows::AndNot => both | known_a & !a | known_b & b,
            Flows::OrNot => both | known_a & a | known_b & !b,
            Flows::Bitwise => both,
            Flows::Select if scc_is_known => {
                if scc {
                    known_a
                } else {
                    known_b
                }
            }
            Flows::Select => 0,
        };
        if let Some(Operand { place: Place::Scalar(register), registers, .. }) = self.destination {
            let at = usize::from(register);
            wave.scalar[at] = result as u32;
            wave.scalar_written[at] = known as u32;
            if operation.destination.is_wide() && registers > 1 {
                wave.scalar[at + 1] = (result >> 32) as u32;
                wave.scalar_written[at + 1] = (known >> 32) as u32;
            }
        }
        if let Some(condition) = condition {
            let width = if operation.destination.is_wide() { u64::MAX } else { u64::from(u32::MAX) };
            wave.scc = condition;
            // A known 1 anywhere in a bitwise result decides "not zero".
            wave.scc_written = all_known
                || known & width == width
                || (operation.flows != Flows::Mixed && known & result & width != 0);
        }
    }
}

impl Scalar {
    #[inline(never)]
    pub(crate) fn execute(
        &self,
        wave: &mut Wave,
        context: &mut Context<'_>,
        instruction: &Instruction,
    ) -> Result<Flow, Violation> {
        let following = instruction.address + instruction.bytes;
        match self {
            Scalar::Arithmetic(arithmetic) => arithmetic.execute(wave),
            Scalar::SaveExec { operation, keeps_old, destination, source } => {
                let kind = if wave.size() == 64 { Kind::B64 } else { Kind::B32 };
                let (mask, known) = wave.uniform(source, kind);
                let old = wave.exec();
                let result = operation(mask, old) & wave.full_mask();
                // A bit that no active lane owns is masked off whatever it is.
                let undecided = !known & old;
                if undecided != 0 && context.checks.uninitialised {
                    return Err(Violation::Uninitialised(format!(
                        "the new EXEC mask in lane {}",
                        undecided.trailing_zeros()
                    )));
                }
                if *keeps_old && let Some(register) = destination.scalar() {
                    wave.set_lane_mask(register, old, u64::MAX);
                }
                wave.set_lane_mask(EXEC, result, u64::MAX);
                if !keeps_old && let Some(register) = destination.scalar() {
                    wave.set_lane_mask(register, result, u64::MAX);
                }
                wave.scc = result != 0;
                wave.scc_written = true;
            }
            Scalar::GetPc { destination } => {
                wave.set_scalar_pair(*destination, context.program.base + following);
            }
            Scalar::SetPc { source } => return jump(wave, context, source),
            Scalar::SwapPc { destination, source } => {
                let flow = jump(wave, context, source);
                wave.set_scalar_pair(*destination, context.program.base + following);
                return flow;
            }
            Scalar::Call { destination, words } => {
                wave.set_scalar_pair(*destination, context.program.base + following);
                return context.program.jump(following.wrapping_add_signed(4 * words)).map(Flow::Jump);
            }
            Scalar::GetRegister { destination, register } => {
                let value = register.read(wave)?;
                wave.set_scalar(*destination, value);
            }
            Scalar::SetRegister { source, register } => {
                let (value, _) = wave.uniform(source, Kind::B32);
                register.write(wave, value as u32)?;
            }
        }
        Ok(Flow::Next)
    }
}

fn jump(wave: &Wave, context: &Context<'_>, source: &Operand) -> Result<Flow, Violation> {
    let (address, known) = wave.uniform(source, Kind::B64);
    if known != u64::MAX && context.checks.uninitialised {
        return Err(Violation::Uninitialised("jump target".into()));
    }
    context.program.jump(address.wrapping_sub(context.program.base)).map(Flow::Jump)
}

/// VCC as the branch instructions see it.
pub(crate) fn vcc(wave: &Wave) -> (u64, u64) {
    (wave.lane_mask(VCC), wave.lane_mask_written(VCC))
}
