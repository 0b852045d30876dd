//! Counts the extra cycles in which lanes of one LDS access wait for the same bank.
//!
//! The model: an access of `n` dwords a lane is served in groups of `banks / n` consecutive lanes, and a group
//! takes as many cycles as the most distinct dwords it asks of one bank. The order in which real parts group lanes
//! differs between instructions and is not documented, so the count compares layouts and does not predict time.

/// The cycles beyond one for each group of lanes; `addresses` are the active lanes' byte addresses, `banks` is a power of two,
/// 64 at most.
pub(crate) fn extra_cycles(addresses: &[u32; 64], active: u64, bytes: u32, banks: usize) -> u64 {
    let dwords = bytes.div_ceil(4).max(1);
    let lanes_in_group = (banks / dwords as usize).clamp(1, 64);
    let mut extra = 0;
    for first in (0..64).step_by(lanes_in_group) {
        if active >> first == 0 {
            break;
        }
        let lanes = first..(first + lanes_in_group).min(64);
        let asked = lanes.filter(|lane| active >> lane & 1 == 1).map(|lane| addresses[lane] / 4);
        if !is_free(asked.clone(), dwords, banks) {
            extra += cycles(asked, dwords, banks) - 1;
        }
    }
    extra
}

/// Whether no bank is asked twice, but for neighbours that ask for the same: so for most groups, and seen by a mask of banks.
/// `asked` are the first dwords of a group's lanes.
fn is_free(asked: impl Iterator<Item = u32>, dwords: u32, banks: usize) -> bool {
    let (all, one) = (u64::MAX >> (64 - banks), u64::MAX >> (64 - dwords));
    let (mut busy, mut previous) = (0, None);
    for dword in asked {
        if previous == Some(dword) {
            continue;
        }
        previous = Some(dword);
        let bank = dword as usize & (banks - 1);
        // What passes the last bank comes to the first again.
        let asks = (one << bank | one.checked_shr((banks - bank) as u32).unwrap_or(0)) & all;
        if busy & asks != 0 {
            return false;
        }
        busy |= asks;
    }
    true
}

/// The most distinct dwords that are asked of one bank.
fn cycles(asked: impl Iterator<Item = u32>, dwords: u32, banks: usize) -> u64 {
    // A bank is mostly asked for one dword, kept in `owner`.
    let mut owner = [0; 64];
    let mut busy = 0u64;
    let mut others: Vec<u32> = Vec::new();
    for dword in asked.flat_map(|first| first..first + dwords) {
        let bank = dword as usize & (banks - 1);
        if busy >> bank & 1 == 0 {
            busy |= 1 << bank;
            owner[bank] = dword;
        } else if owner[bank] != dword {
            others.push(dword);
        }
    }
    if others.is_empty() {
        return 1;
    }
    others.sort_unstable();
    others.dedup();
    let mut cycles = [1u64; 64];
    for dword in others {
        cycles[dword as usize & (banks - 1)] += 1;
    }
    cycles[..banks].iter().copied().max().unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(f: impl Fn(u32) -> u32) -> [u32; 64] {
        std::array::from_fn(|lane| f(lane as u32))
    }

    #[test]
    fn consecutive_dwords_and_broadcasts_are_free() {
        assert_eq!(extra_cycles(&addresses(|lane| 4 * lane), !0, 4, 32), 0);
        assert_eq!(extra_cycles(&addresses(|_| 64), !0, 4, 32), 0);
        assert_eq!(extra_cycles(&addresses(|lane| 16 * lane), !0, 16, 32), 0);
    }

    #[test]
    fn a_stride_of_all_banks_serialises_every_lane() {
        // 32 lanes of each half ask bank 0 for 32 different dwords: 31 extra cycles, twice.
        assert_eq!(extra_cycles(&addresses(|lane| 128 * lane), !0, 4, 32), 62);
        assert_eq!(extra_cycles(&addresses(|lane| 128 * lane), 0xffff_ffff, 4, 32), 31);
    }

    #[test]
    fn a_stride_of_two_dwords_takes_two_cycles_a_group() {
        assert_eq!(extra_cycles(&addresses(|lane| 8 * lane), !0, 4, 32), 2);
    }
}
