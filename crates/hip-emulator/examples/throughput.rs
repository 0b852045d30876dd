//! Prints how many wave-instructions a second the emulator executes of a code object for a device.
//!
//! `cargo run --release --example throughput -- attention.gfx942.co gfx942`, with an object compiled from
//! `tests/kernels/attention.hip`.

use std::error::Error;
use std::io::Write as _;
use std::time::Instant;

use omniflash_hip_emulator::{Checks, Class, Configuration, Device, Dimensions, Target};

const HEADS: usize = 2;
const ROWS: usize = 512;
const HEAD_DIM: usize = 64;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, path, target] = &arguments[..] else { return Err("usage: throughput OBJECT TARGET".into()) };
    let target: Target = target.parse()?;
    for (name, checks) in [("all", Checks::ALL), ("none", Checks::NONE)] {
        let mut device =
            Device::new(target, Configuration { checks, threads: 1, ..Configuration::default() });
        let module = device.load(&std::fs::read(path)?)?;
        let numbers: Vec<u8> =
            (0..HEADS * ROWS * HEAD_DIM).flat_map(|i| (0x3e00u16 + (i % 509) as u16).to_le_bytes()).collect();
        let mut packed = Vec::new();
        for bytes in [numbers.len(), numbers.len(), numbers.len(), numbers.len(), 4 * HEADS * ROWS] {
            let address = device.allocate(bytes)?;
            if bytes == numbers.len() {
                device.write(address, &numbers)?;
            }
            packed.extend(address.to_le_bytes());
        }
        packed.extend((ROWS as i32).to_le_bytes());
        packed.extend((ROWS as i32).to_le_bytes());
        packed.extend(1i32.to_le_bytes());
        packed.extend(0.18f32.to_le_bytes());
        packed.extend(0i32.to_le_bytes());
        let wave = target.wave_size();
        let grid = [(ROWS / (2 * wave)) as u32, HEADS as u32, 1];
        let start = Instant::now();
        device.launch(&module, "attention", Dimensions::new(grid, [4 * wave as u32, 1, 1]), &packed)?;
        let seconds = start.elapsed().as_secs_f64();
        let counters = device.counters();
        writeln!(
            std::io::stdout(),
            "{target} checks {name}: {:.2} M wave-instructions/s on one core, {} instructions, {} matrix, {} LDS conflicts",
            counters.total_instructions() as f64 / seconds / 1e6,
            counters.total_instructions(),
            counters.of(Class::Matrix),
            counters.lds_bank_conflicts,
        )?;
    }
    Ok(())
}
