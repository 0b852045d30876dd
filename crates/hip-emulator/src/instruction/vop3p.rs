//! VOP3P: packed 16-bit and 32-bit operations, mixed precision, dot products.

use half::f16;

use super::Operation;
use super::float::{bf16_bits, maximum_number, minimum_number, to_bf16};
use super::operand::{Kind, Operand, Place};
use super::statement::Statement;
use super::vop3::fma_f16;
use crate::counters::Class;
use crate::wave::{LANES, Wave};

/// What is computed, on one element or a whole word.
#[derive(Clone, Copy)]
enum Function {
    /// Each half of a register.
    Halves(fn(u32, u32, u32) -> u32),
    /// Each of two registers.
    Pair(fn(f32, f32, f32) -> f32),
    /// `v_pk_mov_b32`: one word of each source.
    Move,
    /// `v_fma_mix_f32`: sources are f32, or f16 halves where `op_sel_hi` says so.
    Mix(Option<Half>),
    /// A sum of products of the elements of two words.
    Dot(fn(u32, u32, u32) -> u32),
}

/// The half of the destination that a mixed operation writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    Low,
    High,
}

/// A packed instruction with its element modifiers.
pub(crate) struct Packed {
    function: Function,
    destination: u16,
    sources: [Operand; 3],
    count: usize,
    /// The elements that the low and the high result use.
    select_low: [bool; 3],
    select_high: [bool; 3],
    negate_low: [bool; 3],
    negate_high: [bool; 3],
    clamp: bool,
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packed")
            .field("destination", &self.destination)
            .field("sources", &self.sources)
            .finish()
    }
}

fn halves_f16(a: u32, b: u32, function: impl Fn(f32, f32) -> f32) -> u32 {
    let value = |word: u32| f16::from_bits(word as u16).to_f32();
    u32::from(f16::from_f32(function(value(a), value(b))).to_bits())
}

fn halves_bf16(a: u32, b: u32, function: impl Fn(f32, f32) -> f32) -> u32 {
    to_bf16(function(bf16_bits(a), bf16_bits(b)))
}

fn lookup(name: &str) -> Option<Function> {
    let halves = |function| Some(Function::Halves(function));
    match name {
        "pk_add_f16" => halves(|a, b, _| halves_f16(a, b, |x, y| x + y)),
        "pk_mul_f16" => halves(|a, b, _| halves_f16(a, b, |x, y| x * y)),
        "pk_max_f16" | "pk_max_num_f16" => halves(|a, b, _| halves_f16(a, b, maximum_number)),
        "pk_min_f16" | "pk_min_num_f16" => halves(|a, b, _| halves_f16(a, b, minimum_number)),
        "pk_maximum_f16" => halves(|a, b, _| halves_f16(a, b, super::float::maximum)),
        "pk_minimum_f16" => halves(|a, b, _| halves_f16(a, b, super::float::minimum)),
        "pk_fma_f16" => halves(|a, b, c| {
            let value = |word: u32| f16::from_bits(word as u16);
            u32::from(fma_f16(value(a), value(b), value(c)).to_bits())
        }),
        "pk_add_bf16" => halves(|a, b, _| halves_bf16(a, b, |x, y| x + y)),
        "pk_mul_bf16" => halves(|a, b, _| halves_bf16(a, b, |x, y| x * y)),
        "pk_max_num_bf16" => halves(|a, b, _| halves_bf16(a, b, maximum_number)),
        "pk_min_num_bf16" => halves(|a, b, _| halves_bf16(a, b, minimum_number)),
        "pk_add_u16" | "pk_add_i16" => halves(|a, b, _| a.wrapping_add(b) & 0xffff),
        "pk_sub_u16" | "pk_sub_i16" => halves(|a, b, _| a.wrapping_sub(b) & 0xffff),
        "pk_mul_lo_u16" => halves(|a, b, _| a.wrapping_mul(b) & 0xffff),
        "pk_mad_u16" | "pk_mad_i16" => halves(|a, b, c| a.wrapping_mul(b).wrapping_add(c) & 0xffff),
        "pk_min_u16" => halves(|a, b, _| a.min(b)),
        "pk_max_u16" => halves(|a, b, _| a.max(b)),
        "pk_min_i16" => halves(|a, b, _| u32::from((a as i16).min(b as i16) as u16)),
        "pk_max_i16" => halves(|a, b, _| u32::from((a as i16).max(b as i16) as u16)),
        "pk_lshlrev_b16" => halves(|a, b, _| b << (a & 15) & 0xffff),
        "pk_lshrrev_b16" => halves(|a, b, _| b >> (a & 15)),
        "pk_ashrrev_i16" => halves(|a, b, _| u32::from((b as i16 >> (a & 15)) as u16)),
        "pk_add_f32" => Some(Function::Pair(|a, b, _| a + b)),
        "pk_mul_f32" => Some(Function::Pair(|a, b, _| a * b)),
        "pk_fma_f32" => Some(Function::Pair(|a, b, c| a.mul_add(b, c))),
        "pk_mov_b32" => Some(Function::Move),
        "fma_mix_f32" | "mad_mix_f32" => Some(Function::Mix(None)),
        "fma_mixlo_f16" | "mad_mixlo_f16" => Some(Function::Mix(Some(Half::Low))),
        "fma_mixhi_f16" | "mad_mixhi_f16" => Some(Function::Mix(Some(Half::High))),
        "dot2_f32_f16" => Some(Function::Dot(|a, b, c| dot2_f16(a, b, f32::from_bits(c)).to_bits())),
        "dot2_f32_bf16" => Some(Function::Dot(|a, b, c| dot2_bf16(a, b, f32::from_bits(c)).to_bits())),
        "dot4_i32_i8" => Some(Function::Dot(|a, b, c| dot4_i8(a, b, c as i32) as u32)),
        "dot4_u32_u8" => Some(Function::Dot(|a, b, c| {
            (0..4).fold(c, |sum, i| sum.wrapping_add((a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff)))
        })),
        _ => None,
    }
}

