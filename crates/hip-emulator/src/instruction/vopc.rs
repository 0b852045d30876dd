//! VOPC: vector comparisons into a lane mask.

use half::f16;

use super::Operation;
use super::operand::{EXEC, Half, Kind, Operand, VCC};
use super::sdwa::Select;
use super::statement::Statement;
use super::vector::Source;
use crate::counters::Class;
use crate::target::Family;
use crate::wave::{LANES, Wave};

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Relation {
    False,
    Less,
    Equal,
    LessEqual,
    Greater,
    LessGreater,
    GreaterEqual,
    Ordered,
    Unordered,
    NotGreaterEqual,
    NotLessGreater,
    NotGreater,
    NotLessEqual,
    NotEqual,
    NotLess,
    True,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Signed,
    Unsigned,
    Float,
    /// `v_cmp_class`: the second source is a set of float classes.
    Class,
}

/// A comparison of two sources.
#[derive(Debug)]
pub(crate) struct Compare {
    relation: Relation,
    value_type: Type,
    kind: Kind,
    sources: [Source; 2],
    /// The first register of the result mask.
    destinations: Vec<u16>,
}

pub(crate) fn decode(
    statement: &mut Statement,
    operands: &[Operand],
) -> Result<Option<(Class, Operation)>, String> {
    let Some(name) = statement.mnemonic.strip_prefix("v_cmp") else { return Ok(None) };
    let (name, sets_exec) = match name.strip_prefix('x') {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    let Some((relation, type_name)) = name.strip_prefix('_').and_then(|name| name.rsplit_once('_')) else {
        return Ok(None);
    };
    let (value_type, kind) = match type_name {
        "i16" => (Type::Signed, Kind::B16),
        "u16" => (Type::Unsigned, Kind::B16),
        "f16" => (Type::Float, Kind::F16),
        "i32" => (Type::Signed, Kind::B32),
        "u32" => (Type::Unsigned, Kind::B32),
        "f32" => (Type::Float, Kind::F32),
        "i64" => (Type::Signed, Kind::B64),
        "u64" => (Type::Unsigned, Kind::B64),
        "f64" => (Type::Float, Kind::F64),
        _ => return Ok(None),
    };
    let (relation, value_type) = match relation {
        "class" => (Relation::True, Type::Class),
        relation => match self::relation(relation, value_type) {
            Some(relation) => (relation, value_type),
            None => return Ok(None),
        },
    };
    // On gfx11 and later `v_cmpx` names no destination: EXEC is the only one.
    let (destination, values) = match operands {
        [destination, a, b] => (destination.scalar(), [*a, *b]),
        [a, b] => (None, [*a, *b]),
        _ => return Err("two sources expected".into()),
    };
    let mut destinations = Vec::new();
    if sets_exec {
        destinations.push(EXEC);
    }
    let writes_mask = !sets_exec || statement.target.family() == Family::Cdna;
    if writes_mask {
        destinations.push(destination.unwrap_or(VCC));
    }
    destinations.dedup();
    let second_kind = if value_type == Type::Class { Kind::B32 } else { kind };
    let selects = selects(statement, &values, kind)?;
    let sources = [Source::new(values[0], kind, selects[0]), Source::new(values[1], second_kind, selects[1])];
    let compare = Compare { relation, value_type, kind, sources, destinations };
    Ok(Some((Class::Vector, Operation::Compare(Box::new(compare)))))
}

fn selects(statement: &mut Statement, values: &[Operand; 2], kind: Kind) -> Result<[Select; 2], String> {
    let op_sel = statement.modifiers.bits::<3>("op_sel", false)?;
    let mut selects = [Select::WORD; 2];
    for at in 0..2 {
        if kind.is_half() || values[at].half.is_some() {
            selects[at] =
                if op_sel[at] || values[at].half == Some(Half::High) { Select::HIGH } else { Select::LOW };
        }
        if statement.is_sdwa
            && let Some(name) = statement.modifiers.take(["src0_sel", "src1_sel"][at])
        {
            let select = Select::parse(&name).ok_or_else(|| format!("source select {name}"))?;
            if !(select == Select::WORD && kind.is_half()) {
                selects[at] = if values[at].sign_extend { select.signed() } else { select };
            }
        }
    }
    Ok(selects)
}

fn relation(name: &str, value_type: Type) -> Option<Relation> {
    let is_float = value_type == Type::Float;
    Some(match name {
        "f" => Relation::False,
        "lt" => Relation::Less,
        "eq" => Relation::Equal,
        "le" => Relation::LessEqual,
        "gt" => Relation::Greater,
        "ge" => Relation::GreaterEqual,
        "lg" if is_float => Relation::LessGreater,
        "o" if is_float => Relation::Ordered,
        "u" if is_float => Relation::Unordered,
        "nge" if is_float => Relation::NotGreaterEqual,
        "nlg" if is_float => Relation::NotLessGreater,
        "ngt" if is_float => Relation::NotGreater,
        "nle" if is_float => Relation::NotLessEqual,
        "neq" if is_float => Relation::NotEqual,
        "nlt" if is_float => Relation::NotLess,
        "ne" if !is_float => Relation::NotEqual,
        "t" | "tru" => Relation::True,
        _ => return None,
    })
}

impl Relation {
    #[inline(always)]
    #[allow(
        clippy::neg_cmp_op_on_partial_ord,
        clippy::nonminimal_bool,
        clippy::double_comparisons,
        reason = "the manual defines these relations by negation, and NaN is why"
    )]
    fn holds<T: PartialOrd>(self, a: T, b: T) -> bool {
        match self {
            Relation::False => false,
            Relation::Less => a < b,
            Relation::Equal => a == b,
            Relation::LessEqual => a <= b,
            Relation::Greater => a > b,
            Relation::LessGreater => a < b || a > b,
            Relation::GreaterEqual => a >= b,
            Relation::Ordered => a.partial_cmp(&b).is_some(),
            Relation::Unordered => a.partial_cmp(&b).is_none(),
            Relation::NotGreaterEqual => !(a >= b),
            Relation::NotLessGreater => !(a < b || a > b),
            Relation::NotGreater => !(a > b),
            Relation::NotLessEqual => !(a <= b),
            Relation::NotEqual => a != b,
            Relation::NotLess => !(a < b),
            Relation::True => true,
        }
    }
}

