//! SOPP: branches, waits, barriers and hints to the scheduler.

use super::scalar::vcc;
use super::statement::{Statement, number};
use super::{Context, Flow, Instruction, Operation};
use crate::checker::wait_count::Counter;
use crate::fault::Violation;
use crate::target::Family;
use crate::wave::Wave;

/// A program-control instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// Hints, cache maintenance and delays, which change no result here.
    Hint,
    End,
    Branch {
        condition: Condition,
        words: i64,
    },
    Wait(Vec<(Counter, usize)>),
    Barrier,
    Signal,
    AwaitBarrier,
    Trap,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Always,
    Scc(bool),
    VccZero(bool),
    ExecZero(bool),
}

/// Instructions that have no effect on a result. Each is a whole mnemonic or, with a trailing `_`, a prefix.
const HINTS: &[&str] = &[
    "s_nop",
    "s_delay_alu",
    "s_clause",
    "s_setprio",
    "s_sleep",
    "s_sendmsg",
    "s_icache_inv",
    "s_dcache_",
    "s_inst_prefetch",
    "s_set_inst_prefetch_distance",
    "s_prefetch_",
    "s_waitcnt_depctr",
    "s_wait_alu",
    "s_wait_idle",
    "s_wait_expcnt",
    "s_wait_event",
    "s_waitcnt_expcnt",
    "s_denorm_mode",
    "s_ttracedata",
    "s_incperflevel",
    "s_decperflevel",
    "s_version",
    "s_sethalt",
    "s_setkill",
    "s_barrier_leave",
    "buffer_wbl2",
    "buffer_inv",
    "buffer_gl0_inv",
    "buffer_gl1_inv",
    "buffer_wbinvl1",
    "buffer_wbinvl1_vol",
    "global_inv",
    "global_wb",
    "global_wbinv",
    "v_nop",
];

pub(crate) fn decode(statement: &mut Statement) -> Result<Option<Operation>, String> {
    let name = statement.mnemonic.as_str();
    let is_hint = |hint: &str| name == hint || hint.ends_with('_') && name.starts_with(hint);
    if HINTS.iter().any(|hint| is_hint(hint)) {
        return Ok(Some(Operation::Program(Program::Hint)));
    }
    let program = match name {
        "s_endpgm" | "s_endpgm_saved" => Program::End,
        "s_barrier" => Program::Barrier,
        "s_barrier_signal" if workgroup_barrier(statement) => Program::Signal,
        "s_barrier_wait" if barrier_number(statement) == Some(-1) => Program::AwaitBarrier,
        "s_trap" => Program::Trap,
        "s_waitcnt" => Program::Wait(waitcnt(statement)?),
        _ => {
            if let Some(counters) = single_wait(name, statement.target.family()) {
                Program::Wait(split_wait(statement, counters)?)
            } else if let Some(condition) = branch_condition(name) {
                let words = statement.words.first().and_then(|word| number(word)).ok_or("branch distance")?;
                Program::Branch { condition, words: i64::from(words as u16 as i16) }
            } else {
                return Ok(None);
            }
        }
    };
    Ok(Some(Operation::Program(program)))
}

fn barrier_number(statement: &Statement) -> Option<i64> {
    let word = statement.words.first()?;
    number(word).map(|n| i64::from(n as u16 as i16))
}

fn workgroup_barrier(statement: &Statement) -> bool {
    barrier_number(statement) == Some(-1)
}

fn branch_condition(name: &str) -> Option<Condition> {
    Some(match name {
        "s_branch" => Condition::Always,
        "s_cbranch_scc0" => Condition::Scc(false),
        "s_cbranch_scc1" => Condition::Scc(true),
        "s_cbranch_vccz" => Condition::VccZero(true),
        "s_cbranch_vccnz" => Condition::VccZero(false),
        "s_cbranch_execz" => Condition::ExecZero(true),
        "s_cbranch_execnz" => Condition::ExecZero(false),
        _ => return None,
    })
}

/// `vmcnt(0) lgkmcnt(1)`, or the encoded number when every counter is at its maximum.
fn waitcnt(statement: &mut Statement) -> Result<Vec<(Counter, usize)>, String> {
    let mut words = statement.words.clone();
    while let Some(modifier) = statement.modifiers.first() {
        statement.modifiers.take(&modifier);
        words.push(modifier);
    }
    let mut waits = Vec::new();
    for word in words.iter().filter(|word| *word != "&") {
        if let Some(bits) = number(word) {
            waits.extend(encoded_waitcnt(bits as usize, statement.target.family()));
            continue;
        }
        let (name, count) = word.split_once('(').ok_or_else(|| format!("wait {word}"))?;
        let count = number(count.trim_end_matches(')')).ok_or_else(|| format!("wait {word}"))? as usize;
        match name {
            "vmcnt" => waits.push((Counter::Load, count)),
            // LDS and scalar loads share this counter.
            "lgkmcnt" => waits.push((Counter::Lds, count)),
            "expcnt" => {}
            _ => return Err(format!("wait {word}")),
        }
    }
    Ok(waits)
}

/// The counters of an `s_waitcnt` whose text is a number.
fn encoded_waitcnt(bits: usize, family: Family) -> [(Counter, usize); 2] {
    match family {
        Family::Cdna => [(Counter::Load, bits & 0xf | bits >> 10 & 0x30), (Counter::Lds, bits >> 8 & 0xf)],
        Family::Rdna3 | Family::Rdna4 => {
            [(Counter::Load, bits >> 10 & 0x3f), (Counter::Lds, bits >> 4 & 0x3f)]
        }
    }
}

