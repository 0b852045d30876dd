//! MFMA: the matrix instructions of CDNA. They ignore EXEC.

use super::Operation;
use super::float::{Float8, bf16_bits, f16_bits};
use super::lane_function::has_fast_vectors;
use super::operand::{Kind, Operand};
use super::statement::Statement;
use crate::counters::{Class, Counters};
use crate::target::Target;
use crate::wave::{LANES, Wave};

/// The type of a matrix's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Element {
    F32,
    F16,
    Bf16,
    Float8(Float8),
    I8,
    U8,
}

impl Element {
    pub(crate) fn bits(self) -> usize {
        match self {
            Element::F32 => 32,
            Element::F16 | Element::Bf16 => 16,
            Element::Float8(_) | Element::I8 | Element::U8 => 8,
        }
    }

    /// Element `index` of each of these words.
    pub(crate) fn values(self, words: &[u32], index: usize, values: &mut [f32]) {
        let shift = index * self.bits() % 32;
        let each = words.iter().zip(values);
        match self {
            Element::F32 => each.for_each(|(&word, value)| *value = f32::from_bits(word)),
            Element::Bf16 => each.for_each(|(&word, value)| *value = bf16_bits(word >> shift & 0xffff)),
            Element::F16 => each.for_each(|(&word, value)| *value = f16_bits(word >> shift)),
            _ => each.for_each(|(&word, value)| *value = self.value(word, index)),
        }
    }

    /// The value of element `index` of consecutive registers, given the register that holds it.
    pub(crate) fn value(self, word: u32, index: usize) -> f32 {
        let part = word >> (index * self.bits() % 32);
        match self {
            Element::F32 => f32::from_bits(word),
            Element::F16 => f16_bits(part),
            Element::Bf16 => bf16_bits(part & 0xffff),
            Element::Float8(format) => format.decode(part as u8),
            Element::I8 => f32::from(part as i8),
            Element::U8 => f32::from(part as u8),
        }
    }
}

/// D = A B + C with square tiles of `size` rows and columns, `depth` products each, `blocks` tiles.
#[derive(Debug)]
pub(crate) struct Mfma {
    size: usize,
    depth: usize,
    blocks: usize,
    elements: [Element; 2],
    is_integer: bool,
    destination: u16,
    a: u16,
    b: u16,
    c: Operand,
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(name) = statement.mnemonic.strip_prefix("v_mfma_") else { return Ok(None) };
    let shape = Shape::parse(name, statement.target).ok_or("matrix shape or type")?;
    let [destination, a, b, c] = operands else { return Err("four operands expected".into()) };
    let register = |operand: &Operand| operand.vector().ok_or("a vector register expected");
    let elements_in_lane = usize::from(a.registers) * 32 / shape.elements[0].bits();
    let blocks = elements_in_lane * LANES / (shape.size * shape.depth);
    let outputs = shape.size * shape.size * blocks / LANES;
    if !matches!(blocks, 1 | 2 | 4 | 16) || usize::from(destination.registers) != outputs {
        return Err("register counts do not fit the matrix shape".into());
    }
    let mfma = Mfma {
        size: shape.size,
        depth: shape.depth,
        blocks,
        elements: shape.elements,
        is_integer: shape.is_integer,
        destination: register(destination)?,
        a: register(a)?,
        b: register(b)?,
        c: *c,
    };
    Ok(Some((Class::Matrix, Operation::Mfma(Box::new(mfma)))))
}

struct Shape {
    size: usize,
    depth: usize,
    elements: [Element; 2],
    is_integer: bool,
}

impl Shape {
    /// Reads `f32_32x32x8bf16_1k`, `f32_32x32x4_2b_f16`, `f32_16x16x32_fp8_bf8`, `i32_32x32x16_i8`.
    fn parse(name: &str, target: Target) -> Option<Shape> {
        let (result, rest) = name.split_once('_')?;
        let mut sizes = rest.splitn(3, 'x');
        let (rows, columns): (usize, usize) = (sizes.next()?.parse().ok()?, sizes.next()?.parse().ok()?);
        let tail = sizes.next()?;
        let digits = tail.bytes().take_while(u8::is_ascii_digit).count();
        let depth = tail[..digits].parse().ok()?;
        let mut types = tail[digits..].trim_start_matches('_').trim_end_matches("_1k");
        for blocks in ["2b_", "4b_", "16b_"] {
            types = types.strip_prefix(blocks).unwrap_or(types);
        }
        let (first, second) = types.split_once('_').unwrap_or((types, types));
        let elements = [element(first, target)?, element(second, target)?];
        let is_integer = result == "i32";
        if rows != columns || !matches!(rows, 4 | 16 | 32) || !matches!(result, "f32" | "i32") {
            return None;
        }
        Some(Shape { size: rows, depth, elements, is_integer })
    }
}

