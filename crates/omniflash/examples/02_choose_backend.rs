//! Which backends there are, why others are not, and how to choose one.
#![allow(clippy::print_stdout)]

use omniflash::{Error, Registry, Result};

fn main() -> Result<()> {
    let registry = Registry::discover();
    for backend in registry.backends() {
        let info = backend.info();
        println!("{:<10} {} ({}), {} units", info.name, info.device_name, info.arch, info.units);
    }
    for absent in registry.absent() {
        println!("{:<10} absent: {}", absent.name, absent.reason);
    }

    // OMNIFLASH_BACKEND decides, if it is set; else GPUs come before the CPU.
    println!("best: {}", registry.best()?.info().name);

    // By name. A backend that is not there is an error that says why, never another backend.
    match registry.get("cuda:0") {
        Ok(backend) => println!("cuda:0 is {}", backend.info().device_name),
        Err(Error::Absent { reason, .. }) => println!("no cuda:0: {reason}"),
        Err(error) => println!("no cuda:0: {error}"),
    }
    Ok(())
}
