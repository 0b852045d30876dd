//! WMMA: the matrix instructions of RDNA. EXEC must be all ones.

use half::f16;

use super::float::{Float8, f16_bits, to_bf16};
use super::lane_function::has_fast_vectors;
use super::mfma::Element;
use super::operand::{Kind, Operand, Place};
use super::statement::Statement;
use super::{Context, Operation};
use crate::counters::Class;
use crate::fault::Violation;
use crate::target::Family;
use crate::wave::{LANES, Lanes, Wave};

const SIZE: usize = 16;
const WAVE: usize = 32;

/// The type of the accumulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Result16 {
    F32,
    I32,
    F16,
    Bf16,
}

/// D = A B + C, all of 16 x 16.
#[derive(Debug)]
pub(crate) struct Wmma {
    result: Result16,
    elements: [Element; 2],
    is_rdna3: bool,
    /// On RDNA 3 a 16-bit result fills one half of each register.
    is_high: bool,
    destination: u16,
    a: u16,
    b: u16,
    c: Operand,
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(name) = statement.mnemonic.strip_prefix("v_wmma_") else { return Ok(None) };
    let (result, types) = name.split_once("_16x16x16_").ok_or("matrix shape")?;
    let result = match result {
        "f32" => Result16::F32,
        "i32" => Result16::I32,
        "f16" => Result16::F16,
        "bf16" => Result16::Bf16,
        _ => return Err("matrix result type".into()),
    };
    let is_rdna3 = statement.target.family() == Family::Rdna3;
    let signs: [bool; 3] =
        if types == "iu8" { statement.modifiers.bits("neg_lo", false)? } else { [false; 3] };
    let (first, second) = types.split_once('_').unwrap_or((types, types));
    let element = |name: &str, is_signed: bool| {
        Some(match name {
            "f16" => Element::F16,
            "bf16" => Element::Bf16,
            "fp8" if !is_rdna3 => Element::Float8(Float8::E4m3),
            "bf8" if !is_rdna3 => Element::Float8(Float8::E5m2),
            "iu8" if is_signed => Element::I8,
            "iu8" => Element::U8,
            _ => return None,
        })
    };
    let elements = match (element(first, signs[0]), element(second, signs[1])) {
        (Some(a), Some(b)) => [a, b],
        _ => return Err("matrix element type".into()),
    };
    let is_short = matches!(result, Result16::F16 | Result16::Bf16);
    let is_high = is_rdna3 && is_short && statement.modifiers.bits::<3>("op_sel", false)?[2];
    let [destination, a, b, c] = operands else { return Err("four operands expected".into()) };
    let in_lane = if is_rdna3 { SIZE } else { SIZE / 2 };
    if usize::from(a.registers) * 32 / elements[0].bits() != in_lane {
        return Err("register counts do not fit the matrix shape".into());
    }
    let register = |operand: &Operand| operand.vector().ok_or("a vector register expected");
    let wmma = Wmma {
        result,
        elements,
        is_rdna3,
        is_high,
        destination: register(destination)?,
        a: register(a)?,
        b: register(b)?,
        c: *c,
    };
    Ok(Some((Class::Matrix, Operation::Wmma(Box::new(wmma)))))
}

impl Wmma {
    /// The rows of the result that lane group `group` holds are `row(i, group)` for i in 0..8.
    fn row(&self, index: usize, lane: usize) -> usize {
        if self.is_rdna3 { 2 * index + lane / 16 } else { 8 * (lane / 16) + index }
    }