fn element(name: &str, target: Target) -> Option<Element> {
    let is_fnuz = target == Target::Gfx942;
    Some(match name {
        "f32" => Element::F32,
        "f16" => Element::F16,
        "bf16" => Element::Bf16,
        "i8" => Element::I8,
        "fp8" => Element::Float8(if is_fnuz { Float8::E4m3Fnuz } else { Float8::E4m3 }),
        "bf8" => Element::Float8(if is_fnuz { Float8::E5m2Fnuz } else { Float8::E5m2 }),
        _ => return None,
    })
}

/// The widest accumulator: 32 registers of 64 lanes.
const LARGEST: usize = 32 * LANES;
/// The widest A or B: 32 elements a lane.
const INPUTS: usize = 32 * LANES;

/// Room for A, B and D of one product, which a wave keeps: to clear it would cost as much as the product.
pub(crate) struct Matrices {
    a: [f32; INPUTS],
    b: [f32; INPUTS],
    accumulators: [u32; LARGEST],
}

impl Default for Matrices {
    fn default() -> Self {
        Matrices { a: [0.0; INPUTS], b: [0.0; INPUTS], accumulators: [0; LARGEST] }
    }
}

impl Mfma {
    /// Row, column and block of output register `register` in `lane`.
    fn output(&self, register: usize, lane: usize) -> (usize, usize, usize) {
        match self.size {
            32 => (8 * (register / 4 % 4) + 4 * (lane / 32) + register % 4, lane % 32, register / 16),
            16 => (4 * (lane / 16) + register % 4, lane % 16, register / 4),
            _ => (register, lane % 4, lane / 4),
        }
    }

    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave, counters: &mut Counters) {
        let Mfma { size, depth, blocks, .. } = *self;
        counters.matrix_operations += (2 * size * size * depth * blocks) as u64;
        // Both by k, so that gathering and the inner loop of the product run along consecutive lanes.
        let mut matrices = wave.matrices.take().unwrap_or_default();
        let Matrices { a, b, accumulators } = &mut *matrices;
        let lost_rows = self.gather(wave, self.a, self.elements[0], a);
        let lost_columns = self.gather(wave, self.b, self.elements[1], b);
        let outputs = size * size * blocks / LANES;
        let c_written = self.accumulators(wave, outputs, accumulators);
        if self.is_integer {
            multiply_integers(self, a, b, accumulators);
        } else {
            multiply(self, a, b, accumulators);
        }
        for register in 0..outputs {
            let mut values = [0; LANES];
            for first in (0..LANES).step_by(size) {
                let (row, _, block) = self.output(register, first);
                let columns = &accumulators[(block * size + row) * size..][..size];
                values[first..first + size].copy_from_slice(columns);
            }
            let mut written = c_written[register];
            if lost_rows | lost_columns != 0 {
                written &= self.known_lanes(register, lost_rows, lost_columns);
            }
            wave.set_vector(self.destination + register as u16, &values, u64::MAX, written);
        }
        wave.matrices = Some(matrices);
    }

    /// The lanes of an output register whose row and column have no uninitialised element.
    fn known_lanes(&self, register: usize, lost_rows: u64, lost_columns: u64) -> u64 {
        (0..LANES).fold(0, |known, lane| {
            let (row, column, block) = self.output(register, lane);
            let is_lost =
                lost_rows >> (block * self.size + row) | lost_columns >> (block * self.size + column);
            known | (!is_lost & 1) << lane
        })
    }

    /// A or B as `[block][k][row]`; returns rows with an uninitialised element.
    fn gather(&self, wave: &Wave, register: u16, element: Element, matrix: &mut [f32; INPUTS]) -> u64 {
        let in_lane = self.size * self.depth * self.blocks / LANES;
        let in_word = 32 / element.bits();
        let mut lost = 0;
        for index in 0..in_lane {
            let at = usize::from(register) + index / in_word;
            let missing = !wave.vector_written[at];
            for (group, words) in wave.vector[at].chunks_exact(self.size).enumerate() {
                let (k, block) = if self.blocks == 1 { (group * in_lane + index, 0) } else { (index, group) };
                let row = &mut matrix[(block * self.depth + k) * self.size..][..self.size];
                element.values(words, index, row);
                let rows = missing >> (group * self.size) & (u64::MAX >> (LANES - self.size));
                lost |= rows << (block * self.size);
            }
        }
        lost
    }

    /// C as rows of each block; returns the initialised lanes of its registers.
    fn accumulators(&self, wave: &Wave, outputs: usize, accumulators: &mut [u32; LARGEST]) -> [u64; 32] {
        let Some(first) = self.c.vector() else {
            let kind = if self.is_integer { Kind::B32 } else { Kind::F32 };
            accumulators.fill(wave.uniform(&self.c, kind).0 as u32);
            return [u64::MAX; 32];
        };
        let mut written = [u64::MAX; 32];
        for register in 0..outputs {
            let at = usize::from(first) + register;
            written[register] = wave.vector_written[at];
            for (group, words) in wave.vector[at].chunks_exact(self.size).enumerate() {
                let (row, _, block) = self.output(register, group * self.size);
                accumulators[(block * self.size + row) * self.size..][..self.size].copy_from_slice(words);
            }
        }
        written
    }
}