pub(crate) fn dot2_f16(a: u32, b: u32, c: f32) -> f32 {
    let value = |word: u32| f16::from_bits(word as u16).to_f64();
    (value(a) * value(b) + value(a >> 16) * value(b >> 16) + f64::from(c)) as f32
}

pub(crate) fn dot2_bf16(a: u32, b: u32, c: f32) -> f32 {
    let value = |word: u32| f64::from(bf16_bits(word & 0xffff));
    (value(a) * value(b) + value(a >> 16) * value(b >> 16) + f64::from(c)) as f32
}

pub(crate) fn dot4_i8(a: u32, b: u32, c: i32) -> i32 {
    (0..4)
        .fold(c, |sum, i| sum.wrapping_add(i32::from((a >> (8 * i)) as i8) * i32::from((b >> (8 * i)) as i8)))
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(function) = statement.mnemonic.strip_prefix("v_").and_then(lookup) else { return Ok(None) };
    if statement.is_dpp {
        return Err("DPP on a packed operation".into());
    }
    let (destination, rest) = operands.split_first().ok_or("operands")?;
    let mut sources = [Operand::plain(Place::Null, 1); 3];
    if rest.is_empty() || rest.len() > 3 {
        return Err("sources".into());
    }
    sources[..rest.len()].copy_from_slice(rest);
    // Mixed operations take plain f32 sources unless told otherwise.
    let default_high = !matches!(function, Function::Mix(_));
    let packed = Packed {
        function,
        destination: destination.vector().ok_or("a vector destination expected")?,
        sources,
        count: rest.len(),
        select_low: statement.modifiers.bits("op_sel", false)?,
        select_high: statement.modifiers.bits("op_sel_hi", default_high)?,
        negate_low: statement.modifiers.bits("neg_lo", false)?,
        negate_high: statement.modifiers.bits("neg_hi", false)?,
        clamp: statement.modifiers.flag("clamp"),
    };
    if packed.clamp && !matches!(packed.function, Function::Pair(_) | Function::Mix(None)) {
        return Err("clamp".into());
    }
    Ok(Some((Class::Vector, Operation::Packed(Box::new(packed)))))
}

