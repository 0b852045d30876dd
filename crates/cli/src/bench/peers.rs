//! Other systems, timed beside ours by the scripts in `benches/peers`.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use omniflash::{Backend, DeviceId};
use serde::Deserialize;

use super::measure::system;
use super::{Group, Mode};
use crate::arguments::BenchArguments;
use crate::results::{Record, SHORT};
use crate::terminal;

/// A Python that has the peers' packages, named by the environment.
const PYTHON_VARIABLE: &str = "OMNIFLASH_PYTHON";
/// Where the scripts are, in a checkout.
const SCRIPTS: &str = "benches/peers";

/// What `peers.py --list` says of a system.
#[derive(Debug, Deserialize)]
struct Listed {
    system: String,
    /// Why it cannot be used.
    absent: Option<String>,
}

/// How many of these backends have peers that are known.
pub(super) fn known(backends: &[Arc<dyn Backend>]) -> usize {
    backends.iter().filter(|backend| folder(&***backend).is_some()).count()
}

/// The folder of the scripts for a kind of device.
fn folder(backend: &dyn Backend) -> Option<&'static str> {
    match backend.info().device {
        DeviceId::Cpu => Some("cpu"),
        DeviceId::Cuda(_) => Some("gpu"),
        _ => None,
    }
}

/// Times the peers of each backend's kind of device, ours in turns with them, and hands over each line; those of one
/// backend take about `limit`, if there is one.
///
/// # Errors
/// When there are no scripts or no Python, or a script fails half-way; an absent peer is told, not an error.
pub(super) fn run(
    arguments: &BenchArguments,
    backends: &[Arc<dyn Backend>],
    limit: Option<Duration>,
    mut take: impl FnMut(Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let (scripts, python) = (scripts()?, python(arguments));
    for backend in backends {
        let Some(folder) = folder(&**backend) else {
            note(format_args!("{}: no peers are known for this kind of device", backend.info().name))?;
            continue;
        };
        let script = scripts.join(folder).join("peers.py");
        match list(&python, &script) {
            Ok(listed) => {
                let (absent, present): (Vec<Listed>, Vec<Listed>) = listed
                    .into_iter()
                    .filter(|listed| is_chosen(&listed.system, arguments))
                    .partition(|listed| listed.absent.is_some());
                for Listed { system, absent } in absent {
                    note(format_args!("{system} is absent: {}", absent.unwrap_or_default()))?;
                }
                let cases = cases(arguments, &**backend);
                if cases.as_ref().is_some_and(String::is_empty) {
                    note(format_args!("{}: peers have none of the chosen cases", backend.info().name))?;
                } else if !present.is_empty() {
                    let names: Vec<String> = present.into_iter().map(|listed| listed.system).collect();
                    let mut command = command(arguments, &**backend, &python, &script, &names)?;
                    if let Some(cases) = cases {
                        command.args(["--cases", &cases]);
                    }
                    if let Some(limit) = limit {
                        command.args(["--time-limit", &limit.as_secs_f64().to_string()]);
                    }
                    measure(command, &**backend, &mut take)?;
                }
            }
            Err(reason) => note(format_args!("the peers of {} are absent: {reason:#}", backend.info().name))?,
        }
    }
    Ok(())
}

/// The folder of scripts of the checkout that the current folder lies in, or that this program was built in.
fn scripts() -> anyhow::Result<PathBuf> {
    let here = std::env::current_dir().context("there is no current folder")?;
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors()
        .chain(built.ancestors())
        .map(|folder| folder.join(SCRIPTS))
        .find(|folder| folder.is_dir())
        .with_context(|| format!("--peers: no {SCRIPTS} in {} or above", here.display()))
}

/// The Python that was named, by the command line or the environment, else the one on PATH.
fn python(arguments: &BenchArguments) -> PathBuf {
    let named = || std::env::var_os(PYTHON_VARIABLE).map(PathBuf::from);
    arguments.python.clone().or_else(named).unwrap_or_else(|| "python3".into())
}

fn is_chosen(system: &str, arguments: &BenchArguments) -> bool {
    arguments.systems.is_empty() || arguments.systems.iter().any(|name| name == system)
}

/// Refuses peers by a name that no backend's script knows, before anything is measured. Scripts that cannot be asked know
/// nothing, which is told later.
///
/// # Errors
/// Such a name, with those that are known.
pub(super) fn check_systems(arguments: &BenchArguments, backends: &[Arc<dyn Backend>]) -> anyhow::Result<()> {
    if arguments.systems.is_empty() {
        return Ok(());
    }
    let (scripts, python) = (scripts()?, python(arguments));
    let folders = backends.iter().filter_map(|backend| folder(&**backend));
    let listed = folders.filter_map(|folder| list(&python, &scripts.join(folder).join("peers.py")).ok());
    let known: Vec<String> = listed.flatten().map(|listed| listed.system).collect();
    match arguments.systems.iter().find(|name| !known.is_empty() && !known.contains(name)) {
        Some(name) => {
            anyhow::bail!("--systems names {name}, expected some of {}", known.join(", "))
        }
        None => Ok(()),
    }
}

/// The systems that a script knows.
fn list(python: &Path, script: &Path) -> anyhow::Result<Vec<Listed>> {
    let output = Command::new(python)
        .arg(script)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot run {}", python.display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    let last = errors.lines().last().unwrap_or("it failed without a word");
    anyhow::ensure!(output.status.success(), "{}: {last}", python.display());
    let lines = String::from_utf8(output.stdout).context("its answer is no text")?;
    lines
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("its answer is {line}")))
        .collect()
}