fn multiply(mfma: &Mfma, a: &[f32; INPUTS], b: &[f32; INPUTS], accumulators: &mut [u32; LARGEST]) {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn fast(mfma: &Mfma, a: &[f32; INPUTS], b: &[f32; INPUTS], accumulators: &mut [u32; LARGEST]) {
            multiply_rows(mfma, a, b, accumulators);
        }
        if has_fast_vectors() {
            // SAFETY: the CPU has AVX2, the only feature that `fast` needs.
            return unsafe { fast(mfma, a, b, accumulators) };
        }
    }
    multiply_rows(mfma, a, b, accumulators);
}

/// The order of the sums is not documented; this one adds the products by ascending k, each rounded.
#[inline(always)]
fn multiply_rows(mfma: &Mfma, a: &[f32; INPUTS], b: &[f32; INPUTS], accumulators: &mut [u32; LARGEST]) {
    match mfma.size {
        32 => multiply_tile::<32>(mfma, a, b, accumulators),
        16 => multiply_tile::<16>(mfma, a, b, accumulators),
        _ => multiply_tile::<4>(mfma, a, b, accumulators),
    }
}

#[inline(always)]
fn multiply_tile<const N: usize>(
    mfma: &Mfma,
    a: &[f32; INPUTS],
    b: &[f32; INPUTS],
    accumulators: &mut [u32; LARGEST],
) {
    let depth = mfma.depth;
    for block in 0..mfma.blocks {
        let (a, b) = (&a[block * depth * N..][..depth * N], &b[block * depth * N..][..depth * N]);
        for row in 0..N {
            let mut sums = [0.0f32; N];
            let words = &mut accumulators[(block * N + row) * N..][..N];
            for (sum, &word) in sums.iter_mut().zip(words.iter()) {
                *sum = f32::from_bits(word);
            }
            for (rows, values) in a.chunks_exact(N).zip(b.chunks_exact(N)) {
                let x = rows[row];
                for (sum, &y) in sums.iter_mut().zip(values) {
                    *sum += x * y;
                }
            }
            for (word, sum) in words.iter_mut().zip(sums) {
                *word = sum.to_bits();
            }
        }
    }
}

