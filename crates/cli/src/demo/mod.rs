//! The demonstration.
use crate::Verdict;
use crate::arguments::DemoArguments;
pub(crate) fn run(_arguments: &DemoArguments) -> anyhow::Result<Verdict> { Ok(Verdict::Passed) }
