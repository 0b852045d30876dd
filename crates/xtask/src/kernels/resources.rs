//! What ptxas says of a kernel.

use anyhow::Context as _;

/// Resources of one kernel, from `ptxas -v`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Resources {
    pub(super) registers: u32,
    /// Stores of spilled registers.
    pub(super) spill_bytes: u32,
    pub(super) stack_bytes: u32,
    /// Static shared memory.
    pub(super) shared_bytes: u32,
}

impl Resources {
    pub(super) fn parse(log: &str) -> anyhow::Result<Self> {
        let number_before =
            |words: &str| log.lines().find_map(|line| number_before(line, words)).unwrap_or(0);
        Ok(Resources {
            registers: log
                .lines()
                .find_map(|line| line.split_once("Used ").and_then(|(_, rest)| number_before_start(rest)))
                .with_context(|| format!("ptxas names no registers:\n{log}"))?,
            spill_bytes: number_before(" bytes spill stores"),
            stack_bytes: number_before(" bytes stack frame"),
            shared_bytes: number_before(" bytes smem"),
        })
    }
}

fn number_before_start(text: &str) -> Option<u32> {
    text.split_whitespace().next()?.parse().ok()
}

/// The number that stands right before `words`.
fn number_before(line: &str, words: &str) -> Option<u32> {
    let before = &line[..line.find(words)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_ptxas_is_read() {
        let log = "ptxas info    : Function properties for omniflash_forward\n    \
                   64 bytes stack frame, 96 bytes spill stores, 80 bytes spill loads\n\
                   ptxas info    : Used 255 registers, used 1 barriers, 512 bytes smem\n";
        let expected = Resources { registers: 255, spill_bytes: 96, stack_bytes: 64, shared_bytes: 512 };
        assert_eq!(Resources::parse(log).unwrap(), expected);
        assert!(Resources::parse("nothing").is_err());
    }
}