impl Packed {
    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave) {
        match self.function {
            Function::Halves(function) => {
                self.each_lane(wave, |sources, this| {
                    let element = |at: usize, is_high: bool, negate: bool| {
                        let word = sources[at] >> if is_high { 16 } else { 0 } & 0xffff;
                        if negate { word ^ 0x8000 } else { word }
                    };
                    let low = |at| element(at, this.select_low[at], this.negate_low[at]);
                    let high = |at| element(at, this.select_high[at], this.negate_high[at]);
                    function(low(0), low(1), low(2)) | function(high(0), high(1), high(2)) << 16
                });
            }
            Function::Dot(function) => {
                self.each_lane(wave, |sources, _| function(sources[0], sources[1], sources[2]))
            }
            Function::Mix(half) => {
                let old = wave.vector[usize::from(self.destination)];
                let mut lane = 0;
                self.each_lane(wave, |sources, this| {
                    let value = |at: usize| this.mixed(at, sources[at]);
                    let result = value(0).mul_add(value(1), value(2));
                    let result =
                        if this.clamp { if result > 0.0 { result.min(1.0) } else { 0.0 } } else { result };
                    let short = u32::from(f16::from_f32(result).to_bits());
                    let word = match half {
                        None => result.to_bits(),
                        Some(Half::Low) => old[lane] & 0xffff_0000 | short,
                        Some(Half::High) => old[lane] & 0xffff | short << 16,
                    };
                    lane += 1;
                    word
                });
            }
            Function::Pair(_) | Function::Move => self.execute_pair(wave),
        }
    }

    /// A source of a mixed operation; `neg_hi` means absolute value here.
    fn mixed(&self, at: usize, word: u32) -> f32 {
        let value = if self.select_high[at] {
            f16::from_bits((word >> if self.select_low[at] { 16 } else { 0 }) as u16).to_f32()
        } else {
            f32::from_bits(word)
        };
        let operand = &self.sources[at];
        let value = if self.negate_high[at] || operand.absolute { value.abs() } else { value };
        if self.negate_low[at] || operand.negate { -value } else { value }
    }

    fn each_lane(&self, wave: &mut Wave, mut function: impl FnMut([u32; 3], &Packed) -> u32) {
        let active = wave.exec();
        let mut known = u64::MAX;
        let mut words = [[0; LANES]; 3];
        for at in 0..self.count {
            known &= self.word(wave, at, 0, &mut words[at]);
        }
        let mut result = [0; LANES];
        for (lane, out) in result.iter_mut().enumerate() {
            *out = function([words[0][lane], words[1][lane], words[2][lane]], self);
        }
        wave.set_vector(self.destination, &result, active, known);
    }

    /// Word 0 or 1 of a source for all lanes; returns the lanes that are initialised.
    fn word(&self, wave: &Wave, at: usize, word: u16, out: &mut [u32; LANES]) -> u64 {
        let operand = &self.sources[at];
        match operand.place {
            Place::Vector(register) => {
                let register = usize::from(register + word.min(operand.registers - 1));
                *out = wave.vector[register];
                wave.vector_written[register]
            }
            Place::Scalar(register) => {
                let register = usize::from(register + word.min(operand.registers - 1));
                out.fill(wave.scalar[register]);
                if wave.scalar_written[register] == u32::MAX { u64::MAX } else { 0 }
            }
            _ => {
                // An inline float of a 16-bit operation fills the low half only.
                let kind = match self.function {
                    Function::Halves(_) => Kind::F16,
                    _ => Kind::F32,
                };
                let is_float = matches!(operand.place, Place::Literal(super::operand::Literal::Float(_)));
                let (value, _) = wave.uniform(operand, if is_float { kind } else { Kind::B32 });
                out.fill(value as u32);
                u64::MAX
            }
        }
    }

    fn execute_pair(&self, wave: &mut Wave) {
        let active = wave.exec();
        let mut results = [[0; LANES]; 2];
        let mut known = [u64::MAX; 2];
        if let Function::Move = self.function {
            // The low result takes a word of the first source, the high one of the second.
            for (part, result) in results.iter_mut().enumerate() {
                known[part] = self.word(wave, part, u16::from(self.select_low[part]), result);
            }
        } else if let Function::Pair(function) = self.function {
            let selects = [(&self.select_low, &self.negate_low), (&self.select_high, &self.negate_high)];
            for (part, (select, negate)) in selects.into_iter().enumerate() {
                let mut words = [[0; LANES]; 3];
                for at in 0..self.count {
                    known[part] &= self.word(wave, at, u16::from(select[at]), &mut words[at]);
                    if negate[at] {
                        words[at].iter_mut().for_each(|word| *word ^= 1 << 31);
                    }
                }
                for lane in 0..LANES {
                    let [a, b, c] = [0, 1, 2].map(|at| f32::from_bits(words[at][lane]));
                    let value = function(a, b, c);
                    let value =
                        if self.clamp { if value > 0.0 { value.min(1.0) } else { 0.0 } } else { value };
                    results[part][lane] = value.to_bits();
                }
            }
        }
        for part in 0..2 {
            wave.set_vector(self.destination + part as u16, &results[part], active, known[part]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::target::Target;

    #[test]
    fn packed_floats_use_the_selected_words() {
        let mut lab = Lab::new(Target::Gfx942);
        let values = [2.0f32, 3.0, 5.0, 7.0];
        for (register, value) in values.into_iter().enumerate() {
            lab.vector(register as u16 + 2, |_| value.to_bits());
        }
        lab.run("v_pk_mul_f32 v[0:1], v[2:3], v[4:5] op_sel_hi:[1,0]").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (10.0f32.to_bits(), 15.0f32.to_bits()));
        lab.run("v_pk_fma_f32 v[0:1], v[2:3], v[4:5], v[2:3] neg_lo:[0,0,1] neg_hi:[0,0,1]").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (8.0f32.to_bits(), 18.0f32.to_bits()));
        lab.run("v_pk_mov_b32 v[0:1], v[2:3], v[4:5] op_sel:[1,0]").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (3.0f32.to_bits(), 5.0f32.to_bits()));
        lab.run("v_pk_mov_b32 v[0:1], 0, 0").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (0, 0));
    }

    #[test]
    fn packed_halves_are_independent() {
        let mut lab = Lab::new(Target::Gfx1100);
        // (1.0, 2.0) and (0.5, 4.0), low half first.
        lab.vector(1, |_| 0x4000_3c00).vector(2, |_| 0x4400_3800);
        lab.run("v_pk_add_f16 v0, v1, v2").unwrap();
        assert_eq!(lab.lane(0, 0), 0x4600_3e00);
        lab.run("v_pk_mul_f16 v0, v1, 2.0 op_sel_hi:[1,0]").unwrap();
        assert_eq!(lab.lane(0, 0), 0x4400_4000);
        lab.run("v_pk_add_u16 v0, v1, v2 op_sel:[1,0] op_sel_hi:[0,1]").unwrap();
        assert_eq!(lab.lane(0, 0), 0x8000_7800);
    }

    #[test]
    fn mixed_precision_reads_halves_where_told() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |_| 0x4000_3c00).vector(2, |_| 3.0f32.to_bits()).vector(3, |_| 1.0f32.to_bits());
        lab.run("v_fma_mix_f32 v0, v1, v2, v3 op_sel:[1,0,0] op_sel_hi:[1,0,0]").unwrap();
        assert_eq!(lab.lane(0, 0), 7.0f32.to_bits());
        lab.vector(0, |_| 0xaaaa_bbbb);
        lab.run("v_fma_mixlo_f16 v0, -v2, v2, v3").unwrap();
        assert_eq!(lab.lane(0, 0), 0xaaaa_c800);
    }

    #[test]
    fn dot_products_accumulate() {
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |_| 0x4000_3c00).vector(2, |_| 0x4000_4000).vector(3, |_| 1.0f32.to_bits());
        lab.run("v_dot2_f32_f16 v0, v1, v2, v3").unwrap();
        assert_eq!(lab.lane(0, 0), 7.0f32.to_bits());
    }
}
