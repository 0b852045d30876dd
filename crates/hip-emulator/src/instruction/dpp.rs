//! DPP: the first source comes from another lane.

use super::statement::Modifiers;
use crate::wave::Lanes;

/// Where each lane's value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Pattern {
    QuadPermute([u8; 4]),
    RowShiftLeft(usize),
    RowShiftRight(usize),
    RowRotateRight(usize),
    WaveShiftLeft,
    WaveShiftRight,
    WaveRotateLeft,
    WaveRotateRight,
    RowMirror,
    RowHalfMirror,
    /// Lane 15 of each row to the next row, or lane 31 to the upper half of the wave.
    RowBroadcast(usize),
    /// One lane of a row to the whole row.
    RowShare(usize),
    RowXor(usize),
    /// A permutation of each group of eight lanes.
    Dpp8([u8; 8]),
}

/// A decoded DPP control with its masks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dpp {
    pattern: Pattern,
    row_mask: u64,
    bank_mask: u64,
    /// An invalid source reads as zero; otherwise the lane is not written.
    zeroes_invalid: bool,
    /// Inactive lanes are valid sources.
    fetches_inactive: bool,
}

impl Dpp {
    pub(crate) fn decode(modifiers: &mut Modifiers) -> Result<Dpp, String> {
        let pattern = Dpp::pattern(modifiers)?;
        Ok(Dpp {
            pattern,
            row_mask: modifiers.number("row_mask")?.unwrap_or(0xf) as u64,
            bank_mask: modifiers.number("bank_mask")?.unwrap_or(0xf) as u64,
            zeroes_invalid: modifiers.flag("bound_ctrl"),
            fetches_inactive: modifiers.number("fi")?.unwrap_or(0) != 0,
        })
    }

    fn pattern(modifiers: &mut Modifiers) -> Result<Pattern, String> {
        let bytes = |list: Vec<i64>| list.into_iter().map(|n| n as u8).collect::<Vec<u8>>();
        if let Some(list) = modifiers.numbers("quad_perm")? {
            return bytes(list).try_into().map(Pattern::QuadPermute).map_err(|_| "quad_perm".into());
        }
        if let Some(list) = modifiers.numbers("dpp8")? {
            return bytes(list).try_into().map(Pattern::Dpp8).map_err(|_| "dpp8".into());
        }
        type Counted = fn(usize) -> Pattern;
        let counted: [(&str, Counted); 7] = [
            ("row_shl", Pattern::RowShiftLeft),
            ("row_shr", Pattern::RowShiftRight),
            ("row_ror", Pattern::RowRotateRight),
            ("row_bcast", Pattern::RowBroadcast),
            ("row_newbcast", Pattern::RowShare),
            ("row_share", Pattern::RowShare),
            ("row_xmask", Pattern::RowXor),
        ];
        for (key, pattern) in counted {
            if let Some(count) = modifiers.number(key)? {
                return Ok(pattern(count as usize));
            }
        }
        let named = [
            ("wave_shl", Pattern::WaveShiftLeft),
            ("wave_shr", Pattern::WaveShiftRight),
            ("wave_rol", Pattern::WaveRotateLeft),
            ("wave_ror", Pattern::WaveRotateRight),
            ("row_mirror", Pattern::RowMirror),
            ("row_half_mirror", Pattern::RowHalfMirror),
        ];
        for (key, pattern) in named {
            if modifiers.flag(key) {
                return Ok(pattern);
            }
        }
        Err("DPP control".into())
    }