fn multiply_integers(mfma: &Mfma, a: &[f32; INPUTS], b: &[f32; INPUTS], accumulators: &mut [u32; LARGEST]) {
    let Mfma { size, depth, blocks, .. } = *mfma;
    for block in 0..blocks {
        for row in 0..size {
            for column in 0..size {
                let products = (block * depth..(block + 1) * depth).map(|k| {
                    let (x, y) = (a[k * size + row], b[k * size + column]);
                    x as i32 * y as i32
                });
                let word = &mut accumulators[(block * size + row) * size + column];
                *word = products.fold(*word as i32, i32::wrapping_add) as u32;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use super::*;

    /// A and B such that every output tells its row and column: A[i][0] = i + 1, B[0][j] = 64 (j + 1), the rest 0.
    fn product(
        text: &str,
        target: Target,
        a: (u16, u16),
        b: (u16, u16),
        bits: usize,
        encode: impl Fn(f32) -> u32,
    ) -> Lab {
        let mut lab = Lab::new(target);
        let size = if text.contains("32x32") { 32 } else { 16 };
        for ((first, count), scale) in [(a, 1.0f32), (b, 64.0)] {
            for register in first..first + count {
                lab.vector(register, |lane| {
                    let holds_first_k = register == first && lane < size;
                    if holds_first_k {
                        encode(scale * (lane % size + 1) as f32) & (u32::MAX >> (32 - bits))
                    } else {
                        0
                    }
                });
            }
        }
        lab.run(text).unwrap();
        lab
    }

    fn expect(lab: &Lab, register: u16, lane: usize, row: usize, column: usize) {
        let value = f32::from_bits(lab.lane(register, lane));
        assert_eq!(value, ((row + 1) * 64 * (column + 1)) as f32, "register {register}, lane {lane}");
    }

    fn bf16(value: f32) -> u32 {
        value.to_bits() >> 16
    }

    #[test]
    fn the_32x32_result_holds_four_consecutive_rows_per_half_wave() {
        // CDNA 3 manual: row = 8 (i / 4) + 4 (lane / 32) + i % 4, column = lane % 32.
        for (text, target) in [
            ("v_mfma_f32_32x32x8bf16_1k v[0:15], v[20:21], v[22:23], 0", Target::Gfx90a),
            ("v_mfma_f32_32x32x8_bf16 v[0:15], v[20:21], v[22:23], 0", Target::Gfx942),
        ] {
            let lab = product(text, target, (20, 2), (22, 2), 16, bf16);
            expect(&lab, 0, 0, 0, 0);
            expect(&lab, 5, 3, 9, 3);
            expect(&lab, 5, 35, 13, 3);
            expect(&lab, 15, 63, 31, 31);
        }
        let lab = product(
            "v_mfma_f32_32x32x16_bf16 v[0:15], v[20:23], v[24:27], 0",
            Target::Gfx950,
            (20, 4),
            (24, 4),
            16,
            bf16,
        );
        expect(&lab, 6, 40, 14, 8);
    }

    #[test]
    fn the_16x16_result_holds_four_consecutive_rows_per_sixteen_lanes() {
        let f16 = |value: f32| u32::from(half::f16::from_f32(value).to_bits());
        let lab = product(
            "v_mfma_f32_16x16x16_f16 a[0:3], v[20:21], v[22:23], 0",
            Target::Gfx942,
            (20, 2),
            (22, 2),
            16,
            f16,
        );
        expect(&lab, 256, 0, 0, 0);
        expect(&lab, 258, 37, 10, 5);
        let lab = product(
            "v_mfma_f32_16x16x4_f32 v[0:3], v20, v22, 0",
            Target::Gfx942,
            (20, 1),
            (22, 1),
            32,
            f32::to_bits,
        );
        expect(&lab, 3, 63, 15, 15);
    }

    #[test]
    fn eight_bit_floats_differ_between_targets() {
        // One fnuz element of 0x40 is 1.0 on gfx942; the OCP code of 1.0 is 0x38.
        for (target, one) in [(Target::Gfx942, 0x40), (Target::Gfx950, 0x38)] {
            let mut lab = Lab::new(target);
            for register in 20..24 {
                lab.vector(register, |lane| if lane == 0 && register % 2 == 0 { one } else { 0 });
            }
            lab.run("v_mfma_f32_16x16x32_fp8_fp8 v[0:3], v[20:21], v[22:23], 1.0").unwrap();
            assert_eq!(lab.lane(0, 0), 2.0f32.to_bits());
            assert_eq!(lab.lane(1, 0), 1.0f32.to_bits());
        }
    }

    #[test]
    fn the_depth_is_summed_over_lane_groups() {
        let mut lab = Lab::new(Target::Gfx942);
        for register in 20..24 {
            lab.vector(register, |_| 0x3f80_3f80);
        }
        lab.vector(0, |_| 0);
        lab.run("v_mfma_f32_16x16x16_bf16 v[0:3], v[20:21], v[22:23], 0.5").unwrap();
        assert_eq!(lab.lane(3, 9), 16.5f32.to_bits());
        // Two blocks of 32x32 with one product of four elements each.
        lab.run("v_mfma_f32_32x32x4_2b_bf16 v[32:63], v[20:21], v[22:23], 0").unwrap();
        assert_eq!((lab.lane(32, 0), lab.lane(63, 63)), (4.0f32.to_bits(), 4.0f32.to_bits()));
    }

    #[test]
    fn an_uninitialised_row_taints_its_row_of_the_result_only() {
        let mut lab = Lab::new(Target::Gfx942);
        for register in 20..24 {
            lab.vector(register, |_| 0x3f80_3f80);
        }
        lab.wave.vector_written[20] &= !(1 << 5);
        lab.run("v_mfma_f32_16x16x16_bf16 v[0:3], v[20:21], v[22:23], 0").unwrap();
        // Row 5 is register 1 of lanes 16..32.
        assert_eq!(lab.wave.vector_written[1], !0xffff_0000);
        assert_eq!(lab.wave.vector_written[0], u64::MAX);
    }

    #[test]
    fn integers_multiply_exactly() {
        let mut lab = Lab::new(Target::Gfx942);
        for register in 20..24 {
            lab.vector(register, |_| 0xff02_ff02);
        }
        lab.run("v_mfma_i32_16x16x32_i8 v[0:3], v[20:21], v[22:23], 7").unwrap();
        // 16 products of 4 and 16 of 1.
        assert_eq!(lab.lane(0, 0), 87);
    }
}