impl Compare {
    #[inline(never)]
    pub(crate) fn execute(&self, wave: &mut Wave) {
        let active = wave.exec();
        let (bits, known) =
            if self.kind.is_wide() { self.compare_wide(wave) } else { self.compare_words(wave) };
        // Inactive lanes give 0.
        for &register in &self.destinations {
            wave.set_lane_mask(register, bits & active, known | !active);
        }
    }

    fn compare_words(&self, wave: &Wave) -> (u64, u64) {
        let (mut first, mut second) = (None, None);
        let (a, known_a) = self.sources[0].words(wave, &mut first);
        let (b, known_b) = self.sources[1].words(wave, &mut second);
        let relation = self.relation;
        let mask = |test: &dyn Fn(usize) -> bool| {
            (0..LANES).fold(0, |bits, lane| bits | u64::from(test(lane)) << lane)
        };
        let bits = match (self.value_type, self.kind) {
            (Type::Signed, Kind::B16) => mask(&|l| relation.holds(a[l] as i16, b[l] as i16)),
            (Type::Unsigned, Kind::B16) => mask(&|l| relation.holds(a[l] as u16, b[l] as u16)),
            (Type::Signed, _) => each(|l| a[l] as i32, |l| b[l] as i32, relation),
            (Type::Unsigned, _) => each(|l| a[l], |l| b[l], relation),
            (Type::Float, Kind::F16) => {
                let value = |word: u32| f16::from_bits(word as u16).to_f32();
                mask(&|l| relation.holds(value(a[l]), value(b[l])))
            }
            (Type::Float, _) => each(|l| f32::from_bits(a[l]), |l| f32::from_bits(b[l]), relation),
            (Type::Class, Kind::F16) => {
                mask(&|l| class(f64::from(f16::from_bits(a[l] as u16)), 6.2e-5) & b[l] != 0)
            }
            (Type::Class, _) => {
                mask(&|l| class(f64::from(f32::from_bits(a[l])), f64::from(f32::MIN_POSITIVE)) & b[l] != 0)
            }
        };
        (bits, known_a & known_b)
    }

    fn compare_wide(&self, wave: &Wave) -> (u64, u64) {
        let mut bits = 0;
        let (a, b) = (self.sources[0].wide(wave), self.sources[1].wide(wave));
        for lane in 0..wave.size() {
            let (a, b) = (a[lane], b[lane]);
            let holds = match self.value_type {
                Type::Signed => self.relation.holds(a as i64, b as i64),
                Type::Unsigned => self.relation.holds(a, b),
                Type::Float => self.relation.holds(f64::from_bits(a), f64::from_bits(b)),
                Type::Class => class(f64::from_bits(a), f64::MIN_POSITIVE) & b as u32 != 0,
            };
            bits |= u64::from(holds) << lane;
        }
        (bits, self.sources[0].written(wave) & self.sources[1].written(wave))
    }
}

