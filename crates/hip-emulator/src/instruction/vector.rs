//! Lane-wise vector arithmetic: sources, destinations and modifiers that VOP1, VOP2, VOP3 and VOPD share.

use super::dpp::Dpp;
use super::lane_function::{LaneFunction, LaneOperation};
use super::operand::{Half, Kind, Operand, Place, VCC};
use super::sdwa::{self, Select};
use super::statement::Statement;
use super::{Operation, vop1, vop2, vop3};
use crate::counters::Class;
use crate::fault::Violation;
use crate::target::{Family, Target};
use crate::wave::{LANES, Lanes, Wave, select};

/// What an entry of the tables in `vop1`, `vop2` and `vop3` computes.
#[derive(Clone, Copy)]
pub(crate) enum Function {
    Words(LaneFunction),
    /// At least one operand has 64 bits.
    Wide(fn(u64, u64, u64) -> u64),
    /// The third source is a lane mask that picks the second source over the first.
    Select,
    /// Sum or difference with a mask of carries out and, if there is a third source, in.
    Carry(fn(u32, u32, u32) -> (u32, bool)),
    /// A 64-bit result and a mask of carries out.
    WideCarry(fn(u64, u64, u64) -> (u64, bool)),
    /// As `Words`, with a mask in VCC: `v_div_fmas_f32`.
    WordsWithVcc(fn(u32, u32, u32, bool) -> u32),
    WideWithVcc(fn(u64, u64, u64, bool) -> u64),
    /// A truth table of three bits, applied bit by bit.
    TruthTable(u8),
}

/// An entry of the tables.
#[derive(Clone, Copy)]
pub(crate) struct VectorOperation {
    pub(crate) function: Function,
    pub(crate) sources: &'static [Kind],
    pub(crate) destination: Kind,
    /// The destination is one more source: `v_fmac`.
    pub(crate) accumulates: bool,
}

impl From<LaneOperation> for VectorOperation {
    fn from(operation: LaneOperation) -> VectorOperation {
        VectorOperation {
            function: Function::Words(operation.function),
            sources: operation.sources,
            destination: operation.destination,
            accumulates: false,
        }
    }
}

impl VectorOperation {
    pub(crate) fn wide(
        destination: Kind,
        sources: &'static [Kind],
        function: fn(u64, u64, u64) -> u64,
    ) -> VectorOperation {
        VectorOperation { function: Function::Wide(function), sources, destination, accumulates: false }
    }

    pub(crate) fn accumulating(self) -> VectorOperation {
        VectorOperation { accumulates: true, ..self }
    }
}

/// A 64-bit value of each lane.
pub(crate) type WideLanes = [u64; LANES];

/// A source with its modifiers resolved to bit operations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    operand: Operand,
    kind: Kind,
    /// What of the register is used: bytes or halves.
    select: Select,
    clear: u32,
    flip: u32,
    is_plain: bool,
}

impl Source {
    pub(crate) fn new(operand: Operand, kind: Kind, select: Select) -> Source {
        let sign = if kind.is_wide() { 0 } else { kind.sign() as u32 };
        let clear = if operand.absolute { sign } else { 0 };
        let flip = if operand.negate { sign } else { 0 };
        let is_plain = select == Select::WORD && clear | flip == 0;
        Source { operand, kind, select, clear, flip, is_plain }
    }

    fn absent() -> Source {
        Source::new(Operand::plain(Place::Null, 1), Kind::B32, Select::WORD)
    }

    #[inline(always)]
    fn modify(&self, word: u32) -> u32 {
        (self.select.of(word) & !self.clear) ^ self.flip
    }

