// SPDX-License-Identifier: MIT OR Apache-2.0
//! Shows the progress of the tasks: one line per step, and how long each took.

use std::cell::RefCell;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

thread_local! {
    /// The finished steps, in the order in which they ended. Steps run on the main thread only.
    static FINISHED: RefCell<Vec<(String, Duration)>> = const { RefCell::new(Vec::new()) };
    /// The number of steps in progress.
    static DEPTH: RefCell<usize> = const { RefCell::new(0) };
}

/// Shorter steps have no line in the table of timings.
const NEGLIGIBLE: Duration = Duration::from_millis(100);

/// A step in progress: a spinner on a terminal, plain lines elsewhere.
pub(crate) struct Step {
    bar: Option<ProgressBar>,
}

impl Step {
    /// Shows `message` beside the spinner, if there is a terminal.
    pub(crate) fn note(&self, message: &str) {
        if let Some(bar) = &self.bar {
            let width = console::Term::stderr().size().1 as usize;
            let message = message.trim();
            let room = width.saturating_sub(40);
            bar.set_message(message.chars().take(room).collect::<String>());
        }
    }
}

/// Runs `work` as the step `name`, shows it and records how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce(&Step) -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    let depth = DEPTH.with_borrow_mut(|d| {
        *d += 1;
        *d - 1
    });
    let indent = "  ".repeat(depth);
    let bar = if std::io::stderr().is_terminal() {
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{prefix} {spinner} {elapsed} {msg:.dim}") {
            bar.set_style(style);
        }
        bar.set_prefix(format!("{indent}{name}"));
        bar.enable_steady_tick(Duration::from_millis(120));
        Some(bar)
    } else {
        eprintln!("{indent}{name} ...");
        None
    };
    let step = Step { bar };
    let result = work(&step);
    let took = begin.elapsed();
    if let Some(bar) = &step.bar {
        bar.finish_and_clear();
    }
    let end = if result.is_ok() { "done" } else { "FAILED" };
    eprintln!("{indent}{name}: {end} in {}", human(took));
    DEPTH.with_borrow_mut(|d| *d -= 1);
    FINISHED.with_borrow_mut(|all| all.push((format!("{indent}{name}"), took)));
    result
}

/// Records how long a part of a step took, for the table of timings.
pub(crate) fn record(name: &str, took: Duration) {
    let indent = "  ".repeat(DEPTH.with_borrow(|depth| *depth));
    FINISHED.with_borrow_mut(|all| all.push((format!("{indent}{name}"), took)));
}

/// Prints how long each step took.
pub(crate) fn print_timings() {
    let finished = FINISHED.take();
    let rows: Vec<_> = finished.iter().filter(|(_, t)| *t >= NEGLIGIBLE).collect();
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    println!("\nHow long each part took:");
    for (name, took) in rows {
        println!("  {name:width$}  {:>8}", human(*took));
    }
}

/// Formats a duration for people: `850ms`, `12.3s`, `12m03s`.
pub(crate) fn human(time: Duration) -> String {
    let secs = time.as_secs();
    match secs {
        0 => format!("{}ms", time.as_millis()),
        1..=59 => format!("{:.1}s", time.as_secs_f64()),
        _ => format!("{}m{:02}s", secs / 60, secs % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_formatted_by_their_size() {
        assert_eq!(human(Duration::from_millis(850)), "850ms");
        assert_eq!(human(Duration::from_millis(12_340)), "12.3s");
        assert_eq!(human(Duration::from_secs(723)), "12m03s");
    }
}
