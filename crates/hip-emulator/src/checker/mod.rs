//! The checkers that hardware does not have. Each names the instruction and what is wrong with it.

pub(crate) mod bank_conflicts;
pub(crate) mod lds_race;
pub(crate) mod wait_count;

/// Which checkers run; all of them unless switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checks {
    /// LDS bytes touched by two waves with no barrier between.
    pub lds_race: bool,
    /// LDS bytes and registers used before they are written.
    pub uninitialised: bool,
    /// Registers and LDS bytes used before the wait that covers their load.
    pub wait_count: bool,
    /// Addresses that are not a multiple of the access's element.
    pub alignment: bool,
}

impl Checks {
    /// Every checker on.
    pub const ALL: Checks = Checks { lds_race: true, uninitialised: true, wait_count: true, alignment: true };
    /// Every checker off. Accesses outside an allocation still fail.
    pub const NONE: Checks =
        Checks { lds_race: false, uninitialised: false, wait_count: false, alignment: false };
}

impl Default for Checks {
    fn default() -> Checks {
        Checks::ALL
    }
}
