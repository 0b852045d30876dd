//! `omniflash tune`: which configuration of the kernels is the fastest on this machine, measured.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use omniflash::tuning::{Trial, preferred, take_turns};
use omniflash::{AttentionConfig, AttentionProblem, Backend, DType, Error, Tensor};
use serde_json::json;

use crate::Verdict;
use crate::arguments::TuneArguments;
use crate::bench::{BenchCase, Form, Workload, time};
use crate::execution::choose;
use crate::results::CaseName;
use crate::terminal;

/// Rounds of turns: every configuration is measured so often.
const ROUNDS: usize = 3;

/// What is tuned where no case is named.
const CASES: [&str; 4] = [
    "B4_S4096_H32_32_D64_full",
    "B4_S4096_H32_32_D64_causal",
    "B4_S4096_H16_16_D128_full",
    "B4_S4096_H16_16_D128_causal",
];

pub(crate) fn run(arguments: &TuneArguments) -> anyhow::Result<Verdict> {
    let cases = match &arguments.cases[..] {
        [] => CASES.map(case_of).into_iter().collect::<anyhow::Result<Vec<_>>>()?,
        names => names.iter().map(|name| case_of(name)).collect::<anyhow::Result<Vec<_>>>()?,
    };
    let backend = choose(&arguments.backend.backend)?;
    let as_json = arguments.json || !terminal::is_terminal();
    for case in &cases {
        for &dtype in &arguments.dtype {
            let tuned = tune(&backend, case, dtype, arguments).with_context(|| case.name())?;
            if as_json { tuned.print_json(&*backend)? } else { tuned.print_table(&*backend)? }
        }
    }
    Ok(Verdict::Passed)
}

/// One case, its configurations measured.
struct Tuned {
    case: String,
    dtype: DType,
    trials: Vec<Trial>,
    /// What the plan makes of each configuration.
    tiles: Vec<String>,
    /// Configurations that could not be measured, and why.
    left_out: Vec<String>,
    best: usize,
    /// Where the best one was kept.
    kept: Option<String>,
}

