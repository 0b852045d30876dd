//! The demonstration: real activations, then a prompt and its generation over a paged cache, all checked.

use std::time::Instant;

use console::style;
use omniflash::Backend;
use serde_json::json;

use crate::Verdict;
use crate::arguments::DemoArguments;
use crate::execution::choose;
use crate::terminal;

mod accuracy;
mod activations;
mod generation;
mod mirrored;

use accuracy::Step;
use activations::{Activations, TextAttention};
use generation::{Generation, Sizes};

pub(crate) fn run(arguments: &DemoArguments) -> anyhow::Result<Verdict> {
    let start = Instant::now();
    let backend = choose(&arguments.backend)?;
    // The reference computes in float64, one row at a time: the larger sizes would take minutes.
    let quick = arguments.quick || backend.info().name == "reference";
    let sizes = if quick { Sizes::QUICK } else { Sizes::FULL };
    if !arguments.json {
        introduce(&*backend)?;
    }
    let bar = terminal::progress(2 + sizes.progress_steps());
    bar.set_message("real activations");
    let activations = Activations::attend(&*backend)?;
    bar.inc(2);
    if !arguments.json {
        bar.suspend(|| show_activations(&activations))?;
    }
    let generation = Generation::run(&*backend, &sizes, &bar)?;
    bar.finish_and_clear();

    let steps: Vec<&Step> = activations.steps.iter().chain(&generation.steps).collect();
    let passed = steps.iter().all(|step| step.accuracy.passed());
    let seconds = start.elapsed().as_secs_f64();
    if arguments.json {
        terminal::print_json(&json!({
            "backend": backend.info().name,
            "device": backend.info().device_name,
            "arch": backend.info().arch,
            "steps": steps.iter().map(|step| step.to_json()).collect::<Vec<_>>(),
            "attention_of_words": activations.texts.iter().map(TextAttention::to_json).collect::<Vec<_>>(),
            "seconds": seconds,
            "passed": passed,
        }))?;
    } else {
        show_generation(&generation, &sizes)?;
        conclude(passed, seconds)?;
    }
    Ok(if passed { Verdict::Passed } else { Verdict::OutOfTolerance })
}

fn introduce(backend: &dyn Backend) -> anyhow::Result<()> {
    let info = backend.info();
    terminal::print_line(format_args!(
        "{} on {}: {}, {}, {} {}\n",
        terminal::heading(concat!("omniflash ", env!("CARGO_PKG_VERSION"))),
        style(&info.name).cyan().bold(),
        info.device_name,
        info.arch,
        info.units,
        if info.device == omniflash::DeviceId::Cpu { "threads" } else { "units" },
    ))
}

fn show_activations(activations: &Activations) -> anyhow::Result<()> {
    terminal::print_line(terminal::heading("Real activations"))?;
    paragraph(
        "Queries, keys and values of one layer of the sentence transformer all-MiniLM-L6-v2 on four texts, \
         padded to one batch. What one of its 12 heads lets a word look at:",
    )?;
    terminal::print_line("")?;
    for text in &activations.texts {
        for line in text.text(terminal::width() - 2) {
            terminal::print_line(format_args!("  {line}"))?;
        }
        terminal::print_line(format_args!("  {}", text.bars()))?;
        terminal::print_line(format_args!("  {}\n", text.favourites()))?;
    }
    show_steps(&activations.steps)
}

fn show_generation(generation: &Generation, sizes: &Sizes) -> anyhow::Result<()> {
    terminal::print_line(terminal::heading("A prompt and its generation"))?;
    paragraph(&format!(
        "{} heads share {} key heads, head_dim {}, {}: {} tokens with a causal mask, then {} one by one over a \
         cache of shuffled pages of {} keys. Unused pages hold NaN. Checked on a sample of heads and rows.",
        sizes.num_heads,
        sizes.num_kv_heads,
        sizes.head_dim,
        sizes.dtype,
        sizes.prompt,
        sizes.steps,
        sizes.page_size
    ))?;
    terminal::print_line("")?;
    show_steps(&generation.steps)
}

/// A table of steps, and how each was planned.
fn show_steps(steps: &[Step]) -> anyhow::Result<()> {
    let mut table = terminal::table(&["step", "time", "rate", "error", "allowed", ""]);
    for step in steps {
        step.add_to(&mut table);
    }
    terminal::align_numbers(&mut table, 1..3);
    terminal::print_line(table)?;
    for plan in steps.iter().filter_map(|step| step.plan.as_ref()) {
        terminal::print_plan(plan)?;
    }
    terminal::print_line("")
}

fn conclude(passed: bool, seconds: f64) -> anyhow::Result<()> {
    terminal::print_line(if passed {
        format!(
            "{} every result is within tolerance of the float64 reference ({seconds:.1} s)",
            terminal::verdict(true)
        )
    } else {
        format!("{} a result is further from the float64 reference than it may be", terminal::verdict(false))
    })
}

fn paragraph(text: &str) -> anyhow::Result<()> {
    terminal::wrapped(text, terminal::width()).iter().try_for_each(terminal::print_line)
}
