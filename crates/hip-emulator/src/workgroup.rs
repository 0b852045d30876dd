//! Runs one workgroup: its waves take turns in an order drawn from a seed and meet at barriers.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::checker::Checks;
use crate::checker::lds_race::Lds;
use crate::code_object::{KernelDescriptor, UserData};
use crate::counters::Counters;
use crate::fault::{Fault, Violation};
use crate::instruction::buffer::SCRATCH_BASE;
use crate::instruction::operand::{EXEC, TTMP};
use crate::instruction::{Context, Flow};
use crate::memory::View;
use crate::program::Program;
use crate::target::Family;
use crate::wave::Wave;

/// Instructions that one workgroup may execute before it counts as hung.
const LIMIT: u64 = 4_000_000_000;
/// The longest turn of a wave, in instructions.
const LONGEST_TURN: u32 = 400;

/// What every workgroup of a launch shares.
pub(crate) struct Launch<'a> {
    pub(crate) name: &'a str,
    pub(crate) program: &'a Program,
    pub(crate) kernel: &'a KernelDescriptor,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Addresses of the kernel arguments and the dispatch packet.
    pub(crate) kernarg: u64,
    pub(crate) packet: u64,
    pub(crate) lds_bytes: usize,
    pub(crate) memory: &'a View,
    pub(crate) checks: Checks,
    pub(crate) seed: u64,
}

/// Buffers that a thread reuses from workgroup to workgroup.
pub(crate) struct Worker<'a> {
    launch: &'a Launch<'a>,
    waves: Vec<Wave>,
    lds: Lds,
    pub(crate) counters: Counters,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ready,
    /// Waiting for the barrier that completes this many passes.
    AtBarrier,
    Done,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>) -> Worker<'a> {
        let target = launch.program.target;
        let items = launch.block.iter().product::<u32>() as usize;
        let code = &launch.program.code;
        let scratch = launch.kernel.scratch_bytes as usize;
        let waves = (0..items.div_ceil(target.wave_size()))
            .map(|_| Wave::new(target, code.vector_registers, scratch))
            .collect();
        let lds = Lds::new(launch.lds_bytes, code.lds_granule, launch.checks);
        Worker { launch, waves, lds, counters: Counters::default() }
    }

    /// Runs the workgroup with this linear index.
    pub(crate) fn run(&mut self, index: u64) -> Result<(), Fault> {
        let [x, y, _] = self.launch.grid.map(u64::from);
        let workgroup = [index % x, index / x % y, index / x / y].map(|axis| axis as u32);
        self.prepare(workgroup).map_err(|violation| self.fault(workgroup, 0, violation))?;
        let mut random =
            ChaCha8Rng::seed_from_u64(self.launch.seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut states = vec![State::Ready; self.waves.len()];
        let mut executed = 0;
        loop {
            let ready: Vec<usize> = (0..states.len()).filter(|&wave| states[wave] == State::Ready).collect();
            if ready.is_empty() {
                break;
            }
            let wave = ready[random.random_range(0..ready.len())];
            // Alone, a wave has nobody to interleave with.
            let turn = if ready.len() == 1 { u32::MAX } else { random.random_range(1..=LONGEST_TURN) };
            let (state, steps) = self.take_turn(workgroup, wave, turn)?;
            states[wave] = state;
            executed += u64::from(steps);
            if executed > LIMIT {
                let hang = Violation::Deadlock(format!("the workgroup executed {LIMIT} instructions"));
                return Err(self.fault(workgroup, wave, hang));
            }
            self.release_barrier(&mut states);
        }
        if let Some(wave) = states.iter().position(|&state| state == State::AtBarrier) {
            let stuck = Violation::Deadlock("a wave waits at a barrier that the others never reach".into());
            return Err(self.fault(workgroup, wave, stuck));
        }
        self.counters.workgroups += 1;
        self.counters.waves += self.waves.len() as u64;
        Ok(())
    }

    /// Lets the waves pass whose barrier every running wave has signalled.
    fn release_barrier(&mut self, states: &mut [State]) {
        let running = || states.iter().zip(&self.waves).filter(|(state, _)| **state != State::Done);
        let Some(complete) = running().map(|(_, wave)| wave.signalled).min() else { return };
        for (state, wave) in states.iter_mut().zip(&mut self.waves) {
            if *state == State::AtBarrier && wave.passed < complete {
                wave.passed += 1;
                *state = State::Ready;
                self.counters.barriers += 1;
            }
        }
    }

    /// Executes one wave until it waits, ends or has used its turn.
    fn take_turn(&mut self, workgroup: [u32; 3], wave: usize, turn: u32) -> Result<(State, u32), Fault> {
        let launch = self.launch;
        let code = &launch.program.code;
        let mut context = Context {
            program: launch.program,
            memory: launch.memory,
            lds: &mut self.lds,
            counters: &mut self.counters,
            checks: launch.checks,
        };
        let current = &mut self.waves[wave];
        for step in 0..turn {
            let flow = match code.instructions.get(current.next) {
                Some(instruction) => instruction.execute(current, &mut context),
                None => Err(Violation::Invalid("the program counter left the kernel".into())),
            };
            match flow {
                Ok(Flow::Next) => current.next += 1,
                Ok(Flow::Jump(index)) => current.next = index,
                Ok(Flow::End) => return Ok((State::Done, step + 1)),
                Ok(flow @ (Flow::Barrier | Flow::Signal | Flow::AwaitBarrier)) => {
                    current.next += 1;
                    if flow != Flow::AwaitBarrier {
                        signal(current, context.lds);
                    }
                    if flow != Flow::Signal {
                        if current.passed >= current.signalled {
                            let violation =
                                Violation::Invalid("a wait for a barrier that was not signalled".into());
                            return Err(self.fault(workgroup, wave, violation));
                        }
                        return Ok((State::AtBarrier, step + 1));
                    }
                }
                Err(violation) => return Err(self.fault(workgroup, wave, violation)),
            }
        }
        Ok((State::Ready, turn))
    }

    fn fault(&self, workgroup: [u32; 3], wave: usize, violation: Violation) -> Fault {
        let code = &self.launch.program.code;
        let next = self.waves.get(wave).map_or(0, |wave| wave.next);
        let instruction = code.instructions.get(next).map(|instruction| instruction.text.clone());
        Fault {
            kernel: self.launch.name.to_string(),
            workgroup,
            wave,
            instruction: instruction.unwrap_or_default(),
            violation,
        }
    }

    /// Sets the registers that a kernel starts with.
    fn prepare(&mut self, workgroup: [u32; 3]) -> Result<(), Violation> {
        let launch = self.launch;
        let entry = launch.program.jump(launch.kernel.entry)?;
        self.lds.reset();
        let [width, height, _] = launch.block;
        let items = launch.block.iter().product::<u32>() as usize;
        for (index, wave) in self.waves.iter_mut().enumerate() {
            wave.reset(index, entry);
            let size = wave.size();
            let live = (items - index * size).min(size);
            let mask = if live == 64 { u64::MAX } else { (1 << live) - 1 };
            // A wave of 32 lanes has an EXEC of which only the low half counts.
            wave.set_lane_mask(EXEC, mask, u64::MAX);
            let ids = std::array::from_fn(|lane| {
                let item = (index * size + lane) as u32;
                (item % width) | ((item / width % height) << 10) | (item / width / height) << 20
            });
            wave.set_vector(0, &ids, u64::MAX, u64::MAX);
            set_scalars(wave, launch, workgroup);
        }
        Ok(())
    }
}