    /// The register of accumulator element `index`, and the bit where it starts.
    fn place(&self, index: usize) -> (usize, u32) {
        match self.result {
            Result16::F32 | Result16::I32 => (index, 0),
            _ if self.is_rdna3 => (index, if self.is_high { 16 } else { 0 }),
            _ => (index / 2, 16 * (index as u32 % 2)),
        }
    }

    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, context: &mut Context<'_>) -> Result<(), Violation> {
        if wave.exec() != wave.full_mask() {
            return Err(Violation::Invalid("a WMMA needs every lane of EXEC".into()));
        }
        context.counters.matrix_operations += 2 * (SIZE * SIZE * SIZE) as u64;
        let (a, lost_rows) = self.gather(wave, self.a, self.elements[0], "A")?;
        let (b, lost_columns) = self.gather(wave, self.b, self.elements[1], "B")?;
        let starts = self.starts(wave);
        let products = match self.result {
            Result16::I32 => multiply_integers(&a, &b, starts),
            _ => multiply(&a, &b, starts),
        };
        let registers = self.place(7).0 + 1;
        let mut results = [[0u32; LANES]; 8];
        let mut written = [u64::MAX; 8];
        for index in 0..8 {
            let (register, shift) = self.place(index);
            let (words, known) = self.accumulator(wave, register);
            written[register] &= known;
            for first in [0, SIZE] {
                let row = self.row(index, first);
                let is_lost = if lost_rows >> row & 1 == 1 { u64::from(u16::MAX) } else { lost_columns };
                written[register] &= !(is_lost << first);
                let slots = &mut results[register][first..first + SIZE];
                for ((slot, word), value) in slots.iter_mut().zip(&words[first..]).zip(products[row]) {
                    *slot = match self.result {
                        Result16::F32 | Result16::I32 => value,
                        // The other half of an RDNA 3 register is kept.
                        _ if self.is_rdna3 => word & !(0xffff << shift) | self.narrow(value) << shift,
                        _ => *slot | self.narrow(value) << shift,
                    };
                }
            }
        }
        for register in 0..registers {
            let (values, written) = (&results[register], written[register]);
            wave.set_vector(self.destination + register as u16, values, wave.full_mask(), written);
        }
        Ok(())
    }

    /// C by rows, as the bits of an f32 or an i32.
    fn starts(&self, wave: &Wave) -> Words {
        let mut starts = [[0; SIZE]; SIZE];
        for index in 0..8 {
            let (register, shift) = self.place(index);
            let (words, _) = self.accumulator(wave, register);
            for first in [0, SIZE] {
                let row = &mut starts[self.row(index, first)];
                for (start, word) in row.iter_mut().zip(&words[first..]) {
                    let word = word >> shift;
                    *start = match self.result {
                        Result16::F32 | Result16::I32 => word,
                        Result16::F16 => f16_bits(word).to_bits(),
                        Result16::Bf16 => word << 16,
                    };
                }
            }
        }
        starts
    }

    /// Rounds the bits of an f32 to a 16-bit result.
    fn narrow(&self, bits: u32) -> u32 {
        match self.result {
            Result16::F16 => u32::from(f16::from_f32(f32::from_bits(bits)).to_bits()),
            _ => to_bf16(f32::from_bits(bits)),
        }
    }

    /// The lanes of a register of C, and which of them are initialised.
    fn accumulator(&self, wave: &Wave, register: usize) -> (Lanes, u64) {
        match self.c.place {
            Place::Vector(first) => {
                let at = usize::from(first) + register;
                (wave.vector[at], wave.vector_written[at])
            }
            _ => {
                let kind = match self.result {
                    Result16::I32 => Kind::B32,
                    Result16::F32 => Kind::F32,
                    Result16::F16 | Result16::Bf16 => Kind::F16,
                };
                let bits = wave.uniform(&self.c, kind).0 as u32;
                ([if kind == Kind::F16 { bits | bits << 16 } else { bits }; LANES], u64::MAX)
            }
        }
    }

    /// A (or B) by k, and the rows with an uninitialised element.
    fn gather(
        &self,
        wave: &Wave,
        register: u16,
        element: Element,
        name: &str,
    ) -> Result<(Matrix, u64), Violation> {
        let in_lane = if self.is_rdna3 { SIZE } else { SIZE / 2 };
        let in_word = 32 / element.bits();
        let mut matrix = [[0.0; SIZE]; SIZE];
        let mut lost = 0;
        for index in 0..in_lane {
            let at = usize::from(register) + index / in_word;
            let (low, high) = wave.vector[at][..WAVE].split_at(SIZE);
            let missing = !wave.vector_written[at];
            lost |= (missing | missing >> SIZE) & 0xffff;
            if !self.is_rdna3 {
                // RDNA 4 gives each half-wave half of the depth. Which k a slot is cannot be seen: A and B agree.
                element.values(high, index, &mut matrix[in_lane + index]);
            } else if let Some(row) = (0..SIZE).find(|&row| low[row] != high[row]) {
                let text = format!("the half-waves hold different copies of row {row} of {name}");
                return Err(Violation::Invalid(text));
            }
            element.values(low, index, &mut matrix[index]);
        }
        Ok((matrix, lost))
    }
}

/// `[k][row]` of A or `[k][column]` of B.
type Matrix = [[f32; SIZE]; SIZE];
/// Rows of 32-bit values.
type Words = [[u32; SIZE]; SIZE];