/// All lanes of one comparison; the relation is matched once, outside the loop.
#[inline(always)]
fn each<T: PartialOrd + Copy>(a: impl Fn(usize) -> T, b: impl Fn(usize) -> T, relation: Relation) -> u64 {
    #[inline(always)]
    fn mask(test: impl Fn(usize) -> bool) -> u64 {
        let mut bits = 0;
        for lane in 0..LANES {
            bits |= u64::from(test(lane)) << lane;
        }
        bits
    }
    match relation {
        Relation::Less => mask(|l| a(l) < b(l)),
        Relation::Equal => mask(|l| a(l) == b(l)),
        Relation::LessEqual => mask(|l| a(l) <= b(l)),
        Relation::Greater => mask(|l| a(l) > b(l)),
        Relation::GreaterEqual => mask(|l| a(l) >= b(l)),
        Relation::NotEqual => mask(|l| a(l) != b(l)),
        other => mask(|l| other.holds(a(l), b(l))),
    }
}

/// The class of a float as `v_cmp_class` numbers them.
fn class(value: f64, smallest_normal: f64) -> u32 {
    let is_negative = value.is_sign_negative();
    let bit = if value.is_nan() {
        // Signalling NaNs are not told apart: conversions have made them quiet.
        return 3;
    } else if value.is_infinite() {
        if is_negative { 2 } else { 9 }
    } else if value == 0.0 {
        if is_negative { 5 } else { 6 }
    } else if value.abs() < smallest_normal {
        if is_negative { 4 } else { 7 }
    } else if is_negative {
        3
    } else {
        8
    };
    1 << bit
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::instruction::operand::{EXEC, VCC};
    use crate::target::Target;

    fn compare(text: &str, target: Target, a: u32, b: u32) -> bool {
        let mut lab = Lab::new(target);
        lab.vector(1, |_| a).vector(2, |_| b);
        lab.run(text).unwrap();
        lab.wave.lane_mask(VCC) & 1 == 1
    }

    #[test]
    fn relations_respect_type_and_sign() {
        let nan = f32::NAN.to_bits();
        assert!(compare("v_cmp_gt_i32_e32 vcc, v1, v2", Target::Gfx942, 1, u32::MAX));
        assert!(!compare("v_cmp_gt_u32_e32 vcc, v1, v2", Target::Gfx942, 1, u32::MAX));
        assert!(!compare("v_cmp_lt_f32_e32 vcc, v1, v2", Target::Gfx942, nan, 0));
        assert!(compare("v_cmp_nge_f32_e32 vcc, v1, v2", Target::Gfx942, nan, 0));
        assert!(compare("v_cmp_u_f32_e32 vcc, v1, v2", Target::Gfx942, nan, 0));
        assert!(compare("v_cmp_lt_i16_e32 vcc, v1, v2", Target::Gfx942, 0xffff, 0));
        assert!(compare("v_cmp_lg_f32_e64 vcc, v1, -v2", Target::Gfx942, 1.0f32.to_bits(), 1.0f32.to_bits()));
        // Class bit 9 is +infinity.
        assert!(compare("v_cmp_class_f32_e32 vcc, v1, v2", Target::Gfx942, f32::INFINITY.to_bits(), 1 << 9));
    }

    #[test]
    fn an_inactive_lane_gives_zero() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(1, |lane| lane as u32).wave.set_lane_mask(EXEC, 0xff, u64::MAX);
        lab.run("v_cmp_gt_u32_e64 s[4:5], 100, v1").unwrap();
        assert_eq!(lab.wave.lane_mask(4), 0xff);
    }

    #[test]
    fn cmpx_narrows_exec() {
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |lane| lane as u32);
        lab.run("v_cmpx_gt_u32_e32 3, v1").unwrap();
        assert_eq!(lab.wave.exec(), 0b111);
        lab.run("v_cmpx_gt_i32_e64 2, v1").unwrap();
        assert_eq!(lab.wave.exec(), 0b11);
    }

    #[test]
    fn sixty_four_bit_values_are_compared_whole() {
        let mut lab = Lab::new(Target::Gfx942);
        lab.vector(2, |_| 0).vector(3, |_| 1).vector(4, |_| u32::MAX).vector(5, |_| 0);
        lab.run("v_cmp_gt_u64_e32 vcc, v[2:3], v[4:5]").unwrap();
        assert_eq!(lab.wave.lane_mask(VCC), u64::MAX);
    }
}
