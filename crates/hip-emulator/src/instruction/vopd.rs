//! VOPD: two lane-wise operations in one instruction (RDNA). Both read before either writes.

use super::Operation;
use super::operand::Operand;
use super::statement::Statement;
use super::vector::{self, Vector};
use crate::checker::wait_count::Touched;
use crate::counters::Class;
use crate::fault::Violation;
use crate::target::Target;
use crate::wave::{LANES, Wave};

/// Decodes `v_dual_x .. :: v_dual_y ..`.
pub(crate) fn decode(
    text: &str,
    target: Target,
    touched: &mut Touched,
) -> Result<(Class, Operation), String> {
    let (first, second) = text.split_once(" :: ").ok_or("two halves")?;
    let pair = [half(first, target, touched)?, half(second, target, touched)?];
    Ok((Class::Vector, Operation::Dual(Box::new(pair))))
}

fn half(text: &str, target: Target, touched: &mut Touched) -> Result<Vector, String> {
    let mut statement = Statement::parse(text.trim(), target);
    let name = statement.mnemonic.strip_prefix("v_dual_").ok_or("v_dual_")?;
    let operation = vector::lookup(name, target).ok_or_else(|| format!("v_dual_{name}"))?;
    let operands: Vec<Operand> = statement.operands()?;
    operands.iter().for_each(|operand| touched.add(operand));
    let vector = Vector::new(operation, &mut statement, &operands)?;
    match statement.modifiers.first() {
        Some(modifier) => Err(format!("modifier {modifier}")),
        None => Ok(vector),
    }
}

#[inline(never)]
pub(crate) fn execute(pair: &[Vector; 2], wave: &mut Wave) -> Result<(), Violation> {
    let active = wave.exec();
    let mut results = [[0; LANES]; 2];
    let [first, second] = &mut results;
    let (written_first, enabled_first, _) = pair[0].evaluate(wave, active, first);
    let (written_second, enabled_second, _) = pair[1].evaluate(wave, active, second);
    pair[0].store(wave, first, enabled_first, written_first);
    pair[1].store(wave, second, enabled_second, written_second);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::target::Target;

    #[test]
    fn both_halves_read_before_either_writes() {
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(0, |_| 5).vector(1, |_| 9);
        lab.run("v_dual_mov_b32 v0, v1 :: v_dual_add_nc_u32 v1, 3, v0").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(1, 0)), (9, 8));
    }

    #[test]
    fn a_dual_select_reads_vcc() {
        let mut lab = Lab::new(Target::Gfx1200);
        lab.vector(1, |_| 1).vector(2, |_| 2).scalar(106, 0b10);
        lab.run("v_dual_cndmask_b32 v3, v1, v2 :: v_dual_lshlrev_b32 v4, 4, v1").unwrap();
        assert_eq!((lab.lane(3, 0), lab.lane(3, 1), lab.lane(4, 0)), (1, 2, 16));
    }
}
