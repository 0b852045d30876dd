//! `omniflash info`: what this machine has.

use omniflash::{Backend, BackendInfo, DeviceId, Registry};
use serde_json::{Value, json};

use crate::Verdict;
use crate::arguments::InfoArguments;
use crate::terminal;

/// The variables that change what omniflash does, and how.
const VARIABLES: [(&str, &str); 9] = [
    ("OMNIFLASH_BACKEND", "the backend that `auto` stands for"),
    ("OMNIFLASH_CPU_ISA", "the instruction set of cpu, for tests"),
    ("OMNIFLASH_KERNELS", "compiled GPU kernels, asked first: a directory or a pack"),
    ("OMNIFLASH_CACHE", "the directory where kernels compiled here are kept"),
    ("OMNIFLASH_CUDA_LIBRARY", "the CUDA driver, where it is not found by itself"),
    ("OMNIFLASH_NVRTC_LIBRARY", "the same of the CUDA run-time compiler"),
    ("OMNIFLASH_HIP_LIBRARY", "the same of the HIP driver"),
    ("OMNIFLASH_HIPRTC_LIBRARY", "the same of the HIP run-time compiler"),
    ("RAYON_NUM_THREADS", "threads that compute on a CPU"),
];

pub(crate) fn run(arguments: &InfoArguments) -> anyhow::Result<Verdict> {
    let registry = Registry::discover();
    let best = registry.best();
    if arguments.json {
        terminal::print_json(&to_json(&registry, &best))?;
    } else {
        print(&registry, &best)?;
    }
    // A variable that names a backend that is not there.
    best?;
    Ok(Verdict::Passed)
}

type Best = omniflash::Result<std::sync::Arc<dyn Backend>>;

fn print(registry: &Registry, best: &Best) -> anyhow::Result<()> {
    let mut table = terminal::table(&["backend", "device", "arch", "units", "memory", "driver"]);
    for backend in registry.backends() {
        let info = backend.info();
        table.add_row([
            info.name.clone(),
            device(info),
            info.arch.clone(),
            info.units.to_string(),
            memory(info.memory_bytes),
            info.driver.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    terminal::align_numbers(&mut table, 3..5);
    terminal::print_line(format_args!("omniflash {}\n{table}", env!("CARGO_PKG_VERSION")))?;
    for absent in registry.absent() {
        terminal::print_line(format_args!("{} is absent: {}", absent.name, absent.reason))?;
    }
    if let Ok(best) = best {
        terminal::print_line(format_args!(
            "best: {} ({})",
            terminal::heading(&best.info().name),
            why_best()
        ))?;
    }
    terminal::print_line(format_args!("\n{}", terminal::heading("environment")))?;
    for (name, meaning) in VARIABLES {
        let value = variable(name).map_or_else(|| "not set".into(), |value| format!("= {value}"));
        terminal::print_line(format_args!("  {name:<24} {value:<10} {}", terminal::faint(meaning)))?;
    }
    Ok(())
}

fn to_json(registry: &Registry, best: &Best) -> Value {
    let backends: Vec<Value> = registry
        .backends()
        .iter()
        .map(|backend| {
            let info = backend.info();
            json!({
                "name": info.name,
                "device": info.device.to_string(),
                "vendor": info.vendor,
                "device_name": info.device_name,
                "arch": info.arch,
                "memory_bytes": info.memory_bytes,
                "units": info.units,
                "driver": info.driver,
            })
        })
        .collect();
    let absent: Vec<Value> = registry
        .absent()
        .iter()
        .map(|absent| json!({"name": absent.name, "reason": absent.reason}))
        .collect();
    let environment: serde_json::Map<String, Value> =
        VARIABLES.iter().map(|(name, _)| ((*name).into(), json!(variable(name)))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "backends": backends,
        "absent": absent,
        "best": best.as_ref().ok().map(|best| best.info().name.clone()),
        "why_best": why_best(),
        "environment": environment,
    })
}

fn why_best() -> &'static str {
    match variable("OMNIFLASH_BACKEND") {
        Some(name) if !matches!(name.as_str(), "" | "auto") => "OMNIFLASH_BACKEND names it",
        _ => "the fastest here: GPUs before the CPU, the reference last",
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var_os(name).map(|value| value.to_string_lossy().into_owned())
}

fn device(info: &BackendInfo) -> String {
    // A processor's vendor is a code such as AuthenticAMD, and its name begins with the maker's.
    if info.device == DeviceId::Cpu || info.device_name.starts_with(&info.vendor) {
        info.device_name.clone()
    } else {
        format!("{} {}", info.vendor, info.device_name)
    }
}

/// Bytes in binary units; 0 is not known.
fn memory(bytes: u64) -> String {
    match bytes {
        0 => "-".into(),
        bytes => format!("{} GiB", terminal::three_digits(bytes as f64 / f64::from(1 << 30))),
    }
}