/// A wave arrives at a barrier; LDS writes that are still outstanding are not ordered by it.
fn signal(wave: &mut Wave, lds: &mut Lds) {
    wave.signalled += 1;
    let by = wave.accessor();
    for ranges in wave.outstanding.lds_writes() {
        lds.carry_over(ranges, by);
    }
}

fn set_scalars(wave: &mut Wave, launch: &Launch<'_>, workgroup: [u32; 3]) {
    let kernel = launch.kernel;
    let mut next = 0;
    if kernel.has(UserData::PrivateSegmentBuffer) {
        // A descriptor of unlimited size whose base marks it as scratch.
        let words = [SCRATCH_BASE as u32, (SCRATCH_BASE >> 32) as u32, u32::MAX, 0];
        for (word, value) in (next..).zip(words) {
            wave.set_scalar(word, value);
        }
        next += 4;
    }
    let pairs = [
        (UserData::DispatchPointer, launch.packet),
        (UserData::QueuePointer, 0),
        (UserData::KernargPointer, launch.kernarg),
        (UserData::DispatchId, 0),
        (UserData::FlatScratchInit, 0),
    ];
    for (user_data, value) in pairs {
        if kernel.has(user_data) {
            wave.set_scalar_pair(next, value);
            next += 2;
        }
    }
    if kernel.has(UserData::PrivateSegmentSize) {
        wave.set_scalar(next, kernel.scratch_bytes);
    }
    if wave.target.family() == Family::Rdna4 {
        wave.set_scalar(TTMP + 9, workgroup[0]);
        wave.set_scalar(TTMP + 7, workgroup[1] & 0xffff | workgroup[2] << 16);
        return;
    }
    let mut next = kernel.user_sgprs() as u16;
    for (axis, &index) in workgroup.iter().enumerate() {
        if kernel.wants_workgroup_id(axis) {
            wave.set_scalar(next, index);
            next += 1;
        }
    }
    if kernel.wants_scratch_offset() {
        wave.set_scalar(next, 0);
    }
}