    /// The lane that `lane` reads, if the pattern stays inside its row or wave.
    fn source(&self, lane: usize, wave_size: usize) -> Option<usize> {
        let (row, column) = (lane & !15, lane & 15);
        match self.pattern {
            Pattern::QuadPermute(order) => Some((lane & !3) + usize::from(order[lane & 3] & 3)),
            Pattern::RowShiftLeft(n) => (column + n < 16).then_some(lane + n),
            Pattern::RowShiftRight(n) => (column >= n).then(|| lane - n),
            Pattern::RowRotateRight(n) => Some(row + ((column + 16 - n) & 15)),
            Pattern::WaveShiftLeft => (lane + 1 < wave_size).then_some(lane + 1),
            Pattern::WaveShiftRight => lane.checked_sub(1),
            Pattern::WaveRotateLeft => Some((lane + 1) % wave_size),
            Pattern::WaveRotateRight => Some((lane + wave_size - 1) % wave_size),
            Pattern::RowMirror => Some(row + 15 - column),
            Pattern::RowHalfMirror => Some((lane & !7) + 7 - (lane & 7)),
            Pattern::RowBroadcast(15) => row.checked_sub(1),
            Pattern::RowBroadcast(_) => (lane >= 32).then_some(31),
            Pattern::RowShare(n) => Some(row + n),
            Pattern::RowXor(n) => Some(row + (column ^ n)),
            Pattern::Dpp8(order) => Some((lane & !7) + usize::from(order[lane & 7] & 7)),
        }
    }

    /// Moves the lanes; returns which results are initialised and which lanes are written.
    pub(crate) fn apply(
        &self,
        values: &Lanes,
        written: u64,
        active: u64,
        wave_size: usize,
        moved: &mut Lanes,
    ) -> (u64, u64) {
        let (mut known, mut enabled) = (0, active);
        for lane in 0..wave_size {
            let is_masked =
                self.row_mask >> (lane / 16) & 1 == 0 || self.bank_mask >> (lane % 16 / 4) & 1 == 0;
            let source = self
                .source(lane, wave_size)
                .filter(|&source| self.fetches_inactive || active >> source & 1 == 1);
            if is_masked {
                enabled &= !(1 << lane);
            } else if let Some(source) = source {
                moved[lane] = values[source];
                known |= (written >> source & 1) << lane;
            } else if self.zeroes_invalid {
                moved[lane] = 0;
                known |= 1 << lane;
            } else {
                enabled &= !(1 << lane);
            }
        }
        (known, enabled)
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_support::Lab;
    use crate::target::Target;

    fn moved(control: &str, target: Target) -> Vec<u32> {
        let mut lab = Lab::new(target);
        lab.vector(1, |lane| lane as u32 + 100).vector(0, |_| 7);
        lab.run(&format!("v_mov_b32_dpp v0, v1 {control} row_mask:0xf bank_mask:0xf")).unwrap();
        (0..target.wave_size()).map(|lane| lab.lane(0, lane)).collect()
    }

    #[test]
    fn quad_permutations_and_mirrors() {
        let lanes = moved("quad_perm:[1,0,3,2]", Target::Gfx942);
        assert_eq!(lanes[..4], [101, 100, 103, 102]);
        assert_eq!(moved("row_mirror", Target::Gfx942)[16], 131);
        assert_eq!(moved("row_half_mirror", Target::Gfx1100)[8], 115);
        assert_eq!(moved("row_xmask:8", Target::Gfx1200)[17], 125);
        assert_eq!(moved("row_ror:1", Target::Gfx90a)[32], 147);
        assert_eq!(moved("row_share:3", Target::Gfx1100)[20], 119);
    }

    #[test]
    fn a_shift_out_of_the_row_keeps_the_old_value_or_gives_zero() {
        let lanes = moved("row_shr:1", Target::Gfx942);
        assert_eq!((lanes[15], lanes[16], lanes[17]), (114, 7, 116));
        assert_eq!(moved("row_shr:1 bound_ctrl:0", Target::Gfx942)[16], 0);
        assert_eq!(moved("row_shl:15", Target::Gfx942)[16], 131);
    }

    #[test]
    fn broadcasts_cross_the_rows() {
        let lanes = moved("row_bcast:15", Target::Gfx942);
        assert_eq!((lanes[0], lanes[16], lanes[40]), (7, 115, 131));
        let lanes = moved("row_bcast:31", Target::Gfx942);
        assert_eq!((lanes[31], lanes[32]), (7, 131));
    }

    #[test]
    fn dpp8_permutes_groups_of_eight() {
        let mut lab = Lab::new(Target::Gfx1100);
        lab.vector(1, |lane| lane as u32);
        lab.run("v_mov_b32_dpp v0, v1 dpp8:[7,6,5,4,3,2,1,0]").unwrap();
        assert_eq!((lab.lane(0, 0), lab.lane(0, 9)), (7, 14));
    }
}