    /// The values of all lanes and which of them are initialised; `buffer` is filled unless the register serves as it is.
    #[inline]
    pub(crate) fn words<'w>(&self, wave: &'w Wave, buffer: &'w mut Option<Lanes>) -> (&'w Lanes, u64) {
        if let Place::Vector(register) = self.operand.place {
            let at = usize::from(register);
            let lanes = &wave.vector[at];
            let lanes =
                if self.is_plain { lanes } else { buffer.insert(lanes.map(|word| self.modify(word))) };
            return (lanes, wave.vector_written[at]);
        }
        let (value, known) = wave.uniform(&self.operand, self.kind);
        // Constants are not selected from: they have the operand's width already.
        let value = match self.operand.place {
            Place::Scalar(_) => self.modify(value as u32),
            _ => (value as u32 & !self.clear) ^ self.flip,
        };
        (buffer.insert([value; LANES]), if known == u64::MAX { u64::MAX } else { 0 })
    }

    /// The 64-bit (or zero-extended 32-bit) values of all lanes.
    pub(crate) fn wide(&self, wave: &Wave) -> WideLanes {
        let sign = self.kind.sign();
        let clear = if self.operand.absolute { sign } else { 0 };
        let flip = if self.operand.negate { sign } else { 0 };
        let Place::Vector(register) = self.operand.place else {
            return [wave.uniform(&self.operand, self.kind).0 & !clear ^ flip; LANES];
        };
        let low = &wave.vector[usize::from(register)];
        if !self.kind.is_wide() {
            return low.map(|word| u64::from(self.modify(word)));
        }
        let high = &wave.vector[usize::from(register) + 1];
        std::array::from_fn(|lane| (u64::from(low[lane]) | u64::from(high[lane]) << 32) & !clear ^ flip)
    }

    /// The lanes whose value is initialised.
    pub(crate) fn written(&self, wave: &Wave) -> u64 {
        match self.operand.place {
            Place::Vector(register) => {
                let at = usize::from(register);
                let low = wave.vector_written[at];
                if self.kind.is_wide() { low & wave.vector_written[at + 1] } else { low }
            }
            _ => {
                if wave.uniform(&self.operand, self.kind).1 == u64::MAX {
                    u64::MAX
                } else {
                    0
                }
            }
        }
    }
}

/// What happens to a result before it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Output {
    clamp: bool,
    /// 2, 4 or 0.5.
    factor: Option<f32>,
}

/// How a result is merged into its register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Merge {
    Whole,
    /// 16 bits into one half; the other half is kept.
    Half(Half),
    Sdwa(sdwa::Destination),
}

/// A lane-wise instruction.
pub(crate) struct Vector {
    function: Function,
    kind: Kind,
    destination: u16,
    sources: [Source; 3],
    count: usize,
    merge: Merge,
    output: Output,
    dpp: Option<Dpp>,
    /// Where carries go, unless `null`.
    carry: Option<u16>,
    /// The lane mask that `Select` and `Carry` read.
    mask: Option<Operand>,
}

impl std::fmt::Debug for Vector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vector")
            .field("destination", &self.destination)
            .field("sources", &self.sources)
            .finish()
    }
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(name) = statement.mnemonic.strip_prefix("v_") else { return Ok(None) };
    let name = name.to_string();
    let operation = match name.as_str() {
        "bitop3_b32" | "bitop3_b16" => {
            let table = statement.modifiers.number("bitop3")?.unwrap_or(0) as u8;
            let (words, halves): (&'static [Kind], &'static [Kind]) = (&[Kind::B32; 3], &[Kind::B16; 3]);
            let sources = if name == "bitop3_b16" { halves } else { words };
            let function = Function::TruthTable(table);
            VectorOperation { function, sources, destination: sources[0], accumulates: false }
        }
        _ => match lookup(&name, statement.target) {
            Some(operation) => operation,
            None => return Ok(None),
        },
    };
    let class = if is_transcendental(&name) { Class::Transcendental } else { Class::Vector };
    let mut vector = Vector::new(operation, statement, operands)?;
    let is_float8 = name.starts_with("cvt_pk_fp8_") || name.starts_with("cvt_pk_bf8_");
    if is_float8 && vector.merge == Merge::Whole {
        vector.merge = Merge::Half(Half::Low);
    }
    Ok(Some((class, Operation::Vector(Box::new(vector)))))
}

/// The operation of a mnemonic without its `v_`.
pub(crate) fn lookup(name: &str, target: Target) -> Option<VectorOperation> {
    vop1::lookup(name, target).or_else(|| vop2::lookup(name, target)).or_else(|| vop3::lookup(name, target))
}

fn is_transcendental(name: &str) -> bool {
    let stem = name.split('_').next().unwrap_or_default();
    matches!(stem, "exp" | "log" | "rcp" | "rsq" | "sqrt" | "sin" | "cos" | "tanh")
}

