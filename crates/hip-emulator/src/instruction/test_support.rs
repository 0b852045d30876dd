//! One wave and a little memory, to run single instructions on.

use super::operand::{EXEC, SCALARS};
use super::{Context, Instruction, Operation};
use crate::checker::Checks;
use crate::checker::lds_race::Lds;
use crate::counters::Counters;
use crate::fault::Violation;
use crate::memory::{Memory, Origin};
use crate::program::Program;
use crate::target::Target;
use crate::wave::{LANES, Wave};

/// Somewhere to run instructions: every lane active, nothing else initialised.
pub(crate) struct Lab {
    pub(crate) wave: Wave,
    pub(crate) counters: Counters,
    lds: Lds,
    memory: Memory,
    target: Target,
}

impl Lab {
    pub(crate) fn new(target: Target) -> Lab {
        let mut wave = Wave::new(target, 512, 64);
        wave.reset(0, 0);
        wave.set_lane_mask(EXEC, if target.wave_size() == 64 { u64::MAX } else { 0xffff_ffff }, u64::MAX);
        // A carry in, for the operations that read one.
        (wave.scc, wave.scc_written) = (true, true);
        let lds = Lds::new(4096, 1, Checks::ALL);
        Lab { wave, counters: Counters::default(), lds, memory: Memory::default(), target }
    }

    pub(crate) fn vector(&mut self, register: u16, value: impl Fn(usize) -> u32) -> &mut Lab {
        let values = std::array::from_fn(value);
        self.wave.set_vector(register, &values, u64::MAX, u64::MAX);
        self
    }

    pub(crate) fn scalar(&mut self, register: u16, value: u32) -> &mut Lab {
        assert!(usize::from(register) < SCALARS);
        self.wave.set_scalar(register, value);
        self
    }

    pub(crate) fn lane(&self, register: u16, lane: usize) -> u32 {
        assert!(lane < LANES);
        self.wave.vector[usize::from(register)][lane]
    }

    pub(crate) fn allocate(&mut self, bytes: usize) -> u64 {
        self.memory.allocate(bytes, Origin::Device).unwrap()
    }

    /// Decodes and runs one instruction, waiting for LDS but not for memory.
    pub(crate) fn run(&mut self, text: &str) -> Result<(), Violation> {
        let program = Program::empty(self.target);
        let view = self.memory.view(&[]);
        let mut context = Context {
            program: &program,
            memory: &view,
            lds: &mut self.lds,
            counters: &mut self.counters,
            checks: Checks::ALL,
        };
        let instruction = Instruction::decode(0, 8, text.to_string(), self.target);
        if let Operation::Unknown(reason) = &instruction.operation {
            panic!("{reason}");
        }
        instruction.execute(&mut self.wave, &mut context)?;
        if text.starts_with("ds_")
            || text.starts_with("global_load") && !text.contains("lds")
            || text.starts_with("scratch")
            || text.contains("atomic")
            || text.starts_with("buffer_load") && !text.contains("lds")
        {
            use crate::checker::wait_count::Counter;
            for counter in [Counter::Lds, Counter::Load, Counter::Store] {
                self.wave.outstanding.wait(counter, 0, |_| ());
            }
        }
        Ok(())
    }
}

/// Runs a vector instruction on `v1`, `v2`, ... (the same in every lane); `v0` starts as zero and is the result.
pub(crate) fn run_vector(text: &str, sources: &[u32]) -> u32 {
    let mut results = Vec::new();
    // Mnemonics of one target family; the semantics are shared.
    let mut lab = Lab::new(Target::Gfx942);
    lab.vector(0, |_| 0);
    for (at, &value) in sources.iter().enumerate() {
        lab.vector(at as u16 + 1, |_| value);
    }
    lab.run(text).unwrap();
    results.extend((0..64).map(|lane| lab.lane(0, lane)));
    assert!(results.iter().all(|&result| result == results[0]), "lanes differ");
    results[0]
}

pub(crate) fn run_vector_f32(text: &str, sources: &[f32]) -> f32 {
    let words: Vec<u32> = sources.iter().map(|value| value.to_bits()).collect();
    f32::from_bits(run_vector(text, &words))
}

/// Runs a scalar instruction; the result is `s0` and SCC, which starts as 1.
pub(crate) fn run_scalar(text: &str, sources: &[(u16, u32)]) -> (u32, bool) {
    let mut lab = Lab::new(Target::Gfx942);
    for &(register, value) in sources {
        lab.scalar(register, value);
    }
    lab.run(text).unwrap();
    (lab.wave.scalar[0], lab.wave.scc)
}

pub(crate) fn run_scalar_pair(text: &str, sources: &[(u16, u32)]) -> u64 {
    let mut lab = Lab::new(Target::Gfx942);
    for &(register, value) in sources {
        lab.scalar(register, value);
    }
    lab.run(text).unwrap();
    lab.wave.lane_mask(0)
}

/// The bits of `s0` that count as initialised after the instruction.
pub(crate) fn scalar_known_bits(text: &str, sources: &[(u16, u32)]) -> u32 {
    let mut lab = Lab::new(Target::Gfx942);
    for &(register, value) in sources {
        lab.scalar(register, value);
    }
    lab.run(text).unwrap();
    lab.wave.scalar_written[0]
}
