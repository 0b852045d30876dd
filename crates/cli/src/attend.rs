//! `omniflash attend`: the attention of a case file.

use omniflash::{Backend, DType};
use serde_json::json;

use crate::Verdict;
use crate::arguments::AttendArguments;
use crate::case_file::{Case, CaseError, Fault, NamedTensor, to_bytes, write_atomically};
use crate::execution::{Execution, choose, execute};
use crate::terminal;

pub(crate) fn run(arguments: &AttendArguments) -> anyhow::Result<Verdict> {
    let backend = choose(&arguments.backend.backend)?;
    let case = Case::read(&arguments.case, arguments.options.as_deref())?;
    let bar = terminal::progress(1);
    bar.set_message(format!("{} on {}", arguments.case.display(), backend.info().name));
    let execution =
        compute(&*backend, &case, 1).map_err(|fault| fault.in_file(arguments.case.display().to_string()))?;
    write(arguments, &execution)?;
    bar.finish_and_clear();
    summarise(arguments, &*backend, &execution)?;
    Ok(Verdict::Passed)
}

/// Runs a case on a backend.
pub(crate) fn compute(backend: &dyn Backend, case: &Case, repeats: usize) -> Result<Execution, Fault> {
    let stream = backend.stream()?;
    let tensors = case.upload(backend, &stream)?;
    let options = tensors.attention_options();
    Ok(execute((backend, &stream), tensors.query(), tensors.kv(), &options, repeats)?)
}

fn write(arguments: &AttendArguments, execution: &Execution) -> Result<(), CaseError> {
    let shape = &execution.shape;
    let mut tensors = vec![NamedTensor::from_bytes("out", shape.dtype, &shape.out, execution.out.clone())];
    if let Some(lse) = &execution.lse {
        tensors.push(NamedTensor::from_bytes("lse", DType::F32, &shape.lse, lse.clone()));
    }
    to_bytes(&tensors)
        .and_then(|bytes| write_atomically(&arguments.output, &bytes))
        .map_err(|fault| fault.in_file(arguments.output.display().to_string()))
}

fn summarise(
    arguments: &AttendArguments,
    backend: &dyn Backend,
    execution: &Execution,
) -> anyhow::Result<()> {
    let (shape, name) = (&execution.shape, &backend.info().name);
    let output = arguments.output.display().to_string();
    if arguments.json {
        return terminal::print_json(&json!({
            "output": output,
            "out": {"shape": shape.out, "dtype": shape.dtype.name()},
            "lse": execution.lse.as_ref().map(|_| json!({"shape": shape.lse, "dtype": "f32"})),
            "backend": name,
            "plan": execution.plan.to_string(),
            "ms": execution.elapsed.as_secs_f64() * 1e3,
        }));
    }
    let lse = if execution.lse.is_some() { format!(", lse {:?} f32", shape.lse) } else { String::new() };
    terminal::print_line(format_args!("{output}: out {:?} {}{lse}", shape.out, shape.dtype))?;
    terminal::print_line(format_args!("{name} took {}", terminal::time(execution.elapsed)))?;
    terminal::print_plan(&execution.plan)
}