impl Vector {
    pub(crate) fn new(
        operation: VectorOperation,
        statement: &mut Statement,
        operands: &[Operand],
    ) -> Result<Vector, String> {
        let target = statement.target;
        let mut operands = operands.to_vec();
        let is_carry = matches!(operation.function, Function::Carry(_) | Function::WideCarry(_));
        let mut mask = None;
        let mut carry = None;
        if is_carry {
            if operands.len() < 3 {
                return Err("operands".into());
            }
            carry = operands.remove(1).scalar();
        }
        if matches!(operation.function, Function::Select | Function::Carry(_)) && operands.len() == 4 {
            mask = operands.pop();
        } else if matches!(operation.function, Function::Select) {
            mask = Some(Operand::plain(Place::Scalar(VCC), if target.wave_size() == 64 { 2 } else { 1 }));
        }
        let destination = operands.first().copied().ok_or("destination")?;
        let register = destination.vector().ok_or("a vector destination expected")?;
        if operation.accumulates {
            operands.push(Operand { negate: false, absolute: false, ..destination });
        }
        let count = operands.len() - 1;
        if count != operation.sources.len() || count > 3 {
            return Err(format!("{count} sources"));
        }

        let selects = source_selects(statement, &operation, &operands)?;
        let mut sources = [Source::absent(); 3];
        for at in 0..count {
            let operand = operands[at + 1];
            let needed = if operation.sources[at].is_wide() { 2 } else { 1 };
            if operand.vector().is_some() && operand.registers < needed {
                return Err(format!("source {at} has {} registers", operand.registers));
            }
            sources[at] = Source::new(operand, operation.sources[at], selects.0[at]);
        }
        let merge = merge(statement, operation.destination, &destination, selects.1)?;
        let output = output(statement, operation.destination)?;
        let dpp = if statement.is_dpp { Some(Dpp::decode(&mut statement.modifiers)?) } else { None };
        if dpp.is_some()
            && !matches!(operation.function, Function::Words(_) | Function::Select | Function::Carry(_))
        {
            return Err("DPP on a 64-bit operation".into());
        }
        let function = operation.function;
        let kind = operation.destination;
        Ok(Vector { function, kind, destination: register, sources, count, merge, output, dpp, carry, mask })
    }

    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave) -> Result<(), Violation> {
        let active = wave.exec();
        if matches!(self.function, Function::Wide(_) | Function::WideWithVcc(_) | Function::WideCarry(_)) {
            self.execute_wide(wave, active);
            return Ok(());
        }
        let mut result = [0; LANES];
        let (written, enabled, carries) = self.evaluate(wave, active, &mut result);
        self.store(wave, &mut result, enabled, written);
        if let Some(register) = self.carry {
            wave.set_lane_mask(register, carries.0 & active, carries.1 | !active);
        }
        Ok(())
    }

    /// Computes all lanes: which are initialised, which are written, and the carries with their initialised bits.
    #[inline(never)]
    pub(crate) fn evaluate(&self, wave: &Wave, active: u64, result: &mut Lanes) -> (u64, u64, (u64, u64)) {
        let (mut first, mut second, mut third, mut moved) = (None, None, None, None);
        let mut enabled = active;
        let (mut a, mut known_a) = self.sources[0].words(wave, &mut first);
        if let Some(dpp) = &self.dpp {
            let moved = moved.insert([0; LANES]);
            (known_a, enabled) = dpp.apply(a, known_a, active, wave.size(), moved);
            a = moved;
        }
        let unused = (&ZERO, u64::MAX);
        let (b, known_b) = if self.count > 1 { self.sources[1].words(wave, &mut second) } else { unused };
        let (c, known_c) = if self.count > 2 { self.sources[2].words(wave, &mut third) } else { unused };
        let known = known_a & known_b & known_c;
        match self.function {
            Function::Words(function) => {
                function.call(wave.size(), a, b, c, result);
                (known, enabled, (0, 0))
            }
            Function::Select => {
                let (mask, known_mask) = self.mask(wave);
                *result = *a;
                select(mask, b, result);
                (known_mask & (mask & known_b | !mask & known_a), enabled, (0, 0))
            }
            Function::Carry(function) => {
                let (mask, known_mask) = self.mask(wave);
                let mut carries = 0;
                for lane in 0..wave.size() {
                    let (value, carry) = function(a[lane], b[lane], (mask >> lane & 1) as u32);
                    result[lane] = value;
                    carries |= u64::from(carry) << lane;
                }
                let known = known & known_mask;
                (known, enabled, (carries, known))
            }
            Function::WordsWithVcc(function) => {
                let (mask, known_mask) = (wave.lane_mask(VCC), wave.lane_mask_written(VCC));
                for lane in 0..LANES {
                    result[lane] = function(a[lane], b[lane], c[lane], mask >> lane & 1 == 1);
                }
                (known & known_mask, enabled, (0, 0))
            }
            Function::TruthTable(table) => {
                for lane in 0..LANES {
                    result[lane] = truth_table(table, a[lane], b[lane], c[lane]);
                }
                (known, enabled, (0, 0))
            }
            Function::Wide(_) | Function::WideWithVcc(_) | Function::WideCarry(_) => (0, 0, (0, 0)),
        }
    }

    fn mask(&self, wave: &Wave) -> (u64, u64) {
        match self.mask {
            Some(Operand { place: Place::Scalar(register), .. }) => {
                (wave.lane_mask(register), wave.lane_mask_written(register))
            }
            // A constant mask (`0`, `-1`).
            Some(operand) => wave.uniform(&operand, Kind::B64),
            None => (0, u64::MAX),
        }
    }

    /// Writes a 32- or 16-bit result.
    pub(crate) fn store(&self, wave: &mut Wave, result: &mut Lanes, enabled: u64, written: u64) {
        if self.output != Output::default() {
            for word in result.iter_mut() {
                *word = self.output.apply(*word, self.kind);
            }
        }
        let old = &wave.vector[usize::from(self.destination)];
        match self.merge {
            Merge::Whole => {}
            Merge::Half(Half::Low) => {
                for lane in 0..LANES {
                    result[lane] = old[lane] & 0xffff_0000 | result[lane] & 0xffff;
                }
            }
            Merge::Half(Half::High) => {
                for lane in 0..LANES {
                    result[lane] = old[lane] & 0xffff | result[lane] << 16;
                }
            }
            Merge::Sdwa(destination) => {
                for lane in 0..LANES {
                    result[lane] = destination.merge(old[lane], result[lane]);
                }
            }
        }
        wave.set_vector(self.destination, result, enabled, written);
    }

    /// The lanes in which the low word of an integer multiply-add is initialised: it does not depend on the high word of
    /// what is added, which compilers leave as it is where they need the low word only.
    fn low_words_written(&self, wave: &Wave) -> u64 {
        let (Function::WideCarry(_), Kind::B64) = (self.function, self.kind) else { return 0 };
        self.sources[..self.count].iter().fold(u64::MAX, |known, source| match source.operand.place {
            Place::Vector(register) => known & wave.vector_written[usize::from(register)],
            _ => known & source.written(wave),
        })
    }

    #[inline(never)]
    fn execute_wide(&self, wave: &mut Wave, active: u64) {
        let known =
            self.sources[..self.count].iter().fold(u64::MAX, |known, source| known & source.written(wave));
        let (mask, known_mask) = match self.function {
            Function::WideWithVcc(_) => (wave.lane_mask(VCC), wave.lane_mask_written(VCC)),
            _ => (0, u64::MAX),
        };
        let source = |at: usize| if at < self.count { self.sources[at].wide(wave) } else { [0; LANES] };
        let (a, b, c) = (source(0), source(1), source(2));
        let mut carries = 0;
        let mut values: WideLanes = match self.function {
            Function::Wide(function) => std::array::from_fn(|lane| function(a[lane], b[lane], c[lane])),
            Function::WideWithVcc(function) => {
                std::array::from_fn(|lane| function(a[lane], b[lane], c[lane], mask >> lane & 1 == 1))
            }
            Function::WideCarry(function) => std::array::from_fn(|lane| {
                let (value, carry) = function(a[lane], b[lane], c[lane]);
                carries |= u64::from(carry) << lane;
                value
            }),
            _ => [0; LANES],
        };
        if self.kind == Kind::F64 {
            values = values.map(|value| self.output.apply_wide(value));
        }
        let (mut low, high) = (values.map(|value| value as u32), values.map(|value| (value >> 32) as u32));
        let known = known & known_mask;
        if self.kind.is_wide() {
            wave.set_vector(self.destination, &low, active, known | self.low_words_written(wave));
            wave.set_vector(self.destination + 1, &high, active, known);
        } else {
            self.store(wave, &mut low, active, known);
        }
        if let Some(register) = self.carry {
            wave.set_lane_mask(register, carries & active, known | !active);
        }
    }
}

