//! What a GPU does before calls are timed: its clock depends on it.

use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use omniflash::{Backend, DeviceId};

/// What a GPU does before each burst of calls that are timed. A clock that was idle is higher, by a tenth in long products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// It idles for 80 ms
    Cool,
    /// It makes the same calls back to back for 250 ms, untimed; then few are timed, before it cools
    Hot,
}

/// How long it idles, or works.
const IDLE: Duration = Duration::from_millis(80);
const HEAT: Duration = Duration::from_millis(250);
/// How long calls are timed before a hot device is no longer what it was: it waits between them.
const STAYS_HOT: Duration = Duration::from_millis(60);

impl Mode {
    /// The mode for a backend: what was asked for, or cool. A CPU has none.
    pub(super) fn of(backend: &dyn Backend, asked: Option<Mode>) -> Option<Mode> {
        (backend.info().device != DeviceId::Cpu).then(|| asked.unwrap_or(Mode::Cool))
    }

    /// Refuses a mode that none of these backends has.
    pub(super) fn check(asked: Option<Mode>, backends: &[Arc<dyn Backend>]) -> anyhow::Result<()> {
        match asked {
            Some(mode) if backends.iter().all(|backend| Mode::of(&**backend, asked).is_none()) => {
                anyhow::bail!("--mode {} is for GPUs, of which none was chosen", mode.name())
            }
            _ => Ok(()),
        }
    }

    /// As the command line and result files have it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Mode::Cool => "cool",
            Mode::Hot => "hot",
        }
    }

    /// How times after [`Mode::begin`] were taken.
    pub(super) fn method(self) -> &'static str {
        match self {
            Mode::Cool => "device clock, cold L2, 80 ms idle",
            Mode::Hot => "device clock, cold L2, after 250 ms of the same back to back",
        }
    }

    /// The part of a budget for which calls are timed after one [`Mode::begin`].
    pub(super) fn burst(self, budget: Duration) -> Duration {
        match self {
            Mode::Cool => budget,
            Mode::Hot => budget.min(STAYS_HOT),
        }
    }

    /// Makes the device so; `work` keeps it busy for about so long.
    pub(super) fn begin<E>(self, work: impl FnOnce(Duration) -> Result<(), E>) -> Result<(), E> {
        match self {
            Mode::Cool => {
                std::thread::sleep(IDLE);
                Ok(())
            }
            Mode::Hot => work(HEAT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_have_the_names_of_the_command_line() {
        for mode in [Mode::Cool, Mode::Hot] {
            assert_eq!(mode.to_possible_value().unwrap().get_name(), mode.name());
        }
    }

    #[test]
    fn a_hot_device_works_and_a_cool_one_does_not() {
        let worked = |mode: Mode| {
            let mut worked = Duration::ZERO;
            mode.begin(|long| {
                worked = long;
                Ok::<(), ()>(())
            })
            .unwrap();
            worked
        };
        assert_eq!((worked(Mode::Cool), worked(Mode::Hot)), (Duration::ZERO, HEAT));
    }

    #[test]
    fn a_hot_device_is_timed_for_a_moment_only() {
        let bursts = |mode: Mode| [1, 1000].map(|ms| mode.burst(Duration::from_millis(ms)).as_millis());
        assert_eq!((bursts(Mode::Cool), bursts(Mode::Hot)), ([1, 1000], [1, 60]));
    }

    #[test]
    fn a_cpu_has_no_mode() {
        assert_eq!(Mode::of(&omniflash::ReferenceBackend::new(), Some(Mode::Hot)), None);
    }
}
