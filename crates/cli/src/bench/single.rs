//! One case for a script that compares systems: answered with its samples and the first outputs.

use half::{bf16, f16};
use omniflash::{Backend, DType, Tensor};
use serde_json::json;

use super::measure::Measurement;
use super::mode::Mode;
use super::workload::BenchCase;
use crate::Verdict;
use crate::arguments::BenchArguments;
use crate::execution::choose;
use crate::terminal;

/// Outputs of query row 0 of head 0 that a script compares with its own.
const HEAD: usize = 8;

pub(super) fn run(arguments: &BenchArguments, case: &BenchCase) -> anyhow::Result<Verdict> {
    let backend = match &arguments.backend[..] {
        // One answer, so one backend.
        [name] if name != "all" => choose(name)?,
        [_] => choose("auto")?,
        names => anyhow::bail!("--backend names {} backends, expected one for a single case", names.len()),
    };
    let dtype = match arguments.dtype[..] {
        [] => DType::F32,
        [dtype] => dtype,
        _ => anyhow::bail!("--dtype names {} types, expected one for a single case", arguments.dtype.len()),
    };
    Mode::check(arguments.mode, std::slice::from_ref(&backend))?;
    let mode = Mode::of(&*backend, arguments.mode);
    let answer = match measure(&*backend, case, dtype, arguments, mode) {
        Ok((samples, head)) => json!({"samples_ms": samples, "head": head}),
        Err(error) => json!({"skip": error.to_string()}),
    };
    terminal::print_json(&answer)?;
    Ok(Verdict::Passed)
}

fn measure(
    backend: &dyn Backend,
    case: &BenchCase,
    dtype: DType,
    arguments: &BenchArguments,
    mode: Option<Mode>,
) -> omniflash::Result<(Vec<f64>, Vec<f32>)> {
    let mut measurement = Measurement::new(backend, case, dtype, arguments.algorithm)?;
    let samples = measurement.time(backend, arguments.budget(), mode)?;
    let mut head = elements(backend, &measurement.out)?;
    head.truncate(HEAD.min(case.head_dim));
    Ok((samples.milliseconds, head))
}

/// The elements of a tensor, widened.
fn elements(backend: &dyn Backend, tensor: &Tensor) -> omniflash::Result<Vec<f32>> {
    let stream = backend.stream()?;
    Ok(match tensor.dtype() {
        DType::F16 => tensor.to_vec::<f16>(backend, &stream)?.into_iter().map(f16::to_f32).collect(),
        DType::BF16 => tensor.to_vec::<bf16>(backend, &stream)?.into_iter().map(bf16::to_f32).collect(),
        _ => tensor.to_vec::<f32>(backend, &stream)?,
    })
}