/// Bit `4 a + 2 b + c` of the table is the result for those three bits.
fn truth_table(table: u8, a: u32, b: u32, c: u32) -> u32 {
    let term = |index: u8| -> u32 {
        let pick = |word: u32, bit: u8| if index >> bit & 1 == 1 { word } else { !word };
        if table >> index & 1 == 1 { pick(a, 2) & pick(b, 1) & pick(c, 0) } else { 0 }
    };
    (0..8).fold(0, |word, index| word | term(index))
}

static ZERO: Lanes = [0; LANES];

/// Which part of each source is read, and `op_sel`'s bit for the destination.
fn source_selects(
    statement: &mut Statement,
    operation: &VectorOperation,
    operands: &[Operand],
) -> Result<([Select; 3], bool), String> {
    let mut selects = [Select::WORD; 3];
    let op_sel = statement.modifiers.bits::<4>("op_sel", false)?;
    let count = operation.sources.len();
    for at in 0..count {
        let half = operands[at + 1].half;
        let is_high = op_sel[at] || half == Some(Half::High);
        if operation.sources[at].is_half() || half.is_some() {
            selects[at] = if is_high { Select::HIGH } else { Select::LOW };
        } else if op_sel[at] {
            return Err("op_sel on a 32-bit source".into());
        }
    }
    if statement.is_sdwa {
        for (at, key) in ["src0_sel", "src1_sel"].into_iter().enumerate() {
            let Some(name) = statement.modifiers.take(key) else { continue };
            let select = Select::parse(&name).ok_or_else(|| format!("{key}:{name}"))?;
            if at < count && !(select == Select::WORD && operation.sources[at].is_half()) {
                selects[at] = if operands[at + 1].sign_extend { select.signed() } else { select };
            }
        }
    }
    // `op_sel` lists the sources, then the destination.
    let destination_bit = op_sel[count - usize::from(operation.accumulates).min(count)];
    Ok((selects, if count < 4 { destination_bit } else { false }))
}

