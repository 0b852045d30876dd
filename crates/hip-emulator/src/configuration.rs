//! What the environment says about the devices to imitate.

use crate::checker::Checks;
use crate::target::{Target, UnknownTarget};

pub(crate) const DEVICE: &str = "OMNIFLASH_EMULATOR_DEVICE";
pub(crate) const CHECKS: &str = "OMNIFLASH_EMULATOR_CHECKS";
pub(crate) const SEED: &str = "OMNIFLASH_EMULATOR_SEED";
pub(crate) const THREADS: &str = "OMNIFLASH_EMULATOR_THREADS";
pub(crate) const FAIL: &str = "OMNIFLASH_EMULATOR_FAIL";
pub(crate) const LLVM: &str = "OMNIFLASH_EMULATOR_LLVM";
pub(crate) const CLANG: &str = "OMNIFLASH_EMULATOR_CLANG";
pub(crate) const QUIET: &str = "OMNIFLASH_EMULATOR_QUIET";

/// How a device executes kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration {
    /// The checkers that run.
    pub checks: Checks,
    /// Decides the order in which waves and streams make progress.
    pub seed: u64,
    /// Threads that execute workgroups.
    pub threads: usize,
}

impl Default for Configuration {
    fn default() -> Configuration {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Configuration { checks: Checks::ALL, seed: 0, threads }
    }
}

/// An environment variable whose value is not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigurationError {
    /// The device list names something else than a target.
    #[error("{DEVICE}: {0}")]
    Device(#[from] UnknownTarget),
    /// Another variable has a value of the wrong form.
    #[error("{variable}={value:?}: {expected} expected")]
    Value {
        /// The variable's name.
        variable: &'static str,
        /// Its value.
        value: String,
        /// What would be understood.
        expected: &'static str,
    },
}

/// The devices that `OMNIFLASH_EMULATOR_DEVICE` lists, by default one gfx942; `none` is a machine without a device.
pub(crate) fn devices_from_environment() -> Result<Vec<Target>, ConfigurationError> {
    let list = std::env::var(DEVICE).unwrap_or_else(|_| Target::Gfx942.name().to_string());
    if list == "none" {
        return Ok(Vec::new());
    }
    list.split(',').map(|name| Ok(name.trim().parse()?)).collect()
}

impl Configuration {
    /// The configuration that the environment describes.
    ///
    /// # Errors
    /// A variable whose value is not understood.
    pub fn from_environment() -> Result<Configuration, ConfigurationError> {
        let mut configuration = Configuration::default();
        if let Some(seed) = number(SEED)? {
            configuration.seed = seed;
        }
        if let Some(threads) = number(THREADS)? {
            configuration.threads = (threads as usize).max(1);
        }
        if let Ok(text) = std::env::var(CHECKS) {
            configuration.checks = checks(&text).ok_or(ConfigurationError::Value {
                variable: CHECKS,
                value: text,
                expected: "`all`, `none` or a list of lds_race, uninitialised, wait_count, alignment",
            })?;
        }
        Ok(configuration)
    }
}

fn number(variable: &'static str) -> Result<Option<u64>, ConfigurationError> {
    let Ok(value) = std::env::var(variable) else { return Ok(None) };
    match value.parse() {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(ConfigurationError::Value { variable, value, expected: "a number" }),
    }
}

fn checks(text: &str) -> Option<Checks> {
    match text {
        "all" => return Some(Checks::ALL),
        "none" => return Some(Checks::NONE),
        _ => {}
    }
    let mut checks = Checks::NONE;
    for name in text.split(',') {
        match name.trim() {
            "lds_race" => checks.lds_race = true,
            "uninitialised" => checks.uninitialised = true,
            "wait_count" => checks.wait_count = true,
            "alignment" => checks.alignment = true,
            _ => return None,
        }
    }
    Some(checks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_checkers_switches_on_those_and_no_others() {
        assert_eq!(
            checks("lds_race, alignment"),
            Some(Checks { lds_race: true, alignment: true, ..Checks::NONE })
        );
        assert_eq!(checks("all"), Some(Checks::ALL));
        assert_eq!(checks("races"), None);
    }
}