fn tune(
    backend: &Arc<dyn Backend>,
    case: &BenchCase,
    dtype: DType,
    arguments: &TuneArguments,
) -> anyhow::Result<Tuned> {
    let backend = &**backend;
    let stream = backend.stream()?;
    let workload = Workload::new(backend, case, dtype, &stream)?;
    let shape = AttentionProblem::output_shape(&workload.query(), &workload.kv())?;
    let mut out = Tensor::zeros(backend, shape.dtype, &shape.out, &stream)?;
    // What a function does with the case's problem under a configuration.
    let mut under =
        |config: &AttentionConfig, act: &mut dyn FnMut(&AttentionProblem<'_>) -> omniflash::Result<()>| {
            let options = workload.options().config(*config);
            let problem =
                AttentionProblem::new(workload.query(), workload.kv(), out.view_mut(), None, &options)?;
            act(&problem)
        };

    let mut all = Vec::new();
    under(&AttentionConfig::default(), &mut |problem| {
        all = backend.alternatives(problem)?;
        Ok(())
    })?;
    if all.len() < 2 {
        return Err(nothing_to_tune(backend));
    }
    let (mut configs, mut tiles, mut left_out) = (Vec::new(), Vec::new(), Vec::new());
    for config in all {
        // Compiles the kernel, so that the first launch that is timed does not.
        let planned = under(&config, &mut |problem| {
            let plan = backend.plan(problem)?;
            tiles.push(format!(
                "{} {}x{}, {} stages",
                plan.algorithm, plan.block_m, plan.block_n, plan.num_pipeline_stages
            ));
            Ok(())
        });
        match planned {
            Ok(()) => configs.push(config),
            // What cannot be built is no alternative; but the plan's own choice has to be.
            Err(error @ (Error::NoKernel { .. } | Error::Unsupported { .. })) if !configs.is_empty() => {
                left_out.push(error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    let budget = Duration::from_secs_f64(arguments.budget / ROUNDS as f64);
    let trials = take_turns(&configs, ROUNDS, |config| {
        let mut times = Vec::new();
        under(config, &mut |problem| {
            times = time(backend, problem, &stream, budget, None)?.milliseconds;
            Ok(())
        })?;
        Ok(times)
    })?;
    let best = preferred(&trials).context("no configuration was measured")?;
    let mut kept = None;
    if arguments.store && best != 0 {
        under(&AttentionConfig::default(), &mut |problem| {
            kept = Some(backend.keep_choice(problem, &trials[best].config)?.display().to_string());
            Ok(())
        })?;
    }
    Ok(Tuned { case: case.name(), dtype, trials, tiles, left_out, best, kept })
}

fn nothing_to_tune(backend: &dyn Backend) -> anyhow::Error {
    anyhow::anyhow!(
        "{} has nothing to tune: its plans have no alternatives; those of NVIDIA GPUs have (`omniflash info` says why cuda is \
         absent, then `omniflash tune --backend cuda`)",
        backend.info().name
    )
}

impl Tuned {
    fn print_json(&self, backend: &dyn Backend) -> anyhow::Result<()> {
        for (place, (trial, tile)) in self.trials.iter().zip(&self.tiles).enumerate() {
            terminal::print_json(&json!({
                "case": self.case,
                "dtype": self.dtype.to_string(),
                "backend": backend.info().name,
                "device": backend.info().device_name,
                "tile": tile,
                "ms": trial.median(),
                "n": trial.milliseconds.len(),
                "own_choice": place == 0,
                "best": place == self.best,
                "kept": if place == self.best { self.kept.as_deref() } else { None },
            }))?;
        }
        Ok(())
    }

    fn print_table(&self, backend: &dyn Backend) -> anyhow::Result<()> {
        let info = backend.info();
        terminal::print_line(terminal::heading(&format!(
            "{} {} on {} ({})",
            self.case, self.dtype, info.name, info.device_name
        )))?;
        let mut table = terminal::table(&["tile", "median", "of the plan's own", ""]);
        let own = self.trials[0].median().unwrap_or(f64::NAN);
        for (place, (trial, tile)) in self.trials.iter().zip(&self.tiles).enumerate() {
            let median = trial.median().unwrap_or(f64::NAN);
            let note = match (place == self.best, place == 0) {
                (true, true) => "own choice, best",
                (true, false) => "best",
                (false, true) => "own choice",
                (false, false) => "",
            };
            table.add_row([
                tile.clone(),
                terminal::milliseconds(median),
                format!("{:.3}", median / own),
                note.into(),
            ]);
        }
        terminal::align_numbers(&mut table, 1..3);
        terminal::print_line(table)?;
        for reason in &self.left_out {
            terminal::print_line(terminal::faint(format_args!("left out: {reason}")))?;
        }
        match &self.kept {
            Some(path) => terminal::print_line(format_args!("kept in {path}")),
            None if self.best == 0 => {
                terminal::print_line("the plan's own choice stays: none is faster by more than noise")
            }
            None => terminal::print_line("nothing is kept: give --store for that"),
        }
    }
}

/// The case of a name such as `B4_S4096_H16_16_D128_causal`.
fn case_of(name: &str) -> anyhow::Result<BenchCase> {
    let found = CaseName::parse(name).filter(|case| !case.is_ragged);
    let form = found
        .as_ref()
        .and_then(|case| Form::parse(&case.form))
        .filter(|form| matches!(form, Form::Full | Form::Causal | Form::Window(_)));
    match (found, form) {
        (Some(case), Some(form))
            if case.num_kv_heads > 0 && case.num_heads.is_multiple_of(case.num_kv_heads) =>
        {
            Ok(BenchCase {
                batch: case.batch,
                seqlen_q: case.seqlen_q,
                seqlen_k: case.seqlen_k,
                num_heads: case.num_heads,
                num_kv_heads: case.num_kv_heads,
                head_dim: case.head_dim,
                form,
            })
        }
        _ => anyhow::bail!(
            "CASE is {name}, expected one like B4_S4096_H16_16_D128_causal: batch, length, heads, key heads, head_dim; full, \
             causal or window1024"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_read_by_their_names() {
        for name in CASES.iter().chain(&["B1_S16384_H32_8_D128_window1024", "B1_S16_4096_H8_8_D64_full"]) {
            assert_eq!(case_of(name).unwrap().name(), *name);
        }
        for name in
            ["", "B4_S4096_H16_16_D128", "var_B4_S4096_H16_16_D128_causal", "B4_S4096_H16_0_D128_full"]
        {
            assert!(case_of(name).unwrap_err().to_string().starts_with("CASE is"), "{name}");
        }
    }
}
