//! How long a run will take, and took.

use std::time::{Duration, Instant};

use super::grid::Group;
use crate::arguments::BenchArguments;
use crate::terminal;

/// What a limit leaves for a case at least: a few calls.
const LEAST: Duration = Duration::from_millis(5);

/// Budgets of cases within a limit, and the times of groups.
pub(super) struct Schedule {
    /// Of a case or a step, as asked for.
    budget: Duration,
    limit: Option<Duration>,
    /// The part of the limit that is for our own cases, before the peers.
    own: f64,
    begin: Instant,
    /// Budgets still to be spent.
    left: usize,
    groups: Vec<(Group, Duration)>,
    /// What runs now, and since when.
    running: Option<(Group, Instant)>,
}

impl Schedule {
    pub(super) fn new(arguments: &BenchArguments) -> Self {
        Schedule {
            budget: arguments.budget(),
            limit: arguments.time_limit.map(Duration::from_secs_f64),
            // Peers are several systems, each started anew for its turns.
            own: if arguments.peers { 0.4 } else { 1.0 },
            begin: Instant::now(),
            left: 0,
            groups: Vec::new(),
            running: None,
        }
    }

    /// Starts a run of so many budgets, and says how long it takes at most.
    pub(super) fn begin(&mut self, budgets: usize) -> anyhow::Result<()> {
        (self.begin, self.left) = (Instant::now(), budgets);
        let most = self.budget * budgets as u32;
        let expected = self.own_limit().map_or(most, |limit| most.min(limit));
        terminal::print_note(format_args!(
            "cases and steps of ours: {budgets}, {} at most and what compiling takes",
            terminal::time(expected)
        ))
    }

    fn own_limit(&self) -> Option<Duration> {
        self.limit.map(|limit| limit.mul_f64(self.own))
    }

    /// The budget of what comes next, which takes it `budgets` times.
    pub(super) fn next(&mut self, group: Group, budgets: usize) -> Duration {
        self.stop();
        self.running = Some((group, Instant::now()));
        let share = self.own_limit().map(|limit| {
            let remaining = limit.saturating_sub(self.begin.elapsed());
            (remaining / self.left.max(1) as u32).max(LEAST)
        });
        self.left = self.left.saturating_sub(budgets);
        share.map_or(self.budget, |share| share.min(self.budget))
    }

    /// Adds the time since [`Schedule::next`] to its group.
    fn stop(&mut self) {
        let Some((group, begin)) = self.running.take() else { return };
        match self.groups.iter_mut().find(|(other, _)| *other == group) {
            Some((_, elapsed)) => *elapsed += begin.elapsed(),
            None => self.groups.push((group, begin.elapsed())),
        }
    }

    /// Says how long each group took since the last time.
    pub(super) fn tell(&mut self, backend: &str) -> anyhow::Result<()> {
        self.stop();
        let groups = std::mem::take(&mut self.groups);
        let took = groups
            .iter()
            .map(|(group, elapsed)| format!("{} {}", group.name(), terminal::time(*elapsed)))
            .collect::<Vec<_>>();
        terminal::print_note(format_args!("{backend} took {}", took.join(", ")))
    }

    /// What is left of the limit for each of so many backends' peers.
    pub(super) fn limit_of_peers(&self, backends: usize) -> Option<Duration> {
        let remaining = self.limit?.saturating_sub(self.begin.elapsed());
        Some(remaining / backends.max(1) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(limit: Option<f64>, budgets: usize) -> Schedule {
        Schedule {
            budget: Duration::from_secs(1),
            limit: limit.map(Duration::from_secs_f64),
            own: 0.5,
            begin: Instant::now(),
            left: budgets,
            groups: Vec::new(),
            running: None,
        }
    }

    #[test]
    fn a_limit_is_shared_by_what_is_left() {
        let mut shared = schedule(Some(16.0), 16);
        let first = shared.next(Group::Prefill, 1).as_secs_f64();
        assert!((0.45..=0.5).contains(&first), "{first}");
        shared.next(Group::Overhead, 11);
        // Four are left of eight seconds: more than was asked for.
        assert_eq!(shared.next(Group::Decode, 1), Duration::from_secs(1));
        assert!(shared.limit_of_peers(2).unwrap() > Duration::from_secs(7));
    }

    #[test]
    fn without_a_limit_each_has_its_budget_and_beyond_it_a_few_calls() {
        assert_eq!(schedule(None, 1).next(Group::Masks, 1), Duration::from_secs(1));
        assert_eq!(schedule(None, 1).limit_of_peers(1), None);
        assert_eq!(schedule(Some(0.0), 3).next(Group::Masks, 1), LEAST);
    }
}
