//! Failing with one line and exit code 2, whatever happens.

use std::io::Write;
use std::process::ExitCode;

use crate::Verdict;
use crate::terminal::ReaderGone;

/// The exit code of everything that fails.
const FAILED: u8 = 2;

/// The exit code when nobody reads the output any more: what a shell shows of a program that its closed pipe has ended
/// (128 and the signal's number).
const READER_GONE: u8 = 141;

/// Makes what would end the process otherwise end it in the same way: a panic, and the abort of an allocation that
/// cannot fail by a typed error.
pub(crate) fn install() {
    std::panic::set_hook(Box::new(|panic| {
        report(&format!("internal error, please report it: {panic}"));
        std::process::exit(i32::from(FAILED));
    }));
    #[cfg(unix)]
    {
        use std::sync::Arc;
        use std::sync::atomic::AtomicBool;
        // The standard library has by then written its own line: "memory allocation of N bytes failed".
        let always = Arc::new(AtomicBool::new(true));
        let registered = signal_hook::flag::register_conditional_shutdown(
            signal_hook::consts::SIGABRT,
            i32::from(FAILED),
            always,
        );
        // Without the handler an abort is still an abort.
        drop(registered);
    }
}

/// The exit code of a command, after telling what failed.
pub(crate) fn outcome(result: anyhow::Result<Verdict>) -> ExitCode {
    match result {
        Ok(Verdict::Passed) => ExitCode::SUCCESS,
        Ok(Verdict::OutOfTolerance) => ExitCode::FAILURE,
        Err(error) if error.is::<ReaderGone>() => ExitCode::from(READER_GONE),
        Err(error) => exit(&format!("{error:#}")),
    }
}

/// Tells what failed.
pub(crate) fn exit(message: &str) -> ExitCode {
    report(message);
    ExitCode::from(FAILED)
}

/// A usage error in one line: what is wrong, and the hints.
pub(crate) fn usage(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let mut parts = Vec::new();
    for paragraph in text.split("\n\n") {
        let paragraph = paragraph.trim();
        if !paragraph.starts_with("Usage:") && !paragraph.starts_with("For more information") {
            parts.push(paragraph.trim_start_matches("error: ").trim_start_matches("tip: "));
        }
    }
    format!("{}; see omniflash --help", parts.join("; "))
}

fn report(message: &str) {
    let line = one_line(message);
    // Nothing is left to tell when standard error is gone.
    let _ = writeln!(std::io::stderr(), "omniflash: {line}");
}

/// Line breaks and runs of blanks become one blank, other control characters are escaped.
fn one_line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let line = words.join(" ");
    line.chars()
        .flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_becomes_one_printable_line() {
        assert_eq!(one_line("error:\n  a\u{1b}[31m\t b\r\n"), "error: a\\u{1b}[31m b");
    }
}