/// What the script of a backend's peers is told of cases: names of its own on a CPU, a regular expression on a GPU; none
/// for all of them.
fn cases(arguments: &BenchArguments, backend: &dyn Backend) -> Option<String> {
    if backend.info().device != DeviceId::Cpu {
        return arguments.case.as_ref().map(|text| escaped(text));
    }
    let group_of = |name: &str| if name.starts_with("dec_") { Group::Decode } else { Group::Prefill };
    let is_chosen = |name: &str| {
        (arguments.groups.is_empty() || arguments.groups.contains(&group_of(name)))
            && arguments.case.as_ref().is_none_or(|text| name.contains(text))
    };
    let chosen = SHORT.iter().filter(|(_, name)| is_chosen(name)).map(|(short, _)| *short);
    Some(chosen.collect::<Vec<_>>().join(","))
}

/// A text as a regular expression that finds it.
fn escaped(text: &str) -> String {
    text.chars()
        .flat_map(|c| (!c.is_alphanumeric() && c != '_').then_some('\\').into_iter().chain([c]))
        .collect()
}

/// What runs a script for these systems and ours.
fn command(
    arguments: &BenchArguments,
    backend: &dyn Backend,
    python: &Path,
    script: &Path,
    systems: &[String],
) -> anyhow::Result<Command> {
    let ourselves = std::env::current_exe().context("cannot find this program")?;
    let name = &backend.info().name;
    let system = system(backend, arguments.algorithm);
    let mut command = Command::new(python);
    command
        .arg(script)
        .args(["--systems", &systems.join(",")])
        .arg("--ext")
        .arg(format!(
            "{system}={} bench --backend {name} --algorithm {}",
            quoted(&ourselves),
            arguments.algorithm
        ))
        .args(["--budget", if arguments.quick { "0.05" } else { "0.25" }])
        .args(["--rounds", if arguments.quick { "1" } else { "3" }])
        .stdout(Stdio::piped());
    if backend.info().device == DeviceId::Cpu {
        command.args(["--threads", &rayon::current_num_threads().to_string()]);
    } else if !arguments.groups.is_empty() {
        let groups: Vec<&str> = arguments.groups.iter().map(|group| group.name()).collect();
        command.args(["--groups", &groups.join(",")]);
    }
    if let Some(mode) = Mode::of(backend, arguments.mode) {
        command.args(["--mode", mode.name()]);
    }
    let dtypes = if arguments.dtype.is_empty() { &[omniflash::DType::BF16][..] } else { &arguments.dtype };
    let dtypes: Vec<String> = dtypes.iter().map(ToString::to_string).collect();
    command.args(["--dtypes", &dtypes.join(",")]);
    if arguments.quick {
        command.arg("--quick");
    }
    Ok(command)
}

/// Runs a script and hands over its lines as they come.
fn measure(
    mut command: Command,
    backend: &dyn Backend,
    take: &mut impl FnMut(Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let program = command.get_program().to_owned();
    let mut child =
        command.spawn().with_context(|| format!("cannot run {}", Path::new(&program).display()))?;
    let output = child.stdout.take().expect("it is piped");
    let taken = BufReader::new(output).lines().try_for_each(|line| {
        let line = line.context("cannot read what the peers' script writes")?;
        let mut record: Record =
            serde_json::from_str(&line).with_context(|| format!("the peers' script wrote {line}"))?;
        record.device.get_or_insert_with(|| backend.info().device_name.clone());
        take(record.normalized())
    });
    if taken.is_err() {
        // It is of no use any more; that it has ended already is no error.
        let _ = child.kill();
    }
    let status = child.wait().context("cannot wait for the peers' script")?;
    taken?;
    anyhow::ensure!(status.success(), "the peers' script failed: {status}");
    Ok(())
}

/// A path as a shell word.
fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

/// Tells on standard error, beside the lines of results.
fn note(text: impl std::fmt::Display) -> anyhow::Result<()> {
    terminal::print_note(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_one_word_of_a_shell() {
        assert_eq!(quoted(Path::new("/a b/it's")), r"'/a b/it'\''s'");
    }

    #[test]
    fn a_text_is_found_by_its_regular_expression() {
        assert_eq!(escaped("dec_B1+.*"), r"dec_B1\+\.\*");
    }

    #[test]
    fn the_scripts_of_this_checkout_are_found() {
        assert!(scripts().unwrap().join("cpu/peers.py").is_file());
    }
}