fn multiply(a: &Matrix, b: &Matrix, starts: Words) -> Words {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn fast(a: &Matrix, b: &Matrix, starts: Words) -> Words {
            multiply_rows(a, b, starts)
        }
        if has_fast_vectors() {
            // SAFETY: the CPU has AVX2, the only feature that `fast` needs.
            return unsafe { fast(a, b, starts) };
        }
    }
    multiply_rows(a, b, starts)
}

/// Adds the products by ascending k, each rounded, as the MFMA of this emulator does.
#[inline(always)]
fn multiply_rows(a: &Matrix, b: &Matrix, starts: Words) -> Words {
    let mut sums = starts.map(|row| row.map(f32::from_bits));
    for (row, sums) in sums.iter_mut().enumerate() {
        for (rows, columns) in a.iter().zip(b) {
            for (sum, y) in sums.iter_mut().zip(columns) {
                *sum += rows[row] * y;
            }
        }
    }
    sums.map(|row| row.map(f32::to_bits))
}

fn multiply_integers(a: &Matrix, b: &Matrix, mut sums: Words) -> Words {
    for (rows, columns) in a.iter().zip(b) {
        for (x, sums) in rows.iter().zip(&mut sums) {
            for (sum, y) in sums.iter_mut().zip(columns) {
                *sum = sum.wrapping_add((*x as i32 * *y as i32) as u32);
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::fault::Violation;
    use crate::instruction::operand::EXEC;
    use crate::target::Target;

    /// A[i][0] = i + 1 and B[0][j] = 64 (j + 1): every output tells its row and column.
    fn product(target: Target) -> Lab {
        let mut lab = Lab::new(target);
        let is_rdna3 = target == Target::Gfx1100;
        let registers = if is_rdna3 { 8 } else { 4 };
        for (first, scale) in [(20, 1.0f32), (30, 64.0)] {
            for register in first..first + registers {
                lab.vector(register, |lane| {
                    let holds_first_k = register == first && (is_rdna3 || lane < 16);
                    if holds_first_k { (scale * (lane % 16 + 1) as f32).to_bits() >> 16 } else { 0 }
                });
            }
        }
        let last = registers - 1;
        lab.run(&format!("v_wmma_f32_16x16x16_bf16 v[0:7], v[20:{}], v[30:{}], 0", 20 + last, 30 + last))
            .unwrap();
        lab
    }

    #[test]
    fn rdna3_interleaves_the_rows_of_the_half_waves() {
        let lab = product(Target::Gfx1100);
        for (register, lane, row, column) in [(0, 0, 0, 0), (3, 5, 6, 5), (3, 21, 7, 5), (7, 31, 15, 15)] {
            assert_eq!(f32::from_bits(lab.lane(register, lane)), ((row + 1) * 64 * (column + 1)) as f32);
        }
    }

    #[test]
    fn rdna4_gives_each_half_wave_eight_consecutive_rows() {
        for target in [Target::Gfx1200, Target::Gfx1201] {
            let lab = product(target);
            for (register, lane, row, column) in [(0, 0, 0, 0), (3, 5, 3, 5), (3, 21, 11, 5), (7, 31, 15, 15)]
            {
                assert_eq!(f32::from_bits(lab.lane(register, lane)), ((row + 1) * 64 * (column + 1)) as f32);
            }
        }
    }

    #[test]
    fn different_copies_in_the_half_waves_are_an_error_on_rdna3() {
        let mut lab = product(Target::Gfx1100);
        lab.vector(20, |lane| lane as u32);
        let result = lab.run("v_wmma_f32_16x16x16_bf16 v[0:7], v[20:27], v[30:37], v[0:7]");
        assert!(matches!(result, Err(Violation::Invalid(_))), "{result:?}");
    }

    #[test]
    fn an_inactive_lane_is_an_error() {
        let mut lab = product(Target::Gfx1200);
        lab.wave.set_lane_mask(EXEC, 1, u64::MAX);
        assert!(lab.run("v_wmma_f32_16x16x16_bf16 v[0:7], v[20:23], v[30:33], v[0:7]").is_err());
    }

    #[test]
    fn short_results_are_packed_on_rdna4() {
        let mut lab = Lab::new(Target::Gfx1200);
        for register in 20..28 {
            lab.vector(register, |_| 0x3c00_3c00);
        }
        lab.run("v_wmma_f16_16x16x16_f16 v[0:3], v[20:23], v[24:27], 1.0").unwrap();
        // 16 products of one and the accumulator: 17.0.
        assert_eq!(lab.lane(3, 31), 0x4c40_4c40);
    }
}