fn merge(
    statement: &mut Statement,
    kind: Kind,
    destination: &Operand,
    is_high: bool,
) -> Result<Merge, String> {
    if statement.is_sdwa {
        if let Some(sdwa) = sdwa::Destination::decode(&mut statement.modifiers)? {
            return Ok(Merge::Sdwa(sdwa));
        }
        return Ok(Merge::Whole);
    }
    if let Some(half) = destination.half {
        return Ok(Merge::Half(half));
    }
    if !kind.is_half() {
        return Ok(Merge::Whole);
    }
    Ok(match (is_high, statement.target.family()) {
        (true, _) => Merge::Half(Half::High),
        // CDNA's 16-bit operations clear the upper half; RDNA's keep it.
        (false, Family::Cdna) => Merge::Whole,
        (false, _) => Merge::Half(Half::Low),
    })
}

fn output(statement: &mut Statement, kind: Kind) -> Result<Output, String> {
    let clamp = statement.modifiers.flag("clamp");
    let multiply = statement.modifiers.number("mul")?;
    let divide = statement.modifiers.number("div")?;
    let factor = match (multiply, divide) {
        (None, None) => None,
        (Some(factor @ (2 | 4)), None) => Some(factor as f32),
        (None, Some(2)) => Some(0.5),
        _ => return Err("output modifier".into()),
    };
    let is_float = matches!(kind, Kind::F16 | Kind::F32 | Kind::F64);
    if (clamp || factor.is_some()) && !is_float {
        return Err("clamp on an integer".into());
    }
    Ok(Output { clamp, factor })
}

impl Output {
    fn apply(self, word: u32, kind: Kind) -> u32 {
        let value = match kind {
            Kind::F16 => half::f16::from_bits(word as u16).to_f32(),
            _ => f32::from_bits(word),
        };
        let value = value * self.factor.unwrap_or(1.0);
        let value = if self.clamp { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
        match kind {
            Kind::F16 => u32::from(half::f16::from_f32(value).to_bits()),
            _ => value.to_bits(),
        }
    }

    fn apply_wide(self, bits: u64) -> u64 {
        let value = f64::from_bits(bits) * f64::from(self.factor.unwrap_or(1.0));
        let clamped = if value > 0.0 { value.min(1.0) } else { 0.0 };
        if self.clamp {
            clamped.to_bits()
        } else if self.factor.is_some() {
            value.to_bits()
        } else {
            bits
        }
    }
}