/// The counters of an instruction that waits for one or two; the second is in the low six bits.
fn single_wait(name: &str, family: Family) -> Option<&'static [Counter]> {
    Some(match name {
        "s_wait_loadcnt" | "s_waitcnt_vmcnt" => &[Counter::Load],
        "s_wait_storecnt" | "s_waitcnt_vscnt" => &[Counter::Store],
        "s_wait_dscnt" | "s_waitcnt_lgkmcnt" => &[Counter::Lds],
        "s_wait_kmcnt" => &[Counter::Scalar],
        "s_wait_loadcnt_dscnt" => &[Counter::Load, Counter::Lds],
        "s_wait_storecnt_dscnt" => &[Counter::Store, Counter::Lds],
        // No images, no ray tracing: nothing is ever counted.
        "s_wait_samplecnt" | "s_wait_bvhcnt" if family == Family::Rdna4 => &[],
        _ => return None,
    })
}

fn split_wait(statement: &Statement, counters: &[Counter]) -> Result<Vec<(Counter, usize)>, String> {
    let count = statement.words.last().and_then(|word| number(word)).ok_or("wait count")? as usize;
    Ok(match counters {
        [] => Vec::new(),
        [one] => vec![(*one, count & 0x3f)],
        [high, low, ..] => vec![(*high, count >> 8 & 0x3f), (*low, count & 0x3f)],
    })
}

impl Program {
    #[inline(never)]
    pub(crate) fn execute(
        &self,
        wave: &mut Wave,
        context: &mut Context<'_>,
        instruction: &Instruction,
    ) -> Result<Flow, Violation> {
        match self {
            Program::Hint => Ok(Flow::Next),
            Program::End => Ok(Flow::End),
            Program::Barrier => Ok(Flow::Barrier),
            Program::Signal => Ok(Flow::Signal),
            Program::AwaitBarrier => Ok(Flow::AwaitBarrier),
            Program::Trap => Err(Violation::Invalid("s_trap: the kernel asked to be stopped".into())),
            Program::Wait(waits) => {
                let by = wave.accessor();
                for &(counter, limit) in waits {
                    wave.outstanding.wait(counter, limit, |ranges| context.lds.complete(ranges, by));
                }
                Ok(Flow::Next)
            }
            Program::Branch { condition, words } => {
                if !condition.holds(wave, context)? {
                    return Ok(Flow::Next);
                }
                let address = (instruction.address + 4).wrapping_add_signed(4 * words);
                context.program.jump(address).map(Flow::Jump)
            }
        }
    }
}

impl Condition {
    fn holds(self, wave: &Wave, context: &Context<'_>) -> Result<bool, Violation> {
        let must_know = context.checks.uninitialised;
        match self {
            Condition::Always => Ok(true),
            Condition::Scc(value) => {
                if must_know && !wave.scc_written {
                    return Err(Violation::Uninitialised("the condition code of a branch".into()));
                }
                Ok(wave.scc == value)
            }
            Condition::VccZero(value) => {
                let (mask, known) = vcc(wave);
                // A known 1 decides that the mask is not zero.
                if must_know && known & wave.full_mask() != wave.full_mask() && mask & known == 0 {
                    return Err(Violation::Uninitialised("the VCC mask of a branch".into()));
                }
                Ok((mask == 0) == value)
            }
            Condition::ExecZero(value) => Ok((wave.exec() == 0) == value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::Target;

    fn program(text: &str, target: Target) -> Program {
        match decode(&mut Statement::parse(text, target)).unwrap().unwrap() {
            Operation::Program(program) => program,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn waits_name_their_counters() {
        use Counter::{Lds, Load, Scalar, Store};
        let wait = |text, target| match program(text, target) {
            Program::Wait(waits) => waits,
            other => panic!("{other:?}"),
        };
        assert_eq!(wait("s_waitcnt vmcnt(3) lgkmcnt(0)", Target::Gfx942), [(Load, 3), (Lds, 0)]);
        assert_eq!(wait("s_waitcnt lgkmcnt(2)", Target::Gfx1100), [(Lds, 2)]);
        assert_eq!(wait("s_waitcnt_vscnt null, 0x0", Target::Gfx1100), [(Store, 0)]);
        assert_eq!(wait("s_wait_loadcnt_dscnt 0x102", Target::Gfx1200), [(Load, 1), (Lds, 2)]);
        assert_eq!(wait("s_wait_kmcnt 0x0", Target::Gfx1201), [(Scalar, 0)]);
        assert_eq!(wait("s_waitcnt 0xcf7f", Target::Gfx942), [(Load, 63), (Lds, 15)]);
    }

    #[test]
    fn a_branch_distance_is_signed() {
        let branch = program("s_cbranch_scc1 65505", Target::Gfx942);
        assert_eq!(branch, Program::Branch { condition: Condition::Scc(true), words: -31 });
    }

    #[test]
    fn only_the_workgroups_barrier_is_known() {
        assert_eq!(program("s_barrier_signal -1", Target::Gfx1200), Program::Signal);
        assert_eq!(program("s_barrier_wait 0xffff", Target::Gfx1200), Program::AwaitBarrier);
        assert!(decode(&mut Statement::parse("s_barrier_signal 3", Target::Gfx1200)).unwrap().is_none());
    }
}
